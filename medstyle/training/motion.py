"""Simulate motion with its exact flow, so that training needs no video (ReReVST, Wang 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT, BEND = 0.04, 0.03  # largest shift and largest smooth displacement, as shares of the image's sides
COARSE = 4  # control points per axis
NOISE = 0.02  # standard deviation in network units: grain and compression noise, independent in each frame


def random_flow(seeds: Sequence[int], size: Sequence[int]) -> Tensor:
    """Draw a smooth flow for each seed, ``(N, 2, H, W)`` in pixels, rows first."""
    rngs = [torch.Generator().manual_seed(seed ^ 0xF10) for seed in seeds]
    draws = torch.stack([2 * torch.rand(2, COARSE * COARSE + 1, generator=rng) - 1 for rng in rngs])
    bend = draws[..., 1:].reshape(-1, 2, COARSE, COARSE) * BEND
    smooth = F.interpolate(bend, list(size), mode="bicubic", align_corners=True)
    return (smooth + draws[..., :1, None] * SHIFT) * torch.tensor(size)[:, None, None]


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Return ``image(p + flow(p))``, bilinear, with the border repeated.

    ``image`` is ``(N, C, H, W)``; ``flow`` is ``(N, 2, H, W)`` in pixels.
    """
    size = image.shape[2:]
    axes = [torch.arange(n, device=image.device, dtype=torch.float32) for n in size]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")) + flow.float()
    steps = torch.tensor(size, device=image.device).view(2, 1, 1)
    grid = ((2 * place + 1) / steps - 1).flip(1).movedim(1, -1)
    return F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def visible(flow: Tensor) -> Tensor:
    """Return whether ``p + flow(p)`` lies inside the image, ``(N, 1, H, W)`` bool."""
    size = flow.shape[2:]
    axes = [torch.arange(n, device=flow.device, dtype=torch.float32) for n in size]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")) + flow
    last = torch.tensor(size, device=flow.device).view(2, 1, 1) - 1
    return ((place >= 0) & (place <= last)).all(1, keepdim=True)


def motion_loss(now: Tensor, before: Tensor, flow: Tensor) -> Tensor:
    """Return the mean absolute difference of ``now`` and ``before`` warped along ``flow``.

    Pixels that were out of sight do not count. The differences of each image are averaged first, so
    that a batch can be divided among processes.
    """
    seen = visible(flow).float()
    error = (now.float() - warp(before, flow)).abs().mean(1, keepdim=True) * seen
    return (error.flatten(1).sum(1) / seen.flatten(1).sum(1).clamp(min=1)).mean()


def noisy(image: Tensor, seeds: Sequence[int]) -> Tensor:
    """Add noise to ``(N, C, H, W)``, as if from another frame."""
    rngs = [torch.Generator().manual_seed(seed ^ 0x6A1) for seed in seeds]
    noise = torch.stack([torch.randn(image.shape[1:], generator=rng) for rng in rngs])
    return image + NOISE * noise.to(image.device)
