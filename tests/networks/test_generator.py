import pytest
import torch
from torch import nn

from medstyle.networks.generator import GENERATORS, Generator, ModulatedConv, blur_pool
from medstyle.networks.networks import Architecture, Networks

SMALL = {"widths": (4, 6, 8), "bottleneck_blocks": 2, "style_size": 5}
# sizes that every generator takes; SwinUNETR halves five times and needs more than one place at the
# bottom
SIZES = {"medstyle": (17, 13, 9), "unet": (17, 13, 9), "dynunet": (17, 13, 9), "swin_unetr": (64, 64, 50)}


def wake(network: nn.Module) -> None:
    """Give the zero-initialised style projections weights."""
    torch.manual_seed(1)
    for module in network.modules():
        if isinstance(module, ModulatedConv) and module.style is not None:
            nn.init.normal_(module.style.weight)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("contrasts", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", [name for name in GENERATORS if name != "swin_unetr"])
def test_any_number_of_contrasts_and_odd_sizes(name, dims, contrasts):
    architecture = Architecture(generator=name, widths=(4, 6, 8), bottleneck_blocks=1, dimensions=dims)
    networks = Networks(architecture, ["mr_t1", "mr_t2"], contrasts)
    x = torch.randn(2, contrasts, *SIZES[name][-dims:])
    assert networks(x, torch.tensor([0, 1])).shape == (2, 1, *x.shape[2:])


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("residual", [False, True])
def test_every_generator_hears_the_style(name, residual):
    torch.manual_seed(0)
    networks = Networks(
        Architecture(generator=name, widths=(4, 6, 8), bottleneck_blocks=1, residual=residual), ["mr_t1", "mr_t2"]
    ).eval()
    wake(networks)
    x = torch.randn(1, 1, *SIZES[name][-2:]).expand(2, -1, -1, -1)
    with torch.inference_mode():
        one, other = networks(x, torch.tensor([0, 1]))
        again = networks(x, torch.tensor([1, 0]))[1]
    assert not torch.allclose(one, other, atol=1e-4)
    torch.testing.assert_close(one, again)


def test_what_is_added_to_is_the_middle_slice_of_each_colour():
    architecture = Architecture(widths=(4, 6), bottleneck_blocks=0, neighbours=3, residual=True)
    networks = Networks(architecture, ["photo", "painting"])
    nn.init.zeros_(networks.generator.head.conv.weight)
    nn.init.zeros_(networks.generator.head.conv.bias)
    x = torch.randn(2, 9, 16, 16)  # red before, here, after; green...
    torch.testing.assert_close(networks(x, torch.tensor([0, 1])), x[:, 1::3])


@pytest.mark.parametrize("dims", [2, 3])
def test_style_is_silent_at_first_and_speaks_later(dims):
    torch.manual_seed(0)
    generator = Generator(spatial_dims=dims, **SMALL)
    x = torch.randn(2, 1, *(16,) * dims)
    a, b = torch.randn(2, 5), torch.randn(2, 5)
    assert torch.equal(generator(x, a), generator(x, b))
    wake(generator)
    assert not torch.allclose(generator(x, a), generator(x, b), atol=1e-2)


@pytest.mark.parametrize("dims", [2, 3])
def test_at_first_the_modulated_network_is_the_plain_unet(dims):
    torch.manual_seed(0)
    modulated = Generator(spatial_dims=dims, **SMALL)
    plain = Generator(spatial_dims=dims, **{**SMALL, "style_size": None})
    weights = modulated.state_dict()
    plain.load_state_dict({**plain.state_dict(), **{k: v for k, v in weights.items() if ".style." not in k}})
    x = torch.randn(2, 1, *(16,) * dims)
    torch.testing.assert_close(modulated(x, torch.randn(2, 5)), plain(x, torch.randn(2, 5)))


def test_the_encoder_removes_contrast_and_never_sees_style():
    torch.manual_seed(0)
    generator = Generator(**SMALL)
    x = torch.randn(1, 1, 32, 32)
    for one, other in zip(generator.features(x), generator.features(7 * x), strict=True):
        assert (one - other).abs().mean() < 0.05 * one.abs().mean()  # eps keeps it from being exact
    assert "style" not in "".join(name for name, _ in generator.encoder.named_parameters())


def test_group_norm_is_instance_norm_by_value():
    torch.manual_seed(0)
    block = ModulatedConv(2, 3, 6)
    x = torch.randn(2, 3, 9, 9)
    h = block.conv(x)
    torch.testing.assert_close(block.norm(h), nn.functional.instance_norm(h, eps=1e-3), atol=1e-5, rtol=1e-4)


def test_bounded_stays_in_range():
    assert Generator(bounded=True, **SMALL)(100 * torch.randn(2, 1, 16, 16), torch.zeros(2, 5)).abs().max() <= 1


def test_blur_pool_keeps_a_constant_and_kills_the_checkerboard():
    constant = torch.full((1, 2, 16, 16), 3.0)
    torch.testing.assert_close(blur_pool(constant)[..., 1:-1, 1:-1], constant[..., :6, :6])
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    board = (((x + y) % 2) * 2.0 - 1)[None, None]
    assert blur_pool(board)[..., 1:-1, 1:-1].abs().max() < 1e-6


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("fold", [1, 2])
def test_gradients_reach_every_weight(fold, dims):
    generator = Generator(fold=fold, spatial_dims=dims, **SMALL)
    wake(generator)
    generator(torch.randn(1, 1, *(16,) * dims), torch.randn(1, 5)).square().mean().backward()
    assert [name for name, p in generator.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("fold", [2, 3])
def test_folded_pixels_come_back_to_their_places(fold, dims):
    torch.manual_seed(0)
    generator = Generator(fold=fold, spatial_dims=dims, in_channels=2, **SMALL).eval()
    assert generator.multiple == 4 * fold
    side = 4 * generator.multiple
    x = torch.randn(1, 2, *(side,) * dims)
    s = torch.zeros(1, 5)
    at = (0, 1, *(side // 2,) * dims)
    with torch.inference_mode():
        before = generator(x, s)
        assert before.shape == (1, 1, *(side,) * dims)
        x[at] += 10
        changed = (generator(x, s) - before).abs()[0, 0]
    far = torch.stack(torch.meshgrid(*[torch.arange(side)] * dims, indexing="ij")).sub(side // 2).abs().amax(0)
    assert changed[far <= 1].mean() > 5 * changed[far > 3 * fold].mean(), "what changes is where the pixel is"


def test_without_skips_a_folded_network_copies_no_pixel():
    torch.manual_seed(0)
    [art, anatomy] = (Generator(fold=2, levels_without_skip=n, **SMALL) for n in (1, 0))
    assert (art.head.sees, anatomy.head.sees) == (False, True)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_folded_network_takes_odd_sizes(dims):
    architecture = Architecture(widths=(4, 6), bottleneck_blocks=1, dimensions=dims, fold=2)
    networks = Networks(architecture, ["mr_t1", "mr_t2"], 2)
    x = torch.randn(2, 2, *(17, 13, 9)[-dims:])
    assert networks(x, torch.tensor([0, 1])).shape == (2, 1, *x.shape[2:])
