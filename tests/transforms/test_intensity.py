"""Noise is measured and lowered, shading flattened, in the body and not in the air."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from medstyle.transforms.intensity import FILTERS, CorrectBias, Denoise, _dilated, _eroded, foreground_mask, noise_sigma
from medstyle.transforms.prepare import Preparation
from tests.transforms.test_prepare import head


def test_denoising_lowers_the_error(rng):
    volume, clean, body = head(rng, sigma=25)
    array = volume.voxels.transpose(2, 1, 0)
    for method in FILTERS:
        out = np.asarray(Denoise(method, rician=True)(torch.from_numpy(array.copy())[None])[0]).transpose(2, 1, 0)
        before, after = (float(np.abs(v - clean)[body].mean()) for v in (volume.voxels, out))
        assert after < 0.6 * before, method


@pytest.mark.parametrize("shape", [(64, 48), (7, 5), (1, 9)])
def test_non_local_means_is_the_librarys_in_less_time(rng, shape):
    """They differ by the rounding of the library's integral images alone."""
    from skimage.restoration import denoise_nl_means

    image = (500 * (rng.random(shape) > 0.5) + 20 * rng.standard_normal(shape)).astype(np.float32)
    known = denoise_nl_means(image, patch_size=3, patch_distance=4, h=0.6 * 20, sigma=20, fast_mode=True)
    assert np.abs(FILTERS["nlm"](image, 20.0) - known).max() < 0.05 * 20


@pytest.mark.parametrize("method", [name for name in FILTERS if name not in {"anisotropic", "tv"}])
def test_what_is_far_from_the_body_does_not_change_it(rng, method):
    """A filter of limited reach gives the same body, however much air is around it."""
    volume, _, _ = head(rng, sigma=25)
    values = volume.voxels.transpose(2, 1, 0).copy()
    body = foreground_mask(values)
    wide, widely = (np.pad(array, ((90, 40), (30, 90), (0, 0))) for array in (values, body))
    own, other = (
        np.asarray(Denoise(method, rician=True)(torch.from_numpy(given)[None], mask)[0])
        for given, mask in ((values, body), (wide, widely))
    )
    inner = ndimage.binary_erosion(body, np.ones((13, 13, 1)))
    assert np.array_equal(own[inner], other[90:-40, 30:-90][inner])


@pytest.mark.parametrize("shape", [(3, 40, 32), (2, 1, 7), (1, 2, 2)])
def test_a_body_is_opened_and_closed_as_by_the_library(rng, shape):
    cross = ndimage.generate_binary_structure(2, 1)[None]
    mask = rng.random(shape) > 0.3
    assert np.array_equal(_dilated(mask), ndimage.binary_dilation(mask, cross))
    assert np.array_equal(_eroded(mask), ndimage.binary_erosion(mask, cross))


def test_a_hole_is_what_no_path_through_air_reaches(rng):
    """Known answer: the library's, which fills whole slices."""
    for _ in range(20):
        values = ndimage.gaussian_filter(rng.standard_normal((40, 32, 3)), (2, 2, 0)).astype(np.float32)
        mask = foreground_mask(values)
        for plane in np.moveaxis(mask, -1, 0):
            assert np.array_equal(plane, ndimage.binary_fill_holes(plane))


@pytest.mark.parametrize("cut", [0, 1])
def test_the_noise_is_measured_in_the_body(rng, cut):
    volume, _, body = head(rng, sigma=25)
    array = volume.voxels.transpose(2, 1, 0)[cut:, cut:]
    assert noise_sigma(array) == pytest.approx(25, rel=0.15)
    assert noise_sigma(array * body.transpose(2, 1, 0)[cut:, cut:]) == pytest.approx(25, rel=0.15)
    assert noise_sigma(array * 0) == 0


def test_the_filters_are_the_choices_of_params():
    from typing import get_args, get_type_hints

    assert get_args(get_type_hints(Preparation)["denoise"]) == ("none", *FILTERS)


def test_bias_field_is_flattened(rng):
    volume, _, body = head(rng, sigma=5)
    shading = np.linspace(0.7, 1.3, 64, dtype=np.float32)[None, None, :]
    shaded = volume.voxels * shading
    out = np.asarray(CorrectBias()(torch.from_numpy(shaded.transpose(2, 1, 0).copy())[None])[0]).transpose(2, 1, 0)
    ring = body & (volume.voxels < 500)

    def slope(voxels):
        return abs(np.corrcoef(voxels[ring], np.broadcast_to(shading, voxels.shape)[ring])[0, 1] * voxels[ring].std())

    assert slope(out) < 0.35 * slope(shaded)
    single = CorrectBias()(torch.from_numpy(shaded[5:6].transpose(2, 1, 0).copy())[None])
    assert single.shape == (1, 64, 64, 1)
