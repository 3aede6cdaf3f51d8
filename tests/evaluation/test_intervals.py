"""Numbers that people act on have intervals of their own."""

import numpy as np
import pytest

from medstyle.evaluation.intervals import Number, Region, intervals, number_row, numbers_of, voxel_row
from medstyle.inference.calibrate import Errors
from medstyle.networks.conformal import FLOOR, Interval


def drawn(count: int, seed: int, spread: float = 1.0) -> list[Number]:
    """Return numbers whose errors are about as large as their spreads say, times a constant."""
    rng = np.random.default_rng(seed)
    spreads = rng.lognormal(0, 1, count)
    truths = rng.normal(100, 20, count)
    return [
        Number(truth + 3 * of * error, spread * of, truth)
        for truth, of, error in zip(truths, spreads, rng.uniform(0.5, 1, count), strict=True)
    ]


def test_a_region_has_a_volume_and_a_mean():
    """A row of 8 voxels of 2 ml: 3 are found, 4 are true, 2 come and 1 goes with a deviation."""
    image = np.array([0.1, 0.2, 0.7, 0.9, 0.75, 0.6, 0.55, 0.3], np.float32).reshape(1, 1, 8)
    sigma = np.array([0, 0, 0.01, 0.1, 0.15, 0.01, 0.15, 0], np.float32).reshape(1, 1, 8)
    found, low, high = (one > 0.65 for one in (image, image - sigma, image + sigma))
    truth = image > 0.57
    numbers = numbers_of(Region(found, low, high, truth), image, sigma, 10 * image, 2.0)
    assert numbers["volume"] == Number(6, (2 + 1) / 2 * 2, 8)
    assert numbers["volume"].error == 2
    mean = numbers["mean"]
    assert mean == pytest.approx((np.mean([0.7, 0.9, 0.75]), 0.26 / 3, 10 * np.mean([0.7, 0.9, 0.75, 0.6])))
    nothing = np.zeros_like(truth)
    empty = numbers_of(Region(nothing, nothing, nothing, truth), image, sigma, image, 2.0)
    assert empty == {"volume": Number(0, 1, 8)}, "a spread above 0, and no mean"


def test_the_bound_of_a_number_is_that_of_its_worst_but_some():
    """19 subjects: the 18th error decides; relative to the scale, it may be another's."""
    calibration = [Number(10 + error, 1.0, 10) for error in range(1, 20)]
    row = number_row(calibration, [Number(27.5, 1, 10), Number(28.5, 1, 10), Number(30, 1, 10), Number(-8, 1, 10)])
    assert row == {
        **{"calibration": 19, "unseen": 4, "covered": 0.5, "width": pytest.approx(36)},
        **{"constant_covered": 0.5, "constant_width": 36},
    }
    wavering = number_row(calibration, [Number(28.5, 21, 10)])  # the mean spread is 2
    assert wavering["covered"] == 1
    assert wavering["width"] == pytest.approx(36 * (21 + 2 * FLOOR) / (1 + 2 * FLOOR))
    assert number_row(calibration[:8], calibration) == {}
    assert number_row(calibration, []) == {}


def test_a_spread_that_knows_its_errors_gives_narrower_intervals():
    row = number_row(drawn(999, 1), drawn(999, 2))
    assert row["covered"] == pytest.approx(0.9, abs=0.07)
    assert row["constant_covered"] == pytest.approx(0.9, abs=0.07)
    assert row["width"] < 0.95 * row["constant_width"]
    scaled = number_row(drawn(999, 1, spread=64), drawn(999, 2, spread=64))
    assert scaled == pytest.approx(row), "spreads in another unit change nothing"


def test_a_subject_is_covered_if_its_voxels_are(rng):
    """Of three subjects one has 89 % of its voxels within, one 90 %, one all."""
    subjects = []
    for inside in (89, 90, 100):
        error = np.repeat([0.5, 9.0], [inside, 100 - inside]).astype(np.float32)
        subjects.append(Errors(rng.permutation(error), np.full(100, 0.5, np.float32)))
    row = voxel_row(Interval(9, 1.0, 8.0), subjects)
    assert (row["covered"], row["constant_covered"]) == pytest.approx((2 / 3, 2 / 3))
    assert row["voxels"] == pytest.approx(0.93)
    assert (row["width"], row["constant_width"]) == (0.5, 8.0)
    assert voxel_row(Interval(3), subjects) == {}


def test_too_few_subjects_are_named_in_place_of_a_table():
    numbers = [{"csf volume": one} for one in drawn(8, 0)]
    found = intervals(Interval(8), [], numbers, numbers)
    assert found == {"level": 0.9, "missing": "too few subjects for a 90 % interval: 8 of at least 9", "table": {}}
    more = [{"csf volume": one, **({"csf mean": one} if i < 8 else {})} for i, one in enumerate(drawn(12, 0))]
    found = intervals(Interval(8), [], more, more)
    assert list(found["table"]) == ["csf volume"], "means of 8 subjects alone have none"
