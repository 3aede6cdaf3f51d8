"""Read the facts that grouping and decoding need from the header of one DICOM file (PS3.3)."""

from __future__ import annotations

import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from stat import S_ISREG
from types import MappingProxyType
from typing import Any, BinaryIO, TypeVar

from pydicom.uid import UID, AllTransferSyntaxes, UID_dictionary

from medstyle.dicom.elements import (
    ATTRIBUTES,
    BIG,
    DEFLATED,
    EXPLICIT,
    IMPLICIT,
    UNDEFINED,
    Header,
    Skip,
    csa_of,
    first,
    has,
    items,
    numbers,
    read_header,
    syntax_of,
    text,
    words,
)
from medstyle.dicom.mosaic import tiling
from medstyle.errors import Code, Refusal, reading
from medstyle.imaging.bounded import BoundedFile

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


@dataclass(frozen=True)
class Limits:
    """The largest claims of a header that are accepted before anything is decoded.

    Attributes:
        frame_pixels: rows x columns of one frame.
        object_bytes: decoded pixel bytes of one file, and of one volume in float32.
        ratio: decoded bytes per compressed byte, beyond the first MiB (a decompression bomb has
            more).
        inflated_bytes: size of a file in the deflated transfer syntax, inflated.
        frames: frames of one file.
    """

    frame_pixels: int = 1 << 26
    object_bytes: int = 4 << 30
    ratio: int = 1000
    inflated_bytes: int = 1 << 30
    frames: int = 100_000


LIMITS = Limits()
T = TypeVar("T")


class Damaged(Refusal):
    """An image with incomplete pixels, without which its series is incomplete."""

    def __init__(self, code: str, reason: str, series: tuple[object, ...]) -> None:
        super().__init__(code, reason)
        self.series = series


_RESCALE = (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
_STORAGE = "1.2.840.10008.5.1.4.1.1."
TOMOGRAPHIC = frozenset(_STORAGE + s for s in words("2 2.1 2.2 4 4.1 4.4 128 128.1 130"))  # CT, MR, PET
CT = frozenset(_STORAGE + s for s in words("2 2.1 2.2"))
SECONDARY = frozenset(_STORAGE + s for s in words("7 7.1 7.2 7.3 7.4"))
ULTRASOUND = frozenset(_STORAGE + s for s in words("6.1 6.2 3.1"))
_PLANAR = frozenset(_STORAGE + s for s in words("1 1.1 1.1.1 1.2 1.2.1 77.1.1 77.1.2 77.1.4 77.1.5.1"))  # CR DX MG VL
_CINE = frozenset(_STORAGE + s for s in words("12.1 12.1.1 12.2 12.2.1 77.1.1.1 77.1.2.1 77.1.4.1"))  # XA RF video
IMAGES = TOMOGRAPHIC | SECONDARY | ULTRASOUND | _PLANAR | _CINE

_ALWAYS_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81))  # JPEG baseline, extended; JPEG-LS near
NATIVE = frozenset((IMPLICIT, EXPLICIT, DEFLATED, BIG))
LITTLE = NATIVE - {BIG}


@dataclass(frozen=True, slots=True)
class Instance:
    """Facts of one file (a SOP instance).

    Identifiers and the path are patient data, hidden in ``repr``.
    """

    path: Path = field(repr=False)
    size: int  # bytes
    sop_class: str
    sop_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    person: tuple[str, ...] = field(repr=False)  # issuer of the ID, birth date, sex: tell people of one ID apart
    study_uid: str = field(repr=False)
    series_uid: str = field(repr=False)
    frame_of_reference_uid: str = field(repr=False)
    series_number: str
    concatenation: str = field(repr=False)
    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    transfer_syntax: str
    offset: int  # of the first byte of pixels in the file (deflated: in the inflated data set)
    padding: tuple[int, int] | None  # stored values, from and to, that mean "not measured"
    lut: bool
    attributes: Mapping[str, str] = field(repr=False)
    flags: frozenset[str]
    tiles: int = 1  # number of tiles along each side of the image: above one for a mosaic with a known tiling

    @property
    def identity(self) -> tuple[str, ...]:
        """The values that two different files must not share."""
        return self.study_uid, self.series_uid, self.series_number, self.sop_uid

    @property
    def series(self) -> tuple[object, ...]:
        """The values that images of one series share; the folder replaces UIDs that are empty."""
        place = "" if self.study_uid and self.series_uid else str(self.path.parent)
        return self.patient_id, self.person, self.study_uid, self.series_uid, place

    @property
    def colour(self) -> bool:
        """Whether a pixel is a colour, or an index into a palette."""
        return self.samples > 1 or self.photometric == "PALETTE COLOR"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame (PS3.5 section 8.1.1.

        4:2:2 has two samples per pixel).
        """
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return -(-self.rows * self.columns * samples * self.bits_allocated // 8)

    @property
    def value_bytes(self) -> int:
        """Bytes of one stored value in memory, after unpacking."""
        return -(-self.bits_allocated // 8)


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane: its position, its scaling, and what distinguishes it from others there."""

    instance: Instance
    number: int  # from 0 within the file; in a mosaic, of the tile
    position: tuple[float, ...] | None  # mm, LPS: centre of the first pixel
    orientation: tuple[float, ...] | None  # unit vectors along a row, along a column
    spacing: tuple[float, ...] | None  # mm between rows, between columns
    slope: float
    intercept: float
    contrast: tuple[Any, ...] = field(repr=False)  # frames that differ in it belong to different volumes
    direction: tuple[float, ...] = field(repr=False)  # of the diffusion gradient; () where there is none
    time: tuple[Any, ...] = field(repr=False)  # orders volumes that share their positions

    @property
    def labels(self) -> tuple[float, float]:
        """Temporal position and acquisition number, -1 if unknown.

        Of the frame, if a file has several.
        """
        temporal, acquisition = self.time[5:7] if len(self.time) > 6 else self.time[:2]
        return temporal, acquisition

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.instance.rows // self.instance.tiles, self.instance.columns // self.instance.tiles


def may_show_text(burned: str, sop_class: str, image_type: Collection[str], conversion: str) -> bool:
    """Return whether the pixels may show patient data, as those of screenshots and films do.

    All elements are in upper case. ``burned`` is BurnedInAnnotation; ``conversion`` is
    ConversionType, which describes how a page was made (PS3.3 C.8.6.1).
    """
    screen = sop_class in SECONDARY | ULTRASOUND or "SCREEN SAVE" in image_type or conversion
    return burned == "YES" or (burned != "NO" and bool(screen))


def read_frames(path: Path, limits: Limits = LIMITS) -> list[Frame]:
    """Read the header of ``path`` and return one :class:`Frame` per plane; no pixel is decoded.

    Call it within :func:`quiet`.

    Raises:
        Skip: not an image to process (``E_NOT_DICOM``, ``E_SOPCLASS``, ``E_NO_PIXELS``,
            ``E_LOCALIZER``).
        Refusal: an unusable image (``E_NOT_DICOM``, ``E_TRUNCATED``, ``E_TOO_LARGE``, ``E_DECODE``,
            ``E_BURNED_IN``, ``E_NO_GEOMETRY``).
    """
    with reading():
        if not S_ISREG(path.stat().st_mode):  # reading a pipe could block forever
            raise Skip(Code.E_NOT_DICOM, "not a regular file")
        with BoundedFile(path) as file:
            return _read_frames(path, file, limits)


def _read_frames(path: Path, file: BoundedFile, limits: Limits) -> list[Frame]:
    header, pixels, source, size = read_header(path, file, limits.inflated_bytes)
    _image_class(header, pixels is not None)
    assert pixels is not None
    if pixels.floating:
        raise Refusal(Code.E_DECODE, "floating-point pixel data is not supported; export it with integer pixels")
    instance = _instance(path, file.bytes, header, pixels.offset)
    try:
        _size(instance, pixels.length, source, size, limits)
    except Refusal as refusal:
        raise Damaged(refusal.code, refusal.reason, instance.series) from None
    frames = _frames(header, instance)
    tomographic = instance.attributes.get("Modality") in ("CT", "MR", "PT")
    if instance.sop_class in SECONDARY and tomographic and frames[0].position is None:
        raise Skip(
            Code.E_SOPCLASS, "a secondary capture page of a tomographic study, without a position in the patient"
        )
    return frames


def _image_class(header: Header, pixels: bool) -> None:
    """Accept image storage classes, and skip others with an explanation."""
    frames = text(header, "NumberOfFrames")
    if frames and not frames.isdecimal():
        raise Refusal(Code.E_DECODE, "NumberOfFrames is not a number; export the file again")
    uid = text(header, "SOPClassUID")
    if not uid and pixels and has(header, "Rows"):
        raise Refusal(Code.E_SOPCLASS, "has pixels but names no SOP class; convert it to a current DICOM image first")
    if uid not in IMAGES:
        name = UID(uid).name if uid in UID_dictionary else "no registered SOP class"
        raise Skip(Code.E_SOPCLASS, f"not an image to process: {name}")
    if not pixels:
        raise Skip(Code.E_NO_PIXELS, f"{UID(uid).name} without pixel data")


def _instance(path: Path, size: int, header: Header, offset: int) -> Instance:
    said, syntax = partial(text, header), syntax_of(header)

    def count(name: str, default: int | None = None) -> int:
        values = numbers(header, name)
        if not values and default is None:
            raise Refusal(Code.E_DECODE, f"{name} is missing; export the file again")
        return int(values[0]) if values else int(default or 0)

    allocated, signed = count("BitsAllocated"), count("PixelRepresentation", 0) == 1
    stored = count("BitsStored", allocated)
    padding = None
    if low := numbers(header, "PixelPaddingValue"):  # VR US with signed pixels is common: use the bits, not the VR
        high = numbers(header, "PixelPaddingRangeLimit") or low
        ends = [int(v[0]) - (1 << 16 if signed and v[0] >= 1 << 15 else 0) for v in (low, high)]
        padding = (min(ends), max(ends))
    image_type = {v.strip().upper() for v in said("ImageType").split("\\")}
    sop_class = said("SOPClassUID")
    if image_type & {"LOCALIZER", "SCOUT"} or any(v.endswith("SURVIEW") for v in image_type):
        raise Skip(Code.E_LOCALIZER, "a localizer (scout) image")
    burned = said("BurnedInAnnotation").upper()
    if burned == "YES":
        raise Refusal(Code.E_BURNED_IN, "BurnedInAnnotation is YES; text in the pixels must be removed first")
    flags = {
        "SYNTHETIC": said("SyntheticData").upper() == "YES",
        "DERIVED": "DERIVED" in image_type,
        # enhanced objects have only the word
        "MOSAIC": count("NumberOfFrames", 1) == 1 and _tiled(header, sop_class, image_type),
        "LOSSY": said("LossyImageCompression") == "01" or syntax in _ALWAYS_LOSSY,
        "MONOCHROME1": said("PhotometricInterpretation") == "MONOCHROME1",
        "BURNED_IN_UNKNOWN": may_show_text(burned, sop_class, image_type, said("ConversionType")),
    }
    return Instance(
        path=path,
        size=size,
        sop_class=_same(sop_class),
        sop_uid=said("SOPInstanceUID"),
        patient_id=_same(said("PatientID")),
        person=_same(tuple(map(said, ("IssuerOfPatientID", "PatientBirthDate", "PatientSex")))),
        study_uid=_same(said("StudyInstanceUID")),
        series_uid=_same(said("SeriesInstanceUID")),
        frame_of_reference_uid=_same(said("FrameOfReferenceUID")),
        series_number=_same(said("SeriesNumber")),
        concatenation=said("ConcatenationUID"),
        rows=count("Rows"),
        columns=count("Columns"),
        frames=count("NumberOfFrames", 1),
        samples=count("SamplesPerPixel", 1),
        photometric=_same(said("PhotometricInterpretation")),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=count("HighBit", stored - 1),
        signed=signed,
        transfer_syntax=_same(syntax),
        offset=offset,
        padding=padding,
        lut=has(header, "ModalityLUTSequence"),
        attributes=_attributes(tuple(map(said, ATTRIBUTES))),
        flags=_same(frozenset(name for name, present in flags.items() if present)),
    )


def _tiled(header: Header, sop_class: str, image_type: Collection[str]) -> bool:
    """Return whether one picture holds several slices, by its words or by counting them.

    A header that counts slices which would fit, and gives no position, leaves a doubt.
    """
    if {"MOSAIC", "VFRAME"} & {*image_type}:
        return True
    slices = int(max(first(header, "NumberOfSlices", 0), first(header, "ImagesInAcquisition", 0)))
    if sop_class not in TOMOGRAPHIC or has(header, "ImagePositionPatient") or slices < 2:
        return False
    across = math.isqrt(slices - 1) + 1
    return not any(first(header, name, 1) % across for name in ("Rows", "Columns"))


@lru_cache(4096)
def _same(value: T) -> T:
    """Return the first equal value, so that values shared by many slices are stored once."""
    return value


@lru_cache(4096)
def _attributes(values: tuple[str, ...]) -> Mapping[str, str]:
    """Return a read-only mapping that equal slices share."""
    return MappingProxyType({name: value for name, value in zip(ATTRIBUTES, values, strict=True) if value})


def _size(instance: Instance, length: int, source: BinaryIO, size: int, limits: Limits) -> None:
    """Compare the header's claims with the limits and the actual bytes, before decoding."""
    i = instance
    if not (i.rows and i.columns and i.frames and i.samples in (1, 3)):
        raise Refusal(
            Code.E_DECODE, f"claims {i.frames} frames of {i.rows} x {i.columns} x {i.samples}; export it again"
        )
    total = i.frame_bytes * i.frames
    if i.rows * i.columns > limits.frame_pixels or i.frames > limits.frames or total > limits.object_bytes:
        claim = f"claims {i.frames} frames of {i.rows} x {i.columns} x {i.samples}, {total} bytes"
        raise Refusal(Code.E_TOO_LARGE, f"{claim}; raise the limits if you trust the file")
    if (
        not (i.bits_allocated in (8, 16, 32) or _packed(i))
        or not 0 < i.bits_stored <= i.bits_allocated
        or i.high_bit >= i.bits_allocated
    ):
        bits = f"{i.bits_stored} of {i.bits_allocated} bits, high bit {i.high_bit}"
        raise Refusal(Code.E_DECODE, f"pixels of {bits} are not supported; convert to 8 or 16 bits first")
    if i.transfer_syntax in NATIVE:
        found = min(length, size - i.offset)
        if length == UNDEFINED or found < total:
            raise Refusal(
                Code.E_TRUNCATED, f"expected {total} bytes of pixels, found {max(0, found)}; copy the file again"
            )
        return
    if UID(i.transfer_syntax) not in AllTransferSyntaxes:
        raise Refusal(Code.E_DECODE, "the transfer syntax is not a registered one; export it as Explicit VR")
    compressed = _encapsulated(source, i.offset, size)
    if total > (1 << 20) + limits.ratio * compressed:
        raise Refusal(
            Code.E_TOO_LARGE, f"claims {total} bytes from {compressed} compressed; raise the ratio if you trust it"
        )


def _packed(instance: Instance) -> bool:
    """Return whether 12-bit pixels are packed, with each frame at a byte (PS3.5 8.1.1)."""
    i = instance
    whole = i.frames == 1 or i.rows * i.columns % 2 == 0
    return i.bits_allocated == 12 and i.samples == 1 and i.transfer_syntax in LITTLE and whole


def _encapsulated(source: BinaryIO, offset: int, size: int) -> int:
    """Walk the items of encapsulated pixel data (PS3.5 A.4).

    Return their bytes, and require the end.
    """
    total, position = 0, offset
    while position + 8 <= size:
        source.seek(position)
        group, element, length = struct.unpack("<HHL", source.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            return total
        if (group, element) != (0xFFFE, 0xE000) or length == UNDEFINED:
            break
        position += 8 + length
        total += length
    raise Refusal(
        Code.E_TRUNCATED, f"compressed pixels end at byte {size} without their delimiter; copy the file again"
    )


def _frames(header: Header, instance: Instance) -> list[Frame]:
    image_type = tuple(text(header, "ImageType").split("\\")[2:])
    time = (
        first(header, "TemporalPositionIdentifier", -1.0),
        first(header, "AcquisitionNumber", -1.0),
        text(header, "AcquisitionTime"),
        first(header, "TriggerTime", -1.0),
        first(header, "InstanceNumber", -1.0),
    )
    groups = [items(header, n) for n in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")]
    if instance.sop_class in TOMOGRAPHIC and groups[1]:
        return _enhanced(header, instance, groups[0], groups[1], time)
    if instance.frames > 1 and instance.sop_class in TOMOGRAPHIC:
        raise Refusal(Code.E_NO_GEOMETRY, f"{instance.frames} frames without positions; export the original images")
    contrast = (
        image_type,
        first(header, "EchoTime", 0.0),
        first(header, "InversionTime", 0.0),
        first(header, "DiffusionBValue", -1.0),
        "",
    )
    plane = _plane(header, header, header)
    if "MOSAIC" in instance.flags and not instance.colour and all(plane):
        return _tiles(header, instance, plane, contrast, time)
    scale, direction = _rescale(header, instance), numbers(header, "DiffusionGradientOrientation") or ()
    return [Frame(instance, k, *plane, *scale, _same(contrast), direction, (*time, k)) for k in range(instance.frames)]


def _tiles(
    header: Header,
    instance: Instance,
    plane: tuple[Any, Any, Any],
    contrast: tuple[Any, ...],
    time: tuple[Any, ...],
) -> list[Frame]:
    """Return a frame per slice of a mosaic, or one if the slices have no certain position."""
    sheet = (instance.rows, instance.columns)
    found = tiling(csa_of(header), sheet, *plane, first(header, "SpacingBetweenSlices", 0.0))
    across, positions = found or (1, (plane[0],))
    whole = replace(instance, tiles=across)
    return [
        Frame(whole, k, position, *plane[1:], *_rescale(header, instance), _same(contrast), (), (*time, k))
        for k, position in enumerate(positions)
    ]


def _enhanced(
    header: Header, instance: Instance, shared: list[Header], frames: list[Header], time: tuple[Any, ...]
) -> list[Frame]:
    """Read geometry, rescale and type of every frame from its groups (PS3.3 C.7.6.16).

    If the groups have no rescale, the one at the top level applies to all frames.
    """
    image_type = tuple(text(header, "ImageType").split("\\")[2:])
    if len(frames) != instance.frames:
        raise Refusal(Code.E_DECODE, f"{instance.frames} frames but {len(frames)} functional groups; export it again")
    nothing: Header = {}

    def group(k: int, *names: str) -> Header:
        for name in names:
            for holder in (frames[k], *shared[:1]):
                if found := items(holder, name):
                    return found[0]
        return nothing

    result = []
    for k in range(instance.frames):
        content = group(k, "FrameContentSequence")
        kind = group(k, "MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
        value = group(k, "PixelValueTransformationSequence")
        plane = _plane(
            group(k, "PlanePositionSequence"), group(k, "PlaneOrientationSequence"), group(k, "PixelMeasuresSequence")
        )
        contrast = (
            tuple(text(kind, "FrameType").split("\\")[2:]) or image_type,
            first(group(k, "MREchoSequence"), "EffectiveEchoTime", 0.0),
            first(group(k, "MRModifierSequence"), "InversionTimes", 0.0),
            first(group(k, "MRDiffusionSequence"), "DiffusionBValue", -1.0),
            text(content, "StackID"),
        )
        moment = (
            first(content, "TemporalPositionIndex", -1.0),
            first(content, "FrameAcquisitionNumber", -1.0),
            text(content, "FrameReferenceDateTime"),
            k,
        )
        diffusion = group(k, "MRDiffusionSequence")
        gradient = items(diffusion, "DiffusionGradientDirectionSequence")
        direction = (numbers(gradient[0], "DiffusionGradientOrientation") or ()) if gradient else ()
        scale = _rescale(value or header, instance)
        result.append(Frame(instance, k, *plane, *scale, _same(contrast), direction, (*time, *moment)))
    return result


def _rescale(header: Header, instance: Instance) -> tuple[float, float]:
    """Return slope and intercept; refuse invalid ones, because they determine the values.

    CT values are Hounsfield units only if the header says how to compute them (PS3.3 C.8.2.1,
    C.11.1.1.2).
    """
    if instance.sop_class in CT and not instance.lut:
        missing = [name for name, _ in _RESCALE if not numbers(header, name)]
        unit = text(header, "RescaleType").upper()
        if missing:
            raise Refusal(Code.E_UNIT, f"{' and '.join(missing)} missing: the values of this CT are in no known unit")
        if unit not in ("", "HU", "US"):  # unspecified
            raise Refusal(Code.E_UNIT, "RescaleType is not HU: the values of this CT are in another unit")
    slope, intercept = ((numbers(header, name) or (default,))[0] for name, default in _RESCALE)
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
        raise Refusal(
            Code.E_DECODE, "RescaleSlope or RescaleIntercept is zero or not finite; export the original images"
        )
    return slope, intercept


def _plane(
    position: Header, orientation: Header, measures: Header
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return position, orientation (unit vectors) and spacing.

    Each is None if absent or invalid.
    """
    ipp: tuple[float, ...] | None = numbers(position, "ImagePositionPatient")
    iop: tuple[float, ...] | None = numbers(orientation, "ImageOrientationPatient")
    spacing: tuple[float, ...] | None = numbers(measures, "PixelSpacing")
    if ipp is not None and (len(ipp) != 3 or not all(map(math.isfinite, ipp))):
        ipp = None
    if iop is not None and len(iop) == 6 and all(map(math.isfinite, iop)):
        row, column = math.hypot(*iop[:3]), math.hypot(*iop[3:])
        dot = sum(a * b for a, b in zip(iop[:3], iop[3:], strict=True))
        legal = abs(row - 1) < 0.01 and abs(column - 1) < 0.01 and abs(dot) < 0.01
        iop = (*(v / row for v in iop[:3]), *(v / column for v in iop[3:])) if legal else None
    else:
        iop = None
    if spacing is not None and (len(spacing) != 2 or not all(math.isfinite(v) and v > 0 for v in spacing)):
        spacing = None
    return ipp, _same(iop), _same(spacing)
