"""Map the bodies of different subjects to a common space, for regional comparison without pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medstyle.transforms.align import align, bodies_together
from medstyle.transforms.body import AIR

if TYPE_CHECKING:
    import SimpleITK as sitk

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

CELL_MM = 6.0  # approximate size of the cells on which bodies are compared
STRETCH = 1.7  # largest plausible ratio of two people's sizes along any direction; beyond it, the alignment has failed
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Stored:
    """A scan in the slice store: ``(D, C, H, W)`` network units, and its voxel spacing, z first."""

    path: Path
    spacing_mm: tuple[float, float, float]

    def coarse(self) -> sitk.Image:
        """Return means of the first channel over cells, 0 in air, for slices with body."""
        import SimpleITK as sitk
        from skimage.measure import block_reduce

        slices = np.load(self.path, mmap_mode="r")[:, 0]
        shown = np.flatnonzero((slices > AIR).any(axis=(1, 2)))
        first, last = (int(shown[0]), int(shown[-1])) if len(shown) else (0, len(slices) - 1)
        cell = tuple(max(1, round(CELL_MM / mm)) for mm in self.spacing_mm)
        image = sitk.GetImageFromArray(block_reduce(slices[first : last + 1].astype(np.float32) + 1, cell, np.mean))
        image.SetSpacing([n * mm for n, mm in zip(cell[::-1], self.spacing_mm[::-1], strict=True)])
        middle = [(n - 1) / 2 * mm for n, mm in zip(cell, self.spacing_mm, strict=True)]
        image.SetOrigin([middle[2], middle[1], middle[0] + first * self.spacing_mm[0]])
        return image

    def volume(self) -> float:
        """Return the volume of the body in mm^3."""
        shown = (np.load(self.path, mmap_mode="r")[:, 0] > AIR).sum()
        return float(shown * np.prod(self.spacing_mm))


def median_scan(scans: Sequence[Stored]) -> Stored:
    """Return the scan whose body has the median volume; it defines the common space."""
    return sorted(scans, key=Stored.volume)[len(scans) // 2]


def map_to_space(scan: Stored, space: Stored) -> Matrix | None:
    """Return the affine map ``(4, 4)`` from voxels of ``scan`` to mm in ``space``.

    Both are ``(z, y, x, 1)``. The map maximises Mattes mutual information, so the contrasts may
    differ. The result is None if no plausible map was found.
    """
    try:
        transform = _together(space.coarse(), scan.coarse())
    except RuntimeError:  # from ITK: one scan is empty, or they do not overlap
        return None
    corner = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - corner for axis in np.eye(3)]
    linear = np.stack(columns, 1)  # maps millimetres (x, y, z) in the space to those of the scan
    sizes = np.linalg.svd(linear, compute_uv=False)
    if sizes.max() > STRETCH or sizes.min() < 1 / STRETCH:
        return None
    back = np.linalg.inv(linear)
    matrix = np.eye(4)
    matrix[:3, :3] = back[::-1, ::-1] * np.array(scan.spacing_mm)
    matrix[:3, 3] = -(back @ corner)[::-1]
    return matrix


def _together(fixed: sitk.Image, moving: sitk.Image) -> sitk.Transform:
    together = bodies_together(fixed, moving)
    x, y, z = together.GetTranslation()
    height = min(image.GetSize()[2] * image.GetSpacing()[2] for image in (fixed, moving))
    starts = []
    for share in np.linspace(-0.5, 0.5, 11):  # one scan may extend further down than the other
        start = type(together)(together)
        start.SetTranslation((x, y, z + share * height))
        starts.append(start)
    return align(fixed, moving, starts, affine=True, levels=(2, 1), share=1.0, first_step_mm=0.5)
