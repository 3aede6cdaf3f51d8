"""Synthetic motion: what a camera would see next, with its exact flow (ReReVST, Wang 2020). No video is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT, BEND = 0.04, 0.03  # largest shift and largest smooth displacement, shares of the image's sides
COARSE = 4  # control points per axis
NOISE = 0.02  # standard deviation, network units: grain and compression that no frame shares with the next


def random_flow(seeds: Sequence[int], size: Sequence[int]) -> Tensor:
    """Draw a smooth flow for each seed, ``(N, 2, H, W)`` in pixels, rows first."""
    rngs = [torch.Generator().manual_seed(seed ^ 0xF10) for seed in seeds]
    draws = torch.stack([2 * torch.rand(2, COARSE * COARSE + 1, generator=rng) - 1 for rng in rngs])
    bend = draws[..., 1:].reshape(-1, 2, COARSE, COARSE) * BEND
    smooth = F.interpolate(bend, list(size), mode="bicubic", align_corners=True)
    return (smooth + draws[..., :1, None] * SHIFT) * torch.tensor(size)[:, None, None]


def warp(image: Tensor, flow: Tensor) -> Tensor:
    """Return ``image(p + flow(p))``: ``(N, C, H, W)`` along ``(N, 2, H, W)`` pixels, bilinear, the border repeated."""
    size = image.shape[2:]
    axes = [torch.arange(n, device=image.device, dtype=torch.float32) for n in size]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")) + flow.float()
    steps = torch.tensor(size, device=image.device).view(2, 1, 1)
    grid = ((2 * place + 1) / steps - 1).flip(1).movedim(1, -1)
    return F.grid_sample(image.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)


def visible(flow: Tensor) -> Tensor:
    """Tell where ``p + flow(p)`` lies inside the image, ``(N, 1, H, W)`` bool."""
    size = flow.shape[2:]
    axes = [torch.arange(n, device=flow.device, dtype=torch.float32) for n in size]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij")) + flow
    last = torch.tensor(size, device=flow.device).view(2, 1, 1) - 1
    return ((place >= 0) & (place <= last)).all(1, keepdim=True)


def motion_loss(now: Tensor, before: Tensor, flow: Tensor) -> Tensor:
    """Return the mean absolute difference of ``now`` and ``before`` moved along ``flow``, where that was in sight.

    The differences of each image are averaged first, so that a batch may be divided among processes.
    """
    seen = visible(flow).float()
    error = (now.float() - warp(before, flow)).abs().mean(1, keepdim=True) * seen
    return (error.flatten(1).sum(1) / seen.flatten(1).sum(1).clamp(min=1)).mean()


def noisy(image: Tensor, seeds: Sequence[int]) -> Tensor:
    """Add the grain of another frame to ``(N, C, H, W)``."""
    rngs = [torch.Generator().manual_seed(seed ^ 0x6A1) for seed in seeds]
    noise = torch.stack([torch.randn(image.shape[1:], generator=rng) for rng in rngs])
    return image + NOISE * noise.to(image.device)
