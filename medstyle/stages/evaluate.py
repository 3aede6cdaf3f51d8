"""Measure the translator and its baselines on unseen subjects, and write the report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from medstyle.data.manifest import Manifest
from medstyle.data.store import SliceStore
from medstyle.evaluation.intervals import intervals
from medstyle.evaluation.measured import EvaluateParams, Measured, Measurer, Subject, subjects_to_measure, targets_of
from medstyle.evaluation.pictures import PairedPictures, Pictures, measure_videos
from medstyle.evaluation.protocols import PROTOCOLS
from medstyle.evaluation.report import curves, distribution, figure, picture_data, strip, write_page
from medstyle.evaluation.scans import PairedScans, UnpairedScans
from medstyle.evaluation.summary import subgroups, summarise
from medstyle.evaluation.video import MEASURES
from medstyle.inference.calibrate import calibration_subjects, errors_of
from medstyle.jobs.atomic import write_json
from medstyle.jobs.progress import track
from medstyle.jobs.tables import write_table
from medstyle.networks.conformal import LEVEL, too_few
from medstyle.networks.translator import Translator, model_card

Params = EvaluateParams

VIEWED = 3  # number of subjects in the viewer of the page


def run(
    params: Params,
    scans: Path,
    slices: Path,
    model: Path,
    truth: Path,
    out: Path,
    log: Callable[[str], None] = print,
    lineage: Mapping[str, str] | None = None,
) -> None:
    """Write ``metrics.json``, ``subjects.csv``, figures and ``report.html`` below ``out``.

    It takes many parameters, because the files of four stages meet here.

    Args:
        params: section of the stage.
        scans, slices, model: outputs of ingest, denoise and train.
        truth: folder of noise-free images and lesion masks by PatientID; may be absent.
        out: folder of reports.
        log: receives a line at the end.
        lineage: facts about the origin of the model for the page.
    """
    store, translator, manifest = SliceStore.open(slices), Translator.load(model), Manifest.read(scans)
    config = translator.config
    images = {key: {d: scans / item.path for d, item in of.items()} for key, of in manifest.subjects().items()}
    targets = targets_of(config.source, config.target, config.domains)
    target_of = subjects_to_measure(store, params.protocol, config.source, targets, config.contrasts)
    measurer = _measurer(params, translator, store, truth, images)
    # no structures of other sites: features of two segmenters cannot be compared
    others = {
        site: _measurer(replace(params, segmenter=0), translator.towards(site), store, truth, images)
        for site in dict.fromkeys(target_of.values()) if site != config.target
    }  # fmt: skip
    subjects = [Subject(key, number, images[key]) for number, key in enumerate(target_of)]
    measured = [others.get(target_of[one.key], measurer)(one) for one in track(subjects, "evaluate")]
    training = measurer.trained.features if isinstance(measurer, PairedScans) and measurer.trained else None
    metrics = summarise(measured, params, translator.sha256, training)
    metrics["intervals"] = _intervals(measurer, store, images) if isinstance(measurer, PairedScans) else {}
    clips: Mapping[str, Mapping[str, str]] = {}
    metrics["videos"], metrics["style_of_all"] = {}, {}
    if isinstance(measurer, Pictures):
        metrics["videos"], clips = measure_videos(truth, measurer, params)
        metrics["style_of_all"] = measurer.style_of_all(measured)
        metrics["distances"] = measurer.distances(measured, params.seed)
    rows = [row for one in measured for row in one.rows]
    metrics["subgroups"] = subgroups(rows, _attributes(manifest, config.source, target_of), params)
    write_json(out / "metrics.json", metrics)
    names = ("subject", "reference", "method")
    flat = [dict(zip(names, row, strict=False)) | dict(row.measures) for row in rows]
    write_table(out / "subjects.csv", flat, "{:.6f}")
    _draw(params, measured, out)
    facts = {
        "weights, sha256": translator.sha256,
        "split and normalisation of the data, sha256": hashlib.sha256((slices / "index.json").read_bytes()).hexdigest(),
        **(lineage or {}),
    }
    _write_report(out, params, translator, metrics, measured, clips, facts)
    log(f"{len(subjects)} unseen subjects measured; report in {out / 'report.html'}")


def _measurer(
    params: Params,
    translator: Translator,
    store: SliceStore,
    truth: Path,
    images: Mapping[str, Mapping[str, Path]],
) -> Measurer:
    protocol = PROTOCOLS[params.protocol]
    if params.protocol == "paired_pictures":
        return PairedPictures(translator, store, protocol.measure)
    if protocol.paired:
        return PairedScans(translator, store, truth, images, params)
    if params.protocol == "unpaired_scans":
        return UnpairedScans(translator, store)
    return Pictures(translator, store, protocol.measure)


def _attributes(manifest: Manifest, source: str, target_of: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Return what may tell groups of subjects apart: the scanner of the source, and the target."""
    items = [item for item in manifest.items if item.domain == source and item.subject in target_of]
    return {item.subject: {**item.scanner, "target": target_of[item.subject]} for item in items}


def _intervals(measurer: PairedScans, store: SliceStore, images: Mapping[str, Mapping[str, Path]]) -> dict[str, Any]:
    """Calibrate intervals on validation subjects and measure them on unseen ones."""
    translator, most = measurer.translator, measurer.params.intervals
    validation, test = (calibration_subjects(translator, store, split)[:most] for split in ("validation", "test"))
    if not most:
        return {}
    if missing := too_few(len(validation)):
        return {"level": LEVEL, "missing": missing, "table": {}}
    numbers = {
        key: measurer.numbers(Subject(key, number, images[key]))
        for number, key in enumerate(track([*validation, *test], "intervals"))
    }
    calibration, unseen = ([numbers[key] for key in of] for of in (validation, test))
    return intervals(translator.config.interval, errors_of(translator, store, "test", test), calibration, unseen)


def _draw(params: Params, measured: Sequence[Measured], out: Path) -> None:
    """Write the figures: a few subjects, the headline measures, the training curves."""
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    for number, one in enumerate(measured[: params.figures], 1):
        if one.figure is not None:
            figure(folder / f"subject-{number}.png", one.figure.columns, one.figure.labels, error="error")
    if sheets := [one.sheet for one in measured[: params.figures] if one.sheet]:
        columns = {name: [sheet[name] for sheet in sheets] for name in sheets[0]}
        figure(folder / "contact-sheet.png", columns, [""] * len(sheets))
    rows = [row for one in measured for row in one.rows]
    first = [row for row in rows if row.reference == rows[0].reference]
    distribution(folder / "distribution.png", first, PROTOCOLS[params.protocol].headline)
    if (out / "training.csv").is_file():
        curves(folder / "training.png", out / "training.csv")


def _write_report(
    out: Path,
    params: Params,
    translator: Translator,
    metrics: Mapping[str, Any],
    measured: Sequence[Measured],
    clips: Mapping[str, Mapping[str, str]],
    lineage: Mapping[str, str],
) -> None:
    layers = [one.layers for one in measured[:VIEWED] if one.layers]
    sheets = [one.sheet for one in measured[: min(params.figures, VIEWED)] if one.sheet]
    write_page(
        out / "report.html",
        "report.html",
        sorted((out / "figures").glob("*.png")),
        source=translator.config.source,
        target=translator.config.target,
        metrics=metrics,
        tables=metrics["tables"],
        measures=PROTOCOLS[params.protocol].measures,
        viewer=[{name: strip(images) for name, images in of.items()} for of in layers],
        pictures_beside=[{name: picture_data(of[name]) for name in ("source", "synthetic")} for of in sheets],
        clips=clips,
        video_measures=MEASURES,
        card=model_card(translator.config, translator.sha256),
        lineage=lineage,
    )
