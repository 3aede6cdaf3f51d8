"""Measure translated scans, with and without pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray

from medstyle.data.store import SliceStore
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.measured import Array, Measure, Params, _unit
from medstyle.evaluation.protocols import Protocol
from medstyle.evaluation.safety import (
    by_lesion,
    calibration,
    created,
    edge_displacement,
    lesions,
    nearest,
    thumbnails,
)
from medstyle.evaluation.structures import Segmenter, overlap, train_segmenter
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume, read_volume
from medstyle.inference.translate import prepare_source, translate_prepared
from medstyle.networks.translator import Translator
from medstyle.params import parse
from medstyle.pseudonyms import subject_key
from medstyle.transforms.align import onto_grid
from medstyle.transforms.descriptors import image_features
from medstyle.transforms.intensity import foreground_mask
from medstyle.transforms.prepare import Preparation, Prepared, axial

UNCERTAIN = 0.15  # deviation in [0, 1] units that the viewer shows as white


SHOWN = 0.1  # slices with a smaller share of body say little


LIBRARY, SEGMENTED = 20_000, 20  # most training slices to compare with; most training subjects of the segmenter


UNSEEN = 500  # most unseen target slices to compare distributions with


VIEWED, SLICES = 3, 40  # subjects and slices of each in the page's viewer: it should stay below a few MB


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
