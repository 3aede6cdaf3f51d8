"""Measure translated scans, with and without pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray

from medstyle.data.store import SliceStore
from medstyle.evaluation.agreement import agreement
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.intervals import Number, Region, numbers_of
from medstyle.evaluation.measured import Array, EvaluateParams, Figure, Measured, Row, Subject, unit
from medstyle.evaluation.protocols import PROTOCOLS
from medstyle.evaluation.safety import (
    by_lesion,
    calibration,
    created,
    edge_displacement,
    lesions,
    nearest,
    signatures,
)
from medstyle.evaluation.structures import Segmenter, overlap, train_segmenter
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.imaging.volume import Volume, read_volume
from medstyle.inference.translate import prepare_source, translate_prepared
from medstyle.networks.translator import Translator
from medstyle.pseudonyms import subject_key
from medstyle.transforms.align import onto_grid
from medstyle.transforms.body import is_body
from medstyle.transforms.descriptors import image_features
from medstyle.transforms.intensity import foreground_mask
from medstyle.transforms.prepare import Prepared, axial

UNCERTAIN = 0.15  # deviation in [0, 1] units that the viewer shows as white
COARSE_MM = 14.0  # size of a structure that the viewer shows as white where no finer one agrees
WIDE = 0.3  # half width in [0, 1] units that the viewer shows as white, as it does an error
SHOWN = 0.1  # slices with a smaller share of body are not measured
LIBRARY, SEGMENTED = 20_000, 20  # largest numbers of training slices to compare with and of subjects to segment
UNSEEN = 500  # largest number of unseen target slices for the comparison of distributions
SLICES = 40  # slices per subject in the viewer of the page, which should stay below a few MB
BRIGHT = 0.9  # share of the training targets' body that is darker than what counts as bright
TARGETS = 200_000  # largest number of values of training targets that the baselines use


@dataclass(frozen=True)
class RealTarget:
    """A real target in its own unit, and in [0, 1] with its body."""

    volume: Volume
    image: Array
    body: NDArray[np.bool_]


@dataclass(frozen=True)
class Trained:
    """The segmenter, the names of its labels, and its features of its training images."""

    segmenter: Segmenter
    names: list[str]
    features: NDArray[np.float64]


class PairedScans:
    """Measure a scan against the noise-free truth, if there is one, and the acquired target.

    Args:
        translator: the translator to measure.
        store: slice store whose training slices the baselines and the memorisation check use.
        truth: folder of noise-free images and labels by PatientID; may be absent.
        images: subject -> domain -> file, for all subjects.
        params: settings of the evaluation.
    """

    def __init__(
        self,
        translator: Translator,
        store: SliceStore,
        truth: Path,
        images: Mapping[str, Mapping[str, Path]],
        params: EvaluateParams,
    ) -> None:
        self.translator, self.store, self.params = translator, store, params
        self.protocol, self.preparation = PROTOCOLS[params.protocol], translator.config.preparation
        # the folders of the truth are named by PatientID: hash their names in the same way as
        # ingest
        folders = sorted(path for path in truth.iterdir() if path.is_dir()) if truth.is_dir() else []
        self.truth = {subject_key(path.name): path for path in folders}
        target = translator.config.target
        slices = store.array(target, "train")
        stored = np.asarray(slices, np.float32)
        body = stored[is_body(stored)]
        self.targets = unit(body[:: max(1, body.size // TARGETS)])[:, None]
        self.bright = float(np.quantile(self.targets, BRIGHT))
        shown = [i for i, row in enumerate(store.rows(target, "train")) if row.foreground > SHOWN]
        self.library = signatures(slices[i, 0] for i in shown[:: -(-len(shown) // LIBRARY)])
        self.trained = self._train_segmenter(images) if params.segmenter else None

    def __call__(self, subject: Subject) -> Measured:
        """Measure a subject, and its uncertainty if it is one of the first subjects."""
        config = self.translator.config
        modality, fingerprint = DOMAINS[config.target], config.fingerprints[config.target]
        source, prepared = read_and_prepare(subject.images, self.translator)
        uncertain = subject.number < self.params.uncertainty
        translation = translate_prepared(prepared, self.translator, uncertainty=uncertain)
        native, deviation = translation.image, translation.uncertainty
        assert isinstance(native, Volume)
        clean, body = on_source_grid(prepared)
        output = unit(modality.normalise(native.voxels, fingerprint))
        outputs = {"model": output, **classical(clean, body, self.targets)}
        references = self._references(subject, source)
        real = next(iter(references.values()))
        safety = self._safety(subject, output, real, source)
        rows, columns = (float(mm) for mm in source.spacing_mm[1::-1])
        agreed = agreement(output, real.image, real.body, (rows, columns))
        safety |= {"agreement_mm": agreed.median, "agreement_worst_mm": agreed.worst}
        size = np.clip(agreed.map / COARSE_MM, 0, 1).astype(np.float32)
        layers = {"source": clean, "synthetic": output, "real": real.image, "agreement": size}
        if deviation is not None:
            sigma = unit_spread(native, deviation, fingerprint)
            safety |= calibration(np.abs(output - real.image)[real.body], sigma[real.body])
            layers["uncertainty"] = np.clip(np.abs(sigma) / UNCERTAIN, 0, 1).astype(np.float32)
        if translation.interval is not None:
            half = unit_spread(native, translation.interval, fingerprint)
            layers["interval"] = np.clip(half / WIDE, 0, 1).astype(np.float32)
        framed = frame(source.with_voxels(output), self.translator, self.store)
        target = self._stored(config.target, subject.key)
        safety |= self._memorisation(framed, unit(target[:, 0]))
        return Measured(
            rows=self._rows(subject, outputs, references, native),
            figure=self._figure(clean, output, real.image, body),
            layers={name: image[viewer_box(body)] for name, image in layers.items()},
            lesions=self._lesions(subject, output, real, source),
            safety=safety,
            structures=self._structures(subject, source, output, references["acquired"].image),
            descriptors={
                "source": image_features(self._stored(config.source, subject.key)),
                "output": image_features(2 * framed[:, None] - 1),
                "target": image_features(target),
            },
            deep=self._deep(outputs, body, references["acquired"]),
        )

    def numbers(self, subject: Subject) -> dict[str, Number]:
        """Return volume (ml) and mean value of the bright voxels, and of each label that is known.

        Values are in the unit of the target; those of MR, of the median training image.
        """
        config = self.translator.config
        source, prepared = read_and_prepare(subject.images, self.translator)
        translation = translate_prepared(prepared, self.translator, uncertainty=True)
        native, deviation = translation.image, translation.uncertainty
        assert isinstance(native, Volume)
        assert deviation is not None
        modality, fingerprint = DOMAINS[config.target], config.fingerprints[config.target]
        low, output, high = (
            unit(modality.normalise(native.voxels + sign * deviation.voxels, fingerprint)) for sign in (-1, 0, 1)
        )
        _, body = on_source_grid(prepared)
        real = next(iter(self._references(subject, source).values()))
        truth = real.body & (real.image > self.bright)
        bright = [body & (image > self.bright) for image in (output, low, high)]
        regions = {"bright": Region(bright[0], bright[1], bright[2], truth)}
        labels = self._labels(subject.key, "labels", source)
        if self.trained is not None and labels is not None:
            found, less, more = (self.trained.segmenter(image) for image in (output, low, high))
            for label, name in enumerate(self.trained.names[1:], 1):
                regions[name] = Region(found == label, less == label, more == label, labels == label)
        values, known = (modality.denormalise(2 * image - 1, fingerprint) for image in (output, real.image))
        voxel_ml = float(np.prod(source.spacing_mm)) / 1000
        return {
            f"{name} {kind}": number
            for name, region in regions.items()
            for kind, number in numbers_of(region, values, deviation.voxels, known, voxel_ml).items()
        }

    def _rows(
        self, subject: Subject, outputs: dict[str, Array], references: dict[str, RealTarget], native: Volume
    ) -> list[Row]:
        return [
            Row(subject.key, kind, name, self._measure(image, real, native.voxels if name == "model" else None))
            for kind, real in references.items()
            for name, image in outputs.items()
        ]

    def _measure(self, image: Array, real: RealTarget, native: Array | None) -> dict[str, float]:
        """Measure in the unit of the protocol.

        ``native`` is ``image`` in the unit of the domain.
        """
        if self.protocol.unit == "scaled":
            return self.protocol.measure(image, real.image, real.body)
        if native is None:
            config = self.translator.config
            native = DOMAINS[config.target].denormalise(2 * image - 1, config.fingerprints[config.target])
        return self.protocol.measure(native, real.volume.voxels, real.body)

    def _figure(self, source: Array, output: Array, real: Array, body: NDArray[np.bool_]) -> Figure:
        config, where = self.translator.config, slices_to_show(body)
        target = DOMAINS[config.target].label
        columns = {
            f"source ({DOMAINS[config.source].label})": source[where],
            f"synthetic {target}": output[where],
            f"real {target}": real[where],
            "error": np.abs(output - real)[where],
        }
        return Figure(columns, [f"slice {z}" for z in where])

    def _references(self, subject: Subject, grid: Volume) -> dict[str, RealTarget]:
        """Return the noise-free target, if there is one, and the acquired one, on one grid."""
        target = self.translator.config.target
        volumes = {}
        folder = self.truth.get(subject.key)
        if folder is not None and (folder / f"{target}.nii.gz").is_file():
            volumes["truth"] = onto_grid(read_volume(folder / f"{target}.nii.gz", target), grid)
        acquired = read_volume(subject.images[target], target)
        volumes["acquired"] = onto_grid(acquired, grid, self.store.index.alignment)
        return {kind: self._scaled(volume) for kind, volume in volumes.items()}

    def _scaled(self, volume: Volume) -> RealTarget:
        body = foreground_mask(volume.voxels.transpose(2, 1, 0)).transpose(2, 1, 0)
        fingerprint = self.preparation.fingerprint(volume.domain, volume.voxels, body)
        return RealTarget(volume, unit(DOMAINS[volume.domain].normalise(volume.voxels, fingerprint)), body)

    def _labels(self, subject: str, name: str, grid: Volume) -> Any:
        """Return the labels ``name`` of the truth, ``(D, H, W)`` of int; None if there are none."""
        path = self.truth.get(subject, Path()) / f"{name}.nii.gz"
        if subject not in self.truth or not path.is_file():
            return None
        return onto_grid(read_volume(path, grid.domain), grid, nearest=True).voxels.astype(int)

    def _lesions(self, subject: Subject, output: Array, real: RealTarget, grid: Volume) -> list[Any]:
        ids = self._labels(subject.key, "lesions", grid)
        return [] if ids is None else lesions(output, real.image, ids, float(np.prod(grid.spacing_mm)))

    def _safety(self, subject: Subject, output: Array, real: RealTarget, grid: Volume) -> dict[str, float]:
        columns, rows, _ = grid.spacing_mm
        values = {"edge_displacement_mm": edge_displacement(output, real.image, real.body, (rows, columns))}
        ids = self._labels(subject.key, "lesions", grid)
        if ids is not None:
            values["created"] = float(created(output, real.image, ids, real.body, float(np.prod(grid.spacing_mm))))
            values |= by_lesion(output, real.image, ids, real.body)
        return values

    def _stored(self, domain: str, subject: str) -> Array:
        rows = [i for i, row in enumerate(self.store.rows(domain, "test")) if row.subject == subject]
        return self.store.array(domain, "test")[rows].astype(np.float32)

    def _memorisation(self, output: Array, real: Array) -> dict[str, float]:
        """Return the distances of output and real unseen target to the training targets."""
        images = {"output_to_training": output, "unseen_to_training": real}
        shown = {name: stack[(stack > 0).mean(axis=(1, 2)) > SHOWN] for name, stack in images.items()}
        return {name: nearest(signatures(stack), self.library) for name, stack in shown.items() if len(stack)}

    def _train_segmenter(self, images: Mapping[str, Mapping[str, Path]]) -> Trained | None:
        """Train on real targets of training subjects with labels; return None if there are none."""
        target = self.translator.config.target
        reals, labels = [], []
        for subject in self.store.subjects("train")[:SEGMENTED]:
            if target in images[subject] and (self.truth.get(subject, Path()) / "labels.nii.gz").is_file():
                volume = read_volume(images[subject][target], target)
                reals.append(self._scaled(volume))
                labels.append(self._labels(subject, "labels", volume).astype(np.uint8))
        if not reals:
            return None
        facts = next(iter(self.truth.values())) / "subject.json"
        known = json.loads(facts.read_text()).get("labels", {}) if facts.is_file() else {}
        names = [known.get(str(number), str(number)) for number in range(max(map(np.max, labels)) + 1)]
        steps, seed = self.params.segmenter, self.params.seed
        segmenter = train_segmenter([real.image for real in reals], labels, len(names), steps, seed)
        features = np.concatenate([slice_features(segmenter, real.image, real.body) for real in reals])
        return Trained(segmenter, names, features)

    def _deep(
        self, outputs: dict[str, Array], body: NDArray[np.bool_], real: RealTarget
    ) -> dict[str, NDArray[np.float64]]:
        if self.trained is None:
            return {}
        segmenter = self.trained.segmenter
        features = {name: slice_features(segmenter, image, body) for name, image in outputs.items()}
        return features | {"real": slice_features(segmenter, real.image, real.body)}

    def _structures(self, subject: Subject, grid: Volume, output: Array, real: Array) -> dict[str, dict[str, float]]:
        truth = self._labels(subject.key, "labels", grid)
        if self.trained is None or truth is None:
            return {}
        names, segmenter = self.trained.names, self.trained.segmenter
        ours, theirs = (overlap(segmenter(image), truth, len(names)) for image in (output, real))
        return {
            names[label]: {
                "dice_output": ours[label][0],
                "dice_real": theirs[label][0],
                "volume_error_output": abs(ours[label][1]),
                "volume_error_real": abs(theirs[label][1]),
            }
            for label in ours
        }


class UnpairedScans:
    """Measure a scan against the slices of unseen target scans and its own content."""

    def __init__(self, translator: Translator, store: SliceStore) -> None:
        self.translator, self.store, self.measure = translator, store, PROTOCOLS["unpaired_scans"].measure
        unseen, training = (self._slices(split) for split in ("test", "train"))
        self.unseen = unseen[:: -(-len(unseen) // UNSEEN)]
        body = training[training > 0]
        self.targets = body[:: max(1, body.size // TARGETS)][:, None]

    def _slices(self, split: str) -> Array:
        target = self.translator.config.target
        rows = [i for i, row in enumerate(self.store.rows(target, split)) if row.foreground > SHOWN]
        return unit(self.store.array(target, split)[rows, 0].astype(np.float32))

    def __call__(self, subject: Subject) -> Measured:
        """Measure a subject."""
        config = self.translator.config
        scan, prepared = read_and_prepare(subject.images, self.translator)
        native = translate_prepared(prepared, self.translator).image
        assert isinstance(native, Volume)
        values = DOMAINS[config.target].normalise(native.voxels, config.fingerprints[config.target])
        clean, _ = on_source_grid(prepared)
        source, output = (
            frame(scan.with_voxels(image), self.translator, self.store) for image in (clean, unit(values))
        )
        body = source > 0
        outputs = {"model": output, **classical(source, body, self.targets)}
        rows = [
            Row(subject.key, "unseen targets", name, self.measure(image, source, self.unseen))
            for name, image in outputs.items()
        ]
        where = slices_to_show(body)
        shown = {"source": source, "synthetic": output, "histogram matching": outputs["histogram_matching"]}
        return Measured(
            rows,
            Figure({name: image[where] for name, image in shown.items()}, [f"slice {z}" for z in where]),
            layers={name: image[viewer_box(body)] for name, image in shown.items()},
        )


def read_and_prepare(images: Mapping[str, Path], translator: Translator) -> tuple[Volume, Prepared]:
    """Read a subject's source and prepare it with its contrasts."""
    config = translator.config
    source = read_volume(images[config.source], config.source)
    contrasts = [read_volume(images[name], name) for name in config.contrasts]
    return source, prepare_source(source, translator, contrasts)


def unit_spread(output: Volume, spread: Volume, fingerprint: Fingerprint) -> Array:
    """Convert a spread around an output, both in the unit of their domain, to [0, 1] units."""
    modality = DOMAINS[output.domain]
    above, below = (modality.normalise(output.voxels + sign * spread.voxels, fingerprint) for sign in (1, -1))
    return (np.float32(0.25) * (above - below)).astype(np.float32)  # two spreads in units of length 2


def on_source_grid(prepared: Prepared) -> tuple[Array, NDArray[np.bool_]]:
    """Return the cleaned source in [0, 1] and its body, both on the grid of the source."""
    clean = unit(prepared.to_source_grid(prepared.slices[:, 0].numpy(), -1.0))
    return clean, prepared.to_source_grid(prepared.foreground.astype(np.float32)) > 0.5


def classical(source: Array, body: NDArray[np.bool_], targets: Array) -> dict[str, Array]:
    """Return each baseline's output for the body of a scan in [0, 1]; the rest is air."""
    outputs = {}
    for name, method in BASELINES.items():
        outputs[name] = np.zeros_like(source)
        outputs[name][body] = method(source[body][:, None], targets)[:, 0]
    return outputs


def slice_features(segmenter: Segmenter, image: Array, body: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the segmenter's features of the slices that show the body.

    Noise in the air is ignored.
    """
    share = body.mean(axis=(1, 2))
    return segmenter.features(np.where(body, image, 0)[share > SHOWN * share.max()])


def frame(volume: Volume, translator: Translator, store: SliceStore) -> Array:
    """Resample a volume in [0, 1] to the slices of the store, ``(D, H, W)``."""
    grid, _ = axial(volume, translator.config.preparation)
    crop = ResizeWithPadOrCrop((*store.index.size, grid.shape[-1]), mode="constant")
    framed = np.asarray(crop(grid.as_tensor().permute(0, 2, 1, 3)))[0]
    return np.ascontiguousarray(framed.transpose(2, 0, 1), np.float32)


def viewer_box(body: NDArray[np.bool_]) -> tuple[Any, ...]:
    """Return an index that crops to the body, with at most ``SLICES`` evenly spaced slices."""
    z, y, x = (np.flatnonzero(body.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3))
    depths = np.unique(np.linspace(z[0], z[-1], min(SLICES, z[-1] - z[0] + 1)).round().astype(int))
    return depths, slice(y[0], y[-1] + 1), slice(x[0], x[-1] + 1)


def slices_to_show(body: NDArray[np.bool_]) -> list[int]:
    """Choose slices at 35, 55 and 75 % of the body's extent; fewer if there are not enough."""
    depths = np.flatnonzero(body.any(axis=(1, 2)))
    places = (int(depths[min(len(depths) - 1, int(share * len(depths)))]) for share in (0.35, 0.55, 0.75))
    return list(dict.fromkeys(places))
