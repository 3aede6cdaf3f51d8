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
    body = slices > -0.999
    inside = slices[body]
    if inside.size == 0:
        return np.zeros(21)
    levels = np.linspace(-1, 1.5, 17)[1:]
    cumulative = np.searchsorted(np.sort(inside), levels) / inside.size
    share = body.mean(axis=(1, 2, 3))
    rows = np.abs(np.diff(slices, axis=2)).mean() / max(share.mean(), 1e-6)
    columns = np.abs(np.diff(slices, axis=3)).mean() / max(share.mean(), 1e-6)
    weight = np.where(body, slices + 1, 0)
    lean, rise = (
        _centre(weight.sum(axis=(0, 1, 3)), body.any(axis=(0, 1, 3))),
        _centre(weight.sum(axis=(1, 2, 3)), body.any(axis=(1, 2, 3))),
    )
    return np.array([*cumulative, share.mean(), rows, columns, lean, rise])


def _centre(profile: NDArray, extent: NDArray | np.bool_) -> float:
    """Return the centre of mass of a profile within the body's extent, from -1 (first) to 1 (last)."""
    where = np.flatnonzero(extent)
    place = np.linspace(-1, 1, where[-1] - where[0] + 1)
    inside = profile[where[0] : where[-1] + 1]
    return float((inside * place).sum() / max(inside.sum(), 1e-6))
