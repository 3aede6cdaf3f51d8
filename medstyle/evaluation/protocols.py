"""Named metric definitions: a number without its protocol says nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Protocol:
    """How an output is measured.

    Attributes:
        paired: whether a real image of the same slice is the reference; else a set of images of the target domain.
        measures: measure -> which way is better.
        headline: measures in which a model must beat its baselines to pass the gate.
        measure: ``(output, reference, mask) -> {measure: value}``.
    """

    paired: bool
    measures: dict[str, Literal["higher", "lower"]]
    headline: tuple[str, ...]
    measure: Callable[..., dict[str, float]]


def plain(output: Image, reference: Image, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Measure one volume against its reference, both ``(D, H, W)`` in [0, 1] by a fixed normalisation, in the mask.

    MAE; PSNR with peak 1; SSIM (Wang 2004) slice by slice, Gaussian window 11/1.5, K 0.01/0.03, averaged in the mask.
    No gain is fitted to the output. ``through_plane`` is ``|ln r|`` of :func:`through_plane`: 0.1 means that
    neighbouring slices differ by 10 % more, or less, than in the reference.
    """
    from skimage.metrics import structural_similarity

    difference = (output - reference)[mask].astype(np.float64)
    squared = max(float((difference**2).mean()), 1e-12)
    maps = np.stack(
        [
            structural_similarity(
                a, b, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, full=True
            )[1]
            for a, b in zip(output, reference, strict=True)
        ]
    )
    return {
        "psnr": float(-10 * np.log10(squared)),
        "ssim": float(maps[mask].mean()),
        "mae": float(np.abs(difference).mean()),
        "through_plane": abs(float(np.log(through_plane(output, reference, mask)))),
    }


def through_plane(output: Image, reference: Image, mask: NDArray[np.bool_]) -> float:
    """Return ``mean |y[z+1] - y[z]|`` of ``output`` over that of ``reference``, where both slices are in the mask.

    Above 1, slices flicker; below 1, they are blurred into each other. 1 where there is only one slice.
    """
    both = mask[1:] & mask[:-1]
    if not both.any():
        return 1.0
    ours, real = (float(np.abs(np.diff(image, axis=0))[both].mean()) for image in (output, reference))
    return max(ours, 1e-6) / max(real, 1e-6)


def unpaired(output: Image, source: Image, targets: Image) -> dict[str, float]:
    """Measure one picture ``(H, W, 3)`` in [0, 1] against its own content and target pictures ``(N, H, W, 3)``.

    ``colour_distance``: mean over channels of the 1-D Wasserstein distance between pixel values of output and target
    set. ``texture_distance``: the same between gradient magnitudes of the luminance. ``structure``: SSIM of the
    luminance of output and source: content that was kept.
    """
    from scipy.stats import wasserstein_distance
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    colour = [wasserstein_distance(output[..., c].ravel(), targets[..., c].ravel()) for c in range(output.shape[-1])]
    of_targets = np.concatenate([_gradient(rgb2gray(picture)) for picture in targets])
    grey = rgb2gray(output)
    return {
        "colour_distance": float(np.mean(colour)),
        "texture_distance": float(wasserstein_distance(_gradient(grey), of_targets)),
        "structure": float(structural_similarity(grey, rgb2gray(source), data_range=1.0)),
    }


def _gradient(grey: Image) -> Image:
    return np.hypot(np.diff(grey, axis=0)[:, 1:], np.diff(grey, axis=1)[1:]).ravel()


PROTOCOLS: dict[str, Protocol] = {
    "plain": Protocol(
        True,
        {"psnr": "higher", "ssim": "higher", "mae": "lower", "through_plane": "lower"},
        ("psnr", "ssim", "mae"),
        plain,
    ),
    "unpaired": Protocol(
        False,
        {"colour_distance": "lower", "texture_distance": "lower", "structure": "higher"},
        ("texture_distance",),
        unpaired,
    ),
}
