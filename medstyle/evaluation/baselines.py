"""Classical methods that a trained model must beat, each usable on its own."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medstyle.imaging.picture import Pixels, from_unit, to_unit


def identity(source: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the source unchanged."""
    return source


def histogram_matching(source: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map values by one monotone curve per channel so that their distribution becomes that of the targets.

    Args:
        source: ``(n, C)`` values of one image.
        targets: ``(m, C)`` values of training images of the target domain.
    """
    from skimage.exposure import match_histograms

    matched: NDArray[np.float32] = match_histograms(source, targets, channel_axis=-1).astype(np.float32)
    return matched


def moments(source: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give values the mean and standard deviation of the targets (Reinhard 2001), colours in CIELAB.

    Args:
        source: ``(n, C)`` values of one image in [0, 1].
        targets: ``(m, C)`` values of training images of the target domain.
    """
    from skimage.color import lab2rgb, rgb2lab

    colour = source.shape[1] == 3
    a, b = (rgb2lab(values) if colour else values for values in (source, targets))
    moved = (a - a.mean(0)) / np.maximum(a.std(0), 1e-6) * b.std(0) + b.mean(0)
    with warnings.catch_warnings(action="ignore"):  # colours beyond what a screen shows are cut, as wanted
        made: NDArray[np.float32] = np.clip(lab2rgb(moved) if colour else moved, 0, 1).astype(np.float32)
    return made


def whitening_colouring(source: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Give values the mean and covariance of the targets (Li 2017, on pixels); with one channel as ``moments``.

    Args:
        source: ``(n, C)`` values of one image in [0, 1].
        targets: ``(m, C)`` values of training images of the target domain.
    """

    def root(values: NDArray, power: float) -> NDArray:
        scale, axes = np.linalg.eigh(np.cov(values.T.astype(np.float64)).reshape(values.shape[1], -1))
        return (axes * np.maximum(scale, 1e-12) ** power) @ axes.T

    moved = (source - source.mean(0)) @ root(source, -0.5) @ root(targets, 0.5) + targets.mean(0)
    made: NDArray[np.float32] = np.clip(moved, 0, 1).astype(np.float32)
    return made


def restyle(name: str, pixels: Pixels, reference: Pixels) -> Pixels:
    """Give a picture ``(H, W, 3)`` the colours of another ``(h, w, 3)`` by the method ``name``; no model is needed."""
    source, targets = (to_unit(image).reshape(-1, 3) for image in (pixels, reference))
    return from_unit(BASELINES[name](source, targets).reshape(pixels.shape), pixels.dtype)


# method: (source values (n, C), target training values (m, C)) -> values (n, C), all in [0, 1]
BASELINES: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]] = {
    "identity": identity,
    "histogram_matching": histogram_matching,
    "moments": moments,
    "whitening_colouring": whitening_colouring,
}
