"""Read selected header elements as raw little-endian bytes (PS3.5 section 7, PS3.10 section 7)."""

from __future__ import annotations

import io
import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from pydicom.charset import convert_encodings, decode_bytes
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID, AllTransferSyntaxes
from pydicom.valuerep import EXPLICIT_VR_LENGTH_32

from medstyle.errors import Code, Refusal
from medstyle.imaging.bounded import BoundedFile

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

Header = dict[int, Any]
"""Tag -> bytes, or the items of a sequence; elements after the pixels are not included."""


PIXEL_DATA = 0x7FE00010


class Pixels(NamedTuple):
    """The offset of the pixel data, its declared length, and whether it is floating-point."""

    offset: int
    length: int
    floating: bool = False


class Skip(Refusal):
    """A file that is not an image to process, as opposed to a defective one."""


def words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# Free text in these elements may identify a person: they serve only for matching rules and are
# never printed or stored.
ATTRIBUTES = words(
    "Modality SeriesDescription ProtocolName SequenceName ScanningSequence SequenceVariant ScanOptions "
    "MRAcquisitionType EchoTime RepetitionTime InversionTime FlipAngle EchoTrainLength ImageType Manufacturer "
    "ManufacturerModelName MagneticFieldStrength StationName BodyPartExamined ContrastBolusAgent KVP ConvolutionKernel "
    "PatientPosition SliceThickness SpacingBetweenSlices"
)
_FACTS = words(
    "SOPClassUID SOPInstanceUID PatientID IssuerOfPatientID PatientBirthDate PatientSex StudyInstanceUID "
    "SeriesInstanceUID FrameOfReferenceUID SeriesNumber "
    "ConcatenationUID Rows Columns SamplesPerPixel PhotometricInterpretation BitsAllocated BitsStored HighBit "
    "PixelRepresentation NumberOfFrames PixelPaddingValue PixelPaddingRangeLimit ModalityLUTSequence RescaleSlope "
    "RescaleIntercept RescaleType DiffusionGradientOrientation "
    "ImagePositionPatient ImageOrientationPatient PixelSpacing BurnedInAnnotation SyntheticData "
    "LossyImageCompression TemporalPositionIdentifier AcquisitionTime AcquisitionNumber TriggerTime InstanceNumber "
    "ConversionType DiffusionBValue FrameTime NumberOfSlices ImagesInAcquisition SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence"
)
_GROUPS = words(
    "PlanePositionSequence PlaneOrientationSequence PixelMeasuresSequence PixelValueTransformationSequence "
    "FrameContentSequence MRImageFrameTypeSequence CTImageFrameTypeSequence PETFrameTypeSequence MREchoSequence "
    "MRDiffusionSequence DiffusionGradientDirectionSequence MRModifierSequence MRTimingAndRelatedParametersSequence "
    "FrameType EffectiveEchoTime InversionTimes StackID TemporalPositionIndex FrameAcquisitionNumber "
    "FrameReferenceDateTime"
)
_TAG = {name: int(tag_for_keyword(name) or 0) for name in {*ATTRIBUTES, *_FACTS, *_GROUPS}}
_BINARY = {  # value representations that are not text
    "Rows": "H", "Columns": "H", "SamplesPerPixel": "H", "BitsAllocated": "H", "BitsStored": "H", "HighBit": "H",
    "PixelRepresentation": "H", "NumberOfSlices": "H", "DiffusionGradientOrientation": "d",
    "PixelPaddingValue": "H", "PixelPaddingRangeLimit": "H", "DiffusionBValue": "d",
    "EffectiveEchoTime": "d", "InversionTimes": "d", "TemporalPositionIndex": "L", "FrameAcquisitionNumber": "H",
}  # fmt: skip
_NUMPY = {"H": "u2", "L": "u4", "d": "f8"}
_NAME = {tag: name for name, tag in _TAG.items()}
_SEQUENCES = frozenset(tag for tag in _TAG.values() if dictionary_VR(tag) == "SQ")
_CHARSET, _SYNTAX, _CLASS = 0x00080005, 0x00020010, 0x00020002
_CSA_OWNER, _CSA = 0x00290010, 0x00291010  # private elements that describe the tiling of mosaics
_WANTED = frozenset((*_TAG.values(), _CHARSET, _SYNTAX, _CLASS, _CSA_OWNER, _CSA))

IMPLICIT, EXPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{s}" for s in ("", ".1", ".1.99", ".2"))
_DIRECTORY = "1.2.840.10008.1.3.10"
_PIXELS = frozenset((0x7FE00008, 0x7FE00009, 0x7FE00010))
_SHORT = frozenset(vr.encode() for vr in words("AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"))
_LONG = frozenset(vr.encode() for vr in words("OB OD OF OL OV OW SQ SV UC UN UR UT UV"))
_TAG_FIELDS, _LENGTH = struct.Struct("<HH"), struct.Struct("<L")
UNDEFINED = 0xFFFFFFFF


@contextmanager
def quiet() -> Iterator[None]:
    """Silence pydicom and its codecs, whose warnings and log lines quote values (patient data)."""
    loggers = [logging.getLogger(name) for name in ("pydicom", "pylibjpeg", "openjpeg", "libjpeg", "rle")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)  # also applies to child loggers, unlike "disabled"
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def looks_like_dicom(head: bytes) -> bool:
    """Return whether the first 132 bytes are those of DICOM.

    Without preamble, group 0002 or 0008 is first.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    if head[:2] in (b"\x02\x00", b"\x08\x00"):
        element, length = struct.unpack("<2xHL", head[:8])
        return element <= 0x0100 and (head[4:6] in (b"UL", b"UI", b"CS", b"SH", b"OB", b"DA") or length <= 256)
    return head[:2] == b"\x00\x08" and head[4:6] in (b"UL", b"UI", b"CS", b"SH", b"DA")


def inflate(path: Path, limit: int) -> bytes:
    """Return the data set of a deflated file (PS3.5 A.5), at most ``limit`` bytes."""
    stream = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as file:
        head = file.read(144)  # not by pydicom, which would allocate whatever a length in it claims
        if head[132:140] != b"\x02\0\0\0UL\x04\0":
            raise Refusal(
                Code.E_DECODE, "the file meta information does not begin with its length; export the file again"
            )
        file.seek(144 + _LENGTH.unpack(head[140:])[0])
        data = stream.decompress(file.read(), limit)
    if not stream.eof:
        if len(data) >= limit:
            raise Refusal(
                Code.E_TOO_LARGE, f"inflates to more than {limit} bytes; raise the limit if you trust the file"
            )
        raise Refusal(Code.E_TRUNCATED, "the deflated data set ends early; copy or export the file again")
    return data


def read_header(path: Path, file: BoundedFile, inflated_bytes: int) -> tuple[Header, Pixels | None, BinaryIO, int]:
    """Return the selected elements, the place of the pixels, and their byte source and size.

    Raises:
        Skip: ``E_NOT_DICOM``, or ``E_SOPCLASS`` for a DICOMDIR.
        Refusal: ``E_NOT_DICOM`` for a file with a DICOM suffix, ``E_DECODE``, ``E_TRUNCATED``,
            ``E_TOO_LARGE``.
    """
    head = file.read(1 << 16)
    if not looks_like_dicom(head):
        what = "not a DICOM file" if head else "the file is empty"
        if path.suffix.lower() in (".dcm", ".dicom", ".ima"):
            raise Refusal(Code.E_NOT_DICOM, f"{what}, although its suffix says so; remove or rename it")
        raise Skip(Code.E_NOT_DICOM, what)
    if found := _walk(head, file):
        return *found, file, file.bytes
    if DEFLATED.encode() in head[:2048]:
        data = inflate(path, inflated_bytes)
        source: BinaryIO = io.BytesIO(data)
        size, found = len(data), _parse(source, head, DEFLATED)
    else:
        file.seek(0)
        source, size, found = file, file.bytes, _parse(file, head)
    if found[1] is None and source.tell() > size:
        raise Refusal(Code.E_TRUNCATED, f"the header claims {source.tell()} bytes, the file has {size}; copy it again")
    return *found, source, size


def _walk(head: bytes, file: BoundedFile) -> tuple[Header, Pixels | None] | None:
    """Walk the elements of an ordinary little-endian file; return None if pydicom must parse it.

    For the majority of files this takes a tenth of the time: it jumps from element to element in
    one buffer and keeps the selected ones. Selected sequences, unknown encodings and anything
    irregular are left to pydicom.
    """
    if head[128:132] != b"DICM":
        return None
    while True:
        try:
            return _elements_in(head)
        except (IndexError, struct.error):  # the elements extend beyond the bytes that were read
            if len(head) >= min(file.bytes, 1 << 22):
                return None
            head += file.read(len(head) * 7)
        except _IrregularError:
            return None


class _IrregularError(Exception):
    """An encoding that the fast walk leaves to pydicom."""


def _elements_in(data: bytes) -> tuple[Header, Pixels | None]:
    header: Header = {}
    position, explicit, data_set = 132, True, False
    while True:
        group, element = _TAG_FIELDS.unpack_from(data, position)
        if group > 2 and not data_set:
            syntax = header.get(_SYNTAX, b"").decode("ascii", "replace").strip(" \0")
            explicit = syntax != IMPLICIT
            if syntax in (DEFLATED, BIG, "") or UID(syntax) not in AllTransferSyntaxes:
                raise _IrregularError
            data_set = True
        tag = group << 16 | element
        start, length = _value_at(data, position, explicit or group == 2)
        if tag in _PIXELS:
            return header, Pixels(start, length, tag != PIXEL_DATA)
        if tag in _WANTED:
            if tag in _SEQUENCES or length == UNDEFINED:
                raise _IrregularError  # sequences need a real parser
            header[tag] = data[start : start + length]
        position = start + length if length != UNDEFINED else _after_sequence(data, start, explicit, 0)
        if position > len(data):
            raise IndexError


def _value_at(data: bytes, position: int, explicit: bool) -> tuple[int, int]:
    """Return the start and the length of the value of the element at ``position`` (PS3.5 7.1)."""
    if not explicit:
        return position + 8, _LENGTH.unpack_from(data, position + 4)[0]
    vr = data[position + 4 : position + 6]
    if vr in _SHORT:
        return position + 8, data[position + 6] | data[position + 7] << 8
    if vr in _LONG:
        return position + 12, _LENGTH.unpack_from(data, position + 8)[0]
    raise _IrregularError


def _after_sequence(data: bytes, position: int, explicit: bool, depth: int) -> int:
    """Return the end of a sequence of undefined length (PS3.5 7.5)."""
    if depth > 16:
        raise _IrregularError
    while True:
        group, element = _TAG_FIELDS.unpack_from(data, position)
        length = _LENGTH.unpack_from(data, position + 4)[0]
        position += 8
        if (group, element) == (0xFFFE, 0xE0DD):
            return position
        if (group, element) != (0xFFFE, 0xE000):
            raise _IrregularError
        if length != UNDEFINED:
            position += length
            continue
        while _TAG_FIELDS.unpack_from(data, position) != (0xFFFE, 0xE00D):
            start, length = _value_at(data, position, explicit)
            undefined = length == UNDEFINED
            position = _after_sequence(data, start, explicit, depth + 1) if undefined else start + length
        position += 8


def _parse(source: BinaryIO, head: bytes, syntax: str = "") -> tuple[Header, Pixels | None]:
    """Parse any file with pydicom; return its selected elements in little-endian form."""
    pixels = _PixelElement()
    wanted = [tag for tag in _WANTED if tag >> 16 != 2]
    if syntax:
        dataset = read_dataset(source, False, True, stop_when=pixels, specific_tags=wanted)
    else:
        dataset = read_partial(source, stop_when=pixels, force=True, specific_tags=wanted)
        syntax = _syntax(dataset, head)
    header = _elements(dataset) | {_SYNTAX: syntax.encode()}
    offset = source.tell() + (12 if pixels.long else 8)
    return header, Pixels(offset, pixels.length, pixels.tag != PIXEL_DATA) if pixels.tag else None


class _PixelElement:
    """The stop condition of the parser, which stores the element at which it stopped."""

    tag, length, long = 0, 0, False

    def __call__(self, tag: int, vr: str | None, length: int) -> bool:
        if tag in _PIXELS:
            self.tag, self.length, self.long = int(tag), length, vr in EXPLICIT_VR_LENGTH_32
        return tag in _PIXELS


def _syntax(dataset: Dataset, head: bytes) -> str:
    meta = dataset.file_meta
    if str(meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
        raise Skip(Code.E_SOPCLASS, "a DICOMDIR index; the files are found by searching the folder instead")
    if syntax := str(meta.get("TransferSyntaxUID", "")):
        return syntax
    if head[128:132] == b"DICM":
        raise Refusal(Code.E_DECODE, "the file meta information names no transfer syntax; export the file again")
    implicit, little = dataset.original_encoding
    return (IMPLICIT if implicit else EXPLICIT) if little else BIG


def _elements(dataset: Dataset) -> Header:
    """Return the selected elements of a data set or item: raw little-endian bytes, or items."""
    header: Header = {}
    for tag in sorted(_WANTED & dataset.keys(), key=_SEQUENCES.__contains__):  # parsing a sequence converts others
        element, code = dataset.get_item(tag), _BINARY.get(_NAME.get(tag, ""), "")
        value = element.value
        if tag in _SEQUENCES:
            value = dataset[tag].value
            header[tag] = list(value) if isinstance(value, Sequence) else []
        elif isinstance(value, bytes):
            swap = code and not element.is_little_endian
            header[tag] = np.frombuffer(value, f">{_NUMPY[code]}").astype(_NUMPY[code]).tobytes() if swap else value
        elif value is not None:
            values = value if isinstance(value, MultiValue) else [value]
            header[tag] = (
                struct.pack(f"<{len(values)}{code}", *values) if code else "\\".join(map(str, values)).encode()
            )
    return header


def text(header: Header, name: str) -> str:
    """Return an element as text, "" if it is absent.

    Several values remain separated by backslashes.
    """
    value = header.get(_TAG[name], b"")
    if value.isascii():
        return str(value.decode("ascii").strip(" \0"))
    charsets = header.get(_CHARSET, b"").decode("ascii", "replace").strip(" \0").split("\\")
    return str(decode_bytes(value, convert_encodings(charsets), {0x5C})).strip(" \0")


def numbers(header: Header, name: str) -> tuple[float, ...]:
    """Return the numbers of an element, () if it is absent or empty.

    Raises Refusal ``E_DECODE``.
    """
    value = header.get(_TAG[name], b"")
    try:
        if code := _BINARY.get(name):
            return struct.unpack(f"<{len(value) // struct.calcsize(f'<{code}')}{code}", value)
        value = value.strip(b" \0")
        return tuple(map(float, value.split(b"\\"))) if value else ()
    except (ValueError, struct.error):
        raise Refusal(Code.E_DECODE, f"{name} is not a number; export the file again") from None


def first(header: Header, name: str, default: float) -> float:
    """Return the first number of an optional element; an unreadable one counts as absent."""
    try:
        values = numbers(header, name)
    except Refusal:
        return default
    return values[0] if values and math.isfinite(values[0]) else default


def items(header: Header, name: str) -> list[Header]:
    """Return the items of a sequence."""
    return [_elements(item) for item in header.get(_TAG[name], [])]


def has(header: Header, name: str) -> bool:
    """Return whether an element is present, empty or not."""
    return _TAG[name] in header


def csa_of(header: Header) -> bytes:
    """Return Siemens' private image header (0029,1010), empty if there is none."""
    own = header.get(_CSA_OWNER, b"").strip(b" \0") == b"SIEMENS CSA HEADER"
    return bytes(header.get(_CSA, b"")) if own else b""


def syntax_of(header: Header) -> str:
    """Return the transfer syntax UID."""
    return str(header[_SYNTAX].decode("ascii", "replace").strip(" \0"))
