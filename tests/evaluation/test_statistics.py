"""Intervals, tests and effects have known answers."""

import pytest

from medstyle.evaluation.statistics import compare, differences_kept, effect, holm, paired_test, summary, told_apart


def test_a_comparison_is_of_pairs():
    """Subjects differ far more than methods do; only pairs show it."""
    first = [10.0, 20, 30, 40, 50, 60]
    result = compare(first, [x + d for x, d in zip(first, (1, 1.2, 0.8, 1.1, 0.9, 1), strict=True)])
    assert result["difference"] == pytest.approx(1)
    assert 0.8 < result["low"] < result["high"] < 1.2
    assert result["p"] == pytest.approx(2 / 64)
    assert compare([1, 2], [1, 2])["p"] is None


def test_holm_has_the_known_answer():
    """0.01 x 4, 0.02 x 3, then never below what came before (Holm 1979)."""
    adjusted = holm({"a": 0.02, "b": 0.01, "c": 0.04, "d": 0.03})
    assert adjusted == pytest.approx({"b": 0.04, "a": 0.06, "d": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


def test_the_effect_runs_from_worse_everywhere_to_better_everywhere():
    assert effect([2, 3, 4], [1, 2, 3]) == 1
    assert effect([1, 2, 3], [2, 3, 4]) == -1
    assert effect([1, 2], [1, 2]) == 0
    assert effect([2, 0, 0], [0, 1, 0]) == pytest.approx((2 - 1) / 3)  # ranks 2 and 1; no difference does not count


def test_summary_covers_the_mean():
    values = summary([1.0, 2.0, 3.0, 4.0])
    assert values["mean"] == 2.5
    assert values["sd"] == pytest.approx(1.29099, abs=1e-4)
    assert values["low"] < 2.5 < values["high"]
    assert summary([1.0, 2.0]) == summary([1.0, 2.0])


def test_no_p_value_from_few_subjects():
    assert paired_test([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]) is None
    assert paired_test([1, 2, 3, 4, 5, 6.5], [2, 3.1, 4.2, 5.3, 6.4, 8]) == pytest.approx(2 / 64)


def test_sites_are_told_apart_until_they_are_alike(rng):
    people = rng.normal(0, 1, (12, 5))
    assert told_apart(people, people + 8) == 1.0
    assert 0.2 < told_apart(people, rng.normal(0, 1, (12, 5))) < 0.8
    assert differences_kept(people, 3 * people + 8) == pytest.approx(1)
    assert differences_kept(people, rng.normal(0, 1, (12, 5))) < 0.5
