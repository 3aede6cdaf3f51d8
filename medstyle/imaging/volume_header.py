"""Read the grid from the header of a volume file; SimpleITK would assume what is missing."""

from __future__ import annotations

import gzip
import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Code, Refusal
from medstyle.imaging.formats import VOLUMES

if TYPE_CHECKING:
    import SimpleITK as sitk

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SHEAR_TOLERANCE = 1e-3  # largest dot product of two unit axes that still counts as orthogonal (0.06 degrees)
ORIENTATION_TOLERANCE_MM = 0.5
_READS = {  # by default, ITK would choose by content and read a format that was not checked
    ".nii": "NiftiImageIO",
    ".nii.gz": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
}
RATIO = 1000  # of unpacked to packed bytes: more is an attack, or all zeros
_HEADER_BYTES = 1 << 20  # of text: more is no header
_BITS = {1: 1, 2: 8, 4: 16, 8: 32, 16: 32, 32: 64, 64: 64, 128: 24, 256: 8, 512: 16, 768: 32, 1024: 64, 1280: 64}
_UNIT_MM = {1: 1e3, 3: 1e-3}  # of xyzt_units: metres, micrometres; all else is millimetres
# each group: any of its names
_META_NEUTRAL = {  # MetaImage fields that ITK ignores: the values under which they have no effect
    "ObjectType": ({"Image"}, Code.E_DECODE),
    "HeaderSize": ({"0"}, Code.E_DECODE),
    "CenterOfRotation": ({"0", "0.0", "-0"}, Code.E_NO_GEOMETRY),
    "ElementToIntensityFunctionSlope": ({"1", "1.0"}, Code.E_DECODE),
    "ElementToIntensityFunctionOffset": ({"0", "0.0", "-0"}, Code.E_DECODE),
}
_META_KEYS = (
    ("ElementSpacing", "ElementSize"),
    ("TransformMatrix", "Rotation", "Orientation"),
    ("Offset", "Position", "Origin"),
)
# a line that all readers understand alike: only printable ASCII before the value, and no NUL or CR
# in it
_META_LINE = re.compile(r"[ \t]*([ -9;<>-~]*?)[ \t]*[=:]([^\0\r]*)")
# the spaces that ITK converts to LPS
_NRRD_SPACE = re.compile(r"(right-anterior|left-anterior|left-posterior)-superior(-time)?|(ra|la|lp)st?", re.IGNORECASE)


@dataclass(frozen=True)
class NiftiHeader:
    """The first 348 bytes of a NIfTI-1 file, and their byte order as in :mod:`struct`."""

    data: bytes = field(repr=False)
    order: str

    def get(self, letter: str, offset: int, count: int = 1) -> tuple[float, ...]:
        """Return ``count`` numbers of a :mod:`struct` type."""
        return struct.unpack_from(f"{self.order}{count}{letter}", self.data, offset)

    @property
    def offset(self) -> int:
        """Offset of the first voxel in bytes."""
        return int(self.get("f", 108)[0])


Compression = Literal["", "gzip", "zlib", "text"]  # text: whatever else NRRD and MetaImage define


class Packed(NamedTuple):
    """How the bytes of the voxels lie in a file."""

    path: Path
    offset: int  # of the first, in the unpacked bytes where all of the file is packed
    how: Compression = ""
    whole: bool = False  # the header is packed too


@dataclass(frozen=True, eq=False)
class VolumeHeader:
    """The grid of a volume file, which its header defines completely.

    Attributes:
        size: extent along (column, row, slice, ...); three or more numbers.
        affine: ``(4, 4)``, LPS, mm, of the first three axes, which are orthogonal.
        channels: values at each voxel.
        reader: reads the voxels.
        packed: how they lie in the file.
        nifti: None in other files.
    """

    size: tuple[int, ...]
    affine: NDArray[np.float64]
    channels: int
    reader: sitk.ImageFileReader = field(repr=False)
    packed: Packed
    nifti: NiftiHeader | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(D, H, W)`` of one volume."""
        return self.size[2], self.size[1], self.size[0]

    @property
    def bytes(self) -> int:
        """How many bytes the voxels are."""
        import SimpleITK as sitk

        if self.nifti is not None:  # scaled values are wider
            return int(np.prod(self.size, dtype=object)) * self.channels * int(self.nifti.get("h", 72)[0]) // 8
        kind = sitk.Image([1, 1], self.reader.GetPixelID(), self.channels)
        return int(np.prod(self.size, dtype=object)) * kind.GetSizeOfPixelComponent() * self.channels

    @property
    def volumes(self) -> int:
        """Number of volumes that share the grid."""
        return int(np.prod(self.size[3:], dtype=object))


def itk_name(path: Path) -> str:
    """Return ``path`` as a string for ITK.

    Raises:
        Refusal: ``E_DECODE`` the path is not valid UTF-8, which would abort the process.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        reason = "its name, or that of a folder above it, is not valid UTF-8, so SimpleITK cannot open it; rename it"
        raise Refusal(Code.E_DECODE, reason) from None
    return name


def read_volume_header(path: Path) -> VolumeHeader:
    """Read the header of a volume file through SimpleITK, which will also read the voxels.

    Raises:
        Refusal: ``E_DECODE`` unreadable, or of an unknown suffix; ``E_DETACHED`` the voxels are in
            files that do not belong to the header; ``E_NO_GEOMETRY``, ``E_ZERO_SPACING``,
            ``E_MIXED_ORIENTATION``, ``E_TILT_NEEDS_RESAMPLE``.
    """
    import SimpleITK as sitk

    name, lower = itk_name(path), path.name.lower()
    if not lower.endswith(VOLUMES):
        raise Refusal(Code.E_DECODE, f"a volume file ends with one of {', '.join(VOLUMES)}; rename it")
    nifti, forms = None, []
    if lower.endswith((".nii", ".nii.gz")):
        nifti = _nifti(path)
        forms = _nifti_forms(nifti)
        packed = Packed(path, nifti.offset, "gzip" if lower.endswith(".gz") else "", whole=True)
    else:
        packed = _check_text(path)
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK's warnings quote the path, which may name a patient
    reader = sitk.ImageFileReader()
    reader.SetImageIO(next(reads for suffix, reads in _READS.items() if lower.endswith(suffix)))
    reader.SetFileName(name)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise _unreadable() from None
    n = reader.GetDimension()
    if n < 3:
        raise Refusal(Code.E_NO_GEOMETRY, f"has {n} axes, so its planes have no position in the patient; write three")
    spacing = np.array(reader.GetSpacing())[:3]
    if not (spacing > 0).all():
        raise _no_spacing()
    direction = np.array(reader.GetDirection()).reshape(n, n)[:3, :3]
    lengths = np.linalg.norm(direction, axis=0)
    if not (lengths > 0).all():
        raise _no_spacing()
    if not np.allclose(lengths, 1, atol=SHEAR_TOLERANCE):
        raise Refusal(Code.E_NO_GEOMETRY, "its axes are not of unit length; write it again with direction cosines")
    affine = np.eye(4)
    affine[:3, :3] = direction * spacing
    affine[:3, 3] = reader.GetOrigin()[:3]
    _check_axes(affine)
    header = VolumeHeader(tuple(reader.GetSize()), affine, reader.GetNumberOfComponents(), reader, packed, nifti)
    if packed.how and header.bytes > RATIO * packed.path.stat().st_size:
        raise Refusal(Code.E_TOO_LARGE, f"unpacks to more than {RATIO} times its size; write it without compression")
    corners = np.stack([*np.indices((2, 2, 2)).reshape(3, -1) * np.array(header.size[:3])[:, None], np.ones(8)])
    apart = max((float(np.abs((form - affine) @ corners).max()) for form in forms), default=0.0)
    if not apart <= ORIENTATION_TOLERANCE_MM:
        reason = (
            f"qform, sform and pixdim of the header place a corner up to {apart:.2f} mm apart; keep the correct one"
        )
        raise Refusal(Code.E_MIXED_ORIENTATION, reason)
    return header


def _no_spacing() -> Refusal:
    return Refusal(Code.E_ZERO_SPACING, "the voxel spacing is not positive; write the file again with its spacing")


def _check_axes(affine: NDArray[np.float64]) -> None:
    """Refuse axes without length, and axes that ITK would make orthogonal or not read at all."""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all():
        raise Refusal(Code.E_NO_GEOMETRY, "the position or the axes are not finite; write the file again with them")
    if not (lengths > 0).all():
        raise _no_spacing()
    axes = affine[:3, :3] / lengths
    if np.abs(axes.T @ axes - np.eye(3)).max() > SHEAR_TOLERANCE:
        reason = "the axes are not orthogonal, which ITK cannot represent; resample it to an orthogonal grid first"
        raise Refusal(Code.E_TILT_NEEDS_RESAMPLE, reason)


def _start(path: Path, count: int) -> bytes:
    """Return the first ``count`` bytes of a file, decompressed; fewer if the file is shorter."""
    try:
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
            return file.read(count)
    except (OSError, EOFError, zlib.error):
        raise _unreadable() from None


def _nifti(path: Path) -> NiftiHeader:
    data = _start(path, 348)
    if data[4:8] == b"n+2\0":
        raise Refusal(Code.E_DECODE, "is a NIfTI-2 file, which SimpleITK does not read; convert it to NIfTI-1")
    order = {b"\x5c\x01\0\0": "<", b"\0\0\x01\x5c": ">"}.get(data[:4])
    if order is None or data[344:] != b"n+1\0":  # without it, ITK reads an Analyze header, which has no orientation
        raise Refusal(Code.E_DECODE, "not a NIfTI-1 file, or damaged or cut short; write it again as NIfTI-1")
    header = NiftiHeader(data, order)
    kind, bits = (int(value) for value in header.get("h", 70, 2))
    if _BITS.get(kind, bits) != bits:
        raise Refusal(Code.E_DECODE, f"datatype {kind} does not have the {bits} bits of bitpix; write it again")
    if not 0 <= header.get("f", 108)[0] < 1 << 31:
        raise Refusal(
            Code.E_DECODE, "the header has an invalid offset of the voxels (vox_offset); write it again as NIfTI-1"
        )
    return header


def _nifti_forms(header: NiftiHeader) -> list[NDArray[np.float64]]:
    """Return the affine matrices, LPS and mm, in a NIfTI-1 header: qform, sform or both."""
    qform_code, sform_code = header.get("h", 252, 2)
    if qform_code <= 0 and sform_code <= 0:
        reason = "qform_code and sform_code are 0, so the position of its voxels is unknown; set the correct one"
        raise Refusal(Code.E_NO_GEOMETRY, reason)
    handedness, *spacing = header.get("f", 76, 4)
    if not (np.isfinite(spacing).all() and min(spacing) > 0):  # ITK would use 1 mm, whatever the sform says
        raise _no_spacing()
    forms = []
    if qform_code > 0:
        b, c, d, *offset = header.get("f", 256, 6)
        a = max(0.0, 1 - b * b - c * c - d * d) ** 0.5
        rotation = np.array(
            [
                [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
                [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
                [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
            ]
        )
        forms.append(np.column_stack([rotation * spacing * [1, 1, -1 if handedness < 0 else 1], offset]))
    if sform_code > 0:
        forms.append(np.array(header.get("f", 280, 12)).reshape(3, 4))
    to_lps = np.diag([-1.0, -1.0, 1.0]) * _UNIT_MM.get(header.data[123] & 7, 1.0)
    matrices = [np.vstack([to_lps @ form, [0, 0, 0, 1]]) for form in forms]
    for matrix in matrices:
        _check_axes(matrix)
    return matrices


def _check_text(path: Path) -> Packed:
    """Check an NRRD or MetaImage header and return where its voxels are.

    It is refused if it does not define the grid, or if its voxels are in files of others.
    """
    text = _start(path, _HEADER_BYTES).decode("latin-1").replace("\r\n", "\n")
    if path.suffix.lower() == ".nrrd":
        said = _nrrd_fields(text)
        _check_own(path, said.get("datafile", "LOCAL"))
        _check_nrrd(said)
        data, end = said.get("datafile", "LOCAL"), text.find("\n\n") + 2
        known: dict[str, Compression] = {"raw": "", "gzip": "gzip", "gz": "gzip"}
        how = known.get(said.get("encoding", "").lower(), "text")
    else:
        said = _meta_fields(text)
        data = said["ElementDataFile"]
        _check_own(path, data)
        line = re.search(r"^[ \t]*ElementDataFile.*$\n?", text, re.MULTILINE)
        end, how = line.end() if line else 0, "zlib" if said.get("CompressedData", "").lower() == "true" else ""
        if how and "CompressedDataSize" not in said:  # ITK returns uninitialised memory then
            raise Refusal(Code.E_DECODE, "the header has no CompressedDataSize; write it again with it")
        if said.get("BinaryData", "True").lower() == "false":
            how = "text"
        spacing, axes, origin = (any(name in said for name in names) for names in _META_KEYS)
        if not spacing:
            raise Refusal(
                Code.E_ZERO_SPACING, "the header has no ElementSpacing; write the file again with its spacing"
            )
        if not (axes and origin):
            raise Refusal(
                Code.E_NO_GEOMETRY, "the header has no TransformMatrix or no Offset; write it again with both"
            )
        _check_meta(said)
    return Packed(path, end, how) if data.lower() == "local" else Packed(path.parent / data, 0, how)


def _check_meta(said: Mapping[str, str]) -> None:
    """Refuse what ITK passes over, although it changes values or places."""
    if said.get("DistanceUnits", "mm") not in ("mm", "?", ""):
        raise Refusal(Code.E_NO_GEOMETRY, "its DistanceUnits are not mm; write it again in mm")
    for name, (neutral, code) in _META_NEUTRAL.items():
        if {*said.get(name, "").split()} - neutral:
            raise Refusal(code, f"its {name} is not read; write it again without, its effect applied")


def _meta_fields(text: str) -> dict[str, str]:
    """Return the fields of a MetaImage header, which ends with the name of the data file."""
    fields: dict[str, str] = {}
    for line in text.split("\n"):
        match = _META_LINE.fullmatch(line)
        if match is None:
            break
        if match[1] in fields:
            raise _twice(match[1])
        fields[match[1]] = match[2].strip()
        if match[1] == "ElementDataFile":
            return fields
    raise _unreadable()


def _twice(name: str) -> Refusal:
    return Refusal(Code.E_DECODE, f"its header has {name} twice; keep the correct one")


def _unreadable() -> Refusal:
    return Refusal(Code.E_DECODE, "not a readable volume file; it may be damaged or cut short")


def _nrrd_fields(text: str) -> dict[str, str]:
    """Return the fields of an NRRD header, by lower-case names without spaces.

    The header ends with an empty line.
    """
    fields: dict[str, str] = {}
    head, *voxels = text.split("\n\n", maxsplit=1)
    if not head.startswith("NRRD") or re.search("[\0\r]", head):
        raise _unreadable()
    for line in head.split("\n")[1:]:
        key, _, value = line.partition(":")
        if not (key.startswith("#") or value.startswith("=")):  # a comment, a note
            name = key.lower().replace(" ", "")
            if name in fields:
                raise _twice(key)
            fields[name] = value.strip()
    if not voxels and "datafile" not in fields:
        raise _unreadable()
    return fields


def _check_nrrd(said: Mapping[str, str]) -> None:
    vectors = said.get("spacedirections", "").count("(")
    if not _NRRD_SPACE.fullmatch(said.get("space", "")) or vectors < 3 or "spaceorigin" not in said:
        why = "the header lacks space (RAS, LAS or LPS), space directions or space origin"
        raise Refusal(Code.E_NO_GEOMETRY, f"{why}, so the position of its voxels is unknown; write it again with them")
    if set(re.findall(r'"([^"]*)"', said.get("spaceunits", ""))) - {"", "mm"}:
        raise Refusal(Code.E_NO_GEOMETRY, "its space units are not mm; write it again in mm")
    for name in ("lineskip", "byteskip"):
        if said.get(name, "0") != "0":
            raise Refusal(Code.E_DECODE, f"its {name[:4]} skip is not read; write it again without")
    if {"oldmin", "oldmax"} & said.keys():
        reason = "its voxels are quantised (old min, old max), which ITK does not undo; write it again as it was"
        raise Refusal(Code.E_DECODE, reason)


def _check_own(path: Path, data: str) -> None:
    """Refuse voxels outside the header's folder, or in a list of files.

    Otherwise a header could open any file.
    """
    if data in ("LOCAL", "Local", "local"):
        return
    place = Path(data)
    if place.is_absolute() or ".." in place.parts or data.startswith("LIST") or "%" in data:
        reason = "its voxels lie outside its folder or in several files; write it as one file (.mha, .nrrd)"
        raise Refusal(Code.E_DETACHED, reason)
    if not (path.parent / place).is_file():
        raise Refusal(
            Code.E_DETACHED, "the file of its voxels is not there; copy both, or write one file (.mha, .nrrd)"
        )
