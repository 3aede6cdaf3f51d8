"""Slice store -> translator: train the generator against its discriminator, resumable at any moment."""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.jobs.checkpoint import run_key
from medstyle.networks.networks import Architecture
from medstyle.networks.translator import Translator, TranslatorConfig, model_card, weights_sha256
from medstyle.params import params
from medstyle.training.loop import Log, Training, fit
from medstyle.training.objectives.table import RECIPES, Objective
from medstyle.transforms.augment import Augmentation

SCRATCH = Path(".medstyle/train")  # git-ignored, never an output: DVC would delete it before each run


@params
class Params:
    """What to translate into what, and how to learn it."""

    source: str
    """Domain of the content images."""
    target: str
    """Domain whose style is learned."""
    contrasts: tuple[str, ...] = ()
    """Further domains of the same subject that the generator sees beside the source (T1 + T2 -> FLAIR)."""
    domains: tuple[str, ...] = ()
    """Further domains that are learned, by multi_domain and harmonization."""
    training: Training = Training()
    """Length, speed, seed, device."""
    objective: Objective = Objective()
    """Losses."""
    network: Architecture = Architecture()
    """Size of the generator."""
    augmentation: Augmentation = Augmentation()
    """Random changes of training images."""

    def __post_init__(self) -> None:
        named = [("source", self.source), ("target", self.target)]
        named += [("contrasts", name) for name in self.contrasts] + [("domains", name) for name in self.domains]
        for role, name in named:
            if name not in DOMAINS:
                raise UserError(f"train.{role}: unknown domain {name!r}; known: {', '.join(DOMAINS)}")
        learned = [self.source, self.target, *self.domains]
        if len(set(learned)) < len(learned) or set(self.contrasts) & {self.source, self.target}:
            raise UserError("train: a domain stands twice among source, target, contrasts and domains")


def run(
    params: Params,
    slices: Path,
    out: Path,
    curve_file: Path,
    log: Log = lambda step, values: None,
    states: Path = SCRATCH,
) -> None:
    """Train on the store ``slices``; write the translator folder ``out`` and the curve ``curve_file`` (CSV).

    Killed and run again with the same params, data and code, it goes on where it stopped and ends in the same bits;
    what it needs for that lies in ``states``.
    """
    store = SliceStore.open(slices)
    features = Path(params.objective.features or "")
    frozen = _fingerprint(features) if params.objective.features and features.is_dir() else {}
    scratch = states / run_key(asdict(params), _fingerprint(slices), frozen, _code())
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0 and not scratch.exists() and states.exists() and any(states.iterdir()):
        print(
            f"params, data or code differ from those of the interrupted training in {states}: starting afresh",
            file=sys.stderr,
        )
    with _progress(params.training) as show:
        members, curve = fit(
            store,
            params.source,
            params.target,
            contrasts=params.contrasts,
            domains=params.domains,
            settings=params.training,
            objective=params.objective,
            architecture=params.network,
            augmentation=params.augmentation,
            scratch=scratch,
            log=log,
            show=show if rank == 0 else lambda step, values: None,
        )
    if rank != 0:
        return
    translator = Translator(_config(params, store), members)
    part = out.with_name(f".part-{out.name}")
    shutil.rmtree(part, ignore_errors=True)
    translator.save(part)
    sha256 = weights_sha256(part)
    (part / "MODEL_CARD.md").write_text(model_card(translator.config, sha256))
    shutil.rmtree(out, ignore_errors=True)
    part.replace(out)
    _write_curve(curve_file, curve)
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"{curve[-1]['step']:.0f} steps, weights sha256 {sha256[:16]}, translator in {out}")


def _config(params: Params, store: SliceStore) -> TranslatorConfig:
    prints = store.index["fingerprints"]["train"]
    domains = [params.source, params.target, *params.domains]
    medians = {
        domain: Fingerprint(*(tuple(knots) for knots in np.median(np.array(prints[domain]), axis=0).tolist()))
        for domain in domains
    }
    reference: dict[str, Any] = reference_statistics(store, params.source)
    if RECIPES[params.objective.kind].directions != "one":  # any of them may come as an input
        reference |= {domain: reference_statistics(store, domain) for domain in domains}
    depth = [params.training.depth] if params.network.dimensions == 3 else []
    return TranslatorConfig(
        architecture=params.network,
        domains=domains,
        source=params.source,
        target=params.target,
        contrasts=list(params.contrasts),
        size=[*depth, *store.index["size"]],
        registration=store.index["registration"],
        mirror=params.augmentation.flip,
        preparation=store.index["preparation"],
        fingerprints=medians,
        rules=store.index["rules"],
        reference=reference,
        facts={
            "training subjects": len(store.subjects("train")),
            "validation subjects": len(store.subjects("validation")),
            "unseen test subjects": len(store.subjects("test")),
            "split": "by subject",
            "slices": f"{store.index['size'][0]} x {store.index['size'][1]}",
            "objective": params.objective.kind,
            "steps": params.training.steps,
            "seed": params.training.seed,
        },
    )


def reference_statistics(store: SliceStore, domain: str) -> dict[str, dict[str, Any]]:
    """Describe training sources for the out-of-distribution gate: whole volumes, and slices by themselves."""
    from medstyle.transforms.descriptors import image_features

    array, rows = store.array(domain, "train"), store.rows(domain, "train")
    subjects: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        subjects.setdefault(row.subject, []).append(i)
    single = [[i] for i, row in enumerate(rows) if row.foreground >= 0.1][:: max(1, len(rows) // 500)]
    reference = {}
    for name, groups in (("volume", list(subjects.values())), ("slice", single or [[0]])):
        features = np.stack([image_features(array[where].astype(np.float32)) for where in groups])
        centre = np.median(features, axis=0)
        spread = np.maximum(1.4826 * np.median(np.abs(features - centre), axis=0), 0.01)
        scores = np.abs((features - centre) / spread).max(axis=1)
        reference[name] = {
            "centre": centre.round(6).tolist(),
            "spread": spread.round(6).tolist(),
            "largest": float(np.percentile(scores, 99).round(4)),
        }
    return reference


def _fingerprint(folder: Path) -> dict[str, str]:
    """Hash every file of a folder."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _code() -> str:
    """Hash what computes the result, ours and the libraries, so that a state of other code is not resumed."""
    from importlib.metadata import version

    package = Path(__file__).parents[1]
    files = [
        *(file for folder in ("networks", "training", "data") for file in (package / folder).rglob("*.py")),
        *(
            package / name
            for name in ("transforms/augment.py", "transforms/body.py", "imaging/modality.py", "params.py")
        ),
        Path(__file__),
    ]
    libraries = ("medstyle", "torch", "monai", "numpy")
    digest = hashlib.sha256(" ".join(map(version, libraries)).encode())
    for file in sorted(files):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _write_curve(path: Path, curve: list[dict[str, float]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in curve for name in row))
    part = path.with_name(f".part-{path.name}")
    with part.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in curve)
    part.replace(path)


class _progress:  # noqa: N801 - used as a function
    """A bar with images/s and time left on a terminal, a plain line every ten seconds in a log."""

    def __init__(self, settings: Training) -> None:
        self.settings = settings

    def __enter__(self) -> Callable[[int, dict[str, float]], None]:
        import time

        self.bar: Any = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

            self.bar = Progress(
                TextColumn("train"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total} steps"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self.bar.start()
            task = self.bar.add_task("train", total=self.settings.steps, note="")
        start, first, last, note = time.monotonic(), -1, time.monotonic(), ""

        def show(step: int, values: dict[str, float]) -> None:
            nonlocal first, start, last, note
            if first < 0:
                first, start = step, time.monotonic()
                if "resumed" in values:
                    print(f"resumed at step {step}", file=sys.stderr, flush=True)
            if values and "resumed" not in values:
                note = " ".join(f"{k.split('/')[-1]} {v:.3f}" for k, v in values.items() if not k.endswith("norm"))
            now = time.monotonic()
            rate = (step - first) * self.settings.batch / max(now - start, 1e-9)
            if self.bar is not None:
                self.bar.update(task, completed=step, note=f"{rate:.3g} images/s {note}")
            elif (now - last >= 10 and step > first) or step == self.settings.steps:
                last = now
                left = (self.settings.steps - step) * self.settings.batch / max(rate, 1e-9)
                print(
                    f"train: {step}/{self.settings.steps} steps, {rate:.3g} images/s, {left:.0f} s left, {note}",
                    file=sys.stderr,
                    flush=True,
                )

        return show

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()
