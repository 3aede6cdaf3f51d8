"""Test for changes to anatomy that must never happen, using known answers."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.evaluation.protocols import ssim_map

SURVIVED = 0.5  # smallest share of the true contrast with which a lesion counts as preserved
CREATED, CREATED_MM3 = 0.15, 33.5  # half of a typical lesion's contrast in [0, 1] units; a ball of 2 mm radius
SHARES = (0.25, 0.5, 0.75, 1.0)


class Lesion(NamedTuple):
    """One lesion: the radius of a ball of equal volume, and its contrasts in [0, 1] units."""

    radius_mm: float
    true_contrast: float
    contrast: float

    @property
    def recovery(self) -> float:
        """Ratio of recovered to true contrast."""
        return self.contrast / self.true_contrast


def lesions(
    output: NDArray[np.float32],
    truth: NDArray[np.float32],
    ids: NDArray[np.integer],
    voxel_mm3: float,
    least_contrast: float = 0.05,
) -> list[Lesion]:
    """Measure every lesion's contrast to its surroundings in output and truth.

    The surroundings are the voxels within three dilations that belong to no lesion. Lesions that
    are hardly visible in the truth itself (below ``least_contrast``) or that fill fewer than 4
    voxels are left out.

    Args:
        output, truth: ``(D, H, W)`` on one grid, in [0, 1].
        ids: ``(D, H, W)``, 0 outside, one number per lesion.
        voxel_mm3: volume of a voxel.
        least_contrast: smallest true contrast of a lesion.
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


def created(
    output: NDArray[np.float32],
    truth: NDArray[np.float32],
    ids: NDArray[np.integer],
    mask: NDArray[np.bool_],
    voxel_mm3: float,
) -> int:
    """Count bright structures in the output that are absent from the truth.

    A structure consists of connected voxels in ``mask``, away from every lesion of ``ids``, in
    which the output exceeds the truth by more than 0.15, and it fills at least a ball of 2 mm
    radius: a reader could mistake it for a lesion. Ordinary errors at folds and rims count as well,
    so use the number to compare models; zero is not expected.
    """
    from scipy import ndimage

    near = ndimage.binary_dilation(ids > 0, ndimage.generate_binary_structure(3, 1), iterations=3)
    labels, count = ndimage.label((output - truth > CREATED) & mask & ~near)
    return int((np.bincount(labels.ravel())[1:] * voxel_mm3 >= CREATED_MM3).sum()) if count else 0


def edge_displacement(
    output: NDArray[np.float32], truth: NDArray[np.float32], mask: NDArray[np.bool_], pixel_mm: tuple[float, float]
) -> float:
    """Return the mean distance of edges to the nearest true edge and vice versa, in mm.

    Edges are detected slice by slice (Canny 1986, Gaussian of 1.5 pixels, the steepest tenth of the
    body); ``pixel_mm`` is the distance of rows and of columns. Without edges the result is 0.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.feature import canny

    apart: list[NDArray] = []
    for made, real, inside in zip(output, truth, mask, strict=True):
        if not inside.any():
            continue
        a, b = (canny(x, 1.5, 0.8, 0.9, mask=inside, use_quantiles=True) for x in (made, real))
        if a.any() and b.any():
            apart += [distance_transform_edt(~b, pixel_mm)[a], distance_transform_edt(~a, pixel_mm)[b]]
    return float(np.concatenate(apart).mean()) if apart else 0.0


def by_lesion(
    output: NDArray[np.float32], truth: NDArray[np.float32], ids: NDArray[np.integer], mask: NDArray[np.bool_]
) -> dict[str, float]:
    """Return MAE and SSIM within lesions and elsewhere; the overall mean hides small areas."""
    similar = ssim_map(output, truth)
    parts = {"lesions": ids > 0, "elsewhere": mask & (ids == 0)}
    error = np.abs(output - truth)
    maps = {"mae": error, "ssim": similar}
    return {
        f"{measure}_{part}": float(image[where].mean())
        for measure, image in maps.items()
        for part, where in parts.items()
        if where.any()
    }


def signatures(stack: Iterable[NDArray[Any]], side: int = 32) -> NDArray[np.float32]:
    """Return ``(n, H, W)`` downsampled, centred and of unit length: ``(n, side * side)``."""
    import torch

    shrink = partial(torch.nn.functional.adaptive_avg_pool2d, output_size=side)
    small = torch.stack([shrink(torch.from_numpy(np.array(one, np.float32))[None]).flatten() for one in stack])
    small -= small.mean(dim=1, keepdim=True)
    return np.asarray(small / small.norm(dim=1, keepdim=True).clamp(min=1e-6))


def nearest(images: NDArray[np.float32], library: NDArray[np.float32]) -> float:
    """Return the mean distance of ``images`` to the most similar image of ``library``.

    Both are given by :func:`signatures`; the distance is one minus the correlation, so 0 is a copy.
    A generator that reproduces training images (memorisation) has a smaller distance to them than
    real unseen images have.
    """
    return float((1 - (images @ library.T).max(axis=1)).mean())


def calibration(error: NDArray[np.float32], sigma: NDArray[np.float32]) -> dict[str, float]:
    """Measure how well the uncertainty ``sigma (n,)`` predicts the absolute ``error (n,)``.

    ``risk_25`` ... ``risk_100`` is the mean error of that share of the voxels with the lowest
    uncertainty (the risk-coverage curve of Geifman 2017). ``within_2sd`` is the share of the errors
    below two deviations, which is 0.95 if the deviations are calibrated. ``scale`` is the factor
    that would calibrate them.
    """
    order = np.argsort(sigma, kind="stable")
    mean = np.cumsum(error[order], dtype=np.float64) / np.arange(1, len(error) + 1)
    result = {f"risk_{share:.0%}".rstrip("%"): float(mean[int(share * len(error)) - 1]) for share in SHARES}
    floor = np.maximum(sigma, 1e-6)
    return {
        **result,
        "within_2sd": float((error <= 2 * floor).mean()),
        "scale": float(np.percentile(error / floor, 95) / 2),
    }


def survival(found: list[Lesion]) -> dict[str, float]:
    """Return the number of lesions, the share that kept half of their contrast, and the recovery.

    The recovery is a mean. The last two are also given for small and for large lesions.
    """
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
