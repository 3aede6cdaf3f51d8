"""Cheap descriptors of an image stack, for the out-of-distribution gate."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def image_features(slices: NDArray[np.float32]) -> NDArray[np.float64]:
    """Describe slices ``(D, C, H, W)`` in network units by 21 numbers.

    Histogram of body values (16 bins of cumulative share), share of body, edge strength along rows and columns,
    asymmetry of top and bottom and of inferior and superior. They tell other contrasts, modalities, noise and
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
    shifted = slices + 1
    height = np.linspace(-1, 1, slices.shape[2])
    profile = shifted.mean(axis=(0, 1, 3))
    depth = np.linspace(-1, 1, len(slices)) if len(slices) > 1 else np.zeros(1)
    total = max(float(shifted.mean()), 1e-6)
    lean = float((profile * height).mean() / total)
    rise = float((shifted.mean(axis=(1, 2, 3)) * depth).mean() / total)
    return np.array([*cumulative, share.mean(), rows, columns, lean, rise])
