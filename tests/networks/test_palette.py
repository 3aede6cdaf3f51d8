import numpy as np
import pytest
import torch

from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.palette import Palette
from tests.networks.test_export import PICTURES, translator


def distance(one, other):
    """The 1-D Wasserstein distance of each channel of images ``(1, C, H, W)`` of one size."""
    return (one.flatten(2).sort(2).values - other.flatten(2).sort(2).values).abs().mean()


def test_an_image_takes_the_values_of_the_palette_in_its_own_order():
    torch.manual_seed(0)
    image, style = torch.randn(1, 3, 64, 64), torch.rand(1, 3, 64, 64) ** 3
    palette = Palette(32)
    made = palette(image, palette.measure(style))
    assert distance(made, style) < 0.01 * distance(image, style)
    for ours, theirs in zip(image[0], made[0], strict=True):
        assert (theirs.flatten()[ours.flatten().argsort()].diff() >= -1e-5).all(), "the map rises"


def test_the_mean_of_two_palettes_lies_between_them():
    dark, bright = torch.rand(1, 1, 32, 32) - 1, torch.rand(1, 1, 32, 32)
    palette = Palette(16)
    between = palette(dark, (palette.measure(dark) + palette.measure(bright)) / 2)
    torch.testing.assert_close(between.mean(), (dark.mean() + bright.mean()) / 2, atol=0.01, rtol=0)
    assert between.std() == pytest.approx(float(dark.std()), rel=0.1), "not a mixture of two heaps"


def test_a_flat_image_gets_finite_values_and_gradients():
    flat = torch.full((1, 1, 16, 16), 0.5, requires_grad=True)
    palette = Palette(8)
    palette(flat, torch.linspace(-1, 1, 8)[None, None]).square().mean().backward()
    assert torch.isfinite(flat.grad).all()


def test_a_translator_gives_the_palette_of_its_reference_whatever_its_generator_does():
    torch.manual_seed(0)
    networks = Networks(Architecture(widths=(4, 6), style=("reference",), palette=32), ["photo", "painting"]).eval()
    content, style = torch.rand(1, 3, 64, 64) * 2 - 1, torch.rand(1, 3, 64, 64) ** 2 - 1
    with torch.inference_mode():
        made = networks(content, torch.tensor([1]), None, style)
    assert distance(made, style) < 0.02 * distance(content, style)


def test_the_code_of_several_references_is_their_mean():
    model = translator(2, **PICTURES, style=("reference",), palette=8)
    pictures = torch.from_numpy(np.random.default_rng(0).random((2, 3, 32, 32), np.float32))
    both, one, other = (model.style(reference=which)[0] for which in (pictures, pictures[:1], pictures[1:]))
    torch.testing.assert_close(both, (one + other) / 2)
    assert both.shape == (1, 8 + 3 * 8)
