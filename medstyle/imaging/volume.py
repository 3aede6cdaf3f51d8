"""Volume = voxels + geometry + domain, and the volume files that SimpleITK reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Refusal

if TYPE_CHECKING:
    import SimpleITK as sitk

VOLUME_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
SHEAR_TOLERANCE = 1e-3  # largest dot product of two unit axes that still counts as orthogonal (0.06 degrees)


@dataclass(frozen=True, eq=False)
class Volume:
    """One scan in patient space.

    Attributes:
        voxels: ``(D, H, W)`` float32, in the unit of the domain (HU for CT).
        affine: ``(4, 4)`` float64, takes ``(column, row, slice, 1)`` to ``(x, y, z, 1)`` in mm, LPS (the patient axes
            of DICOM and ITK). It may be sheared (gantry tilt).
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
        """Return new voxels on this volume's grid; the shape must be the same."""
        if voxels.shape != self.voxels.shape:
            raise ValueError(f"voxels {voxels.shape} do not fit the grid {self.voxels.shape}")
        return Volume(voxels.astype(np.float32, copy=False), self.affine, domain or self.domain)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance between voxel centres along (column, row, slice) axes, mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @property
    def origin_mm(self) -> tuple[float, float, float]:
        """Centre of the first voxel, mm, LPS."""
        x, y, z = self.affine[:3, 3]
        return float(x), float(y), float(z)

    @property
    def direction(self) -> NDArray[np.float64]:
        """Unit vectors of the three index axes as the columns of a ``(3, 3)`` matrix."""
        axes: NDArray[np.float64] = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return axes

    @property
    def is_sheared(self) -> bool:
        """True where the axes are not orthogonal, so that ITK and NIfTI's qform cannot hold the grid."""
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
                "E_TILT_NEEDS_RESAMPLE", "the slice axis is tilted against the image plane; resample it first"
            )
        u, _, vt = np.linalg.svd(self.direction)  # the nearest rotation: header rounding must not stop ITK
        image = sitk.GetImageFromArray(self.voxels if voxels is None else voxels)
        image.SetSpacing(self.spacing_mm)
        image.SetOrigin(self.origin_mm)
        image.SetDirection((u @ vt).ravel().tolist())
        return image

    @staticmethod
    def from_image(image: sitk.Image, domain: str) -> Volume:
        """Make a volume of a 3-D scalar SimpleITK image."""
        import SimpleITK as sitk

        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
        affine[:3, 3] = image.GetOrigin()
        return Volume(sitk.GetArrayFromImage(image).astype(np.float32), affine, domain)


def header_reader(path: Path | str) -> sitk.ImageFileReader:
    """Return a reader of a volume file that warns nobody: ITK's warnings quote the path, which may name a patient."""
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    return reader


def read_volume(path: Path | str, domain: str, name: str | None = None) -> Volume:
    """Read a NIfTI, NRRD or MetaImage file.

    Args:
        path: the file.
        domain: see :class:`Volume`.
        name: what error messages call it; default: the file's name.

    Raises:
        Refusal: ``E_DECODE`` unreadable, ``E_4D`` not three-dimensional, ``E_COLOR`` more than one channel,
            ``E_NOT_FINITE`` NaN or infinity among the voxels (in NIfTI files ITK reads them as 0).
    """
    path = Path(path)
    name = name or path.name
    reader = header_reader(path)
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        raise Refusal("E_DECODE", f"{name}: not a readable volume file") from None
    size = reader.GetSize()
    if len([n for n in size if n > 1]) > 3 or len(size) < 3:
        raise Refusal("E_4D", f"{name}: has size {size}; split it into three-dimensional volumes")
    if reader.GetNumberOfComponents() != 1:
        raise Refusal("E_COLOR", f"{name}: has {reader.GetNumberOfComponents()} channels; one is expected")
    if path.name.lower().endswith((".nii", ".nii.gz")):
        _check_complete(path, reader, name)
    try:
        image = reader.Execute()
    except RuntimeError:
        raise Refusal("E_DECODE", f"{name}: the voxels cannot be decoded; the file may be cut short") from None
    if image.GetDimension() > 3:
        image = image[(slice(None),) * 3 + (0,) * (image.GetDimension() - 3)]
    volume = Volume.from_image(image, domain)
    if not np.isfinite(volume.voxels).all():
        raise Refusal("E_NOT_FINITE", f"{name}: holds NaN or infinite voxels; replace them first")
    return volume


def _check_complete(path: Path, reader: sitk.ImageFileReader, name: str) -> None:
    """Refuse a NIfTI file that is cut short (``E_TRUNCATED``): ITK would fill the rest with zeros and say nothing."""
    import gzip
    import zlib

    voxels = int(np.prod(reader.GetSize(), dtype=object)) * reader.GetNumberOfComponents()
    need = int(float(reader.GetMetaData("vox_offset"))) + voxels * int(reader.GetMetaData("bitpix")) // 8
    have = path.stat().st_size
    if path.name.lower().endswith(".gz"):
        have = 0
        try:
            with gzip.open(path) as file:
                while have < need and (block := file.read(1 << 20)):
                    have += len(block)
        except (EOFError, OSError, zlib.error):
            pass  # what was readable until here is counted
    if have < need:
        raise Refusal("E_TRUNCATED", f"{name}: holds {have} of {need} bytes; copy it again from its origin")


def write_volume(path: Path | str, volume: Volume, description: str = "") -> None:
    """Write the voxels to ``path`` by its suffix, all or nothing; ``description`` goes to NIfTI's ``descrip``.

    Whole numbers that fit are written with 16 bits, others as float32: what is read back is the same.
    """
    import SimpleITK as sitk

    path = Path(path)
    image = volume.to_image(_as_int16(volume.voxels))
    if description:
        image.SetMetaData("ITK_FileNotes", description[:79])
    scratch = path.with_name(f".part-{path.name}")
    if path.name.lower().endswith(".nii.gz"):
        plain = scratch.with_suffix("")
        try:
            sitk.WriteImage(image, str(plain), useCompression=False)
            _gzip(plain, scratch)
        finally:
            plain.unlink(missing_ok=True)
    else:
        sitk.WriteImage(image, str(scratch), useCompression=True)
    scratch.replace(path)


def _as_int16(voxels: NDArray[np.float32]) -> NDArray[np.int16] | None:
    """Return the same values with 16 bits, None where they do not fit."""
    limits = np.iinfo(np.int16)
    if not (limits.min <= voxels.min() and voxels.max() <= limits.max):  # NaN neither
        return None
    stored = voxels.astype(np.int16)
    return stored if all(map(np.array_equal, stored, voxels)) else None


def _gzip(source: Path, target: Path) -> None:
    """Compress ``source`` on every core: blocks are deflated side by side and make one stream (RFC 1951, 1952).

    The bytes do not depend on the number of cores. Level 1, because scans are noise in their lower bits: the usual
    level 6 takes five to eight times as long and saves 4 to 12 %.
    """
    import os
    import struct
    import zlib
    from collections import deque
    from concurrent.futures import Future, ThreadPoolExecutor

    def deflate(block: bytes) -> bytes:
        compressor = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
        return compressor.compress(block) + compressor.flush(zlib.Z_SYNC_FLUSH)

    cores = os.cpu_count() or 1
    checksum, size = 0, 0
    waiting: deque[Future[bytes]] = deque()
    with source.open("rb") as plain, target.open("wb") as packed, ThreadPoolExecutor(cores) as pool:
        packed.write(b"\x1f\x8b\x08" + bytes(6) + b"\xff")  # deflate, no time, no name, no system
        while block := plain.read(1 << 20):
            checksum, size = zlib.crc32(block, checksum), size + len(block)
            waiting.append(pool.submit(deflate, block))
            if len(waiting) > 2 * cores:
                packed.write(waiting.popleft().result())
        packed.writelines(future.result() for future in waiting)
        packed.write(b"\x03\0" + struct.pack("<2L", checksum, size & 0xFFFFFFFF))  # an empty last block
