import numpy as np
import pytest

from medstyle.evaluation.baselines import BASELINES, histogram_matching
from medstyle.evaluation.protocols import PROTOCOLS, through_plane
from medstyle.evaluation.safety import lesions, survival
from medstyle.evaluation.statistics import paired_test, summary


@pytest.fixture
def image(rng):
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(rng.random((3, 40, 36)), (0, 2, 2))
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def test_plain_has_the_known_answers(image):
    mask = np.zeros(image.shape, bool)
    mask[:, 8:30, 8:28] = True
    off = image + 0.1
    measured = PROTOCOLS["plain"].measure(off, image, mask)
    assert measured["mae"] == pytest.approx(0.1, abs=1e-6)
    assert measured["psnr"] == pytest.approx(20.0, abs=1e-4)
    same = PROTOCOLS["plain"].measure(image, image, mask)
    assert same["ssim"] == pytest.approx(1.0)
    assert same["mae"] == 0


def test_plain_agrees_with_monai_and_ignores_what_lies_outside(image, rng):
    import torch
    from monai.metrics.regression import compute_ssim_and_cs

    other = np.clip(image + rng.normal(0, 0.1, image.shape), 0, 1).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[:, 5:-5, 5:-5] = True  # MONAI's map has no padding
    ours = PROTOCOLS["plain"].measure(other, image, mask)["ssim"]
    a, b = (torch.from_numpy(x)[:, None] for x in (other, image))
    full, _ = compute_ssim_and_cs(a, b, 2, data_range=torch.tensor(1.0), kernel_size=[11] * 2, kernel_sigma=[1.5] * 2)
    assert ours == pytest.approx(float(full.mean()), abs=1e-3)
    changed = np.where(mask, other, 0.9)
    again = PROTOCOLS["plain"].measure(changed.astype(np.float32), image, mask)
    assert again["mae"] == pytest.approx(PROTOCOLS["plain"].measure(other, image, mask)["mae"])


FLICKER = {
    "the same": (lambda v: v, 1.0),
    "brighter": (lambda v: v + 0.2, 1.0),
    "no change from slice to slice": (lambda v: np.repeat(v[:1], len(v), 0), 0.0),
    "twice the change": (lambda v: 2 * v, 2.0),
    "flickering": (lambda v: v + 0.5 * (np.arange(len(v)) % 2)[:, None, None], None),
}


@pytest.mark.parametrize("name", FLICKER)
def test_through_plane_tells_flicker_from_blur(image, name):
    change, expected = FLICKER[name]
    mask = np.zeros(image.shape, bool)
    mask[:, 8:30, 8:28] = True
    changed = np.where(mask, change(image), 5 * image)  # what lies outside does not count
    ratio = through_plane(changed, image, mask)
    assert ratio > 1.5 if expected is None else ratio == pytest.approx(expected, abs=1e-3)
    measured = PROTOCOLS["plain"].measure(changed, image, mask)["through_plane"]
    assert measured == pytest.approx(abs(np.log(ratio)))


def test_one_slice_has_no_plane_to_go_through(image):
    assert PROTOCOLS["plain"].measure(image[:1], image[:1], np.ones((1, 40, 36), bool))["through_plane"] == 0


def test_unpaired_measures_know_their_extremes(rng):
    content = rng.random((24, 24, 3)).astype(np.float32)
    targets = content[None] * 0.5
    measured = PROTOCOLS["unpaired"].measure(content, content, targets)
    assert measured["structure"] == pytest.approx(1.0)
    assert measured["colour_distance"] == pytest.approx(0.5 * content.mean(), rel=1e-3)
    assert PROTOCOLS["unpaired"].measure(targets[0], content, targets)["colour_distance"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_the_shape(name, rng):
    source, targets = rng.random((100, 3)).astype(np.float32), rng.random((50, 3)).astype(np.float32)
    assert BASELINES[name](source, targets).shape == source.shape


def test_histogram_matching_is_monotone_and_takes_the_distribution(rng):
    source = rng.random((2000, 1)).astype(np.float32)
    targets = (0.2 + 0.5 * rng.random((3000, 1)) ** 2).astype(np.float32)
    out = histogram_matching(source, targets)
    order = np.argsort(source[:, 0])
    assert (np.diff(out[order, 0]) >= 0).all()
    np.testing.assert_allclose(np.quantile(out, [0.1, 0.5, 0.9]), np.quantile(targets, [0.1, 0.5, 0.9]), atol=0.02)


def test_summary_covers_the_mean():
    values = summary([1.0, 2.0, 3.0, 4.0])
    assert values["mean"] == 2.5
    assert values["sd"] == pytest.approx(1.29099, abs=1e-4)
    assert values["low"] < 2.5 < values["high"]
    assert summary([1.0, 2.0]) == summary([1.0, 2.0])


def test_no_p_value_from_few_subjects():
    assert paired_test([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]) is None
    assert paired_test([1, 2, 3, 4, 5, 6.5], [2, 3.1, 4.2, 5.3, 6.4, 8]) == pytest.approx(2 / 64)


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
