"""Describe image stacks by a few numbers, for the out-of-distribution check."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.transforms.body import is_body


class FeatureStatistics(NamedTuple):
    """Statistics of the features of training images.

    Attributes:
        centre, spread: median and robust standard deviation of each feature.
        largest: 99th percentile of the score among the training images.
    """

    centre: tuple[float, ...]
    spread: tuple[float, ...]
    largest: float

    def score(self, slices: NDArray[np.float32]) -> float:
        """Return the largest absolute robust z value of the features of ``(D, C, H, W)``."""
        return float(np.abs((image_features(slices) - np.array(self.centre)) / np.array(self.spread)).max())


class Reference(NamedTuple):
    """The statistics of a domain's training images: of whole volumes, and of single slices."""

    volume: FeatureStatistics
    slice: FeatureStatistics


def statistics_of(images: Iterable[NDArray[np.float32]]) -> FeatureStatistics:
    """Compute the statistics of training images, each ``(D, C, H, W)`` in network units."""
    features = np.stack([image_features(image) for image in images])
    centre = np.median(features, axis=0)
    spread = np.maximum(1.4826 * np.median(np.abs(features - centre), axis=0), 0.01)
    scores = np.abs((features - centre) / spread).max(axis=1)
    largest = float(np.percentile(scores, 99).round(4))
    return FeatureStatistics(tuple(centre.round(6).tolist()), tuple(spread.round(6).tolist()), largest)


def image_features(slices: NDArray[np.float32]) -> NDArray[np.float64]:
    """Describe slices ``(D, C, H, W)`` in network units by 21 numbers.

    These are a histogram of body values (16 bins of cumulative share), the share of body, the edge
    strength along rows and columns, and the centre of mass within the body's own height and depth.
    They are sensitive to contrasts, modalities, noise and orientations that differ from the
    training images, but hardly to anatomy.
    """
    levels = np.linspace(-1, 1.5, 17)[1:]
    depth, channels, height, width = slices.shape
    below, rows, columns = np.zeros(16), 0.0, 0.0
    by_depth, by_row = np.zeros(depth), np.zeros(height)
    in_depth, in_row = np.zeros(depth, int), np.zeros(height, int)
    for z, one in enumerate(slices):  # slice by slice, because a scan may fill the memory
        body = is_body(one)
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
    """Return the centre of mass of a profile within the body, from -1 (first) to 1 (last)."""
    where = np.flatnonzero(extent)
    place = np.linspace(-1, 1, where[-1] - where[0] + 1)
    inside = profile[where[0] : where[-1] + 1]
    return float((inside * place).sum() / max(inside.sum(), 1e-6))
