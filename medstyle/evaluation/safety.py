"""Known-answer tests of what must never happen to anatomy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SURVIVED = 0.5  # share of the true contrast that must be left


class Lesion(NamedTuple):
    """One lesion: its size as the radius of a ball of equal volume, true and recovered contrast in [0, 1] units."""

    radius_mm: float
    true_contrast: float
    contrast: float

    @property
    def recovery(self) -> float:
        """Recovered over true contrast."""
        return self.contrast / self.true_contrast


def lesions(
    output: NDArray[np.float32],
    truth: NDArray[np.float32],
    ids: NDArray[np.integer],
    voxel_mm3: float,
    least_contrast: float = 0.05,
) -> list[Lesion]:
    """Measure every lesion's contrast to its surroundings in output and truth.

    The surroundings are the voxels within three dilations that belong to no lesion. Lesions that even the truth hardly
    shows (below ``least_contrast``) or that fill fewer than 4 voxels are left out.

    Args:
        output, truth: ``(D, H, W)`` on one grid, in [0, 1].
        ids: ``(D, H, W)``, 0 outside, one number per lesion.
        voxel_mm3: volume of a voxel.
    """
    from scipy import ndimage

    neighbours = ndimage.generate_binary_structure(3, 1)
    found = []
    for lesion in np.unique(ids[ids > 0]):
        inside = ids == lesion
        if inside.sum() < 4:
            continue
        around = ndimage.binary_dilation(inside, neighbours, iterations=3) & (ids == 0)
        real, made = (float(image[inside].mean() - np.median(image[around])) for image in (truth, output))
        if abs(real) >= least_contrast:
            radius = (3 * inside.sum() * voxel_mm3 / (4 * np.pi)) ** (1 / 3)
            found.append(Lesion(float(radius), real, made))
    return found


def survival(found: list[Lesion]) -> dict[str, float]:
    """Summarise: number, share that kept half of their contrast, mean recovery, and both for small and large ones."""
    result: dict[str, float] = {"count": float(len(found))}
    groups = {
        "": found,
        "_below_4mm": [x for x in found if x.radius_mm < 4],
        "_4mm_up": [x for x in found if x.radius_mm >= 4],
    }
    for suffix, group in groups.items():
        if group:
            result[f"survived{suffix}"] = float(np.mean([lesion.recovery >= SURVIVED for lesion in group]))
            result[f"recovery{suffix}"] = float(np.mean([lesion.recovery for lesion in group]))
    return result
