"""Compare trained models with every baseline on unseen subjects, for several seeds.

Each job is a recipe of the project with the changes that stand below, run by the commands of its
stages in a folder of its own: ingest and denoise once, train and evaluate for each seed. A
subject's score is its mean over seeds; intervals and tests are over subjects. What is made already
is not made again.
Usage: python benchmarks/quality.py [JOB ...] [--seeds 3] [--threads 2] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from medstyle.evaluation.statistics import effect, holm, paired_test, summary

ROOT = Path(__file__).parents[1]
SHARED = ROOT / "../shared/data"
TEST = [f"sub-{number}" for number in ("04", "11", "18", "21", "23")]
Changes = dict[str, dict[str, Any]]
BRAIN: Changes = {
    "ingest": {
        "source": str((SHARED / "brain_t1_flair").resolve()),
        "rules": [{"domain": f"mr_{name}", "when": {"path": f"*/{name}.nii.gz"}} for name in ("t1", "flair")],
    },
    "denoise": {"size": [128, 128], "alignment": "rigid", "validation": 0.0, "test_subjects": TEST},
    "evaluate": {"figures": 5},
}
RARER = ("05", "06", "23")  # the subjects of the rarer of two protocols
PHANTOM: Changes = {  # the demo's data for another recipe
    section: value
    for section, value in yaml.safe_load((ROOT / "params.yaml").read_text()).items()
    if section in ("acquire", "ingest", "denoise")
}


def mr_ct(folder: Path) -> Changes:
    """Write the axial slices of the MR-CT pictures as volumes of one slice.

    CT without HU counts as -1024 to 3071.
    """
    import SimpleITK as sitk
    from PIL import Image

    for patient in sorted((SHARED / "brain_mr_ct_png").iterdir()):
        for name in ("mri", "ct") if patient.is_dir() else ():
            pixels = np.asarray(Image.open(patient / f"{name}_axial.png").convert("L"), np.int16)
            values = pixels if name == "mri" else np.rint(pixels * (4095 / 255) - 1024).astype(np.int16)
            path = folder / "raw" / patient.name / f"{'mr_t1' if name == 'mri' else 'ct'}.nii"
            path.parent.mkdir(parents=True, exist_ok=True)
            sitk.WriteImage(sitk.GetImageFromArray(values[None]), str(path))
    return {"ingest": {"source": str((folder / "raw").resolve())}}


def phantom(folder: Path) -> Changes:
    """Generate the phantom of the demo."""
    _medstyle(folder, "acquire")
    return {"ingest": {"source": str((folder / "data/raw").resolve())}}


def pictures(folder: Path) -> Changes:
    """Link photographs and paintings, and the clips that `evaluate` measures."""
    raw = folder / "raw"
    (raw / "truth").mkdir(parents=True, exist_ok=True)
    links = {name: SHARED / "photo_painting" / name for name in ("photo", "painting")}
    links |= {f"truth/{path.name}": path for path in (SHARED / "video").iterdir()}
    for name, path in links.items():
        if not (raw / name).is_symlink():
            (raw / name).symlink_to(path.resolve())
    return {"ingest": {"source": str(raw.resolve())}}


def brain(test: list[str], named: bool = False) -> Changes:
    """Train on all but ``test``; ``named``: targets of the rarer protocol are their own domain."""
    rules = BRAIN["ingest"]["rules"]
    if named:
        own = [{"domain": "mr_flair@rarer", "when": {"path": f"*sub-{one}/flair.nii.gz"}} for one in RARER]
        rules = [*own, *rules]
    return {
        **BRAIN,
        "ingest": {**BRAIN["ingest"], "rules": rules},
        "denoise": {**BRAIN["denoise"], "test_subjects": test},
        "train": {"training": {"steps": 2000}, **({"domains": ["mr_flair@rarer"]} if named else {})},
    }


# name -> recipe, changes by section, what makes its data and returns further changes
JOBS: dict[str, tuple[str, Changes, Callable[[Path], Changes] | None]] = {
    "brain_paired": ("recipes/paired_mr.yaml", brain(TEST), None),
    "brain_named": ("recipes/paired_mr.yaml", brain(TEST, named=True), None),
    **{
        f"rarer{'_named' * named}_{number}": ("recipes/paired_mr.yaml", brain([f"sub-{number}"], named), None)
        for number in RARER
        for named in (False, True)
    },
    "brain_unpaired": ("recipes/unpaired_mr.yaml", {**BRAIN, "train": {"training": {"steps": 1000}}}, None),
    "phantom_paired": ("params.yaml", {}, phantom),
    "phantom_unpaired": (
        "recipes/unpaired_mr.yaml",
        {**PHANTOM, "train": {"target": "mr_t2", "training": {"steps": 1000}}},
        phantom,
    ),
    "mr_ct_paired": (
        "recipes/paired_mr_ct.yaml",
        {
            "denoise": {"size": [128, 128], "alignment": "headers", "preparation": {"denoise": "none"}},
            "evaluate": {"protocol": "plain"},
            "train": {
                "training": {"steps": 1000, "batch": 2},
                "network": {"widths": [32, 64, 128], "neighbours": 1},
            },
        },
        mr_ct,
    ),
    "mr_ct_unpaired": (
        "recipes/unpaired_mr_ct.yaml",
        {
            "denoise": {"size": [128, 128], "preparation": {"denoise": "none"}},
            "evaluate": {"protocol": "plain"},
            "train": {
                "training": {"steps": 1000, "batch": 2},
                "network": {"widths": [16, 32, 64, 128], "bottleneck_blocks": 2},
            },
        },
        mr_ct,
    ),
    **{name: (f"recipes/{name}.yaml", {}, pictures) for name in ("paintings", "video", "exemplar", "enhance")},
}


def _medstyle(folder: Path, *command: str) -> None:
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder.resolve()}/mlflow.db"}
    program = [sys.executable, "-m", "medstyle.cli", *command]
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"medstyle {' '.join(command)} in {folder}:\n{done.stdout[-500:]}{done.stderr[-2000:]}")


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        deeper = isinstance(value, dict) and isinstance(base.get(key), dict) and key not in ("objective", "weights")
        merged[key] = _merge(base[key], value) if deeper else value
    return merged


def make(name: str, seeds: int, threads: int, out: Path) -> list[Path]:
    """Run a job; return the folder of each seed."""
    recipe, changes, data = JOBS[name]
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    settings = _merge(yaml.safe_load((ROOT / recipe).read_text()), changes)
    (folder / "params.yaml").write_text(yaml.safe_dump(settings))
    if not (folder / "data/slices/index.json").is_file():
        if data is not None:
            settings = _merge(settings, data(folder))
            (folder / "params.yaml").write_text(yaml.safe_dump(settings))
        _medstyle(folder, "ingest")
        _medstyle(folder, "denoise")
        shutil.copy(folder / "params.yaml", folder / "data/params.yaml")
    settings = yaml.safe_load((folder / "data/params.yaml").read_text()) | {"train": settings["train"]}
    runs = []
    for seed in range(seeds):
        run = folder / f"seed-{seed}"
        run.mkdir(exist_ok=True)
        own = _merge(settings, {"train": {"training": {"seed": seed, "threads": threads}}})
        (run / "params.yaml").write_text(yaml.safe_dump(own))
        if not (run / "data").exists():
            (run / "data").symlink_to("../data")
        if not (run / "models/translator").is_dir():
            _medstyle(run, "train")
        if not (run / "reports/metrics.json").is_file():
            _medstyle(run, "evaluate")
        print(f"{name}, seed {seed}: done", file=sys.stderr, flush=True)
        runs.append(run)
    return runs


def table(name: str, runs: list[Path]) -> None:
    """Print a job's result in Markdown."""
    metrics = [json.loads((run / "reports/metrics.json").read_text()) for run in runs]
    reference = metrics[0]["reference"]
    headline = [m for m in metrics[0]["measures"] if m in (*metrics[0]["headline"], "style_distance", "structure")]
    scores: dict[str, dict[str, dict[str, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for run in runs:
        for row in csv.DictReader((run / "reports/subjects.csv").read_text().splitlines()):
            if row["reference"] == reference:
                for measure in headline:
                    scores[measure][row["method"]][row["subject"]].append(float(row[measure]))
    mean = {m: {k: [float(np.mean(v)) for v in of.values()] for k, of in by.items()} for m, by in scores.items()}
    methods = list(mean[headline[0]])
    steps = yaml.safe_load((runs[0] / "params.yaml").read_text())["train"]["training"]["steps"]
    print(
        f"\n{name}: {metrics[0]['subjects']} unseen subjects, {len(runs)} seeds, {steps} steps, against {reference}\n"
    )
    print(f"| method | {' | '.join(headline)} | better on | effect | p (Holm) |\n|{'---|' * (len(headline) + 4)}")
    tests = {m: paired_test(mean[headline[0]]["model"], mean[headline[0]][m]) for m in methods if m != "model"}
    adjusted = holm({m: p for m, p in tests.items() if p is not None})
    for method in methods:
        cells, wins = [], []
        for measure in headline:
            digits = 2 if max(mean[measure]["model"]) > 2 else 4
            s = summary(mean[measure][method])
            cells.append(
                f"{s['mean']:.{digits}f} ± {s['sd']:.{digits}f} ({s['low']:.{digits}f} to {s['high']:.{digits}f})"
            )
            sign = 1 if metrics[0]["measures"][measure] == "higher" else -1
            wins.append(
                sum(sign * (a - b) > 0 for a, b in zip(mean[measure]["model"], mean[measure][method], strict=True))
            )
        apart = ""
        if method != "model":
            sign = 1 if metrics[0]["measures"][headline[0]] == "higher" else -1
            rank = sign * effect(mean[headline[0]]["model"], mean[headline[0]][method])
            p = adjusted.get(method)
            apart = f"{'/'.join(map(str, wins))} | {rank:+.2f} | {'too few' if p is None else f'{p:.3g}'}"
        print(f"| {method} | {' | '.join(cells)} | {apart or ' | | '} |")
    each = zip(*(mean[headline[0]][method] for method in ("model", methods[1])), strict=True)
    print(f"\nEach subject, model and {methods[1]}: " + "; ".join(f"{ours:.2f}, {other:.2f}" for ours, other in each))
    spread = {m: [float(np.mean(v)) for v in zip(*scores[m]["model"].values(), strict=True)] for m in headline}
    print("\nMean of each seed: " + "; ".join(f"{m} {', '.join(f'{v:.4g}' for v in vs)}" for m, vs in spread.items()))


def main() -> None:
    """Run the missing jobs and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="*", choices=[*JOBS, []], default=list(JOBS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=ROOT / ".medstyle/quality")
    arguments = parser.parse_args()
    for name in arguments.jobs:
        table(name, make(name, arguments.seeds, arguments.threads, arguments.out))


if __name__ == "__main__":
    main()
