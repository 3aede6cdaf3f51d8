"""Measure how the output varies among ensemble members and under changes that should not matter."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medstyle.networks.translator import Translator

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SHIFTS = ((0, 3), (3, 0), (5, 5))  # pixels down and right; odd, so that no stride of the network divides them


def spread(translator: Translator, x: Tensor, style: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean over the ensemble and the standard deviation, both ``(N, C, ...)``.

    The mean is the same as without this function. The deviation is over members times test-time
    augmentation: the unchanged image, shifted images, and the image mirrored left to right if the
    translator permits it. It is not calibrated against the error.
    """
    views: list[tuple[int, int, bool]] = [(0, 0, False), *((*shift, False) for shift in SHIFTS)]
    if translator.config.mirror:
        views.append((0, 0, True))
    first: Tensor | None = None
    plain, total, squares = torch.zeros(3)
    for view in views:
        for y in translator.each(_change(x, *view), style):
            back = _undo(y, *view)
            if view == views[0]:
                plain = plain + back
            first = back if first is None else first
            apart = back - first  # small numbers: the squares of large ones would lose their differences to rounding
            total, squares = total + apart, squares + apart**2
    n = len(views) * len(translator.members)
    return plain / len(translator.members), (squares / n - (total / n) ** 2).clamp(min=0).sqrt()


def _change(x: Tensor, down: int, right: int, mirror: bool) -> Tensor:
    """Shift by repeating the first rows and columns, so that nothing wraps around.

    Optionally mirror.
    """
    padding = (right, 0, down, 0, *[0] * (2 * (x.ndim - 4)))
    moved = F.pad(x, padding, mode="replicate") if down or right else x
    return moved.flip(-1) if mirror else moved


def _undo(y: Tensor, down: int, right: int, mirror: bool) -> Tensor:
    return y.flip(-1) if mirror else y[..., down:, right:]
