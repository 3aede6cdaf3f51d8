import pytest
import torch

from medstyle.networks.discriminator import Discriminator, probability


@pytest.mark.parametrize("dims", [2, 3])
def test_one_map_per_scale_for_the_claimed_domain(dims):
    torch.manual_seed(0)
    critic = Discriminator(in_channels=1, domains=3, width=4, layers=2, scales=2, spatial_dims=dims)
    y = torch.randn(2, 1, *(64, 48, 48)[-dims:])
    maps = critic(y, torch.tensor([0, 2]))
    assert [tuple(m.shape[:2]) for m in maps] == [(2, 1), (2, 1)]
    swapped = critic(y, torch.tensor([2, 0]))
    assert not torch.allclose(maps[0], swapped[0])


def test_the_published_patch_map():
    """PatchGAN with three strided layers judges 256 x 256 pixels by 30 x 30 patches (Isola
    2017)."""
    critic = Discriminator(width=2, layers=3, scales=3)
    sizes = [tuple(m.shape[-2:]) for m in critic(torch.randn(1, 1, 256, 256), torch.tensor([0]))]
    assert sizes == [(30, 30), (14, 14), (6, 6)]


def test_probability_is_the_mean_of_sigmoids():
    logits = [torch.tensor([[[[0.0, 100.0]]]]), torch.tensor([[[[-100.0]]]])]
    torch.testing.assert_close(probability(logits), torch.tensor([(0.75 + 0.0) / 2]))
