"""Windows and frames that share statistics are rendered as one picture would be."""

import numpy as np
import pytest
import torch
from scipy.ndimage import zoom
from torch import nn

from medstyle.inference import synthesise as rendering
from medstyle.inference import translate
from medstyle.inference.shared_norm import Statistics
from medstyle.networks.palette import Palette
from tests.inference.conftest import make_translator


def network(norm) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), norm, nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1)).eval()


NORMS = {
    "group": lambda: nn.GroupNorm(4, 4, eps=1e-3),
    "instance": lambda: nn.InstanceNorm2d(4, eps=1e-3),
    "affine": lambda: nn.InstanceNorm2d(4, eps=1e-3, affine=True),
}


@pytest.mark.parametrize("name", NORMS)
def test_statistics_of_an_image_reproduce_it_and_change_its_parts(name):
    one, image = network(NORMS[name]()), torch.rand(1, 1, 32, 32) * torch.linspace(0, 3, 32)
    statistics = Statistics([one])
    with torch.inference_mode():
        whole = one(image)
        with statistics.gather():
            torch.testing.assert_close(one(image), whole)
        part = image[..., 16:]
        with statistics.share():
            torch.testing.assert_close(one(image), whole, atol=1e-4, rtol=0)
            torch.testing.assert_close(one(part)[..., 2:], whole[..., 18:], atol=1e-4, rtol=0)
        assert (one(part)[..., 2:] - whole[..., 18:]).abs().max() > 0.01, "by itself it looks different"


def test_groups_of_several_channels_and_batches_are_left_alone():
    assert not Statistics([network(nn.GroupNorm(2, 4)), network(nn.BatchNorm2d(4))]).layers


def test_memory_follows_slowly():
    one, statistics = network(NORMS["group"]()), None
    statistics = Statistics([one])
    dark, bright = torch.rand(1, 1, 16, 16), 5 * torch.rand(1, 1, 16, 16)
    with torch.inference_mode(), statistics.share(0.9):
        one(dark)
        first = statistics.held[0].clone()
        one(bright)
    with torch.inference_mode(), Statistics([one]).gather():
        pass
    alone = Statistics([one])
    with torch.inference_mode(), alone.gather():
        one(bright)
    torch.testing.assert_close(statistics.held[0], 0.9 * first + 0.1 * alone.held[0])


def test_a_large_picture_in_windows_looks_as_in_one_piece(monkeypatch):
    """Dark at the left, bright at the right: windows of their own statistics would even that
    out."""
    rng = np.random.default_rng(0)
    coarse = zoom(rng.random((12, 12, 3)), (16, 16, 1), order=1) * np.linspace(0.2, 1, 192)[:, None]
    pixels = np.rint(255 * coarse).astype(np.uint8)
    translator = make_translator(("photo", "painting"), size=[64, 64])
    whole = translate.translate_picture(pixels, translator).image.astype(float)
    monkeypatch.setattr(rendering, "WHOLE", 16000)
    monkeypatch.setattr(rendering, "WINDOW", 64)
    shared = translate.translate_picture(pixels, translator).image
    monkeypatch.setattr(rendering, "Statistics", lambda networks: Statistics([]))
    alone = translate.translate_picture(pixels, translator).image
    error, other = (np.abs(image - whole).mean() for image in (shared, alone))
    assert error < 0.5 * other
    assert whole.std() > 10, "there is something to see"


def test_windows_take_the_palette_as_one_picture(monkeypatch):
    """A dark corner stays dark, although the palette of the reference has bright values, too."""
    rng = np.random.default_rng(0)
    coarse = zoom(rng.random((12, 12, 3)), (16, 16, 1), order=1) * np.linspace(0.2, 1, 192)[:, None]
    pixels, style = (np.rint(255 * image).astype(np.uint8) for image in (coarse, rng.random((64, 64, 3))))
    translator = make_translator(("photo", "painting"), size=[64, 64], style=("reference",), palette=16)
    whole, mapped = translate.translate_picture(pixels, translator, reference=style).image.astype(float), Palette.mapped
    monkeypatch.setattr(rendering, "WHOLE", 16000)
    monkeypatch.setattr(rendering, "WINDOW", 64)
    shared = translate.translate_picture(pixels, translator, reference=style).image
    monkeypatch.setattr(
        Palette, "mapped", lambda self, image, own, palette: mapped(self, image, self.measure(image), palette)
    )
    alone = translate.translate_picture(pixels, translator, reference=style).image
    error, other = (np.abs(image - whole).mean() for image in (shared, alone))
    assert error < 0.5 * other
