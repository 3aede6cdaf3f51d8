"""Provide the classical methods that a trained model must beat."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import nn

from medstyle.imaging.picture import Pixels, from_unit, over_white, read_picture, to_unit


def identity(source: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the source unchanged."""
    return source


def histogram_matching(source: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Map values by one monotone curve per channel, so that their distribution matches the targets.

    Args:
        source: ``(n, C)`` values of one image.
        targets: ``(m, C)`` values of training images of the target domain.
    """
    from skimage.exposure import match_histograms

    matched: NDArray[np.float32] = match_histograms(source, targets, channel_axis=-1).astype(np.float32)
    return matched


def moments(source: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Match the mean and standard deviation of the targets (Reinhard 2001), for colours in CIELAB.

    Args:
        source: ``(n, C)`` values of one image in [0, 1].
        targets: ``(m, C)`` values of training images of the target domain.
    """
    from skimage.color import lab2rgb, rgb2lab

    colour = source.shape[1] == 3
    a, b = (rgb2lab(values) if colour else values for values in (source, targets))
    moved = (a - a.mean(0)) / np.maximum(a.std(0), 1e-6) * b.std(0) + b.mean(0)
    with warnings.catch_warnings(action="ignore"):  # colours outside the gamut of a screen are clipped, as intended
        made: NDArray[np.float32] = np.clip(lab2rgb(moved) if colour else moved, 0, 1).astype(np.float32)
    return made


def whitening_colouring(source: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Match the mean and covariance of the targets (Li 2017, on pixels); one channel: ``moments``.

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


# method: (source values (n, C), target training values (m, C)) -> values (n, C), all in [0, 1]
BASELINES: dict[str, Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[np.float32]]] = {
    "identity": identity,
    "histogram_matching": histogram_matching,
    "moments": moments,
    "whitening_colouring": whitening_colouring,
}


ITERATIONS, LARGEST = 120, 512  # of the optimisation, which works on pictures with sides of at most this many pixels


def _of_values(name: str, pixels: Pixels, reference: Pixels) -> Pixels:
    source, targets = (to_unit(image).reshape(-1, 3) for image in (pixels, reference))
    return from_unit(BASELINES[name](source, targets).reshape(pixels.shape), pixels.dtype)


def neural_style(
    pixels: Pixels, reference: Pixels, iterations: int = ITERATIONS, features: nn.Module | None = None
) -> Pixels:
    """Optimise a picture ``(H, W, 3)`` to match a reference's feature correlations (Gatys 2016).

    MIND descriptors keep the edges in place, and a total variation keeps grain away. The
    optimisation starts from the colours of :func:`moments`. Large pictures are optimised at
    ``LARGEST`` pixels a side, and the change is enlarged.

    Args:
        pixels: the content.
        reference: ``(h, w, 3)``, the style.
        iterations: steps of the optimisation.
        features: maps ``(N, 3, H, W)`` in [-1, 1] to a list of feature maps, fine to coarse.
            Default: :class:`ImageNet`'s, or, without ``medstyle[art]``, those of :class:`Texture`.
    """
    import torch
    import torch.nn.functional as F

    from medstyle.networks.imagenet import FINEST, ImageNet, available
    from medstyle.networks.mind import anatomy_loss
    from medstyle.networks.texture import Texture, correlations, style_distance

    def described(x: torch.Tensor) -> list[torch.Tensor]:
        return correlations(known(x)[:FINEST])

    def tensor(image: Pixels, size: tuple[int, ...]) -> torch.Tensor:
        x = 2 * torch.from_numpy(to_unit(image)).movedim(-1, 0)[None] - 1
        return F.interpolate(x, size, mode="area") if size != image.shape[:2] else x

    def small(image: Pixels) -> tuple[int, ...]:
        scale = min(1.0, LARGEST / max(image.shape[:2]))
        return tuple(max(32, round(n * scale)) for n in image.shape[:2])

    start = _of_values("moments", pixels, reference)
    content, begun = (tensor(image, small(pixels)) for image in (pixels, start))
    known = features or (ImageNet() if available() else Texture(3))
    with torch.no_grad():
        wanted = described(tensor(reference, small(reference)))
    x = begun.clone().requires_grad_()
    optimiser = torch.optim.Adam([x], lr=0.03)
    for _ in range(iterations):
        optimiser.zero_grad()
        steep = x.diff(dim=2).abs().mean() + x.diff(dim=3).abs().mean()
        loss = 2 * style_distance(described(x), wanted).mean() + 0.5 * anatomy_loss(x, content) + 0.2 * steep
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            x.clamp_(-1, 1)
    change = F.interpolate((x - begun).detach(), pixels.shape[:2], mode="bilinear", align_corners=False)
    whole = tensor(start, pixels.shape[:2]) + change
    return from_unit((whole[0].movedim(0, -1).numpy() + 1) / 2, pixels.dtype)


# method: (picture (H, W, 3), reference (h, w, 3) for the style) -> picture (H, W, 3)
PICTURE_METHODS: dict[str, Callable[[Pixels, Pixels], Pixels]] = {
    **{name: partial(_of_values, name) for name in BASELINES},
    "neural_style": neural_style,
}


def style_picture(pixels: Pixels, exemplar: Path, method: str) -> NDArray[np.float32]:
    """Give a picture ``(H, W, 3 or 4)`` the style of the picture in the file ``exemplar``.

    ``method`` is a key of :data:`PICTURE_METHODS`. Returns ``(H, W, 3)`` in [0, 1]; what was
    transparent lies over white.
    """
    return to_unit(PICTURE_METHODS[method](over_white(pixels), read_picture(exemplar)))
