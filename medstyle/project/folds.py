"""Measure every subject once, by a model that did not see it: cross-validation of a params.yaml.

With a dozen subjects or fewer, one split tests two or three of them, and chance decides who. Each
fold runs the stages `denoise`, `train` and `evaluate` on a split of its own.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from medstyle.data.build import people_of
from medstyle.data.manifest import Manifest
from medstyle.errors import ParamsError
from medstyle.evaluation.gate import Comparison, read_methods, side_by_side
from medstyle.jobs.checkpoint import run_key
from medstyle.jobs.tables import write_table
from medstyle.networks.folder import ready_folder
from medstyle.params import load
from medstyle.stages import denoise, evaluate, train

SCANS = Path("data/scans")
PLACE = Path(".medstyle/folds")


def cross_validate(
    file: Path,
    folds: int,
    truth: Path,
    out: Path,
    fetch: Callable[[str], Path] = ready_folder,
    log: Callable[[str], None] = print,
) -> tuple[Comparison, dict[str, Any]]:
    """Run the folds; return the comparison over all subjects, and the metrics of the last fold.

    The values of every subject are written to ``out``. A fold that is done is not repeated, and an
    interrupted training resumes, unless params or data have changed.

    Args:
        file: `params.yaml`.
        folds: number of parts of the subjects; each is tested once.
        truth: see :func:`medstyle.stages.evaluate.run`.
        out: CSV file: a row per subject and method.
        fetch: finds the folder of the model that `train.start` names.
        log: receives lines for a reader.

    Raises:
        UserError: there are fewer subjects than folds, or a stage cannot be run.
    """
    cleaning, training, measuring = (
        load(stage.Params, name, file)
        for stage, name in ((denoise, "denoise"), (train, "train"), (evaluate, "evaluate"))
    )
    parts = fold_subjects(Manifest.read(SCANS).subjects(), folds, cleaning.seed)
    about = hashlib.sha256((SCANS / "manifest.json").read_bytes()).hexdigest()
    methods: dict[str, dict[str, dict[str, float]]] = {}
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for number, held in enumerate(parts, 1):
        place = PLACE / run_key(asdict(cleaning), asdict(training), asdict(measuring), about, number, folds)
        reports = place / "reports"
        if not (reports / "metrics.json").is_file():
            log(f"fold {number} of {folds}: {len(held)} subjects are tested")
            reports.mkdir(parents=True, exist_ok=True)
            slices, model = place / "slices", place / "translator"
            denoise.run(replace(cleaning, test_subjects=held), SCANS, slices, log)
            train.run(training, slices, model, reports / "training.csv", states=place / "states", fetch=fetch)
            evaluate.run(measuring, SCANS, slices, model, truth, reports, log)
            shutil.rmtree(slices)  # large, and the same images as those of the other folds
        metrics = json.loads((reports / "metrics.json").read_text())
        for method, subjects in read_methods(reports / "subjects.csv").items():
            methods.setdefault(method, {}).update(subjects)
        with (reports / "subjects.csv").open(newline="") as lines:
            rows += [{"fold": number, **row} for row in csv.DictReader(lines)]
    write_table(out, rows)
    return side_by_side(methods, metrics), metrics


def fold_subjects(subjects: Mapping[str, Iterable[str]], folds: int, seed: int) -> list[tuple[str, ...]]:
    """Return the people of each fold, in an order that is a hash of the seed and the person.

    Where every person has a single domain (unpaired pictures), each domain is divided alike; where
    protocols differ, each protocol, and a rare one is not in every fold.
    """
    groups = people_of(subjects)
    several = any(len(set(domains)) > 1 for domains in subjects.values())
    most = sum(map(len, groups)) if several else min(map(len, groups))
    if folds < 2 or most < folds:
        raise ParamsError(f"--folds {folds}: there are {most} subjects; choose 2 to {max(2, most)}")
    parts: list[list[str]] = [[] for _ in range(folds)]
    for group in groups:
        order = sorted(group, key=lambda person: hashlib.sha256(f"{seed}/{person}".encode()).hexdigest())
        for place, person in enumerate(order):
            parts[place % folds].append(person)
    return [tuple(part) for part in parts]
