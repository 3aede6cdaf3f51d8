"""Cheap descriptors of an image stack, for the out-of-distribution gate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def image_features(slices: NDArray[np.float32]) -> NDArray[np.float64]:
    """Describe slices ``(D, C, H, W)`` in network units by 21 numbers.

    Histogram of body values (16 bins of cumulative share), share of body, edge strength along rows and columns,
    centre of mass within the body's own height and depth. They tell other contrasts, modalities, noise and
    orientations from the ones that were trained on; anatomy moves them little.
    """
    levels = np.linspace(-1, 1.5, 17)[1:]
    depth, channels, height, width = slices.shape
    below, rows, columns = np.zeros(16), 0.0, 0.0
    by_depth, by_row = np.zeros(depth), np.zeros(height)
    in_depth, in_row = np.zeros(depth, int), np.zeros(height, int)
    for z, one in enumerate(slices):  # slice by slice: a scan may fill the memory
        body = one > -0.999
        below += np.searchsorted(np.sort(one[body]), levels)
        rows += np.abs(np.diff(one, axis=1)).sum(dtype=float)
        columns += np.abs(np.diff(one, axis=2)).sum(dtype=float)
        weight = np.where(body, one + 1, 0).sum(axis=(0, 2), dtype=float)
        by_row += weight
        by_depth[z] = weight.sum()
        in_row += body.sum(axis=(0, 2))
        in_depth[z] = body.sum()
    inside = int(in_depth.sum())
    if inside == 0:
        return np.zeros(21)
    lines = depth * channels
    share = inside / slices.size
    edges = rows / (lines * (height - 1) * width) / share, columns / (lines * height * (width - 1)) / share
    return np.array([*below / inside, share, *edges, _centre(by_row, in_row), _centre(by_depth, in_depth)])


def _centre(profile: NDArray, extent: NDArray) -> float:
    """Return the centre of mass of a profile within the body's extent, from -1 (first) to 1 (last)."""
    where = np.flatnonzero(extent)
    place = np.linspace(-1, 1, where[-1] - where[0] + 1)
    inside = profile[where[0] : where[-1] + 1]
    return float((inside * place).sum() / max(inside.sum(), 1e-6))
