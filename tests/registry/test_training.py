"""What a training has recorded is found again by the version that came of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medstyle import params
from medstyle.errors import ServiceError
from medstyle.registry.tracking import training_run
from medstyle.registry.training import POINTS, curves_in, spread, thinned, training_of
from medstyle.stages import train
from tests.conftest import Run

pytestmark = [pytest.mark.ops, pytest.mark.filterwarnings("ignore")]  # the warnings are MLflow's own


@pytest.fixture
def version(registry: Any, run: Run) -> str:
    """Return a version whose training has recorded a curve of 500 points and four pictures."""
    with training_run(params.load(train.Params, "train", run.params), run.translator) as log:
        for step in range(500):
            log(step, {"generator/l1": 1 / (step + 1)})
        for step in (9, 20, 100, 300):
            log(step, {"validation/sample": np.full((8, 8), step % 256, np.uint8)})
    report = run.root / "reports/metrics.json"
    number, new = registry.add_version(run.translator, json.loads(report.read_text()), [report])
    assert new
    return str(number)


def test_curves_and_pictures_are_those_of_its_run(version: str, registry: Any, run: Run) -> None:
    found = training_of(version)
    assert list(found.curves) == ["generator/l1"]
    curve = found.curves["generator/l1"]
    assert len(curve) == POINTS
    assert curve[0] == (0, 1)
    assert curve[-1] == (499, 1 / 500)
    assert all(value == 1 / (step + 1) for step, value in curve)
    assert [step for step, _ in found.samples] == [9, 100, 300]  # the first and the last among them
    assert [int(np.asarray(Image.open(path)).max()) for _, path in found.samples] == [9, 100, 300 % 256]
    metrics = json.loads((run.root / "reports/metrics.json").read_text())
    rates = registry.described(version)["rates"]
    assert rates["lesions kept"] == metrics["lesions"]["survived"]
    assert rates["created"] == metrics["safety"]["created"]["mean"]


def test_rates_that_were_not_measured_are_not_invented(registry: Any) -> None:
    assert registry.safety_rates({"lesions": {}, "safety": {}}) == {}
    assert registry.safety_rates({}) == {}


def test_a_version_that_does_not_exist_is_an_error(registry: Any) -> None:
    with pytest.raises(ServiceError, match="training of version 9"):
        training_of("9")


def test_the_table_of_a_training_is_read_without_its_gaps(run: Run) -> None:
    curves = curves_in(run.root / "reports/training.csv")
    assert [step for step, _ in curves["validation/l1"]] == [10, 20, 30, 40]
    assert len(curves["generator/l1"]) > 4
    assert curves_in(run.root / "nothing.csv") == {}


@pytest.mark.parametrize("count", [1, 2, 3, 200, 201, 999])
def test_thinning_keeps_the_ends_and_the_order(count: int) -> None:
    points = [(step, float(step)) for step in range(count)]
    kept = thinned(reversed(points))
    assert len(kept) == min(count, POINTS)
    assert kept == sorted(set(kept))
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert spread(points, POINTS) == kept
