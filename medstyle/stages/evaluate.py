"""Measure the translator beside its baselines on unseen subjects, and look at what it made."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import UserError
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.protocols import PROTOCOLS, Protocol
from medstyle.evaluation.report import curves, distribution, figure, strip, write_page
from medstyle.evaluation.safety import Lesion, calibration, created, edge_displacement, lesions, survival
from medstyle.evaluation.statistics import effect, holm, paired_test, summary
from medstyle.imaging.dicom.deidentify import subject_key
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import read_picture
from medstyle.imaging.progress import track
from medstyle.imaging.store import SliceStore
from medstyle.imaging.volume import Volume, read_volume
from medstyle.inference.translate import prepare_source, translate_picture, translate_prepared
from medstyle.networks.translator import Translator, model_card
from medstyle.params import params, parse
from medstyle.transforms.intensity import foreground_mask
from medstyle.transforms.prepare import Preparation
from medstyle.transforms.register import onto_grid

UNCERTAIN = 0.15  # deviation in [0, 1] units that the viewer shows as white
VIEWED, SLICES = 3, 40  # subjects and slices of each in the page's viewer: it should stay below a few MB

Array = NDArray[np.float32]
Measure = Callable[..., dict[str, float]]


@params
class Params:
    """What is measured."""

    protocol: str = "plain"
    """Metric definition: plain or selfrdb for paired scans, synthrad2025 for a CT target, unpaired for pictures."""
    figures: int = 6
    """Most subjects to draw."""
    uncertainty: int = 6
    """Most subjects whose uncertainty is computed and compared with the error; several times the work for each."""
    seed: int = 0
    """Of the bootstrap."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"evaluate.protocol: {self.protocol!r} is none of {', '.join(PROTOCOLS)}")


def run(
    params: Params, scans: Path, slices: Path, model: Path, truth: Path, out: Path, log: Callable[[str], None] = print
) -> None:
    """Write ``metrics.json``, ``subjects.csv``, ``figures/*.png`` and ``report.html`` below ``out``.

    Args:
        params: the stage's section.
        scans, slices, model: outputs of ingest, denoise and train.
        truth: folder of noise-free images and lesion masks by PatientID; may be absent.
        out: folder of reports.
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
    subjects = [s for s in store.subjects("test") if needed <= store.domains_of(s)]
    if not subjects:
        raise UserError(f"evaluate: no test subject has all of {', '.join(sorted(needed))}; raise denoise.test")
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for old in (out / "figures").glob("*.png"):
        old.unlink()
    measure = (
        _Scans(translator, store, protocol, truth, params.uncertainty)
        if protocol.paired
        else _Pictures(translator, store, protocol.measure)
    )
    rows: list[dict[str, Any]] = []
    found: list[Lesion] = []
    safety: list[dict[str, float]] = []
    viewer: list[dict[str, Any]] = []
    for number, subject in enumerate(track(subjects, "evaluate")):
        result = measure(subject, images[subject])
        rows += result["rows"]
        found += result["lesions"]
        safety += result["safety"]
        if number < params.figures:
            figure(out / "figures" / f"subject-{number + 1}.png", result["columns"], result["labels"], error="error")
        if number < VIEWED:
            viewer.append({name: strip(images) for name, images in result["layers"].items()})
    metrics = _summarise(rows, found, params, translator)
    names = sorted({name for one in safety for name in one})
    metrics["safety"] = {name: summary([one[name] for one in safety if name in one], params.seed) for name in names}
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
        card=model_card(translator.config, translator.sha256),
    )
    log(f"{len(subjects)} unseen subjects measured; report in {out / 'report.html'}")


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".part-{path.name}")
    part.write_text(text)
    part.replace(path)


def _summarise(
    rows: list[dict[str, Any]], found: list[Lesion], params: Params, translator: Translator
) -> dict[str, Any]:
    protocol = PROTOCOLS[params.protocol]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    references = list(dict.fromkeys(row["reference"] for row in rows))

    def values(reference: str, method: str, name: str) -> list[float]:
        return [row[name] for row in rows if row["reference"] == reference and row["method"] == method]

    main = references[0]
    wins = {}
    for name in protocol.headline:
        sign = 1 if protocol.measures[name] == "higher" else -1
        ours = np.array(values(main, "model", name)) * sign
        best = np.max([np.array(values(main, method, name)) * sign for method in methods if method != "model"], axis=0)
        wins[name] = int((ours > best).sum())
    count = len(values(main, "model", protocol.headline[0]))
    first = protocol.headline[0]
    sign = 1 if protocol.measures[first] == "higher" else -1
    others = {method: values(main, method, first) for method in methods if method != "model"}
    tests = {method: paired_test(values(main, "model", first), theirs) for method, theirs in others.items()}
    return {
        "protocol": params.protocol,
        "protocol_version": protocol.version,
        "reference": main,
        "subjects": count,
        "weights_sha256": translator.sha256,
        "measures": dict(protocol.measures),
        "headline": list(protocol.headline),
        "better_on_subjects": wins,
        "better_everywhere": all(won == count for won in wins.values()),
        "p_values": holm({method: p for method, p in tests.items() if p is not None}),
        "effects": {method: sign * effect(values(main, "model", first), theirs) for method, theirs in others.items()},
        "tables": {
            reference: {
                method: {name: summary(values(reference, method, name), params.seed) for name in protocol.measures}
                for method in methods
            }
            for reference in references
        },
        "lesions": survival(found) if found else {},
    }


class _Scans:
    """Measure a scan against the noise-free truth, where there is one, and against the acquired target."""

    def __init__(
        self, translator: Translator, store: SliceStore, protocol: Protocol, truth: Path, uncertainty: int
    ) -> None:
        self.translator, self.protocol, self.uncertainty = translator, protocol, uncertainty
        self.preparation = parse(Preparation, translator.config.preparation, "translator preparation")
        self.registration = str(store.index["registration"])
        # keyed as ingest keys subjects, because folder names of the truth are PatientIDs
        self.truth = {subject_key(p.name): p for p in truth.iterdir() if p.is_dir()} if truth.is_dir() else {}
        stored = np.asarray(store.array(translator.config.target, "train"), np.float32)
        body = stored[stored > -0.999]
        self.targets = _unit(body[:: max(1, body.size // 200_000)])[:, None]

    def __call__(self, subject: str, images: dict[str, Path]) -> dict[str, Any]:
        config = self.translator.config
        modality = DOMAINS[config.target]
        source = read_volume(images[config.source], config.source)
        contrasts = [read_volume(images[name], name) for name in config.contrasts]
        prepared = prepare_source(source, self.translator, contrasts)
        translation = translate_prepared(prepared, self.translator, uncertainty=self.uncertainty > 0)
        self.uncertainty -= 1
        made, deviation = translation.image, translation.uncertainty
        assert isinstance(made, Volume)
        outputs = {"model": _unit(modality.normalise(made.voxels, config.fingerprints[config.target]))}
        clean = _unit(prepared.to_source_grid(prepared.slices[:, 0].numpy(), -1.0))
        body = prepared.to_source_grid(prepared.foreground.astype(np.float32)) > 0.5
        for name, method in BASELINES.items():
            image = np.zeros_like(clean)
            image[body] = method(clean[body][:, None], self.targets)[:, 0]
            outputs[name] = image
        references = self._references(subject, images[config.target], source)
        rows = []
        for kind, reference in references.items():
            mask = foreground_mask(reference.voxels.transpose(2, 1, 0)).transpose(2, 1, 0)
            fingerprint = self.preparation.fingerprint(config.target, reference.voxels, mask)
            real = _unit(modality.normalise(reference.voxels, fingerprint))
            for name, image in outputs.items():
                measures = self._measure(image, real, mask, made.voxels if name == "model" else None, reference)
                rows.append({"subject": subject, "reference": kind, "method": name, **measures})
            if kind == next(iter(references)):
                shown = real
                ids = self._lesion_ids(subject, source)
                voxel_mm3 = float(np.prod(source.spacing_mm))
                found = [] if ids is None else lesions(outputs["model"], real, ids, voxel_mm3)
                columns, rows_mm, _ = source.spacing_mm
                safety = {"edge_displacement_mm": edge_displacement(outputs["model"], real, mask, (rows_mm, columns))}
                if ids is not None:
                    safety["created"] = float(created(outputs["model"], real, ids, mask, voxel_mm3))
                if deviation is not None:
                    above, below = (
                        modality.normalise(made.voxels + s * deviation.voxels, config.fingerprints[config.target])
                        for s in (1, -1)
                    )
                    sigma = (np.float32(0.25) * (above - below))[mask].astype(
                        np.float32
                    )  # two deviations, in network units of length 2
                    safety |= calibration(np.abs(outputs["model"] - real)[mask], sigma)
        where, box = _slices_to_show(body), _box(body, SLICES)
        layers = {"source": clean, "synthetic": outputs["model"], "real": shown}
        if deviation is not None:
            layers["uncertainty"] = np.clip(np.abs(above - below) / 4 / UNCERTAIN, 0, 1).astype(np.float32)
        return {
            "layers": {name: image[box] for name, image in layers.items()},
            "rows": rows,
            "lesions": found,
            "safety": [safety],
            "labels": [f"slice {z}" for z in where],
            "columns": {
                f"source ({DOMAINS[config.source].label})": clean[where],
                f"synthetic {modality.label}": outputs["model"][where],
                f"real {modality.label}": shown[where],
                "error": np.abs(outputs["model"] - shown)[where],
            },
        }

    def _measure(
        self, image: Array, real: Array, mask: NDArray[np.bool_], native: Array | None, reference: Volume
    ) -> dict[str, float]:
        """Measure in the protocol's unit; ``native`` is ``image`` in the domain's own, where it was never scaled."""
        if self.protocol.unit == "scaled":
            return self.protocol.measure(image, real, mask)
        config = self.translator.config
        if native is None:
            modality = DOMAINS[config.target]
            native = modality.denormalise(2 * image - 1, config.fingerprints[config.target])
        return self.protocol.measure(native, reference.voxels, mask)

    def _references(self, subject: str, acquired: Path, grid: Volume) -> dict[str, Volume]:
        target = self.translator.config.target
        references = {}
        folder = self.truth.get(subject)
        if folder is not None and (folder / f"{target}.nii.gz").is_file():
            references["truth"] = onto_grid(read_volume(folder / f"{target}.nii.gz", target), grid)
        references["acquired"] = onto_grid(read_volume(acquired, target), grid, self.registration)
        return references

    def _lesion_ids(self, subject: str, grid: Volume) -> NDArray[np.int64] | None:
        path = self.truth.get(subject, Path()) / "lesions.nii.gz"
        if subject not in self.truth or not path.is_file():
            return None
        return onto_grid(read_volume(path, grid.domain), grid, nearest=True).voxels.astype(int)


class _Pictures:
    """Measure a picture against the set of unseen target pictures and its own content."""

    def __init__(self, translator: Translator, store: SliceStore, measure: Measure) -> None:
        self.translator, self.measure = translator, measure
        target = translator.config.target
        self.unseen = _unit(np.asarray(store.array(target, "test"), np.float32)).transpose(0, 2, 3, 1)
        training = _unit(np.asarray(store.array(target, "train"), np.float32)).transpose(0, 2, 3, 1).reshape(-1, 3)
        self.targets = training[:: max(1, len(training) // 200_000)]

    def __call__(self, subject: str, images: dict[str, Path]) -> dict[str, Any]:
        pixels = read_picture(images[self.translator.config.source])
        made = translate_picture(pixels, self.translator).image
        assert isinstance(made, np.ndarray)
        source: Array = np.float32(1 / 255) * pixels.astype(np.float32)
        outputs: dict[str, Array] = {"model": np.float32(1 / 255) * made.astype(np.float32)}
        for name, method in BASELINES.items():
            outputs[name] = method(source.reshape(-1, 3), self.targets).reshape(source.shape)
        rows = [
            {
                "subject": subject,
                "reference": "unseen targets",
                "method": name,
                **self.measure(image, source, self.unseen),
            }
            for name, image in outputs.items()
        ]
        columns = {"source": source[None], "synthetic": outputs["model"][None]}
        columns["histogram matching"] = outputs["histogram_matching"][None]
        return {"layers": {}, "rows": rows, "lesions": [], "safety": [], "labels": [subject], "columns": columns}


def _unit(scaled: NDArray) -> Array:
    """Network units to [0, 1]."""
    return ((np.clip(scaled, -1, 1) + 1) / 2).astype(np.float32)


def _box(body: NDArray[np.bool_], most: int) -> tuple[Any, ...]:
    """Return an index that cuts to the body, with at most ``most`` slices, evenly spaced."""
    z, y, x = (np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    depths = np.unique(np.linspace(z[0], z[-1], min(most, z[-1] - z[0] + 1)).round().astype(int))
    return depths, slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)


def _slices_to_show(body: NDArray[np.bool_]) -> list[int]:
    """Choose three slices at 35, 55 and 75 % of the body's extent."""
    depths = np.flatnonzero(body.any(axis=(1, 2)))
    return [int(depths[min(len(depths) - 1, int(share * len(depths)))]) for share in (0.35, 0.55, 0.75)]
