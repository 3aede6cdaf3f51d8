"""Measure how often intervals hold on unseen subjects, and how wide they are."""

from __future__ import annotations

from pathlib import Path

from medstyle.cohort.rules import Rule
from medstyle.params import parse
from medstyle.phantom.studies import PhantomParams
from medstyle.stages import acquire, denoise, ingest, train
from medstyle.transforms.prepare import Preparation

CACHE = Path(__file__).parents[1] / ".medstyle/bench/intervals"
PHANTOM = PhantomParams(subjects=110, matrix=96, slices=22, spacing_mm=(2.4, 2.4, 6.0), lesions=16)
TRAIN = {
    "source": "mr_t1", "target": "mr_t2",
    "training": {"steps": 1500, "batch": 2, "learning_rate": 1e-3, "threads": 1, "device": "cpu"},
    "objective": {"kind": "paired", "weights": {"l1": 1.0, "structure": 0.1, "adversarial": 0.02}, "detail": 4.0,
                  "discriminator_width": 16},
    "network": {"widths": [16, 32, 64], "bottleneck_blocks": 2},
}  # fmt: skip


def prepare() -> Path:
    """Make studies, store and model, if they are not there."""
    if not (CACHE / "raw").is_dir():
        acquire.run(PHANTOM, CACHE / "raw")
    if not (CACHE / "slices").is_dir():
        rules = tuple(Rule(d, {"SeriesDescription": f"*{d[-2:]}*"}) for d in ("mr_t1", "mr_t2"))
        ingest.run(ingest.Params(str(CACHE / "raw"), rules, workers=1), CACHE / "scans", CACHE / "ingest.json")
        settings = denoise.Params((96, 80), Preparation(), validation=0.36, test=0.36, workers=1)
        denoise.run(settings, CACHE / "scans", CACHE / "slices")
    if not (CACHE / "model").is_dir():
        plan = parse(train.Params, TRAIN, "benchmark")
        train.run(plan, CACHE / "slices", CACHE / "model", CACHE / "curve.csv", states=CACHE / "states")
    return CACHE


if __name__ == "__main__":
    prepare()
