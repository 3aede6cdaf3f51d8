from itertools import pairwise

import numpy as np
import pytest
import torch

from medstyle.inference import synthesise as rendering
from medstyle.inference.synthesise import synthesise
from medstyle.inference.windows import OVERLAP, blend, shares
from tests.inference.conftest import Plain, make_translator


@pytest.mark.parametrize("length", [1, 5, 16, 17, 31, 100])
@pytest.mark.parametrize("size", [1, 8, 16])
def test_the_shares_of_all_windows_sum_to_one(length, size):
    total = torch.zeros(length)
    windows = shares(length, size)
    for place, share in windows:
        total[place] += share
    torch.testing.assert_close(total, torch.ones(length))
    starts = [place.start for place, _ in windows]
    assert all(0 < b - a <= max(1, size // 2) for a, b in pairwise(starts))


@pytest.mark.parametrize("shape", [(37, 50), (9, 30, 21)], ids=str)
def test_a_constant_network_makes_a_constant_image(shape):
    out = torch.full((2, 1, *shape), 9.0)
    blend(lambda x: [torch.full_like(x[:, :1], 0.7)], torch.zeros(2, 3, *shape), [8] * len(shape), [out])
    torch.testing.assert_close(out, torch.full_like(out, 0.7))


def test_monai_blends_alike_where_its_weights_are_not_cut_off():
    from monai.inferers import sliding_window_inference

    x = torch.randn(1, 1, 48, 40, generator=torch.Generator().manual_seed(0))
    size, out = (16, 16), torch.empty_like(x)
    blend(lambda w: [w - w.mean((2, 3), keepdim=True)], x, size, [out])
    line = torch.exp(-((torch.arange(16) - 7.5) ** 2) / (2 * 2.0**2))
    other = sliding_window_inference(
        x, size, 4, lambda w: w - w.mean((2, 3), keepdim=True), overlap=0.5, roi_weight_map=line[:, None] * line
    )
    torch.testing.assert_close(out, other, atol=1e-5, rtol=1e-5)


DIMENSIONS = {
    "2-D": ({"size": [24, 24]}, (3, 1, 70, 61)),
    "3-D": ({"dimensions": 3, "size": [8, 24, 24]}, (20, 1, 70, 61)),
}


@pytest.mark.parametrize("name", DIMENSIONS)
def test_a_network_that_sees_a_neighbourhood_does_not_notice_windows(name, monkeypatch, rng):
    """A local map gives the same in windows as of the whole, for every member of an ensemble."""
    monkeypatch.setattr(rendering, "WHOLE", 0)
    monkeypatch.setattr(rendering, "WINDOW", 1)
    config, shape = DIMENSIONS[name]
    translator = make_translator(generator=Plain(lambda x: 0.5 * x**2 - x), members=2, **config)
    content = torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32))
    torch.testing.assert_close(synthesise(translator, content), 0.5 * content**2 - content, atol=1e-5, rtol=1e-5)


def textured(rng, shape):
    """Smooth shading and texture, in network units.

    One half is darker, so that windows differ in their statistics.
    """
    from scipy.ndimage import gaussian_filter

    smooth = sum(gaussian_filter(rng.normal(0, 1, shape), s) * s ** (len(shape) / 2) for s in (1, 3, 8))
    slope = np.linspace(-0.5, 0.5, shape[-1])
    return (0.3 * smooth + slope).astype(np.float32)


@pytest.mark.parametrize("name", DIMENSIONS)
def test_windows_leave_no_seams(name, monkeypatch, rng):
    """A normalising network sees other statistics in each window.

    Borders have no more gradient than the rest.
    """
    monkeypatch.setattr(rendering, "WHOLE", 0)
    monkeypatch.setattr(rendering, "WINDOW", 1)
    shape = (48, 96, 96) if name == "3-D" else (1, 192, 192)
    size = [16, 32, 32] if name == "3-D" else [64, 64]
    translator = make_translator(size=size, dimensions=len(size), widths=(8, 12))
    image = textured(rng, shape if name == "3-D" else shape[1:]).reshape(shape)
    made = synthesise(translator, torch.from_numpy(image)[:, None])[:, 0].numpy()
    where = (size, OVERLAP) if name == "3-D" else ([None, *size], rendering.SHARED)
    assert seam(made, *where) <= 1.05


def seam(image, size, overlap):
    """Mean gradient across the borders of windows over the mean gradient elsewhere, over all
    axes."""
    across, inside = [], []
    for axis, n in enumerate(size):
        if n is not None:
            length = image.shape[axis]
            gradient = np.abs(np.diff(image, axis=axis)).mean(axis=tuple({0, 1, 2} - {axis}))
            edges = {e for place, _ in shares(length, n, overlap) for e in (place.start - 1, place.stop - 1)}
            at = np.isin(np.arange(length - 1), sorted(edges))
            across.append(gradient[at].mean())
            inside.append(gradient[~at].mean())
    return np.mean(across) / np.mean(inside)
