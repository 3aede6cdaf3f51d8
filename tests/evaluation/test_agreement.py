"""The map of agreement knows where an image is blurred, and where it is invented."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medstyle.evaluation.agreement import PATCH_MM, agreement


def scene(seed: int = 0, side: int = 96) -> np.ndarray:
    """Structures of all sizes, ``(2, side, side)``."""
    rng = np.random.default_rng(seed)
    parts = [gaussian_filter(rng.standard_normal((2, side, side)), (0, s, s)) * s for s in (0.7, 1.5, 3, 6)]
    return np.sum(parts, axis=0).astype(np.float32)


BODY = np.ones((2, 96, 96), bool)


def test_an_image_agrees_with_itself_down_to_one_pixel_whatever_its_gain():
    truth = scene()
    for other in (truth, 0.3 * truth + 5):
        found = agreement(other, truth, BODY, (1.0, 1.0))
        assert found.median == pytest.approx(1.0, rel=0.01), "half a wavelength of two pixels"
        assert found.worst == pytest.approx(1.0, rel=0.01)


def test_another_image_agrees_nowhere():
    found = agreement(scene(1), scene(0), BODY, (1.0, 1.0))
    assert found.median > PATCH_MM / 4


@pytest.mark.parametrize("pixel_mm", [0.5, 1.0, 2.0])
def test_sizes_are_in_millimetres(pixel_mm):
    truth = scene()
    noise = np.random.default_rng(3).standard_normal(truth.shape).astype(np.float32)
    coarse = gaussian_filter(truth, (0, 2, 2)) + 0.3 * (noise - gaussian_filter(noise, (0, 2, 2)))
    found = agreement(coarse, truth, BODY, (pixel_mm, pixel_mm))
    assert found.median / pixel_mm == pytest.approx(3, abs=2), "what is finer than the blur is noise"


def test_an_invented_structure_is_found_where_it_is():
    truth = gaussian_filter(scene(), (0, 1, 1))
    output = truth.copy()
    invented = gaussian_filter(scene(7), (0, 1, 1))[:, :28, :28]
    output[:, 60:88, 60:88] = invented
    found = agreement(output, truth, BODY, (1.0, 1.0)).map
    assert found[:, 66:82, 66:82].min() > 2 * np.median(found[:, :40, :40])


def test_air_and_flat_patches_are_not_judged():
    truth, body = scene(), BODY.copy()
    body[:, :48] = False
    truth[1] = 1
    found = agreement(truth, truth, body, (1.0, 1.0))
    assert not found.map[:, :20].any()
    assert not found.map[1].any()
    assert found.map[0, 60:88, 60:88].min() > 0
    empty = agreement(truth, truth, np.zeros_like(body), (1.0, 1.0))
    assert (empty.median, empty.worst) == (0.0, 0.0)


def test_a_mere_blur_changes_nothing():
    truth = scene()
    found = agreement(gaussian_filter(truth, (0, 1, 1)), truth, BODY, (1.0, 1.0))
    assert found.median < 1.5
