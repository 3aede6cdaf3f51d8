"""Large inputs in overlapping windows, blended without seams.

MONAI's ``sliding_window_inference`` cuts its weights off at 1e-3, so that near the edges of an image, where every
weight is smaller, windows are averaged and not blended; and it keeps a map of their sum as large as the image. Gaussian
weights are a product over axes and windows form a grid, so here each axis is normalised by itself: no cut-off, no map,
no last division, and the result goes straight into its place in the whole image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from math import ceil

import torch
from torch import Tensor

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

Render = Callable[[Tensor], Sequence[Tensor]]  # a window -> images of its size

OVERLAP = 0.5  # least share of a window that its neighbour renders too
WIDTH = 8  # standard deviations of the weight that a window is wide


def shares(length: int, size: int, overlap: float = OVERLAP) -> list[tuple[slice, Tensor]]:
    """Spread windows of ``size`` evenly over ``length``: the place of each, and its share ``(size,)`` of the result.

    The weight is ``exp(-d^2 / (2 (size / 8)^2))`` of the distance ``d`` to the window's centre; the shares of all
    windows sum to one at every place.
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
        render: window -> images of its size, one for each of ``outs``.
        x: content; it may be a view.
        size: of the windows, one number per spatial axis; a longer one than the axis is cut.
        outs: ``(N, K, ...)`` images that are filled; they may be views.
        overlap: least share of a window that its neighbour renders too.
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
