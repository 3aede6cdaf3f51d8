"""Define volumes (voxels, geometry, domain), and read and write volume files through SimpleITK."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Code, Refusal
from medstyle.imaging.volume_header import (
    SHEAR_TOLERANCE,
    Packed,
    VolumeHeader,
    itk_name,
    read_volume_header,
)
from medstyle.jobs.atomic import atomic, disk, part_of

if TYPE_CHECKING:
    import SimpleITK as sitk

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


BLOCK = 1 << 20  # bytes, a multiple of the size of every number
MORE = 1 << 20  # bytes that may follow the voxels, such as padding


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan in patient space.

    Attributes:
        voxels: ``(D, H, W)`` float32, in the unit of the domain (HU for CT).
        affine: ``(4, 4)`` float64, maps ``(column, row, slice, 1)`` to ``(x, y, z, 1)`` in mm, LPS
            (the patient axes of DICOM and ITK). It may be sheared (gantry tilt).
        domain: key of :data:`medstyle.imaging.modality.DOMAINS`.
    """

    voxels: NDArray[np.float32]
    affine: NDArray[np.float64]
    domain: str

    def __post_init__(self) -> None:
        if self.voxels.ndim != 3 or self.affine.shape != (4, 4):
            raise ValueError(
                f"expected voxels (D, H, W) and affine (4, 4), got {self.voxels.shape}, {self.affine.shape}"
            )

    def with_voxels(self, voxels: NDArray[np.float32], domain: str | None = None) -> Volume:
        """Return new voxels of the same shape on this volume's grid."""
        if voxels.shape != self.voxels.shape:
            raise ValueError(f"voxels {voxels.shape} do not fit the grid {self.voxels.shape}")
        return Volume(voxels.astype(np.float32, copy=False), self.affine, domain or self.domain)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along the (column, row, slice) axes in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Centre of the first voxel in mm, LPS."""
        x, y, z = self.affine[:3, 3]
        return float(x), float(y), float(z)

    @property
    def direction(self) -> NDArray[np.float64]:
        """Unit vectors of the three index axes as the columns of a ``(3, 3)`` matrix."""
        axes: NDArray[np.float64] = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return axes

    @property
    def is_sheared(self) -> bool:
        """Whether the axes are not orthogonal, which ITK and NIfTI's qform cannot represent."""
        gram = self.direction.T @ self.direction
        return bool(np.abs(gram - np.eye(3)).max() > SHEAR_TOLERANCE)

    def to_image(self, voxels: NDArray[Any] | None = None) -> sitk.Image:
        """Return the volume, or other ``voxels`` on its grid, as a SimpleITK image.

        Raises:
            Refusal: ``E_TILT_NEEDS_RESAMPLE`` if sheared.
        """
        import SimpleITK as sitk

        if self.is_sheared:
            raise Refusal(
                Code.E_TILT_NEEDS_RESAMPLE, "the slice axis is tilted against the image plane; resample it first"
            )
        u, _, vt = np.linalg.svd(self.direction)  # the nearest rotation, because ITK rejects rounding errors of headers
        image = sitk.GetImageFromArray(self.voxels if voxels is None else voxels)
        image.SetSpacing(self.spacing_mm)
        image.SetOrigin(self.origin_mm)
        image.SetDirection((u @ vt).ravel().tolist())
        return image


def read_volume(path: Path | str, domain: str, name: str | None = None) -> Volume:
    """Read a NIfTI, NRRD or MetaImage file.

    Args:
        path: the file.
        domain: see :class:`Volume`.
        name: name of the file in error messages; default: its own.

    Raises:
        Refusal: ``E_4D`` not three-dimensional, ``E_COLOR`` more than one channel, ``E_TRUNCATED``
            cut short, ``E_DECODE`` unreadable, ``E_NOT_FINITE`` NaN or infinite voxels, and those
            of :func:`medstyle.imaging.volume_header.read_volume_header`.
    """
    path = Path(path)
    try:
        return _read(path, domain)
    except Refusal as refusal:
        raise Refusal(refusal.code, f"{name or path.name}: {refusal.reason}") from None


def _read(path: Path, domain: str) -> Volume:
    import SimpleITK as sitk

    header = read_volume_header(path)
    if header.volumes != 1:
        raise Refusal(Code.E_4D, f"has size {header.size}; split it into three-dimensional volumes")
    if header.channels != 1:
        raise Refusal(Code.E_COLOR, f"has {header.channels} channels; one is expected")
    _check_bytes(header)
    try:
        image = header.reader.Execute()
    except RuntimeError:
        raise Refusal(Code.E_DECODE, "the voxels cannot be decoded; the file may be cut short") from None
    voxels = sitk.GetArrayFromImage(image).astype(np.float32).reshape(header.shape)
    if header.nifti is not None and header.nifti.get("f", 112) == (0,):  # no scaling then, but ITK adds scl_inter
        voxels -= np.float32(header.nifti.get("f", 116)[0])
    if not np.isfinite(voxels).all():
        raise _not_finite()
    return Volume(voxels, header.affine, domain)


def _not_finite() -> Refusal:
    return Refusal(Code.E_NOT_FINITE, "holds NaN or infinite voxels; replace them first")


def _check_bytes(header: VolumeHeader) -> None:
    """Refuse voxels that are cut short or fail their checksum, and NaN in a NIfTI file.

    ITK returns zeros or uninitialised memory for them without an error.
    """
    packed, nifti, need, have = header.packed, header.nifti, header.bytes, 0
    if packed.how == "text":  # whose length is not defined
        return
    real = {16: "f4", 64: "f8"}.get(int(nifti.get("h", 70)[0])) if nifti is not None else None
    number = np.dtype(f"{nifti.order}{real}") if nifti is not None and real is not None else None
    if not packed.how and number is None:  # nothing to verify but the length
        have = packed.path.stat().st_size - packed.offset
    try:
        for block in _unpacked(packed) if packed.how or number is not None else ():
            if number is not None:
                numbers = np.frombuffer(block[: need - have], number, min(len(block), need - have) // number.itemsize)
                if not np.isfinite(numbers).all():
                    raise _not_finite()
            have += len(block)
            if packed.how and have > need + MORE:
                raise Refusal(Code.E_DECODE, f"holds more than the {need} bytes that its header claims; write it again")
    except EOFError:
        pass  # the bytes until here are counted
    except (OSError, zlib.error):
        raise Refusal(Code.E_DECODE, "fails its own checksum: it is damaged; copy it again from its origin") from None
    if have < need:
        raise Refusal(Code.E_TRUNCATED, f"holds {have} of {need} bytes; copy it again from its origin")


def _unpacked(packed: Packed) -> Iterator[bytes]:
    """Yield the bytes of the voxels in blocks.

    Raises EOFError if a compressed stream ends early, OSError or zlib.error if it is damaged.
    """
    with packed.path.open("rb") as raw:
        if not packed.whole:
            raw.seek(packed.offset)
        if packed.how == "zlib":
            stream = zlib.decompressobj()
            while not stream.eof:
                if not (block := stream.unconsumed_tail or raw.read(BLOCK)):
                    raise EOFError
                yield stream.decompress(block, BLOCK)
            return
        file: BinaryIO = gzip.GzipFile(fileobj=raw) if packed.how else raw  # type: ignore[assignment]
        if packed.whole:
            file.seek(packed.offset)
        while block := file.read(BLOCK):
            yield block


def write_volume(path: Path | str, volume: Volume, description: str = "") -> None:
    """Write the voxels to ``path`` atomically, in the format of its suffix.

    ``description`` is stored in NIfTI's ``descrip``; in NRRD and MetaImage (also ``.mhd`` is a
    single file) it is the field ``ITK_FileNotes``. Integers that fit are written with 16 bits,
    other values as float32, so that reading returns the same values.

    Raises:
        Refusal: ``E_TILT_NEEDS_RESAMPLE`` the volume is sheared; ``E_DECODE`` the path is not valid
            UTF-8.
        DiskFull: the disk is full.
    """
    import imagecodecs

    path = Path(path)
    itk_name(path)
    image = volume.to_image(_as_int16(volume.voxels))
    if description:
        image.SetMetaData("ITK_FileNotes", description[:79])
    lower = path.name.lower()
    # ITK knows lower-case suffixes only. An .mhd may hold its voxels too, so one file is written.
    suffix = ".nii.gz" if lower.endswith(".nii.gz") else {".mhd": ".mha"}.get(path.suffix.lower(), path.suffix.lower())
    part = part_of(path.with_name(path.name[: -len(suffix)] + suffix))
    with atomic(path, part=part):
        if not lower.endswith(".nii.gz"):
            _write_by_itk(part, image)
            return
        plain = part.with_suffix("")
        try:
            with disk(path, plain):
                _write_by_itk(plain, image)
            part.write_bytes(imagecodecs.gzip_encode(plain.read_bytes(), level=1))
        finally:
            plain.unlink(missing_ok=True)


def _write_by_itk(path: Path, image: Any) -> None:
    """Write a file and look at it again: on a full disk ITK cuts it short without a word."""
    import SimpleITK as sitk

    sitk.WriteImage(image, str(path), useCompression=path.suffix != ".nii")
    try:
        header = read_volume_header(path)
        if header.packed.how:
            _check_bytes(header)
        elif path.stat().st_size < header.packed.offset + header.bytes:
            raise Refusal(Code.E_TRUNCATED, "fewer bytes than voxels")
    except Refusal as refusal:
        if refusal.code in (Code.E_TRUNCATED, Code.E_DECODE):  # others concern what was asked for
            raise RuntimeError("ITK did not write the whole file") from refusal


def _as_int16(voxels: NDArray[np.float32]) -> NDArray[np.int16] | None:
    """Return the same values with 16 bits, None if they do not fit."""
    limits = np.iinfo(np.int16)
    if not (limits.min <= voxels.min() and voxels.max() <= limits.max):  # also true for NaN
        return None
    stored = voxels.astype(np.int16)
    return stored if all(map(np.array_equal, stored, voxels)) else None
