"""Intervals hold for as many new subjects as they say, and for no fewer calibration subjects."""

import json
from dataclasses import asdict, replace
from fractions import Fraction
from math import ceil

import numpy as np
import pytest

from medstyle.networks.conformal import Interval, bound, least, rank, scale, too_few, within
from medstyle.networks.translator import Translator
from medstyle.params import parse
from tests.inference.conftest import make_translator


@pytest.mark.parametrize("level", ["0.5", "0.8", "0.9", "0.95", "0.99"])
def test_the_rank_is_exact(level):
    for count in range(1, 1000):
        assert rank(count, float(level)) == ceil((count + 1) * Fraction(level)), count
    assert least(float(level)) == min(n for n in range(1, 1000) if rank(n, float(level)) <= n)


def test_the_bound_is_one_of_the_scores():
    scores = [3.0, 1, 2, 5, 4, 9, 7, 8, 6]
    assert bound(scores) == 9, "9 of 9"
    assert bound([*scores, *range(10, 20)]) == 18, "18 of 19"
    assert bound([2.0] * 12 + [5.0]) == 5, "13 of 13"
    assert bound([2.0] * 18 + [5.0]) == 2, "18 of 19, among ties"
    assert bound(scores[:8]) is None
    assert bound(scores[:8], 0.8) == 9


def test_a_share_of_the_voxels_keeps_within():
    assert within(np.arange(1, 11)) == 9
    assert within(np.arange(1, 12)) == 10, "9 of 11 are too few"
    assert within(np.repeat([1.0, 7.0], [9, 1])) == 1


@pytest.mark.parametrize("count", [9, 12, 19, 40])
def test_as_many_new_subjects_are_covered_as_promised(count):
    """Voxels of skewed errors that subjects share in part, so that they are no independent samples.

    The coverage is known exactly: ranks of exchangeable scores are uniform. Voxels pooled over
    subjects promise as much, and keep less.
    """
    rng = np.random.default_rng(count)
    covered, pooled = [], []
    for _ in range(3000):
        of_subject = rng.lognormal(0, 0.5, (count + 1, 1))
        errors = of_subject * rng.exponential(size=(count + 1, 50))
        *known, new = (within(one) for one in errors)
        covered.append(new <= bound(known))
        pooled.append(new <= bound(errors[:-1].ravel()))
    expected = rank(count) / (count + 1)
    assert expected >= 0.9
    assert np.mean(covered) == pytest.approx(expected, abs=4 * np.sqrt(expected * (1 - expected) / 3000))
    assert np.mean(pooled) < 0.75


def test_a_deviation_of_another_unit_changes_nothing(rng):
    """Half widths are factor times scale: twice the deviation gives half the factor."""
    sigma = rng.gamma(1, 1, (12, 6, 7)).astype(np.float32)
    error, body = rng.exponential(size=sigma.shape), np.ones((6, 7), bool)
    halves = []
    for unit in (1, 8):  # exact in float
        scales = np.stack([scale(unit * one, body) for one in sigma])
        factor = bound([within((e / s).ravel()) for e, s in zip(error, scales, strict=True)])
        halves.append(factor * scales)
    np.testing.assert_allclose(halves[0], halves[1], rtol=1e-6)


def test_the_scale_is_of_the_body_alone():
    sigma, body = np.array([[0.0, 2, 4, 100]], np.float32), np.array([[True, True, True, False]])
    np.testing.assert_array_equal(scale(sigma, body), [[6, 8, 10, 106]])


def test_too_few_subjects_are_named():
    assert too_few(8) == "too few subjects for a 90 % interval: 8 of at least 9"
    assert too_few(9) == Interval(9, 2.0, 0.1).missing == ""
    assert Interval(3).missing == str(Interval(3)) == too_few(3)
    assert too_few(18, 0.95) == "too few subjects for a 95 % interval: 18 of at least 19"


def test_a_translator_keeps_its_interval(tmp_path):
    interval = Interval(12, 4.8125, 0.3)
    translator = make_translator(interval=interval)
    translator.save(tmp_path / "one")
    assert Translator.load(tmp_path / "one").config.interval == interval
    assert parse(Interval, json.loads(json.dumps(asdict(interval))), "") == interval
    config = json.loads((tmp_path / "one/translator.json").read_text())
    del config["interval"]
    (tmp_path / "one/translator.json").write_text(json.dumps(config))
    assert Translator.load(tmp_path / "one").config.interval.factor is None, "of an earlier version"


def test_what_changes_the_deviation_drops_the_interval(tmp_path):
    from medstyle.networks.translator import ensemble

    translator = make_translator(refiner=4, sharpness=0.5, interval=Interval(12, 4.8, 0.3))
    assert translator.sharpened(0.5).config.interval == translator.config.interval
    assert translator.sharpened(0.6).config.interval.factor is None
    translator.save(tmp_path / "one")
    both = ensemble([tmp_path / "one"] * 2, tmp_path / "both")
    assert both.config == replace(translator.config, facts=both.config.facts, interval=Interval())
