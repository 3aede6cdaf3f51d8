"""How much the output changes under changes of the input that should not matter."""

from __future__ import annotations

import torch
from torch import Tensor

from medstyle.networks.translator import Translator

SHIFTS = ((0, 3), (3, 0), (-3, -3))  # pixels; odd against the strides of the network


def spread(translator: Translator, slices: Tensor, domain: str | None, plain: Tensor) -> Tensor:
    """Return the standard deviation ``(N, C, H, W)`` over test-time augmentation: shifts and a left-right mirror.

    It is not calibrated against the error. ``plain`` is the output without augmentation, which counts as one sample.
    """
    total, squares = plain.clone(), plain.square()
    samples: list[Tensor] = [translator(slices.flip(-1), domain).flip(-1)]
    for shift in SHIFTS:
        moved = torch.roll(slices, shift, (-2, -1))
        samples.append(torch.roll(translator(moved, domain), tuple(-s for s in shift), (-2, -1)))
    for sample in samples:
        total += sample
        squares += sample.square()
    n = len(samples) + 1
    return (squares / n - (total / n).square()).clamp(min=0).sqrt()
