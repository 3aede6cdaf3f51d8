"""Train a translator from the slice store: generator against discriminator, always resumable."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from medstyle.data.store import SliceStore
from medstyle.errors import ModelError
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.inference.calibrate import calibrate
from medstyle.jobs.atomic import atomic_folder
from medstyle.jobs.checkpoint import run_key
from medstyle.jobs.progress import StepProgress
from medstyle.jobs.tables import write_table
from medstyle.networks.folder import ready_folder, weights_sha256
from medstyle.networks.networks import Networks
from medstyle.networks.translator import Translator, TranslatorConfig, model_card
from medstyle.training.loop import Log, fit
from medstyle.training.objectives.table import OBJECTIVES
from medstyle.training.plan import Plan
from medstyle.transforms.descriptors import Reference, statistics_of

Params = Plan

SCRATCH = Path(".medstyle/train")  # git-ignored, never an output: DVC would delete it before each run
NAMED = ("generator/l1", "generator/adversarial", "discriminator/share_right", "validation/l1")  # for progress lines


def run(
    params: Params,
    slices: Path,
    out: Path,
    curve_file: Path,
    log: Log = lambda step, values: None,
    states: Path = SCRATCH,
    fetch: Callable[[str], Path] = ready_folder,
) -> None:
    """Train on the store ``slices``.

    Write the translator folder ``out`` and the curve ``curve_file`` (CSV).

    An interrupted run that is started again with the same params, data and code resumes from its
    state in ``states`` and gives bit-identical results. ``fetch`` finds the folder of the model
    that ``params.start`` names.
    """
    store = SliceStore.open(slices)
    start = _start(params.start, fetch)
    scratch = states / _key(params, slices, start.sha256 if start is not None else "")
    first = os.environ.get("RANK", "0") == "0"
    if first and not scratch.exists() and states.exists() and any(states.iterdir()):
        print(
            f"params, data or code differ from those of the interrupted training in {states}: starting afresh",
            file=sys.stderr,
        )
    with StepProgress("train", params.training.steps, (params.training.batch, "images")) as progress:

        def show(step: int, values: dict[str, float]) -> None:
            if first and "resumed" in values:
                progress.resumed(step)
            elif first:
                progress.show(step, {name.rpartition("/")[2]: values[name] for name in NAMED if name in values})

        members, curve = fit(params, store, scratch, log, show, start)
    if not first:
        return
    facts = {"start": f"{params.start}, weights sha256 {start.sha256}"} if start is not None else {}
    sha256 = _save(params, store, members, facts, out)
    write_table(curve_file, curve)
    shutil.rmtree(scratch, ignore_errors=True)
    print(f"{curve[-1]['step']:.0f} steps, weights sha256 {sha256[:16]}, translator in {out}")


def _start(name: str | None, fetch: Callable[[str], Path]) -> Translator | None:
    """Load the model to start from; raise :class:`UserError` with the remedy if there is none."""
    if name is None:
        return None
    try:
        return Translator.load(fetch(name))
    except ModelError as error:
        raise ModelError(f"train.start: {error}") from None


def _save(params: Params, store: SliceStore, members: list[Networks], facts: dict[str, str], out: Path) -> str:
    """Write the translator folder, with more ``facts``; return the hash of its weights."""
    config = _config(params, store)
    translator = Translator(replace(config, facts={**config.facts, **facts}), members)
    with atomic_folder(out) as part:
        translator.save(part)
        sha256 = weights_sha256(part)
        if OBJECTIVES[params.objective.kind].paired and not DOMAINS[params.target].picture:
            saved = Translator.load(part, translator.device)
            translator = replace(translator, config=replace(translator.config, interval=calibrate(saved, store)))
            (part / "translator.json").write_text(translator.config.to_json())
        (part / "MODEL_CARD.md").write_text(model_card(translator.config, sha256))
    return sha256


def _config(params: Params, store: SliceStore) -> TranslatorConfig:
    index, domains = store.index, params.learned
    directions = OBJECTIVES[params.objective.kind].directions
    inputs = [params.source] if directions == "one" else domains  # otherwise any of them may be an input
    depth = [params.training.depth] if params.volumetric else []
    return TranslatorConfig(
        architecture=params.network,
        domains=domains,
        source=params.source,
        target=params.target,
        contrasts=params.contrasts,
        size=(*depth, *index.size),
        alignment=index.alignment,
        mirror=params.augmentation.flip,
        preparation=index.preparation,
        fingerprints={domain: _median(index.fingerprints["train"][domain]) for domain in domains},
        rules=index.rules,
        reference={domain: reference_of(store, domain) for domain in inputs},
        facts={
            "training subjects": len(store.subjects("train")),
            "validation subjects": len(store.subjects("validation")),
            "unseen test subjects": len(store.subjects("test")),
            "split": "by subject",
            "slices": f"{index.size[0]} x {index.size[1]}",
            "objective": params.objective.kind,
            "steps": params.training.steps,
            "seed": params.training.seed,
        },
    )


def _median(fingerprints: tuple[Fingerprint, ...]) -> Fingerprint:
    knots = np.array([(one.values, one.scaled) for one in fingerprints])  # (images, 2, knots)
    values, scaled = np.median(knots, axis=0).tolist()
    return Fingerprint(tuple(values), tuple(scaled))


def reference_of(store: SliceStore, domain: str) -> Reference:
    """Return the statistics of a domain's training images for the out-of-distribution check."""
    array, rows = store.array(domain, "train"), store.rows(domain, "train")
    subjects: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        subjects.setdefault(row.subject, []).append(i)
    single = [[i] for i, row in enumerate(rows) if row.foreground >= 0.1][:: max(1, len(rows) // 500)] or [[0]]
    volumes, slices = (
        statistics_of(array[where].astype(np.float32) for where in groups) for groups in (subjects.values(), single)
    )
    return Reference(volumes, slices)


def _key(params: Params, slices: Path, start: str) -> str:
    """Hash what determines the run: params, data, start, frozen features, code and libraries."""
    features = Path(getattr(params.objective, "features", None) or "/nowhere")
    return run_key(asdict(params), _hashes(slices), start, _hashes(features), _code())


def _hashes(folder: Path) -> dict[str, str]:
    """Hash every file of a folder; the result is empty if the folder does not exist."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _code() -> str:
    """Hash the code that computes the result, so that a state of other code is not resumed."""
    package = Path(__file__).parents[1]
    files = [
        *(file for folder in ("networks", "training", "data") for file in sorted((package / folder).rglob("*.py"))),
        *(
            package / name
            for name in ("transforms/augment.py", "transforms/body.py", "imaging/modality.py", "params.py")
        ),
        Path(__file__),
    ]
    libraries = ("medstyle", "torch", "monai", "numpy")
    digest = hashlib.sha256(" ".join(map(version, libraries)).encode())
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()
