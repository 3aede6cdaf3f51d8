"""Render large inputs in overlapping windows that are blended without seams.

MONAI's ``sliding_window_inference`` clips its weights at 1e-3. Near the edges of an image, where
every weight is smaller, windows are therefore averaged instead of blended; it also keeps a map of
the sum of weights as large as the image. Gaussian weights are a product over axes and windows form
a grid, so each axis can be normalised by itself here: without clipping, without a map and without a
final division, and the result is written directly into the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import ceil

import torch
from torch import Tensor

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

Render = Callable[[Tensor], Sequence[Tensor]]  # maps a window to images of its size

OVERLAP = 0.5  # smallest share of a window that overlaps with its neighbour
WIDTH = 8  # width of a window in standard deviations of its weight


def shares(length: int, size: int, overlap: float = OVERLAP) -> list[tuple[slice, Tensor]]:
    """Distribute windows of ``size`` evenly over ``length``.

    Return the place and the weights of each.

    The weight is ``exp(-d^2 / (2 (size / 8)^2))`` for the distance ``d`` to the window's centre,
    normalised so that the weights ``(size,)`` of all windows sum to one at every position.
    """
    size = min(size, length)
    count = 1 + ceil((length - size) / max(1, int(size * (1 - overlap))))
    starts = [round(i * (length - size) / max(1, count - 1)) for i in range(count)]
    distance = torch.arange(size) - (size - 1) / 2
    weight = torch.exp(-(distance**2) / (2 * (size / WIDTH) ** 2))
    places = [slice(start, start + size) for start in starts]
    total = torch.zeros(length)
    for place in places:
        total[place] += weight
    return [(place, weight / total[place]) for place in places]


def blend(render: Render, x: Tensor, size: Sequence[int], outs: Sequence[Tensor], overlap: float = OVERLAP) -> None:
    """Render ``x`` ``(N, C, ...)`` in windows of ``size`` and blend them in float32.

    Args:
        render: maps a window to images of its size, one for each of ``outs``.
        x: content; it may be a view.
        size: size of the windows, one number per spatial axis; at most the length of the axis is
            used.
        outs: ``(N, K, ...)`` images to fill; they may be views.
        overlap: smallest share of a window that overlaps with its neighbour.
    """
    for out in outs:
        out.zero_()
    for window in product(*(shares(n, s, overlap) for n, s in zip(x.shape[2:], size, strict=True))):
        place = (slice(None), slice(None), *(where for where, _ in window))
        for out, image in zip(outs, render(x[place]), strict=True):
            part = image
            for axis, (_, share) in enumerate(reversed(window)):
                part = part * share.view(-1, *[1] * axis)
            out[place] += part
