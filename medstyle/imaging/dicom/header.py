"""One DICOM file -> the facts that grouping and decoding need, read from its header alone (PS3.3, PS3.5, PS3.10)."""

from __future__ import annotations

import io
import logging
import math
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from sys import intern
from types import MappingProxyType
from typing import Any, BinaryIO

from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_file_meta_info, read_partial
from pydicom.sequence import Sequence
from pydicom.uid import UID, AllTransferSyntaxes, UID_dictionary
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medstyle.errors import Refusal


@dataclass(frozen=True)
class Limits:
    """What a header may claim before anything is decoded.

    Attributes:
        frame_pixels: rows x columns of one frame.
        object_bytes: decoded pixel bytes of one file, and of one volume in float32.
        ratio: decoded bytes for each compressed byte, beyond a first MiB (a decompression bomb has more).
        inflated_bytes: a file in the deflated transfer syntax, inflated.
        frames: frames of one file.
    """

    frame_pixels: int = 1 << 26
    object_bytes: int = 4 << 30
    ratio: int = 1000
    inflated_bytes: int = 1 << 30
    frames: int = 100_000


LIMITS = Limits()


class Skip(Refusal):
    """A file that is not an image to work on, as opposed to a bad one."""


class Damaged(Refusal):
    """An image whose pixels are not all there; its series is incomplete without it."""

    def __init__(self, code: str, reason: str, series_uid: str) -> None:
        super().__init__(code, reason)
        self.series_uid = series_uid


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Free text in these may name a person: they serve matching rules and are never printed or stored.
ATTRIBUTES = words(
    "Modality SeriesDescription ProtocolName SequenceName ScanningSequence SequenceVariant ScanOptions "
    "MRAcquisitionType EchoTime RepetitionTime InversionTime FlipAngle EchoTrainLength ImageType Manufacturer "
    "ManufacturerModelName MagneticFieldStrength StationName BodyPartExamined ContrastBolusAgent KVP ConvolutionKernel "
    "PatientPosition SliceThickness SpacingBetweenSlices"
)
_FACTS = words(
    "SOPClassUID SOPInstanceUID PatientID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID SeriesNumber "
    "ConcatenationUID Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit "
    "PixelRepresentation NumberOfFrames PixelPaddingValue PixelPaddingRangeLimit ModalityLUTSequence RescaleSlope "
    "RescaleIntercept ImagePositionPatient ImageOrientationPatient PixelSpacing BurnedInAnnotation SyntheticData "
    "LossyImageCompression TemporalPositionIdentifier AcquisitionTime AcquisitionNumber TriggerTime InstanceNumber "
    "DiffusionBValue FrameTime SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)
_GROUPS = words(
    "PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence "
    "FrameContentSequence MRImageFrameTypeSequence CTImageFrameTypeSequence PETFrameTypeSequence MREchoSequence "
    "MRDiffusionSequence MRModifierSequence MRTimingAndRelatedParametersSequence FrameType EffectiveEchoTime "
    "InversionTimes StackID TemporalPositionIndex FrameAcquisitionNumber FrameReferenceDateTime"
)
_TAG = {name: int(tag_for_keyword(name) or 0) for name in {*ATTRIBUTES, *_FACTS, *_GROUPS}}
_BINARY = {  # value representations that are not text
    "Rows": "H", "Columns": "H", "SamplesPerPixel": "H", "BitsAllocated": "H", "BitsStored": "H", "HighBit": "H",
    "PixelRepresentation": "H", "PixelPaddingValue": "H", "PixelPaddingRangeLimit": "H", "DiffusionBValue": "d",
    "EffectiveEchoTime": "d", "InversionTimes": "d", "TemporalPositionIndex": "L", "FrameAcquisitionNumber": "H",
}  # fmt: skip
_READ = [_TAG[name] for name in {*ATTRIBUTES, *_FACTS}]

_STORAGE = "1.2.840.10008.5.1.4.1.1."
TOMOGRAPHIC = frozenset(_STORAGE + s for s in words("2 2.1 2.2 4 4.1 4.4 128 128.1 130"))  # CT, MR, PET
SECONDARY = frozenset(_STORAGE + s for s in words("7 7.1 7.2 7.3 7.4"))
ULTRASOUND = frozenset(_STORAGE + s for s in words("6.1 6.2 3.1"))
_PLANAR = frozenset(_STORAGE + s for s in words("1 1.1 1.1.1 1.2 1.2.1 77.1.1 77.1.2 77.1.4 77.1.5.1"))  # CR DX MG VL
_CINE = frozenset(_STORAGE + s for s in words("12.1 12.1.1 12.2 12.2.1 77.1.1.1 77.1.2.1 77.1.4.1"))  # XA RF video
IMAGES = TOMOGRAPHIC | SECONDARY | ULTRASOUND | _PLANAR | _CINE
_DIRECTORY = "1.2.840.10008.1.3.10"

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{s}" for s in ("", ".1", ".1.99", ".2"))
_ALWAYS_LOSSY = frozenset(f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 81))  # JPEG baseline, extended; JPEG-LS near
NATIVE = frozenset((IMPLICIT, EXPLICIT, DEFLATED, BIG))
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_UNDEFINED = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Instance:
    """Facts of one file (a SOP instance). Identifiers and the path are patient data and stay out of ``repr``."""

    path: Path = field(repr=False)
    size: int  # bytes
    sop_class: str
    sop_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
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
    padding: tuple[int, int] | None  # stored values, from and to, that mean "nothing was measured here"
    lut: bool
    attributes: Mapping[str, str] = field(repr=False)
    flags: frozenset[str]

    @property
    def identity(self) -> tuple[str, ...]:
        """What no two different files may share."""
        return self.study_uid, self.series_uid, self.series_number, self.sop_uid

    @property
    def colour(self) -> bool:
        """True where a pixel is a colour, or an index into a palette."""
        return self.samples > 1 or self.photometric == "PALETTE COLOR"

    @property
    def frame_bytes(self) -> int:
        """Bytes of one uncompressed frame (PS3.5 section 8.1.1; 4:2:2 holds two samples a pixel)."""
        samples = 2 if self.photometric == "YBR_FULL_422" else self.samples
        return self.rows * self.columns * samples * self.bits_allocated // 8


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane: its place in space, its scaling and what tells it from others at the same place."""

    instance: Instance
    number: int  # from 0 within the file
    position: tuple[float, ...] | None  # mm, LPS: centre of the first pixel
    orientation: tuple[float, ...] | None  # unit vectors along a row, along a column
    spacing: tuple[float, ...] | None  # mm between rows, between columns
    slope: float
    intercept: float
    contrast: tuple[Any, ...] = field(repr=False)  # where it differs, it is another volume
    time: tuple[Any, ...] = field(repr=False)  # orders volumes that share their positions


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom: its warnings and log lines quote values, which are patient data."""
    logger = logging.getLogger("pydicom")
    before, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = before


class BoundedFile(io.BufferedReader):
    """A file whose ``read`` never allocates more than the file holds, whatever length a header claims."""

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path), 1 << 16)
        self.bytes = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1) -> bytes:
        """Read at most ``size`` bytes and at most what is left."""
        if size is not None and size > 1 << 16:
            size = max(0, min(size, self.bytes - self.tell()))
        return super().read(size)


def looks_like_dicom(head: bytes) -> bool:
    """Tell DICOM from other files by their first 132 bytes; files without preamble start in group 0002 or 0008."""
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    if head[:2] in (b"\x02\x00", b"\x08\x00"):
        element, length = struct.unpack("<2xHL", head[:8])
        return element <= 0x0100 and (head[4:6] in (b"UL", b"UI", b"CS", b"SH", b"OB", b"DA") or length <= 256)
    return head[:2] == b"\x00\x08" and head[4:6] in (b"UL", b"UI", b"CS", b"SH", b"DA")


def inflate(path: Path, limit: int) -> bytes:
    """Return the data set of a file in the deflated transfer syntax (PS3.5 A.5), at most ``limit`` bytes."""
    meta = read_file_meta_info(path)
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        file.seek(128 + 4 + 12 + int(meta.FileMetaInformationGroupLength))
        data = stream.decompress(file.read(), limit)
    if not stream.eof:
        if len(data) >= limit:
            raise Refusal("E_TOO_LARGE", f"inflates to more than {limit} bytes; raise the limit if you trust the file")
        raise Refusal("E_TRUNCATED", "the deflated data set ends early; copy or export the file again")
    return data


def read_frames(path: Path, limits: Limits = LIMITS) -> list[Frame]:
    """Read the header of ``path`` and return one :class:`Frame` for each plane; no pixel is decoded.

    Call it within :func:`quiet`.

    Raises:
        Skip: not an image to work on (``E_NOT_DICOM``, ``E_SOPCLASS``, ``E_NO_PIXELS``, ``E_LOCALIZER``).
        Refusal: an image that cannot be used (``E_NOT_DICOM``, ``E_TRUNCATED``, ``E_TOO_LARGE``, ``E_DECODE``,
            ``E_BURNED_IN``, ``E_NO_GEOMETRY``).
    """
    try:
        with BoundedFile(path) as file:
            return _read_frames(path, file, limits)
    except Refusal:
        raise
    except OSError as error:
        raise Refusal("E_DECODE", f"cannot be read from disk (errno {error.errno})") from None
    except Exception as error:  # a damaged header may raise anything, and its text would quote values
        raise Refusal("E_DECODE", f"the header is damaged ({type(error).__name__}); export the file again") from None


def _read_frames(path: Path, file: BoundedFile, limits: Limits) -> list[Frame]:
    head = file.read(2048)
    if not looks_like_dicom(head):
        what = "not a DICOM file" if head else "the file is empty"
        if path.suffix.lower() in (".dcm", ".dicom", ".ima"):
            raise Refusal("E_NOT_DICOM", f"{what}, whatever its name says; remove or rename it")
        raise Skip("E_NOT_DICOM", what)
    pixels = _PixelElement()
    source: BinaryIO = file
    size = file.bytes
    if DEFLATED.encode() in head:
        data = inflate(path, limits.inflated_bytes)
        source, size, syntax = io.BytesIO(data), len(data), DEFLATED
        dataset = read_dataset(source, False, True, stop_when=pixels, specific_tags=_READ)
    else:
        file.seek(0)
        dataset = read_partial(file, stop_when=pixels, force=True, specific_tags=_READ)
        syntax = _syntax(dataset, head)
    if pixels.tag == 0 and source.tell() > size:
        raise Refusal("E_TRUNCATED", f"the header claims {source.tell()} bytes, the file has {size}; copy it again")
    _image_class(dataset, bool(pixels.tag))
    offset = source.tell() + (12 if pixels.long else 8)
    instance = _instance(path, file.bytes, dataset, syntax, offset)
    try:
        _size(instance, pixels.length, source, size, limits)
    except Refusal as refusal:
        raise Damaged(refusal.code, refusal.reason, instance.series_uid) from None
    frames = _frames(dataset, instance)
    tomographic = instance.attributes.get("Modality") in ("CT", "MR", "PT")
    if instance.sop_class in SECONDARY and tomographic and frames[0].position is None:
        raise Skip("E_SOPCLASS", "a secondary capture page of a tomographic study, without a position in the patient")
    return frames


class _PixelElement:
    """The parser's stop condition, which remembers the element it stopped at."""

    tag, length, long = 0, 0, False

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXELS:
            self.tag, self.length, self.long = int(tag), length, vr in EXPLICIT_VR_LENGTH_32
        return tag in _PIXELS


def _syntax(dataset: Dataset, head: bytes) -> str:
    meta = dataset.file_meta
    if str(meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
        raise Skip("E_SOPCLASS", "a DICOMDIR index; the files are found by searching the folder instead")
    if syntax := str(meta.get("TransferSyntaxUID", "")):
        return syntax
    if head[128:132] == b"DICM":
        raise Refusal("E_DECODE", "the file meta information names no transfer syntax; export the file again")
    implicit, little = dataset.original_encoding
    return (IMPLICIT if implicit else EXPLICIT) if little else BIG


def _image_class(dataset: Dataset, pixels: bool) -> None:
    """Let image storage classes pass, and say what the others are."""
    frames = _text(dataset, "NumberOfFrames")
    if frames and not frames.isdecimal():
        raise Refusal("E_DECODE", "NumberOfFrames is not a number; export the file again")
    uid = _text(dataset, "SOPClassUID")
    if not uid and pixels and _TAG["Rows"] in dataset:
        raise Refusal("E_SOPCLASS", "has pixels but names no SOP class; convert it to a current DICOM image first")
    if uid not in IMAGES:
        name = UID(uid).name if uid in UID_dictionary else "no registered SOP class"
        raise Skip("E_SOPCLASS", f"not an image to work on: {name}")
    if not pixels:
        raise Skip("E_NO_PIXELS", f"{UID(uid).name} without pixel data")


def _instance(path: Path, size: int, dataset: Dataset, syntax: str, offset: int) -> Instance:
    def text(name: str) -> str:
        return _text(dataset, name)

    def count(name: str, default: int | None = None) -> int:
        values = _numbers(dataset, name)
        if not values and default is None:
            raise Refusal("E_DECODE", f"{name} is missing; export the file again")
        return int(values[0]) if values else int(default or 0)

    allocated = count("BitsAllocated")
    stored = count("BitsStored", allocated)
    signed = count("PixelRepresentation", 0) == 1
    padding = None
    if low := _numbers(dataset, "PixelPaddingValue"):  # US on signed data is common: read the bits, not the VR
        high = _numbers(dataset, "PixelPaddingRangeLimit") or low
        ends = [int(v[0]) - (1 << 16 if signed and v[0] >= 1 << 15 else 0) for v in (low, high)]
        padding = (min(ends), max(ends))
    image_type = {v.strip().upper() for v in text("ImageType").split("\\")}
    sop_class = text("SOPClassUID")
    if image_type & {"LOCALIZER", "SCOUT"} or any(v.endswith("SURVIEW") for v in image_type):
        raise Skip("E_LOCALIZER", "a localizer (scout) image")
    burned = text("BurnedInAnnotation").upper()
    if burned == "YES":
        raise Refusal("E_BURNED_IN", "BurnedInAnnotation is YES; text in the pixels must be removed first")
    flags = {
        "SYNTHETIC": text("SyntheticData").upper() == "YES",
        "DERIVED": "DERIVED" in image_type,
        "MOSAIC": "MOSAIC" in image_type,
        "LOSSY": text("LossyImageCompression") == "01" or syntax in _ALWAYS_LOSSY,
        "MONOCHROME1": text("PhotometricInterpretation") == "MONOCHROME1",
        "BURNED_IN_UNKNOWN": burned != "NO" and (sop_class in SECONDARY | ULTRASOUND or "SCREEN SAVE" in image_type),
    }
    return Instance(
        path=path,
        size=size,
        sop_class=sop_class,
        sop_uid=text("SOPInstanceUID"),
        patient_id=text("PatientID"),
        study_uid=intern(text("StudyInstanceUID")),
        series_uid=intern(text("SeriesInstanceUID")),
        frame_of_reference_uid=intern(text("FrameOfReferenceUID")),
        series_number=text("SeriesNumber"),
        concatenation=text("ConcatenationUID"),
        rows=count("Rows"),
        columns=count("Columns"),
        frames=count("NumberOfFrames", 1),
        samples=count("SamplesPerPixel", 1),
        photometric=text("PhotometricInterpretation"),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=count("HighBit", stored - 1),
        signed=signed,
        transfer_syntax=syntax,
        offset=offset,
        padding=padding,
        lut="ModalityLUTSequence" in dataset,
        attributes=_attributes(tuple(map(text, ATTRIBUTES))),
        flags=frozenset(name for name, present in flags.items() if present),
    )


@lru_cache(4096)
def _attributes(values: tuple[str, ...]) -> Mapping[str, str]:
    """Share one mapping between the slices of a series: a study of thousands of files must stay small."""
    return MappingProxyType({name: value for name, value in zip(ATTRIBUTES, values, strict=True) if value})


def _size(instance: Instance, length: int, source: BinaryIO, size: int, limits: Limits) -> None:
    """Compare what the header claims with the limits and with the bytes that are there, before any decoding."""
    i = instance
    if not (i.rows and i.columns and i.frames and i.samples in (1, 3)):
        raise Refusal("E_DECODE", f"claims {i.frames} frames of {i.rows} x {i.columns} x {i.samples}; export it again")
    total = i.frame_bytes * i.frames
    if i.rows * i.columns > limits.frame_pixels or i.frames > limits.frames or total > limits.object_bytes:
        claim = f"claims {i.frames} frames of {i.rows} x {i.columns} x {i.samples}, {total} bytes"
        raise Refusal("E_TOO_LARGE", f"{claim}; raise the limits if you trust the file")
    if (
        i.bits_allocated not in (8, 16, 32)
        or not 0 < i.bits_stored <= i.bits_allocated
        or i.high_bit >= i.bits_allocated
    ):
        bits = f"{i.bits_stored} of {i.bits_allocated} bits, high bit {i.high_bit}"
        raise Refusal("E_DECODE", f"pixels of {bits} are not supported; convert to 8 or 16 bits first")
    if i.transfer_syntax in NATIVE:
        found = min(length, size - i.offset)
        if length == _UNDEFINED or found < total:
            raise Refusal(
                "E_TRUNCATED", f"expected {total} bytes of pixels, found {max(0, found)}; copy the file again"
            )
        return
    if UID(i.transfer_syntax) not in AllTransferSyntaxes:
        raise Refusal("E_DECODE", f"transfer syntax {_uid(i.transfer_syntax)} is unknown; export as Explicit VR")
    compressed = _encapsulated(source, i.offset, size)
    if total > (1 << 20) + limits.ratio * compressed:
        raise Refusal(
            "E_TOO_LARGE", f"claims {total} bytes from {compressed} compressed; raise the ratio if you trust it"
        )


def _encapsulated(source: BinaryIO, offset: int, size: int) -> int:
    """Walk the items of encapsulated pixel data (PS3.5 A.4) and return their bytes; the end must be there."""
    total, position = 0, offset
    while position + 8 <= size:
        source.seek(position)
        group, element, length = struct.unpack("<HHL", source.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            return total
        if (group, element) != (0xFFFE, 0xE000) or length == _UNDEFINED:
            break
        position += 8 + length
        total += length
    raise Refusal("E_TRUNCATED", f"compressed pixels end at byte {size} without their delimiter; copy the file again")


def _frames(dataset: Dataset, instance: Instance) -> list[Frame]:
    image_type = tuple(_text(dataset, "ImageType").split("\\")[2:])
    time = (
        _first(dataset, "TemporalPositionIdentifier", -1.0),
        _first(dataset, "AcquisitionNumber", -1.0),
        _text(dataset, "AcquisitionTime"),
        _first(dataset, "TriggerTime", -1.0),
        _first(dataset, "InstanceNumber", -1.0),
    )
    groups = [_items(dataset, n) for n in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")]
    if instance.sop_class in TOMOGRAPHIC and groups[1]:
        return _enhanced(instance, groups[0], groups[1], image_type, time)
    if instance.frames > 1 and instance.sop_class in TOMOGRAPHIC:
        raise Refusal("E_NO_GEOMETRY", f"{instance.frames} frames without positions; export the original images")
    contrast = (
        image_type,
        _first(dataset, "EchoTime", 0.0),
        _first(dataset, "InversionTime", 0.0),
        _first(dataset, "DiffusionBValue", -1.0),
        "",
    )
    plane = _plane(dataset, dataset, dataset)
    scale = _first(dataset, "RescaleSlope", 1.0), _first(dataset, "RescaleIntercept", 0.0)
    return [Frame(instance, k, *plane, *scale, contrast, (*time, k)) for k in range(instance.frames)]


def _enhanced(
    instance: Instance, shared: list[Dataset], frames: list[Dataset], image_type: tuple[str, ...], time: tuple[Any, ...]
) -> list[Frame]:
    """Read geometry, rescale and type of every frame from its functional groups (PS3.3 C.7.6.16)."""
    if len(frames) != instance.frames:
        raise Refusal("E_DECODE", f"{instance.frames} frames but {len(frames)} functional groups; export it again")
    nothing = Dataset()

    def group(k: int, *names: str) -> Dataset:
        for name in names:
            for holder in (frames[k], *shared[:1]):
                if items := _items(holder, name):
                    return items[0]
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
            tuple(_text(kind, "FrameType").split("\\")[2:]) or image_type,
            _first(group(k, "MREchoSequence"), "EffectiveEchoTime", 0.0),
            _first(group(k, "MRModifierSequence"), "InversionTimes", 0.0),
            _first(group(k, "MRDiffusionSequence"), "DiffusionBValue", -1.0),
            _text(content, "StackID"),
        )
        moment = (
            _first(content, "TemporalPositionIndex", -1.0),
            _first(content, "FrameAcquisitionNumber", -1.0),
            _text(content, "FrameReferenceDateTime"),
            k,
        )
        scale = _first(value, "RescaleSlope", 1.0), _first(value, "RescaleIntercept", 0.0)
        result.append(Frame(instance, k, *plane, *scale, contrast, (*time, *moment)))
    return result


def _plane(
    position: Dataset, orientation: Dataset, measures: Dataset
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, tuple[float, ...] | None]:
    """Return position, orientation (as unit vectors) and spacing where they are present and legal."""
    ipp: tuple[float, ...] | None = _numbers(position, "ImagePositionPatient")
    iop: tuple[float, ...] | None = _numbers(orientation, "ImageOrientationPatient")
    spacing: tuple[float, ...] | None = _numbers(measures, "PixelSpacing")
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
    return ipp, iop, spacing


def _text(dataset: Dataset, name: str) -> str:
    element = dataset.get_item(_TAG[name])
    value = None if element is None else element.value
    if isinstance(value, bytes):
        try:
            return value.decode("ascii").strip(" \0")
        except UnicodeDecodeError:
            value = dataset[_TAG[name]].value  # decoded by Specific Character Set (0008,0005)
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip(" \0")
    return "\\".join(map(str, value)) if isinstance(value, Iterable) else str(value)


def _numbers(dataset: Dataset, name: str) -> tuple[float, ...]:
    """Return the numbers of an element, () where it is absent or empty."""
    element = dataset.get_item(_TAG[name])
    value = None if element is None else element.value
    if value is None or value in (b"", ""):
        return ()
    try:
        if not isinstance(value, bytes):
            return tuple(map(float, value)) if isinstance(value, Iterable) else (float(value),)
        if code := _BINARY.get(name):
            order = "<" if element.is_little_endian else ">"
            return struct.unpack(f"{order}{len(value) // struct.calcsize(code)}{code}", value)
        text = value.strip(b" \0")
        return tuple(map(float, text.split(b"\\"))) if text else ()
    except (ValueError, struct.error):
        raise Refusal("E_DECODE", f"{name} is not a number; export the file again") from None


def _first(dataset: Dataset, name: str, default: float) -> float:
    """Return the first number of an optional element; one that cannot be read counts as absent."""
    try:
        values = _numbers(dataset, name)
    except Refusal:
        if name.startswith("Rescale"):  # never optional where it is present: it makes the values
            raise
        return default
    return values[0] if values and math.isfinite(values[0]) else default


def _items(dataset: Dataset, name: str) -> list[Dataset]:
    if dataset.get_item(_TAG[name]) is None:
        return []
    value = dataset[_TAG[name]].value
    return list(value) if isinstance(value, Sequence) else []


def _uid(value: str) -> str:
    """Return a UID that is safe to print: only digits and dots."""
    return value if set(value) <= set("0123456789.") and len(value) <= 64 else "(malformed)"
