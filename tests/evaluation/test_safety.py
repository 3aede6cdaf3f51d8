"""What is lost, painted in or moved is counted; uncertainty is honest."""

import numpy as np
import pytest

from medstyle.evaluation.safety import (
    by_lesion,
    calibration,
    created,
    edge_displacement,
    lesions,
    nearest,
    signatures,
    survival,
)


@pytest.fixture
def image(rng):
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(rng.random((3, 40, 36)), (0, 2, 2))
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def test_a_lesion_that_stays_survives_and_one_that_vanishes_does_not(image):
    truth = np.full((9, 30, 30), 0.3, np.float32)
    ids = np.zeros(truth.shape, int)
    ids[3:6, 5:10, 5:10], ids[3:6, 18:23, 18:23] = 1, 2
    truth[ids > 0] = 0.8
    half = truth.copy()
    half[ids == 2] = 0.35
    found = lesions(half, truth, ids, voxel_mm3=8.0)
    assert [round(lesion.recovery, 3) for lesion in found] == [1.0, 0.1]
    result = survival(found)
    assert result["count"] == 2
    assert result["survived"] == 0.5
    assert found[0].radius_mm == pytest.approx((3 * 75 * 8 / (4 * np.pi)) ** (1 / 3))


def test_what_is_painted_in_is_counted_and_what_is_true_is_not():
    truth = np.full((12, 40, 40), 0.3, np.float32)
    ids = np.zeros(truth.shape, int)
    ids[3:6, 5:10, 5:10] = 1
    output = truth.copy()
    output[ids > 0] = 0.9  # too bright, but a lesion
    mask = np.ones(truth.shape, bool)
    assert created(output, truth, ids, mask, 8.0) == 0
    output[7:10, 20:23, 20:23] += 0.2
    output[2:4, 30:33, 30:33] += 0.2
    output[2, 20, 30] += 0.5  # 8 mm3: too small to be taken for a lesion
    output[9, 30:36, 5:11] += 0.1  # too faint
    assert created(output, truth, ids, mask, 8.0) == 2
    mask[:, :, 28:] = False
    assert created(output, truth, ids, mask, 8.0) == 1


def test_edges_are_displaced_by_as_much_as_the_anatomy():
    y, x = np.mgrid[-32:32, -32:32]
    radius = np.hypot(x, y)

    def disc(r):
        return np.clip(r - radius + 0.5, 0, 1).astype(np.float32)[None].repeat(2, 0)

    mask = np.ones((2, 64, 64), bool)
    assert edge_displacement(disc(14), disc(14), mask, (1, 1)) == 0
    for grown in (2, 4):
        assert edge_displacement(disc(14 + grown), disc(14), mask, (1.5, 1.5)) == pytest.approx(1.5 * grown, abs=0.6)
    assert edge_displacement(0 * disc(1), disc(14), mask, (1, 1)) == 0


def test_calibration_knows_honest_uncertainty_from_other(rng):
    sigma = rng.uniform(0.01, 0.2, 200_000).astype(np.float32)
    error = np.abs(rng.normal(0, sigma)).astype(np.float32)
    honest, blind, bold = (calibration(error, s) for s in (sigma, rng.permutation(sigma), sigma / 3))
    assert honest["within_2sd"] == pytest.approx(0.954, abs=0.01)
    assert honest["scale"] == pytest.approx(1, abs=0.05)
    assert honest["risk_25"] < honest["risk_50"] < honest["risk_75"] < honest["risk_100"]
    assert blind["risk_25"] == pytest.approx(blind["risk_100"], rel=0.05)
    assert bold["within_2sd"] < 0.6
    assert bold["scale"] == pytest.approx(3, abs=0.15)
    assert bold["risk_25"] == pytest.approx(honest["risk_25"], rel=1e-3)


def test_a_copy_of_a_training_image_is_known(rng):
    library = signatures(rng.random((20, 64, 48)))
    other = signatures(rng.random((5, 64, 48)))
    assert nearest(library[3:6], library) == pytest.approx(0, abs=1e-5)
    assert nearest(other, library) > 0.5
    assert nearest(signatures(2 * rng.random((1, 64, 48)) + 1), library) > 0.5
    again = np.random.default_rng(0).random((2, 64, 48))
    assert nearest(signatures(3 * again + 1), signatures(again)) == pytest.approx(
        0, abs=1e-5
    )  # brightness is no matter


def test_lesions_are_measured_apart(image):
    ids = np.zeros(image.shape, int)
    ids[1, 10:14, 10:14] = 1
    mask = np.ones(image.shape, bool)
    off = np.where(ids > 0, image + 0.3, image + 0.01).astype(np.float32)
    found = by_lesion(off, image, ids, mask)
    assert found["mae_lesions"] == pytest.approx(0.3, abs=1e-4)
    assert found["mae_elsewhere"] == pytest.approx(0.01, abs=1e-4)
    assert found["ssim_lesions"] < found["ssim_elsewhere"]
    assert "mae_lesions" not in by_lesion(off, image, 0 * ids, mask)
