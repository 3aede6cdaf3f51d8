"""Reduce a scan to a small cube about its body, in patient axes and from 0 to 1."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from medstyle.imaging.volume import Volume

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SIDE, SPACING_MM = 72, 3.0
HEADROOM = 1.25  # the 99th percentile of the body is at 1 / HEADROOM
SMALLEST_MM = 60.0  # along every axis; a smaller field of view shows no head


def cube(volume: Volume) -> NDArray[np.uint8] | None:
    """Return ``(72, 72, 72)`` voxels of 3 mm, axes (S, P, L), centred on the body.

    0 is the background and 204 the 99th percentile of the body. None if the field of view is less
    than 60 mm along an axis, or the image is constant.
    """
    from scipy.ndimage import affine_transform

    sizes = np.array(volume.voxels.shape[::-1]) * volume.spacing_mm
    if sizes.min() < SMALLEST_MM:
        return None
    factors = np.maximum(SPACING_MM / np.array(volume.spacing_mm) + 1e-3, 1).astype(int)[::-1]
    values = _block_mean(volume.voxels, factors)
    low, high = (float(one) for one in np.percentile(values, (1, 99.5)))
    if not high > low:
        return None
    body = values > low + 0.15 * (high - low)
    top = max(float(np.percentile(values[body], 99)), low + 1e-6)
    # from (z, y, x) indices of the means to mm, LPS
    scale = np.diag([*factors[::-1], 1.0])
    scale[:3, 3] = (factors[::-1] - 1) / 2
    affine = volume.affine @ scale
    centre = affine @ [*[float(at.mean()) for at in np.nonzero(body)][::-1], 1.0]
    grid = np.diag([SPACING_MM] * 3 + [1.0])
    grid[:3, 3] = centre[:3] - SPACING_MM * (SIDE - 1) / 2
    between = (np.linalg.inv(affine) @ grid)[:3]
    turned = between[::-1, :3][:, ::-1]
    scaled = np.clip((values - low) / (top - low) / HEADROOM, 0, 1)
    found = affine_transform(scaled, turned, between[::-1, 3], (SIDE,) * 3, order=1)
    return np.rint(255 * found).astype(np.uint8)


def _block_mean(voxels: NDArray[np.float32], factors: NDArray[np.int64]) -> NDArray[np.float32]:
    """Average blocks of voxels; what does not fill a block at the end is left out."""
    (d, a), (h, b), (w, c) = ((n // f, f) for n, f in zip(voxels.shape, factors.tolist(), strict=True))
    blocks = voxels[: d * a, : h * b, : w * c].reshape(d, a, h, b, w, c)
    means: NDArray[np.float32] = blocks.mean((1, 3, 5), dtype=np.float32)
    return means
