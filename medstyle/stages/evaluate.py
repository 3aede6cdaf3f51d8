"""Measure the translator beside its baselines on unseen subjects, and look at what it made."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray

from medstyle.errors import UserError
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.distances import set_distances
from medstyle.evaluation.protocols import PROTOCOLS, PictureSet, Protocol
from medstyle.evaluation.report import (
    clip_data,
    curves,
    distribution,
    figure,
    picture_data,
    recorded,
    strip,
    write_page,
)
from medstyle.evaluation.safety import (
    Lesion,
    by_lesion,
    calibration,
    created,
    edge_displacement,
    lesions,
    nearest,
    survival,
    thumbnails,
)
from medstyle.evaluation.statistics import differences_kept, effect, holm, paired_test, summary, told_apart
from medstyle.evaluation.structures import Segmenter, overlap, train_segmenter
from medstyle.evaluation.video import MEASURES, measure_clip
from medstyle.imaging.inventory import VIDEO_SUFFIXES
from medstyle.imaging.keys import subject_key
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import from_unit, read_picture, to_unit
from medstyle.imaging.progress import track
from medstyle.imaging.store import SliceStore, person_of
from medstyle.imaging.video import Frame, read_frames
from medstyle.imaging.volume import Volume, read_volume
from medstyle.inference.translate import Look, prepare_source, translate_frames, translate_picture, translate_prepared
from medstyle.networks.features import image_features
from medstyle.networks.texture import style_distance
from medstyle.networks.translator import Translator, model_card
from medstyle.params import params, parse
from medstyle.transforms.intensity import foreground_mask
from medstyle.transforms.prepare import Preparation, Prepared, axial
from medstyle.transforms.register import onto_grid

UNCERTAIN = 0.15  # deviation in [0, 1] units that the viewer shows as white
SHOWN = 0.1  # slices with a smaller share of body say little
LIBRARY, SEGMENTED = 20_000, 20  # most training slices to compare with; most training subjects of the segmenter
UNSEEN = 500  # most unseen target slices to compare distributions with
REFERENCES = 3  # styles in which each picture is rendered, to see how they differ
VIEWED, SLICES = 3, 40  # subjects and slices of each in the page's viewer: it should stay below a few MB

Array = NDArray[np.float32]
Measure = Callable[..., dict[str, float]]


@params
class Params:
    """What is measured."""

    protocol: str = "plain"
    """Metric definition: plain or selfrdb for paired scans, synthrad2025 for a CT target, paired_pictures; without
    pairs unpaired_scans, or unpaired for pictures."""
    figures: int = 6
    """Most subjects to draw."""
    steady: float = 0.8
    """Videos in `truth/`, of a model of pictures: share of the frame before, as of `medstyle translate --steady`."""
    uncertainty: int = 6
    """Most subjects whose uncertainty is computed and compared with the error; several times the work for each."""
    clip_frames: int = 60
    """Of each of these videos only so many frames are measured and shown."""
    segmenter: int = 300
    """Training steps of the segmenter that looks for the structures of `truth/<subject>/labels.nii.gz` in real and
    synthetic images; 0: none."""
    seed: int = 0
    """Of the bootstrap and of the segmenter."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"evaluate.protocol: {self.protocol!r} is none of {', '.join(PROTOCOLS)}")


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


def _means(rows: list[dict[str, float]], seed: int) -> dict[str, dict[str, float]]:
    names = sorted({name for one in rows for name in one})
    return {name: summary([one[name] for one in rows if name in one], seed) for name in names}


def _distances(deep: list[dict[str, NDArray]], measure: object, subjects: list[str], seed: int) -> dict[str, Any]:
    """Return how far outputs and baselines lie from the unseen real targets, slices as samples."""
    if not isinstance(measure, _Scans) or measure.seen is None:
        return {}
    sets = {name: np.concatenate([one[name] for one in deep]) for name in deep[0]}
    real = sets.pop("real")
    table = set_distances(sets, real, measure.seen, seed)
    return {"features": "segmenter", "subjects": subjects, "slices": len(real), "table": table} if table else {}


def _sites(features: list[dict[str, NDArray]]) -> dict[str, float]:
    """Tell how well sources and outputs can be told from targets, and whether subjects keep their differences."""
    if len(features) < 4:  # a classifier that is tested on one subject must learn from some
        return {}
    source, output, target = (np.stack([one[name] for one in features]) for name in ("source", "output", "target"))
    return {
        "told_apart_before": told_apart(source, target),
        "told_apart_after": told_apart(output, target),
        "differences_kept": differences_kept(source, output),
    }


def _subgroups(
    rows: list[dict[str, Any]], items: list[dict[str, Any]], source: str, protocol: Protocol, seed: int
) -> dict[str, dict[str, Any]]:
    """Return the model's headline measures by what the manifest says of the scanner, where that differs."""
    scanner = {item["subject"]: item.get("scanner", {}) for item in items if item["domain"] == source}
    ours = [row for row in rows if row["method"] == "model" and row["reference"] == rows[0]["reference"]]
    found: dict[str, dict[str, Any]] = {}
    for attribute in sorted({name for of in scanner.values() for name in of}):
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in ours:
            groups.setdefault(str(scanner[row["subject"]].get(attribute, "unknown")), []).append(row)
        if len(groups) > 1:
            found[attribute] = {
                value: {name: summary([row[name] for row in members], seed) for name in protocol.headline}
                | {"subjects": len(members)}
                for value, members in sorted(groups.items())
            }
    return found


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
        self,
        translator: Translator,
        store: SliceStore,
        protocol: Protocol,
        truth: Path,
        images: dict[str, dict[str, Path]],
        params: Params,
    ) -> None:
        self.translator, self.store, self.protocol, self.uncertainty = translator, store, protocol, params.uncertainty
        self.preparation = parse(Preparation, translator.config.preparation, "translator preparation")
        self.registration = str(store.index["registration"])
        # keyed as ingest keys subjects, because folder names of the truth are PatientIDs
        self.truth = {subject_key(p.name): p for p in truth.iterdir() if p.is_dir()} if truth.is_dir() else {}
        target = translator.config.target
        slices = store.array(target, "train")
        stored = np.asarray(slices, np.float32)
        body = stored[stored > -0.999]
        self.targets = _unit(body[:: max(1, body.size // 200_000)])[:, None]
        shown = [i for i, row in enumerate(store.rows(target, "train")) if row.foreground > SHOWN]
        self.library = thumbnails(slices[i, 0] for i in shown[:: -(-len(shown) // LIBRARY)])
        self.names, self.segment, self.seen = self._segmenter(images, params)

    def __call__(self, subject: str, images: dict[str, Path]) -> dict[str, Any]:
        config = self.translator.config
        modality = DOMAINS[config.target]
        source, prepared = _read(images, self.translator)
        translation = translate_prepared(prepared, self.translator, uncertainty=self.uncertainty > 0)
        self.uncertainty -= 1
        made, deviation = translation.image, translation.uncertainty
        assert isinstance(made, Volume)
        outputs = {"model": _unit(modality.normalise(made.voxels, config.fingerprints[config.target]))}
        clean = _unit(prepared.to_source_grid(prepared.slices[:, 0].numpy(), -1.0))
        body = prepared.to_source_grid(prepared.foreground.astype(np.float32)) > 0.5
        outputs |= _classical(clean, body, self.targets)
        references = self._references(subject, images[config.target], source)
        rows, reals = [], {}
        for kind, reference in references.items():
            real, mask = self._scaled(reference)
            reals[kind] = real, mask
            for name, image in outputs.items():
                measures = self._measure(image, real, mask, made.voxels if name == "model" else None, reference)
                rows.append({"subject": subject, "reference": kind, "method": name, **measures})
        shown, mask = next(iter(reals.values()))
        layers = {"source": clean, "synthetic": outputs["model"], "real": shown}
        ids = self._truth_labels(subject, "lesions", source)
        safety = self._safety(outputs["model"], shown, mask, ids, source.spacing_mm)
        found = [] if ids is None else lesions(outputs["model"], shown, ids, float(np.prod(source.spacing_mm)))
        if deviation is not None:
            above, below = (
                modality.normalise(made.voxels + s * deviation.voxels, config.fingerprints[config.target])
                for s in (1, -1)
            )
            sigma = (np.float32(0.25) * (above - below)).astype(np.float32)  # two deviations in units of length 2
            safety |= calibration(np.abs(outputs["model"] - shown)[mask], sigma[mask])
            layers["uncertainty"] = np.clip(np.abs(sigma) / UNCERTAIN, 0, 1).astype(np.float32)
        output = _framed(source.with_voxels(outputs["model"]), self.preparation, self.store)
        target = self._stored(config.target, subject)
        safety |= self._memory(output, _unit(target[:, 0]))
        where, box = _slices_to_show(body), _box(body, SLICES)
        return {
            "layers": {name: image[box] for name, image in layers.items()},
            "rows": rows,
            "lesions": found,
            "safety": [safety],
            "structures": [self._structures(subject, source, outputs["model"], reals["acquired"][0])],
            "deep": [self._deep(outputs, body, reals["acquired"])],
            "features": [
                {
                    "source": image_features(self._stored(config.source, subject)),
                    "output": image_features(2 * output[:, None] - 1),
                    "target": image_features(target),
                }
            ],
            "labels": [f"slice {z}" for z in where],
            "columns": {
                f"source ({DOMAINS[config.source].label})": clean[where],
                f"synthetic {modality.label}": outputs["model"][where],
                f"real {modality.label}": shown[where],
                "error": np.abs(outputs["model"] - shown)[where],
            },
        }

    def _scaled(self, volume: Volume) -> tuple[Array, NDArray[np.bool_]]:
        """Return a real target in [0, 1] and its body."""
        mask = foreground_mask(volume.voxels.transpose(2, 1, 0)).transpose(2, 1, 0)
        fingerprint = self.preparation.fingerprint(volume.domain, volume.voxels, mask)
        return _unit(DOMAINS[volume.domain].normalise(volume.voxels, fingerprint)), mask

    @staticmethod
    def _safety(
        output: Array, real: Array, mask: NDArray[np.bool_], ids: NDArray | None, spacing_mm: tuple[float, ...]
    ) -> dict[str, float]:
        columns, rows, _ = spacing_mm
        found = {"edge_displacement_mm": edge_displacement(output, real, mask, (rows, columns))}
        if ids is not None:
            found["created"] = float(created(output, real, ids, mask, float(np.prod(spacing_mm))))
            found |= by_lesion(output, real, ids, mask)
        return found

    def _stored(self, domain: str, subject: str) -> Array:
        rows = [i for i, row in enumerate(self.store.rows(domain, "test")) if row.subject == subject]
        return self.store.array(domain, "test")[rows].astype(np.float32)

    def _memory(self, output: Array, real: Array) -> dict[str, float]:
        """Tell how near the output and the real unseen target come to a training target."""
        found = {"output_to_training": output, "unseen_to_training": real}
        seen = {name: images[(images > 0).mean(axis=(1, 2)) > SHOWN] for name, images in found.items()}
        return {name: nearest(thumbnails(images), self.library) for name, images in seen.items() if len(images)}

    def _segmenter(
        self, images: dict[str, dict[str, Path]], params: Params
    ) -> tuple[list[str], Segmenter | None, NDArray | None]:
        """Train on real targets of training subjects whose truth holds labels.

        Returns:
            The labels' names, the segmenter and its features of what it was trained on.
        """
        target = self.translator.config.target
        pictures, bodies, labels = [], [], []
        for subject in self.store.subjects("train")[:SEGMENTED] if params.segmenter else ():
            if target in images[subject] and (self.truth.get(subject, Path()) / "labels.nii.gz").is_file():
                volume = read_volume(images[subject][target], target)
                picture, body = self._scaled(volume)
                pictures.append(picture)
                bodies.append(body)
                labels.append(self._truth_labels(subject, "labels", volume).astype(np.uint8))
        if not pictures:
            return [], None, None
        facts = next(iter(self.truth.values())) / "subject.json"
        known = json.loads(facts.read_text()).get("labels", {}) if facts.is_file() else {}
        names = [known.get(str(number), str(number)) for number in range(max(map(np.max, labels)) + 1)]
        segment = train_segmenter(pictures, labels, len(names), params.segmenter, params.seed)
        seen = [_described(segment, *pair) for pair in zip(pictures, bodies, strict=True)]
        return names, segment, np.concatenate(seen)

    def _deep(
        self, outputs: dict[str, Array], body: NDArray[np.bool_], real: tuple[Array, NDArray[np.bool_]]
    ) -> dict[str, NDArray]:
        if self.segment is None:
            return {}
        found = {name: _described(self.segment, image, body) for name, image in outputs.items()}
        return found | {"real": _described(self.segment, *real)}

    def _structures(self, subject: str, grid: Volume, output: Array, real: Array) -> dict[str, dict[str, float]]:
        truth = self._truth_labels(subject, "labels", grid)
        if self.segment is None or truth is None:
            return {}
        ours, theirs = (overlap(self.segment(image), truth, len(self.names)) for image in (output, real))
        return {
            self.names[label]: {
                "dice_output": ours[label][0],
                "dice_real": theirs[label][0],
                "volume_error_output": abs(ours[label][1]),
                "volume_error_real": abs(theirs[label][1]),
            }
            for label in ours
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

    def _truth_labels(self, subject: str, name: str, grid: Volume) -> Any:
        """Return ``name`` of the truth, ``(D, H, W)`` of int, or None where there is none."""
        path = self.truth.get(subject, Path()) / f"{name}.nii.gz"
        if subject not in self.truth or not path.is_file():
            return None
        return onto_grid(read_volume(path, grid.domain), grid, nearest=True).voxels.astype(int)


class _Pictures:
    """Measure a picture against the set of unseen target pictures and its own content.

    Where the translator takes styles from references, also against one of them, another for each picture.
    """

    def __init__(self, translator: Translator, store: SliceStore, measure: Measure) -> None:
        self.translator, self.measure = translator, measure
        target = translator.config.target
        unseen, training = (_unit(np.asarray(store.array(target, split), np.float32)) for split in ("test", "train"))
        self.unseen = PictureSet(unseen.transpose(0, 2, 3, 1))
        values = training.transpose(0, 2, 3, 1).reshape(-1, 3)
        self.targets = values[:: max(1, len(values) // 200_000)]
        self.styles = translator.config.architecture.style
        self.turn = 0
        self.floor = PictureSet(training.transpose(0, 2, 3, 1)[: len(unseen)])
        self.made: dict[str, list[Array]] = {}

    def __call__(self, subject: str, images: dict[str, Path]) -> dict[str, Any]:
        pixels = read_picture(images[self.translator.config.source])
        source = to_unit(pixels)
        rows, sheet = [], {"source": source}
        facts = {"subject": subject, "reference": "unseen targets"}
        if {"domain", "latent"} & set(self.styles):
            outputs = self.outputs(pixels, self.targets, None)
            rows += [
                {**facts, "method": name, **self.measure(image, source, self.unseen)} for name, image in outputs.items()
            ]
            sheet |= {"synthetic": outputs["model"], "histogram matching": outputs["histogram_matching"]}
            for name, image in outputs.items():
                self.made.setdefault(name, []).append(image)
        diversity = {}
        if "reference" in self.styles:
            chosen = [self.unseen.pictures[(self.turn + i) % len(self.unseen.pictures)] for i in range(REFERENCES)]
            self.turn += REFERENCES
            styles = [from_unit(one, np.uint8) for one in chosen]
            outputs = self.outputs(pixels, chosen[0].reshape(-1, 3), styles[0])
            facts["reference"] = "one target each"
            wanted = PictureSet(chosen[0][None])
            rows += [
                {**facts, "method": name, **self.measure(image, source, wanted)} for name, image in outputs.items()
            ]
            sheet = {"source": source, "style": chosen[0], "synthetic": outputs["model"], **sheet}
            others = [outputs["model"], *(self._made(pixels, style) for style in styles[1:])]
            diversity = {"diversity": float(np.mean([np.abs(a - b).mean() for a, b in combinations(others, 2)]))}
        return {"rows": rows, "sheet": sheet, "safety": [diversity]}

    def style_of_all(self) -> dict[str, float]:
        """Return the distance of all outputs of each method together to all unseen targets; training targets' as floor.

        A method may come near to the whole set and not to any single picture, or the other way round.
        """
        sets = {name: PictureSet(images) for name, images in self.made.items()} | {"training targets": self.floor}
        return {
            name: float(style_distance(one.correlations, self.unseen.correlations)[0]) for name, one in sets.items()
        }

    def _made(self, pixels: NDArray, style: NDArray | None) -> Array:
        made = translate_picture(pixels, self.translator, reference=style).image
        assert isinstance(made, np.ndarray)
        return to_unit(made)

    def outputs(self, pixels: NDArray, targets: Array, style: NDArray | None) -> dict[str, Array]:
        """Return what the model and the baselines make of a picture."""
        source = to_unit(pixels)
        classical = {name: method(source.reshape(-1, 3), targets) for name, method in BASELINES.items()}
        return {
            "model": self._made(pixels, style),
            **{name: values.reshape(source.shape) for name, values in classical.items()},
        }


class _PairedPictures:
    """Measure a picture against the picture of the target domain that shows the same."""

    def __init__(self, translator: Translator, store: SliceStore, measure: Measure) -> None:
        self.pictures, self.measure = _Pictures(translator, store, measure), measure

    def __call__(self, subject: str, images: dict[str, Path]) -> dict[str, Any]:
        config = self.pictures.translator.config
        source, real = (read_picture(images[name]) for name in (config.source, config.target))
        if source.shape != real.shape:
            raise UserError(f"evaluate: {config.source} and {config.target} of {subject} differ in size")
        outputs, target = self.pictures.outputs(source, self.pictures.targets, None), to_unit(real)
        whole = np.ones((3, *real.shape[:2]), bool)
        rows = [
            {
                "subject": subject,
                "reference": "real target",
                "method": name,
                **self.measure(image.transpose(2, 0, 1), target.transpose(2, 0, 1), whole),
            }
            for name, image in outputs.items()
        ]
        return {"rows": rows, "sheet": {"source": to_unit(source), "synthetic": outputs["model"], "real": target}}


def _videos(
    truth: Path, translator: Translator, pictures: _Pictures, params: Params
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Measure the videos in ``truth``: clip -> method -> measures, and clip -> the start of both versions to play."""
    metrics: dict[str, Any] = {}
    clips: dict[str, dict[str, str]] = {}
    style = None
    if not {"domain", "latent"} & set(pictures.styles):
        style = from_unit(pictures.unseen.pictures[0], np.uint8)
    for path in sorted(path for path in truth.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES):

        def source(path: Path = path) -> Iterator[Frame]:
            return islice(read_frames(path), params.clip_frames)

        def classical(source: Callable[[], Iterator[Frame]] = source) -> Iterator[Frame]:
            for frame in source():
                values = BASELINES["histogram_matching"](to_unit(frame.pixels).reshape(-1, 3), pictures.targets)
                yield Frame(from_unit(values.reshape(frame.pixels.shape), np.uint8), frame.time)

        def ours(steady: float, source: Callable[[], Iterator[Frame]] = source) -> Iterator[Frame]:
            frames = (frame.pixels for frame in source())
            made = translate_frames(frames, translator, reference=style, look=Look(steady=steady))
            for frame, result in zip(source(), made, strict=True):
                yield Frame(result.image, frame.time)  # type: ignore[arg-type]

        with TemporaryDirectory() as folder:
            before, after = (Path(folder, f"{name}.mp4") for name in ("source", "synthetic"))
            methods: dict[str, Callable[[], Iterator[Frame]]] = {
                "histogram_matching": classical,
                "model, frame by frame": partial(ours, 0.0),
                "model": partial(_recorded, partial(ours, params.steady), after, path),
            }
            deque(_recorded(source, before, path), maxlen=0)
            metrics[path.stem] = measure_clip(source, methods, "model, frame by frame", pictures.unseen)
            clips[path.stem] = {"source": clip_data(before), "synthetic": clip_data(after)}
    return metrics, clips


class _UnpairedScans:
    """Measure a scan against the slices of unseen target scans and its own content."""

    def __init__(self, translator: Translator, store: SliceStore, measure: Measure) -> None:
        self.translator, self.store, self.measure = translator, store, measure
        self.preparation = parse(Preparation, translator.config.preparation, "translator preparation")
        unseen, training = (self._slices(split) for split in ("test", "train"))
        self.unseen = unseen[:: -(-len(unseen) // UNSEEN)]
        body = training[training > 0]
        self.targets = body[:: max(1, body.size // 200_000)][:, None]

    def _slices(self, split: str) -> Array:
        target = self.translator.config.target
        rows = [i for i, row in enumerate(self.store.rows(target, split)) if row.foreground > SHOWN]
        return _unit(self.store.array(target, split)[rows, 0].astype(np.float32))

    def __call__(self, subject: str, images: dict[str, Path]) -> dict[str, Any]:
        config = self.translator.config
        scan, prepared = _read(images, self.translator)
        made = translate_prepared(prepared, self.translator).image
        assert isinstance(made, Volume)
        values = DOMAINS[config.target].normalise(made.voxels, config.fingerprints[config.target])
        source, output = (
            _framed(scan.with_voxels(image), self.preparation, self.store)
            for image in (_unit(prepared.to_source_grid(prepared.slices[:, 0].numpy(), -1.0)), _unit(values))
        )
        body = source > 0
        outputs = {"model": output, **_classical(source, body, self.targets)}
        rows = [
            {
                "subject": subject,
                "reference": "unseen targets",
                "method": name,
                **self.measure(image, source, self.unseen),
            }
            for name, image in outputs.items()
        ]
        where, box = _slices_to_show(body), _box(body, SLICES)
        shown = {"source": source, "synthetic": output, "histogram matching": outputs["histogram_matching"]}
        return {
            "layers": {name: image[box] for name, image in shown.items()},
            "rows": rows,
            "labels": [f"slice {z}" for z in where],
            "columns": {name: image[where] for name, image in shown.items()},
        }


def _recorded(video: Callable[[], Iterator[Frame]], out: Path, like: Path) -> Iterator[Frame]:
    return recorded(video(), out, like)


def _read(images: dict[str, Path], translator: Translator) -> tuple[Volume, Prepared]:
    """Read a subject's source and prepare it with its contrasts."""
    config = translator.config
    source = read_volume(images[config.source], config.source)
    contrasts = [read_volume(images[name], name) for name in config.contrasts]
    return source, prepare_source(source, translator, contrasts)


def _classical(source: Array, body: NDArray[np.bool_], targets: Array) -> dict[str, Array]:
    """Return what each baseline makes of the body of a scan in [0, 1]; outside is air."""
    outputs = {}
    for name, method in BASELINES.items():
        outputs[name] = np.zeros_like(source)
        outputs[name][body] = method(source[body][:, None], targets)[:, 0]
    return outputs


def _described(segment: Segmenter, image: Array, body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Describe the slices that show the body by the segmenter's features; noise in the air does not count."""
    share = body.mean(axis=(1, 2))
    return segment.features(np.where(body, image, 0)[share > SHOWN * share.max()])


def _framed(volume: Volume, settings: Preparation, store: SliceStore) -> Array:
    """Bring a volume in [0, 1] to the slices of the store, ``(D, H, W)``."""
    grid, _ = axial(volume, settings)
    frame = ResizeWithPadOrCrop((*store.index["size"], grid.shape[-1]), mode="constant")
    framed = np.asarray(frame(grid.as_tensor().permute(0, 2, 1, 3)))[0]
    return np.ascontiguousarray(framed.transpose(2, 0, 1), np.float32)


def _unit(scaled: NDArray) -> Array:
    """Network units to [0, 1]."""
    return ((np.clip(scaled, -1, 1) + 1) / 2).astype(np.float32)


def _box(body: NDArray[np.bool_], most: int) -> tuple[Any, ...]:
    """Return an index that cuts to the body, with at most ``most`` slices, evenly spaced."""
    z, y, x = (np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    depths = np.unique(np.linspace(z[0], z[-1], min(most, z[-1] - z[0] + 1)).round().astype(int))
    return depths, slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)


def _slices_to_show(body: NDArray[np.bool_]) -> list[int]:
    """Choose three slices at 35, 55 and 75 % of the body's extent, fewer where there are not as many."""
    depths = np.flatnonzero(body.any(axis=(1, 2)))
    places = (int(depths[min(len(depths) - 1, int(share * len(depths)))]) for share in (0.35, 0.55, 0.75))
    return list(dict.fromkeys(places))
