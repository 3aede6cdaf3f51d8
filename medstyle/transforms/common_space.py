"""One space for the bodies of different subjects: where training without pairs may compare region by region."""

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

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

CELL_MM = 6.0  # bodies are compared on cells of about this size
STRETCH = 1.7  # two people differ by less along any direction; a fit that says more has failed
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Stored:
    """A scan as the slice store has it: ``(D, C, H, W)`` network units, and the distances of its voxels, z first."""

    path: Path
    spacing_mm: tuple[float, float, float]

    def coarse(self) -> sitk.Image:
        """Return means over cells of the first channel, 0 in air, of the slices that show anything."""
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
        """Return the volume of the body, mm^3."""
        shown = (np.load(self.path, mmap_mode="r")[:, 0] > AIR).sum()
        return float(shown * np.prod(self.spacing_mm))


def median_scan(scans: Sequence[Stored]) -> Stored:
    """Return the scan whose body is the median in volume: the space of the others."""
    return sorted(scans, key=Stored.volume)[len(scans) // 2]


def map_to_space(scan: Stored, space: Stored) -> Matrix | None:
    """Return the affine map ``(4, 4)`` of voxels of ``scan`` to millimetres in ``space``, both ``(z, y, x, 1)``.

    By the most Mattes mutual information, so the contrasts may be any. None where no plausible map was found.
    """
    try:
        transform = _together(space.coarse(), scan.coarse())
    except RuntimeError:  # of ITK: one is empty, or they do not overlap
        return None
    corner = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(axis))) - corner for axis in np.eye(3)]
    linear = np.stack(columns, 1)  # of millimetres (x, y, z) in the space to those of the scan
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
    for share in np.linspace(-0.5, 0.5, 11):  # one may reach further down than the other
        start = type(together)(together)
        start.SetTranslation((x, y, z + share * height))
        starts.append(start)
    return align(fixed, moving, starts, affine=True, levels=(2, 1), share=1.0, first_step_mm=0.5)
