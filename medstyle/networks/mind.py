"""Compute MIND, a descriptor of anatomy that is invariant to contrast (Heinrich 2012)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def mind(image: Tensor) -> Tensor:
    """Describe the neighbourhood of every pixel independently of contrast (MIND, Heinrich 2012).

    It is ``exp(-d_r / v)`` for the 2 x dims nearest neighbours ``r``, where ``d_r`` is the squared
    difference of the 3 x 3 patches at the two locations and ``v`` is their mean over ``r``.

    Args:
        image: ``(N, C, ...)`` in network units; colours are averaged.

    Returns:
        ``(N, R, ...)`` in (0, 1]; 1 in flat surroundings.
    """
    grey = image.float().mean(1, keepdim=True)
    dims = grey.ndim - 2
    pool = F.avg_pool2d if dims == 2 else F.avg_pool3d
    distances = []
    for axis in range(2, grey.ndim):
        for shift in (-1, 1):
            distances.append((grey - torch.roll(grey, shift, axis)).square())
    d = pool(torch.cat(distances, 1), 3, stride=1, padding=1)
    # the constant represents noise: where the contrast is lower, there is nothing to preserve
    return torch.exp(-d / (d.mean(1, keepdim=True) + 1e-3))


def anatomy_loss(output: Tensor, content: Tensor) -> Tensor:
    """Return the mean absolute difference of MIND descriptors, which is 0 if no edge has moved."""
    return (mind(output) - mind(content)).abs().mean()
