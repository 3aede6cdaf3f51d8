"""Classical methods that a trained model must beat, each usable on its own."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray


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


# method: (source values (n, C), target training values (m, C)) -> values (n, C), all in [0, 1]
BASELINES: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]] = {
    "identity": identity,
    "histogram_matching": histogram_matching,
}
