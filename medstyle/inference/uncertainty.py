"""How much the output changes from one member of an ensemble to the next, and where it should not change at all."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from medstyle.networks.translator import Translator

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

SHIFTS = ((0, 3), (3, 0), (5, 5))  # pixels down and right; odd against the strides of the network


def spread(translator: Translator, x: Tensor, style: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the mean over members, as without this function, and the standard deviation, both ``(N, C, ...)``.

    The deviation is over members times test-time augmentation: the image as it is, shifted, and mirrored left to right
    where the translator may be. It is not calibrated against the error.
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
            apart = back - first  # small numbers: squares of large ones would round their differences away
            total, squares = total + apart, squares + apart**2
    n = len(views) * len(translator.members)
    return plain / len(translator.members), (squares / n - (total / n) ** 2).clamp(min=0).sqrt()


def _change(x: Tensor, down: int, right: int, mirror: bool) -> Tensor:
    """Repeat the first rows and columns, so that the rest moves and nothing comes in from the other side."""
    padding = (right, 0, down, 0, *[0] * (2 * (x.ndim - 4)))
    moved = F.pad(x, padding, mode="replicate") if down or right else x
    return moved.flip(-1) if mirror else moved


def _undo(y: Tensor, down: int, right: int, mirror: bool) -> Tensor:
    return y.flip(-1) if mirror else y[..., down:, right:]
