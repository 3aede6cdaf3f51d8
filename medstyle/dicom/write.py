"""Write derived series from an allow-list of the source header, not a copy (PS3.3 A.3, A.4)."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from itertools import product, repeat
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.config import RAISE
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import format_number_as_ds, validate_value

from medstyle.dicom.elements import quiet, words
from medstyle.dicom.header import Frame
from medstyle.dicom.parametric_map import parametric_map
from medstyle.dicom.read import read_stored
from medstyle.dicom.scan import POSITION_TOLERANCE_MM, Series
from medstyle.dicom.uids import IMPLEMENTATION_UID, uid_of
from medstyle.errors import Code, Refusal
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume
from medstyle.jobs.atomic import atomic_folder

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

_STORAGE = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2"}
_KEEP = words(
    "PatientName PatientID PatientBirthDate PatientSex PatientWeight PatientIdentityRemoved DeidentificationMethod "
    "DeidentificationMethodCodeSequence LongitudinalTemporalInformationModified StudyInstanceUID StudyDate StudyTime "
    "ReferringPhysicianName StudyID AccessionNumber StudyDescription FrameOfReferenceUID PositionReferenceIndicator "
    "PatientPosition BodyPartExamined Laterality AcquisitionDate AcquisitionTime SeriesNumber Manufacturer "
    "ManufacturerModelName LossyImageCompression LossyImageCompressionRatio LossyImageCompressionMethod"
)
_GRID = words(
    "PixelSpacing ImageOrientationPatient ImagePositionPatient SliceThickness SpacingBetweenSlices SliceLocation"
)
_EMPTY = words(  # type 2: present, may be empty
    "PatientName PatientID PatientBirthDate PatientSex ReferringPhysicianName StudyID AccessionNumber StudyDate "
    "StudyTime PositionReferenceIndicator SliceThickness PatientPosition"
)
_IDENTIFIERS = words("PatientName PatientID StudyInstanceUID FrameOfReferenceUID StudyID AccessionNumber")
_METHOD = ("DeidentificationMethod", "DeidentificationMethodCodeSequence")
_PHYSICS: dict[str, dict[str, str | None]] = {  # nothing was acquired: RM ("research mode") is the honest valid value
    "MR": dict.fromkeys(["ScanOptions", "MRAcquisitionType", "EchoTime", "EchoTrainLength", "RepetitionTime"])
    | {"ScanningSequence": "RM", "SequenceVariant": "NONE"},
    "CT": dict.fromkeys(["KVP", "AcquisitionNumber"]),
}


@dataclass(frozen=True)
class ModelIdentity:
    """The model that made an image.

    Attributes:
        name, version: for readers; together at most 64 characters.
        sha256: hash of the weights, 64 hexadecimal digits.
        details: machine-readable facts (out-of-distribution score, configuration hash…), stored as
            JSON in the private block.
    """

    name: str
    version: str
    sha256: str
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Derivation:
    """The origin of a derived series.

    Attributes:
        source: the series whose patient, study and grid the new one has.
        model: the model that made it.
        source_domain: domain of ``source``, for the description.
        contrasts: series that were inputs beside ``source``.
        neighbourhood: number of slices of ``source`` on either side that affect a slice; None: all.
        aligned: whether the contrasts were moved, so that their positions do not tell which of
            their slices contributed.
        kind: what the voxels are.
        variant: what else determined the voxels, such as a seed: another one is another series.
        now: date and time of the new series.
    """

    source: Series
    model: ModelIdentity
    source_domain: str | None = None
    contrasts: tuple[Series, ...] = ()
    neighbourhood: int | None = 0
    aligned: bool = False
    kind: Literal["synthetic", "uncertainty", "interval"] = "synthetic"
    variant: tuple[str, ...] = ()
    now: datetime | None = None


def write_derived(volume: Volume, derivation: Derivation, out_dir: Path) -> list[Path]:
    """Write ``volume`` as a series of MR or CT images derived from another, one file per slice.

    The files are written to a new folder below ``out_dir``, which appears complete or not at all.
    On the source's grid, the geometry is copied unchanged; on another grid, it is computed from the
    affine. UIDs are derived from the source, the weights, the domain, the kind and the contrasts,
    so the same call gives the same UIDs. A synthetic CT that is made from a CT has padding at the
    same pixels.

    Args:
        volume: of an MR or CT domain.
        derivation: the origin of the volume.
        out_dir: parent of the new folder.

    Raises:
        Refusal: ``E_EXISTS`` the folder already exists, ``E_SOPCLASS`` the domain has no DICOM
            modality, ``E_NO_GEOMETRY`` the source has no position in space, ``E_4D`` it holds
            several volumes, ``E_NOT_FINITE`` the volume has NaN or infinite voxels.
    """
    series_uid, final = check_derived(derivation, volume.domain, out_dir)
    modality = str(DOMAINS[volume.domain].dicom)
    stored, pixel_module, facts = _quantise(volume, modality)
    model = derivation.model
    details = json.dumps({**model.details, **facts}, sort_keys=True, allow_nan=False)
    common = _common(modality, model, derivation.now or datetime.now(), details) | {
        "SeriesInstanceUID": series_uid,
        "SeriesDescription": f"{_title(volume, derivation)[:44]} NOT FOR DIAGNOSIS",
        **pixel_module,
    }
    with atomic_folder(final, own=True) as scratch, quiet():
        if derivation.kind == "synthetic":
            _write_slices(volume, derivation, stored, common, scratch)
        else:
            _write_map(volume, derivation, common, scratch)
    return sorted(final.iterdir())


def check_derived(derivation: Derivation, domain: str, out_dir: Path) -> tuple[str, Path]:
    """Return the series UID and the folder of a derived series, before the work that makes it.

    Raises:
        Refusal: those of :func:`write_derived` that do not depend on the voxels.
    """
    source, contrasts = derivation.source, derivation.contrasts
    if DOMAINS[domain].dicom not in _STORAGE:
        raise Refusal(Code.E_SOPCLASS, f"domain {domain} is not an MR or CT image; write pictures instead")
    if source.kind == "4d":
        raise Refusal(Code.E_4D, f"the source holds {source.volumes} volumes; choose one")
    if source.affine is None:
        raise Refusal(Code.E_NO_GEOMETRY, "the source has no position in the patient, which MR and CT images must have")
    if not all(frame.instance.sop_uid for one in (source, *contrasts) for frame in one.frames):
        raise Refusal(Code.E_DECODE, "an image of the source has no SOPInstanceUID, so nothing could refer to it")
    images = (f"{frame.instance.sop_uid}:{frame.number}" for frame in source.frames)  # a grown series is another
    begin = (source.series_uid, hashlib.sha256(" ".join(images).encode()).hexdigest())
    others = (other.series_uid for other in contrasts)
    series_uid = uid_of(*begin, derivation.model.sha256, domain, derivation.kind, *others, *derivation.variant)
    final = Path(out_dir) / f"{derivation.kind}-{domain}-{hashlib.sha256(series_uid.encode()).hexdigest()[:12]}"
    if final.exists():
        raise Refusal(
            Code.E_EXISTS, f"the output folder {final.name} exists already; remove it or choose another folder"
        )
    return series_uid, final


def _title(volume: Volume, derivation: Derivation) -> str:
    source, domain = derivation.source, derivation.source_domain
    label = DOMAINS[domain].label if domain else source.attributes.get("Modality", "")
    what = "SYNTHETIC" if derivation.kind == "synthetic" else f"{derivation.kind.upper()} MAP"
    return f"{what} AI {label}->{DOMAINS[volume.domain].label}"


def _write_slices(
    volume: Volume, derivation: Derivation, stored: NDArray[np.uint16], common: Mapping[str, Any], folder: Path
) -> None:
    source, series_uid = derivation.source, str(common["SeriesInstanceUID"])
    same_grid = _on_its_grid(volume, source)
    entered = _Entered(volume, derivation, same_grid)
    padded = same_grid and DOMAINS[volume.domain].dicom == source.attributes.get("Modality") == "CT"
    outside = _outside(source if padded else None)
    for k, (pixels, air, (header, grid)) in enumerate(zip(stored, outside, _placed(volume, source), strict=False)):
        dataset = _slice(header, grid, entered.at(k), common)
        dataset.InstanceNumber = k + 1
        dataset.SeriesNumber = _series_number(header, 9000)
        dataset.SOPInstanceUID = uid_of(series_uid, str(k))
        _complete(dataset, source)
        if air is not None:
            pixels[air] = dataset.PixelPaddingValue = 0
        _add_pixels(dataset, pixels)
        save(dataset, folder / f"{k + 1:04d}.dcm")


def _write_map(volume: Volume, derivation: Derivation, common: Mapping[str, Any], folder: Path) -> None:
    """Write an uncertainty or interval as a Parametric Map, which is a single file."""
    source, series_uid = derivation.source, str(common["SeriesInstanceUID"])
    headers: dict[str, Dataset] = {}
    grids = []
    for k, (header, grid) in enumerate(_placed(volume, source)):
        grids.append(grid)
        frame = source.frames[k if _on_its_grid(volume, source) else 0]
        slim = _slice(header, grid, [(frame, True)], common)
        slim.SOPClassUID, slim.SOPInstanceUID = frame.instance.sop_class, frame.instance.sop_uid
        slim.SeriesInstanceUID = source.series_uid or uid_of("series", *frame.instance.series)
        slim.SeriesNumber = _series_number(header, 9500 if derivation.kind == "uncertainty" else 9700)
        slim.Rows, slim.Columns = frame.instance.rows, frame.instance.columns
        _complete(slim, source)
        headers.setdefault(frame.instance.sop_uid, slim)
    dataset = parametric_map(volume, list(headers.values()), grids, series_uid, derivation.kind)
    for name in ("SeriesDescription", "SeriesDate", "SeriesTime", "ContentDate", "ContentTime", "SyntheticData"):
        setattr(dataset, name, common[name])
    dataset.SoftwareVersions = common["SoftwareVersions"]
    dataset.ImageComments, dataset.BurnedInAnnotation = common["ImageComments"], "NO"
    settle_laterality(dataset)
    _add_private(dataset, common)
    save(dataset, folder / "0001.dcm")


def _series_number(header: Dataset, offset: int) -> int:
    """Return the source's number plus ``offset``; ``offset`` if IS cannot hold it (PS3.5 6.2)."""
    number = int(_number(header, "SeriesNumber")) + offset
    return number if -(2**31) <= number < 2**31 else offset


def _complete(dataset: Dataset, source: Series) -> None:
    """Add missing identifiers of type 1, the same for all images derived from ``source``."""
    series = source.frames[0].instance.series
    if not dataset.get("StudyInstanceUID"):
        dataset.StudyInstanceUID = uid_of("study", *series)
    if not dataset.get("FrameOfReferenceUID"):  # one for the whole series, or its slices would be unrelated
        dataset.FrameOfReferenceUID = uid_of("frame of reference", *series)


def _on_its_grid(volume: Volume, source: Series) -> bool:
    """Return whether each slice of ``volume`` has the position of the same slice of the source."""
    assert source.affine is not None
    if source.frames[0].instance.tiles != 1:  # the elements of a mosaic locate the sheet, not its tiles
        return False
    return volume.voxels.shape == source.shape and _same_grid(volume.affine, source.affine, source.shape)


def _placed(volume: Volume, source: Series) -> Iterator[tuple[Dataset, Dataset]]:
    """Yield, for each slice, its source header and the elements that define its position."""
    reader, same_grid = _Headers(), _on_its_grid(volume, source)
    for k in range(len(volume.voxels)):
        header, grid = reader.read(source.frames[k if same_grid else 0])
        yield header, grid if same_grid else _computed_grid(volume, k)


def _quantise(volume: Volume, modality: str) -> tuple[NDArray[np.uint16], dict[str, Any], dict[str, float | int]]:
    """Return stored values ``(D, H, W)``, the elements that describe them, and facts to store."""
    values = volume.voxels
    if not np.isfinite(values).all():
        raise Refusal(Code.E_NOT_FINITE, "the volume holds NaN or infinite voxels; nothing was written")
    slope, intercept, (low, high) = 1.0, 0.0, DOMAINS[volume.domain].range
    if modality == "CT":
        intercept = low
    elif 0 < (peak := float(values.max())) < 1000 and not np.array_equal(values, np.rint(values)):
        slope = peak / 4095  # MR has no unit: a small range is stretched, because rounding would destroy it
    clipped = np.clip(values, low, high)
    stored = np.rint((clipped - intercept) / slope).clip(0, 65535).astype(np.uint16)
    bits = 12 if stored.max() <= 4095 else 16
    body = stored[stored > stored.min()]
    bottom, top = np.percentile(body, (1, 99)) if body.size else (0, 1)
    elements: dict[str, Any] = {
        "BitsAllocated": 16,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": 0,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "WindowCenter": f"{(bottom + top) / 2:.6g}",
        "WindowWidth": f"{max(top - bottom, 1):.6g}",
    }
    if modality == "CT":
        elements |= {"RescaleIntercept": f"{intercept:.6g}", "RescaleSlope": "1", "RescaleType": "HU"}
        elements |= {"WindowCenter": "40", "WindowWidth": "400"}
    return stored, elements, {"clipped_voxels": int((clipped != values).sum()), "unit_per_stored_value": slope}


def _common(modality: str, model: ModelIdentity, now: datetime, details: str) -> dict[str, Any]:
    """Return the elements that are the same in every slice."""
    day, time = now.strftime("%Y%m%d"), now.strftime("%H%M%S")
    described = f"Synthetic image made by a neural network ({model.name} {model.version}, weights {model.sha256[:16]})"
    return {
        **_PHYSICS[modality],
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": _STORAGE[modality],
        "Modality": modality,
        "SeriesDate": day,
        "ContentDate": day,
        "InstanceCreationDate": day,
        "SeriesTime": time,
        "ContentTime": time,
        "InstanceCreationTime": time,
        "ImageType": ["DERIVED", "SECONDARY", "AXIAL" if modality == "CT" else "OTHER", "SYNTHETIC"],
        "SyntheticData": "YES",
        "ImageComments": "AI SYNTHETIC - NOT FOR DIAGNOSTIC USE",
        "Manufacturer": "medstyle project",
        "ManufacturerModelName": "medstyle",
        "DeviceSerialNumber": "0",
        "SoftwareVersions": [model.version[:64], f"model sha256:{model.sha256[:16]}"],
        "BurnedInAnnotation": "NO",
        "RecognizableVisualFeatures": "YES",
        "DerivationDescription": f"{described}. Not acquired. Not for diagnostic use.",
        "DerivationCodeSequence": [code("medstyle-001", "99MEDSTYLE", "Image-to-image translation by neural network")],
        "CodingSchemeIdentificationSequence": [
            _item(CodingSchemeDesignator="99MEDSTYLE", CodingSchemeName="medstyle codes")
        ],
        "_equipment": _item(
            Manufacturer="medstyle project",
            ManufacturerModelName=model.name[:64],
            SoftwareVersions=model.version[:64],
            ContributionDateTime=day + time,
            ContributionDescription="AI synthesis",
            PurposeOfReferenceCodeSequence=[code("109100", "DCM", "Synthesizing Equipment")],
        ),
        "_private": (f"{model.name} {model.version}"[:64], model.sha256[:64], details),
    }


@dataclass(frozen=True)
class _Entered:
    """The slices and series that contributed to each slice of ``volume``.

    See :func:`write_derived`.
    """

    volume: Volume
    derivation: Derivation
    same_grid: bool

    def at(self, k: int) -> list[tuple[Frame, bool]]:
        """Return them for slice ``k``, its own first; True if all pixels kept their positions."""
        depth = len(self.volume.voxels)
        source, reach = self.derivation.source, self.derivation.neighbourhood
        reach = depth if reach is None else reach
        around = range(max(0, k - reach), min(depth, k + reach + 1))
        own = [source.frames[k]] if self.same_grid else []
        frames = [*own, *(source.frames[j] for j in around)] if self.same_grid else list(source.frames)
        for other in self.derivation.contrasts:
            frames += self._near(other, around)
        return [(frame, any(_same_place(frame, one) for one in own)) for frame in frames]

    def _near(self, other: Series, around: range) -> Sequence[Frame]:
        """Return the slices of ``other`` from which the slices ``around`` were interpolated."""
        if self.derivation.aligned or other.affine is None:
            return other.frames
        _, rows, columns = self.volume.voxels.shape
        ends = product((0, columns - 1), (0, rows - 1), (around[0], around[-1]), (1,))
        places = (np.linalg.inv(other.affine) @ self.volume.affine @ np.array([*ends]).T)[2]
        first, last = math.floor(places.min() + 1e-3), math.ceil(places.max() - 1e-3)
        return other.frames[max(0, first) : max(0, last + 1)]


def _same_place(one: Frame, other: Frame) -> bool:
    places = [(f.position, f.orientation, f.spacing, f.shape) for f in (one, other)]
    return all(a is not None and b is not None and np.allclose(a, b, atol=1e-4) for a, b in zip(*places, strict=True))


def _slice(header: Dataset, grid: Dataset, frames: list[tuple[Frame, bool]], common: Mapping[str, Any]) -> Dataset:
    """Build one slice, without its pixels and its own identifiers."""
    dataset = Dataset()
    dataset.update(grid)
    for name in _KEEP:
        if name in header and name not in ("SeriesNumber", "Manufacturer", "ManufacturerModelName"):
            _copy(dataset, header, name)
    for name in _EMPTY:
        if name not in dataset:
            setattr(dataset, name, None)
    settle_laterality(dataset)
    if dataset.get("PatientIdentityRemoved") == "YES" and not any(dataset.get(name) for name in _METHOD):
        dataset.DeidentificationMethod = "not stated by the source"  # type 1C
    for name, value in common.items():
        if not name.startswith("_"):
            setattr(dataset, name, value)
    lossy = any("LOSSY" in frame.instance.flags for frame, _ in frames)
    dataset.LossyImageCompression = "01" if lossy else "00"
    references = {  # the tiles of a mosaic are one image
        (f.instance.sop_uid, f.number if f.instance.frames > 1 else None): (f, same_place) for f, same_place in frames
    }
    series: dict[str, dict[str, Dataset]] = {}
    for frame, _ in references.values():
        series.setdefault(frame.instance.series_uid, {})[frame.instance.sop_uid] = _reference(frame)
    dataset.ReferencedSeriesSequence = [
        _item(SeriesInstanceUID=uid, ReferencedInstanceSequence=list(images.values())) for uid, images in series.items()
    ]
    dataset.SourceImageSequence = [_source(*of) for of in references.values()]
    scanner = _item(
        Manufacturer=str(header.get("Manufacturer") or "UNKNOWN")[:64],
        PurposeOfReferenceCodeSequence=[code("109101", "DCM", "Acquisition Equipment")],
    )
    if model := str(header.get("ManufacturerModelName") or "")[:64]:
        scanner.ManufacturerModelName = model
    dataset.ContributingEquipmentSequence = [scanner, common["_equipment"]]
    _add_private(dataset, common)
    return dataset


def _add_private(dataset: Dataset, common: Mapping[str, Any]) -> None:
    private = dataset.private_block(0x0099, "MEDSTYLE AI 1.0", create=True)
    for element, (vr, value) in enumerate(zip(("LO", "LO", "UT"), common["_private"], strict=True), start=1):
        private.add_new(element, vr, value)


def settle_laterality(dataset: Dataset) -> None:
    """Add an empty laterality if required (type 2C), remove it if it must not be empty."""
    if not dataset.get("BodyPartExamined"):
        dataset.Laterality = dataset.get("Laterality")
    elif not dataset.get("Laterality"):
        dataset.pop("Laterality", None)  # it is unknown whether the body part is one of a pair


def _reference(frame: Frame) -> Dataset:
    instance = frame.instance
    return _item(ReferencedSOPClassUID=instance.sop_class, ReferencedSOPInstanceUID=instance.sop_uid)


def _source(frame: Frame, same_place: bool) -> Dataset:
    item = _reference(frame)
    item.SpatialLocationsPreserved = "YES" if same_place else "NO"
    item.PurposeOfReferenceCodeSequence = [code("121322", "DCM", "Source image for image processing operation")]
    if frame.instance.frames > 1:
        item.ReferencedFrameNumber = frame.number + 1
    return item


class _Headers:
    """Reads source headers; a multi-frame file is read once."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.dataset = Dataset()

    def read(self, frame: Frame) -> tuple[Dataset, Dataset]:
        """Return the header and the elements that define the position of this frame, unchanged."""
        path = frame.instance.path
        if path != self.path:
            tags = [*_KEEP, *_GRID, "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"]
            self.dataset = dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(tags))
            self.path = path
        grid = Dataset()
        holders = [self.dataset]
        for name, k in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame.number)):
            if name in self.dataset and len(self.dataset[name].value) > k:
                group = self.dataset[name].value[k]
                planes = ("PixelMeasuresSequence", "PlaneOrientationSequence", "PlanePositionSequence")
                holders += [group[plane].value[0] for plane in planes if group.get(plane)]
        for holder in holders:  # the frame's own functional groups come last and take precedence
            for name in _GRID:
                if name in holder and not holder[name].is_empty:
                    _copy(grid, holder, name)
        if _number(grid, "SpacingBetweenSlices", float) <= 0:  # some scanners count downwards, which is no distance
            grid.pop("SpacingBetweenSlices", None)
        return self.dataset, grid


def _computed_grid(volume: Volume, k: int) -> Dataset:
    """Return the elements that define the position of slice ``k`` of a resampled volume."""
    axes = volume.direction
    column_mm, row_mm, _ = volume.spacing_mm
    normal = np.cross(axes[:, 0], axes[:, 1])
    distance = abs(float(volume.affine[:3, 2] @ normal))
    position = volume.affine @ np.array([0, 0, k, 1])
    return _item(
        PixelSpacing=[format_number_as_ds(float(row_mm)), format_number_as_ds(float(column_mm))],
        ImageOrientationPatient=[format_number_as_ds(float(v)) for v in axes[:, :2].T.ravel()],
        ImagePositionPatient=[format_number_as_ds(float(v)) for v in position[:3]],
        SliceThickness=format_number_as_ds(float(distance)),
        SpacingBetweenSlices=format_number_as_ds(float(distance)),
    )


def _same_grid(one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, int, int]) -> bool:
    depth, rows, columns = shape
    corners = np.array([[0, 0, 0, 1], [columns, 0, 0, 1], [0, rows, 0, 1], [0, 0, depth, 1]]).T
    moved = np.abs((one - other) @ corners)  # mm
    return bool(moved.max() <= POSITION_TOLERANCE_MM)


def _outside(source: Series | None) -> Iterator[NDArray[np.bool_] | None]:
    """Yield where each slice is padding, that is, not measured; None if the source does not say."""
    if source is None or all(frame.instance.padding is None for frame in source.frames):
        yield from repeat(None)
        return
    for frame, stored in zip(source.frames, read_stored(source), strict=True):
        low, high = frame.instance.padding or (1, 0)  # an empty range
        yield (stored >= low) & (stored <= high)


def _add_pixels(dataset: Dataset, pixels: NDArray[np.uint16]) -> None:
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue = int(pixels.min()), int(pixels.max())
    for name in ("SmallestImagePixelValue", "LargestImagePixelValue", "PixelPaddingValue"):
        if name in dataset:
            dataset[name].VR = "US"
    dataset.PixelData = pixels.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"


def save(dataset: Dataset, path: Path) -> None:
    """Write a new file with uncompressed pixels, and sync it to the disk."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = UID(IMPLEMENTATION_UID)
    dataset.file_meta.ImplementationVersionName = "MEDSTYLE_010"
    with path.open("xb") as file:
        dataset.save_as(file, enforce_file_format=True)
        file.flush()
        os.fsync(file.fileno())


def _copy(target: Dataset, source: Dataset, name: str) -> None:
    """Copy one element; text is decoded, because the copy is written in UTF-8.

    Values that the standard's value representation forbids, such as text instead of a number or a
    code of 17 characters, are left out, except for identifiers, which say what belongs together.
    Decimal strings that are too long are rounded to the 16 characters that they may have.
    """
    with suppress(ValueError, TypeError):
        element, vr = source[name], dictionary_VR(name)
        value = str(element.value) if vr == "PN" else element.value
        if vr == "SQ":
            target.add_new(tag_for_keyword(name), vr, [_copied_code(item) for item in value])
            return
        values = list(value) if isinstance(value, MultiValue | list) else [value]
        if vr == "DS":
            values = [one if len(str(one)) <= 16 else format_number_as_ds(float(one)) for one in values]
        for one in values if name not in _IDENTIFIERS and value is not None else ():
            validate_value(vr, str(one), RAISE)
        target.add_new(tag_for_keyword(name), vr, values if len(values) > 1 else values[0])


def _copied_code(item: Dataset) -> Dataset:
    copy = code(*(str(item.get(k, "")) for k in ("CodeValue", "CodingSchemeDesignator", "CodeMeaning")))
    if not copy.CodeValue or len(copy.CodeValue) > 16:  # VR SH has at most 16 characters
        copy.LongCodeValue = copy.CodeValue or str(item.get("LongCodeValue", ""))
        del copy.CodeValue
    return copy


def _item(**elements: Any) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return the item of a code sequence (PS3.3 8.8)."""
    return _item(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def _number(dataset: Dataset, name: str, kind: type[int] | type[float] = int) -> float:
    try:
        return kind(dataset.get(name) or 0)
    except (TypeError, ValueError):
        return 0
