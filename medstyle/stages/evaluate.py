"""Measure the translator beside its baselines on unseen subjects, and look at what it made."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.evaluation.measured import Array, Params
from medstyle.evaluation.pictures import _PairedPictures, _Pictures, _videos
from medstyle.evaluation.protocols import PROTOCOLS
from medstyle.evaluation.report import (
    curves,
    distribution,
    figure,
    picture_data,
    strip,
    write_page,
)
from medstyle.evaluation.safety import (
    Lesion,
)
from medstyle.evaluation.scans import VIEWED, _Scans, _UnpairedScans
from medstyle.evaluation.summary import _distances, _means, _sites, _subgroups, _summarise
from medstyle.evaluation.video import MEASURES
from medstyle.imaging.modality import DOMAINS
from medstyle.jobs.progress import track
from medstyle.networks.translator import Translator, model_card
from medstyle.pseudonyms import person_of


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
    """Write ``metrics.json``, ``subjects.csv``, ``figures/*.png`` and ``report.html`` below ``out``.

    Args:
        params: the stage's section.
        scans, slices, model: outputs of ingest, denoise and train.
        truth: folder of noise-free images and lesion masks by PatientID; may be absent.
        out: folder of reports.
        lineage: what the page says of where the model comes from.
    """
    store, translator = SliceStore.open(slices), Translator.load(model)
    items = json.loads((scans / "manifest.json").read_text())["items"]
    images: dict[str, dict[str, Path]] = {}
    for item in items:
        images.setdefault(item["subject"], {})[item["domain"]] = scans / item["path"]
    protocol, config = PROTOCOLS[params.protocol], translator.config
    if protocol.unit == "HU" and DOMAINS[config.target].unit != "HU":
        raise UserError(f"evaluate.protocol: {params.protocol} measures CT numbers; {config.target} has none")
    needed = {config.source, *config.contrasts, *([config.target] if protocol.paired else [])}
    complete = [s for s in store.subjects("test") if needed <= store.domains_of(s)]
    # the person is the unit of every statistic: of several sessions the first
    subjects = list({person_of(subject): subject for subject in reversed(complete)}.values())[::-1]
    if not subjects:
        remedy = "raise denoise.test, or measure without pairs: evaluate.protocol: unpaired_scans"
        raise UserError(f"evaluate: no test subject has all of {', '.join(sorted(needed))}; {remedy}")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for old in (out / "figures").glob("*.png"):
        old.unlink()
    measure: _Scans | _UnpairedScans | _Pictures | _PairedPictures
    if params.protocol == "paired_pictures":
        measure = _PairedPictures(translator, store, protocol.measure)
    elif protocol.paired:
        measure = _Scans(translator, store, protocol, truth, images, params)
    elif params.protocol == "unpaired_scans":
        measure = _UnpairedScans(translator, store, protocol.measure)
    else:
        measure = _Pictures(translator, store, protocol.measure)
    rows: list[dict[str, Any]] = []
    found: list[Lesion] = []
    safety: list[dict[str, float]] = []
    structures: list[dict[str, dict[str, float]]] = []
    features: list[dict[str, NDArray]] = []
    deep: list[dict[str, NDArray]] = []
    viewer: list[dict[str, Any]] = []
    sheet: list[dict[str, Array]] = []
    for number, subject in enumerate(track(subjects, "evaluate")):
        result = measure(subject, images[subject])
        rows += result["rows"]
        found += result.get("lesions", [])
        safety += result.get("safety", [])
        structures += result.get("structures", [])
        features += result.get("features", [])
        deep += result.get("deep", [])
        if number < params.figures and "sheet" in result:
            sheet.append(result["sheet"])
        elif number < params.figures:
            figure(out / "figures" / f"subject-{number + 1}.png", result["columns"], result["labels"], error="error")
        if number < VIEWED:
            viewer.append({name: strip(images) for name, images in result.get("layers", {}).items()})
    if sheet:
        figure(
            out / "figures" / "contact-sheet.png", {k: [one[k] for one in sheet] for k in sheet[0]}, [""] * len(sheet)
        )
    metrics = _summarise(rows, found, params, translator)
    metrics["safety"] = _means(safety, params.seed)
    metrics["structures"] = {
        name: _means([one[name] for one in structures if name in one], params.seed)
        for name in dict.fromkeys(name for one in structures for name in one)
    }
    metrics["distances"] = _distances(deep, measure, subjects, params.seed)
    metrics["sites"] = _sites(features)
    metrics["videos"], clips = (
        _videos(truth, translator, measure, params) if isinstance(measure, _Pictures) else ({}, {})
    )
    metrics["style_of_all"] = measure.style_of_all() if isinstance(measure, _Pictures) else {}
    metrics["subgroups"] = _subgroups(rows, items, config.source, protocol, params.seed)
    _write(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    with (out / "subjects.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows)
    first = [row for row in rows if row["reference"] == rows[0]["reference"]]
    distribution(out / "figures" / "distribution.png", first, list(protocol.headline))
    if (out / "training.csv").is_file():
        curves(out / "figures" / "training.png", out / "training.csv")
    write_page(
        out / "report.html",
        "report.html",
        sorted((out / "figures").glob("*.png")),
        source=translator.config.source,
        target=translator.config.target,
        metrics=metrics,
        tables=metrics["tables"],
        measures=protocol.measures,
        viewer=[one for one in viewer if one],
        pictures_beside=[{name: picture_data(one[name]) for name in ("source", "synthetic")} for one in sheet[:VIEWED]],
        clips=clips,
        video_measures=MEASURES,
        card=model_card(translator.config, translator.sha256),
        lineage={
            "weights, sha256": translator.sha256,
            "split and normalisation of the data, sha256": hashlib.sha256(
                (slices / "index.json").read_bytes()
            ).hexdigest(),
            **(lineage or {}),
        },
    )
    log(f"{len(subjects)} unseen subjects measured; report in {out / 'report.html'}")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(text)
    part.replace(path)
