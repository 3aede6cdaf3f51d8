import json
import os
import time

import numpy as np
import pytest

from medstyle.inference.drift import drift, recent, scores_of
from medstyle.networks.translator import Translator


@pytest.mark.parametrize("trained_on", [15, 200])
def test_false_alarms_are_as_rare_as_stated(trained_on, rng):
    """Training and new images of one population: at p < 0.05 no more than 5 % of the months raise
    an alarm."""
    alarms = []
    for _ in range(2000):
        scores = np.abs(rng.normal(size=trained_on + 60))
        limit = float(np.percentile(scores[:trained_on], 99))
        alarms.append(drift(scores[trained_on:], limit, trained_on).p < 0.05)
    assert np.mean(alarms) < 0.065  # 5 % and three standard deviations of 2000 draws


def test_a_change_of_scanner_is_seen(rng):
    trained = np.abs(rng.normal(size=200))
    found = drift(np.abs(rng.normal(1.5, 1, size=60)), float(np.percentile(trained, 99)), 200)
    assert found.beyond > 3 * found.expected
    assert found.p < 1e-3
    assert drift([], 1.0, 10).p == 1


def test_only_recent_images_of_the_model_count(run, tmp_path):
    translator = Translator.load(run.translator)
    limit = translator.config.reference["mr_t1"].volume.largest
    for number, (score, weights, age) in enumerate(
        [(limit + 1, translator.sha256, 0), (limit - 1e-3, translator.sha256, 1), (limit + 1, translator.sha256, 40),
         (limit + 1, "other", 0)]
    ):  # fmt: skip
        place = tmp_path / f"derived/{number}/translation.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps([{"ood_score": score, "weights_sha256": weights}]))
        os.utime(place, (time.time() - 86400 * age,) * 2)
    found = recent(tmp_path, translator, days=30)
    assert (found.images, found.beyond) == (2, 1)
    times, scores = zip(*scores_of(tmp_path, translator), strict=True)
    assert list(scores) == [limit + 1, limit - 1e-3, limit + 1]  # by age, those of the other model left out
    assert times[1] - times[0] == pytest.approx(39 * 86400, abs=60)
