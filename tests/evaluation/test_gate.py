import copy

import numpy as np
import pytest

from medstyle.errors import UserError
from medstyle.evaluation.gate import GateParams, check_champion, check_thresholds, page, side_by_side

METRICS = {
    "protocol": "plain", "reference": "truth", "headline": ["psnr", "mae"], "lesions": {"survived": 0.9},
    "measures": {"psnr": "higher", "ssim": "higher", "mae": "lower"},
    "safety": {"created": {"mean": 1.0}, "edge_displacement_mm": {"mean": 0.5}, "within_2sd": {"mean": 0.9}},
    "tables": {"truth": {
        "model": {"psnr": {"mean": 25.0}, "ssim": {"mean": 0.9}, "mae": {"mean": 0.03}},
        "identity": {"psnr": {"mean": 15.0}, "ssim": {"mean": 0.4}, "mae": {"mean": 0.1}},
    }},
}  # fmt: skip


def changed(value, *path):
    metrics = copy.deepcopy(METRICS)
    place = metrics
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return metrics


FAILURES = {
    "nothing": (METRICS, {}, []),
    "floor": (METRICS, {"floors": {"psnr": 30.0}}, ["psnr: 25; needed: at least 30"]),
    "floor, better low": (METRICS, {"floors": {"mae": 0.01}}, ["mae: 0.03; needed: at most 0.01"]),
    "baseline": (changed(0.2, "tables", "truth", "model", "mae", "mean"), {}, ["mae beside identity"]),
    "lesions": (
        changed({"survived": 0.4}, "lesions"),
        {},
        ["lesions with preserved contrast: 0.4; needed: at least 0.5"],
    ),
    "created": (METRICS, {"created": 0.5}, ["created: 1; needed: at most 0.5"]),
    "edges": (METRICS, {"edge_displacement_mm": 0.4}, ["edge_displacement_mm: 0.5"]),
    "calibration": (METRICS, {"within_2sd": 0.95}, ["within_2sd: 0.9; needed: at least 0.95"]),
    "not measured": (changed({}, "safety"), {"created": 0.0}, []),
}


@pytest.mark.parametrize("name", FAILURES)
def test_each_limit_fails_with_its_reason(name):
    metrics, limits, reasons = FAILURES[name]
    failed = [str(check) for check in check_thresholds(metrics, GateParams(**limits)) if not check.passed]
    assert len(failed) == len(reasons)
    assert all(found.startswith(reason) for found, reason in zip(failed, reasons, strict=True))


def test_an_unknown_floor_is_named():
    with pytest.raises(UserError, match=r"register\.floors: 'fid' is not a measure of plain"):
        check_thresholds(METRICS, GateParams(floors={"fid": 1.0}))


def subjects(psnr, mae):
    return {f"s{i}": {"psnr": a, "mae": b} for i, (a, b) in enumerate(zip(psnr, mae, strict=True))}


def verdicts(ours, theirs, regression=0.01):
    return [check.passed for check in check_champion(ours, theirs, METRICS, regression, "champion 1")]


def test_pairs_decide_and_not_means(rng):
    hard = rng.normal(25, 5, 20)  # subjects differ by far more than models do
    champion = subjects(hard, hard / 1000)
    assert verdicts(champion, champion, 0.0) == [True, True]
    assert verdicts(subjects(hard - 0.1, hard / 1000), champion) == [True, True], "0.1 dB of 25 is less than 1 %"
    assert verdicts(subjects(hard - 0.5, hard / 1000), champion) == [False, True]
    assert verdicts(subjects(hard + 0.5, hard / 980), champion) == [True, False], "an error that grows by 2 %"
    noisy = hard + rng.normal(0, 3, 20)
    noisy += hard.mean() - noisy.mean()
    assert verdicts(subjects(noisy, hard / 1000), champion) == [False, True], "as good in the mean, but uncertain"


def test_a_much_worse_model_rarely_passes(rng):
    """Exactly at the margin, where the test is at its level, about one in twenty may pass.

    30 subjects, 400 trials.
    """
    champion = subjects(np.full(30, 25.0), np.full(30, 0.03))
    passed = [
        verdicts(subjects(25.0 - 0.25 + rng.normal(0, 0.5, 30), np.full(30, 0.03)), champion)[0] for _ in range(400)
    ]
    assert np.mean(passed) < 0.10


def test_other_subjects_cannot_be_compared():
    [only] = check_champion(subjects([1], [1]), {}, METRICS, 0.01, "champion 1")
    assert not only.passed
    assert "other subjects" in page("2", [only], {})


def test_side_by_side_has_the_known_answer():
    """Six subjects: better in psnr on every one, in mae on none but one.

    Gains point one way in both.
    """
    steps = np.array([1.0, 2, 3, 4, 5, 9])
    champion = subjects(np.full(6, 20.0), np.full(6, 0.1))
    model = subjects(20 + steps, 0.1 + steps / 100 * [1, 1, 1, 1, 1, -1])
    found = side_by_side({"model": model, "champion 1": champion, "copy": model}, METRICS)
    row = found["psnr"]["champion 1"]
    assert (row["mean"], row["gain"], row["better"]) == (20, 4, 6)
    assert 1 < row["low"] < 4 < row["high"] < 9
    assert row["p"] == pytest.approx(2 / 64)
    assert found["mae"]["champion 1"]["gain"] == pytest.approx(-0.01)
    assert found["mae"]["champion 1"]["better"] == 1
    assert found["psnr"]["copy"] == {"mean": 24, "gain": 0, "low": 0, "high": 0, "better": 0, "p": None}
    assert "| psnr | champion 1 | 20 | +4 |" in page("2", [], found)


def test_one_more_rival_makes_each_p_larger(rng):
    model, other = subjects(rng.normal(25, 1, 8), np.ones(8)), subjects(np.full(8, 20.0), np.ones(8))
    found = [side_by_side({"model": model, **dict.fromkeys(names, other)}, METRICS)["psnr"] for names in ("a", "ab")]
    one, two = (of["a"]["p"] for of in found)
    assert two == pytest.approx(2 * one)
