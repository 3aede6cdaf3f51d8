import pytest
import torch
from torch import nn

from medstyle.networks.generator import Generator, ModulatedConv, blur_pool

SMALL = {"widths": (4, 6, 8), "bottleneck_blocks": 2, "style_size": 5}


def wake(network: nn.Module) -> None:
    """Give the zero-initialised style projections weights."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, ModulatedConv) and module.style is not None:
            nn.init.normal_(module.style.weight)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_shapes(dims, channels):
    generator = Generator(in_channels=channels, out_channels=channels, spatial_dims=dims, **SMALL)
    x = torch.randn(2, channels, *(16, 12, 8)[-dims:])
    assert generator(x, torch.randn(2, 5)).shape == x.shape


@pytest.mark.parametrize("dims", [2, 3])
def test_style_is_silent_at_first_and_speaks_later(dims):
    torch.manual_seed(0)
    generator = Generator(spatial_dims=dims, **SMALL)
    x = torch.randn(2, 1, *(16,) * dims)
    a, b = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.equal(generator(x, a), generator(x, b))
    wake(generator)
    assert not torch.allclose(generator(x, a), generator(x, b), atol=1e-2)


def test_the_encoder_removes_contrast_and_never_sees_style():
    torch.manual_seed(0)
    generator = Generator(**SMALL)
    x = torch.randn(1, 1, 32, 32)
    for one, other in zip(generator.features(x), generator.features(7 * x), strict=True):
        assert (one - other).abs().mean() < 0.1 * one.abs().mean()  # eps and the first bias keep it from being exact
    assert "style" not in "".join(name for name, _ in generator.encoder.named_parameters())


def test_group_norm_is_instance_norm_by_value():
    torch.manual_seed(0)
    block = ModulatedConv(2, 3, 6)
    x = torch.randn(2, 3, 9, 9)
    h = block.conv(x)
    torch.testing.assert_close(block.norm(h), nn.functional.instance_norm(h, eps=1e-3), atol=1e-5, rtol=1e-4)


def test_residual_starts_from_the_image_and_bounded_stays_in_range():
    x = torch.randn(2, 1, 16, 16)
    s = torch.zeros(2, 5)
    torch.manual_seed(0)
    plain = Generator(**SMALL)
    torch.manual_seed(0)
    residual = Generator(residual=True, **SMALL)
    torch.testing.assert_close(residual(x, s), plain(x, s) + x)
    assert Generator(bounded=True, **SMALL)(100 * x, s).abs().max() <= 1


def test_blur_pool_keeps_a_constant_and_kills_the_checkerboard():
    constant = torch.full((1, 2, 16, 16), 3.0)
    torch.testing.assert_close(blur_pool(constant)[..., 1:-1, 1:-1], constant[..., :6, :6])
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = (((x + y) % 2) * 2.0 - 1)[None, None]
    assert blur_pool(board)[..., 1:-1, 1:-1].abs().max() < 1e-6


def test_gradients_reach_every_weight():
    generator = Generator(**SMALL)
    wake(generator)
    generator(torch.randn(1, 1, 16, 16), torch.randn(1, 5)).square().mean().backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []
