"""Measure how often intervals of voxels and of numbers hold for unseen subjects, and their widths.

A short training on the phantom (T1 to T2, 30 training subjects), whose 80 other subjects are
divided at random, again and again, into calibration and unseen subjects. The subject is the unit:
its voxels are covered if 90 % of them are. The baseline is a constant width, calibrated in the same
way. The floor of the voxels' scale was chosen on heads of another seed: `--floors` prints its table
for those of this run.

    python benchmarks/intervals.py [--splits 100] [--snapshots 0] [--floors]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medstyle.cohort.rules import Rule
from medstyle.data.manifest import Manifest
from medstyle.data.store import SliceStore
from medstyle.evaluation.intervals import Number, number_row, voxel_row
from medstyle.evaluation.measured import EvaluateParams, Subject
from medstyle.evaluation.scans import PairedScans
from medstyle.inference.calibrate import Errors, calibration_subjects, errors_of, scores_of
from medstyle.jobs.progress import track
from medstyle.networks.conformal import FLOOR, Interval, bound, within
from medstyle.networks.translator import Translator
from medstyle.params import parse
from medstyle.phantom.studies import PhantomParams
from medstyle.stages import acquire, denoise, ingest, train
from medstyle.transforms.prepare import Preparation

CACHE = Path(__file__).parents[1] / ".medstyle/bench/intervals"
PHANTOM = PhantomParams(subjects=110, seed=1, matrix=96, slices=22, spacing_mm=(2.4, 2.4, 6.0), lesions=16)
TRAIN: dict[str, Any] = {
    "source": "mr_t1", "target": "mr_t2",
    "training": {"steps": 1500, "batch": 2, "learning_rate": 1e-3, "threads": 1, "device": "cpu"},
    "objective": {"kind": "paired", "weights": {"l1": 1.0, "structure": 0.1, "adversarial": 0.02}, "detail": 4.0,
                  "discriminator_width": 16},
    "network": {"widths": [16, 32, 64], "bottleneck_blocks": 2},
}  # fmt: skip
CALIBRATED = (9, 39)  # the least number, and half of the subjects; both ranks give 90 % exactly
FLOORS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)


def prepared(snapshots: int) -> tuple[Translator, SliceStore, PairedScans]:
    """Make studies, store and model, unless they are there, and train the segmenter."""
    if not (CACHE / "raw").is_dir():
        acquire.run(PHANTOM, CACHE / "raw")
    if not (CACHE / "slices").is_dir():
        rules = tuple(Rule(domain, {"SeriesDescription": f"*{domain[-2:]}*"}) for domain in ("mr_t1", "mr_t2"))
        ingest.run(ingest.Params(str(CACHE / "raw"), rules), CACHE / "scans", CACHE / "ingest.json")
        settings = denoise.Params((96, 80), Preparation(), validation=0.36, test=0.36)
        denoise.run(settings, CACHE / "scans", CACHE / "slices")
    model = CACHE / f"model-{snapshots}"
    if not model.is_dir():
        settings = TRAIN | {"training": TRAIN["training"] | {"snapshots": snapshots}}
        plan = parse(train.Params, settings, "benchmark")
        train.run(plan, CACHE / "slices", model, CACHE / "curve.csv", states=CACHE / "states")
    translator, store = Translator.load(model), SliceStore.open(CACHE / "slices")
    return translator, store, PairedScans(translator, store, CACHE / "raw/truth", images(), EvaluateParams())


def images() -> dict[str, dict[str, Path]]:
    """Return the canonical files: subject -> domain -> file."""
    found = Manifest.read(CACHE / "scans").subjects()
    return {key: {domain: CACHE / "scans" / item.path for domain, item in of.items()} for key, of in found.items()}


def calibrated(errors: list[Errors]) -> Interval:
    """Return the interval from these subjects, as `calibrate` does."""
    factor, constant = (bound(column) for column in np.array([scores_of(one) for one in errors]).T)
    return Interval(len(errors), factor, constant)


def floors(errors: list[Errors]) -> None:
    """Print the mean width by floor, from the errors of all subjects."""
    print("| floor, times the mean deviation | mean width |\n|---|---|")
    for floor in FLOORS:
        scales = []
        for one in errors:
            mean = one.scale.mean() / (1 + FLOOR)
            scales.append(one.scale + (floor - FLOOR) * mean)
        scores = [within(one.error / np.maximum(scale, 1e-9)) for one, scale in zip(errors, scales, strict=True)]
        factor = bound(scores)
        assert factor is not None
        print(f"| {floor:g} | {factor * np.mean([scale.mean() for scale in scales]):.4f} |")
    constant = calibrated(errors).constant
    print(f"| one width for all | {constant:.4f} |\n")


def line(name: str, rows: list[dict[str, float]]) -> str:
    """Return a line of the table: means over the splits, and the deviation of the coverage."""

    def share(key: str) -> str:
        values: NDArray[np.float64] = 100 * np.array([row[key] for row in rows])
        return f"{values.mean():.1f} ± {values.std():.1f}"

    width, constant = (float(np.mean([row[key] for row in rows])) for key in ("width", "constant_width"))
    cells = (share("covered"), f"{width:.3g}", share("constant_covered"), f"{constant:.3g}", f"{width / constant:.2f}")
    return f"| {name} | {np.mean([row['calibration'] for row in rows]):.0f} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--splits", type=int, default=100)
    parser.add_argument("--snapshots", type=int, default=0, help="further members of an ensemble")
    parser.add_argument("--floors", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    translator, store, measurer = prepared(options.snapshots)
    errors: list[Errors] = []
    numbers: list[Mapping[str, Number]] = []
    tested = 0
    for split in ("validation", "test"):
        keys = calibration_subjects(translator, store, split)
        errors += errors_of(translator, store, split, keys)
        numbers += [measurer.numbers(Subject(key, 0, images()[key])) for key in track(keys, split)]
        tested = len(keys)
    own = voxel_row(translator.config.interval, errors[-tested:])
    print(f"As trained, {translator.config.interval}; {tested} unseen subjects: {own}\n")
    if options.floors:
        floors(errors)
    head = "interval of | calibrated on | covered, % | width | constant: covered, % | constant: width | ratio of widths"
    print(f"| {head} |\n|{'---|' * 7}")
    names = dict.fromkeys(name for one in numbers for name in one)
    for count in CALIBRATED:
        rng = np.random.default_rng(0)
        orders = [rng.permutation(len(errors)) for _ in range(options.splits)]
        rows = [voxel_row(calibrated([errors[i] for i in o[:count]]), [errors[i] for i in o[39:]]) for o in orders]
        print(line("voxels", rows), flush=True)
        for name in names:
            known = [[numbers[i].get(name) for i in o] for o in orders]
            halves = [([n for n in of[:count] if n], [n for n in of[39:] if n]) for of in known]
            if found := [row for row in (number_row(*half) for half in halves) if row]:
                print(line(name, found), flush=True)


if __name__ == "__main__":
    main()
