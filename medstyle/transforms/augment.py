"""Augmentation that is lawful in medicine: one identical map for source and target, contrast on the source only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from medstyle.params import params


@params
class Augmentation:
    """Random changes of each training example; every amount may be 0."""

    rotation_deg: float = 10.0
    """Largest rotation either way."""
    scale: float = 0.1
    """Largest relative change of size."""
    shift: float = 0.04
    """Largest shift as a share of the image size."""
    flip: bool = True
    """Mirror left and right half of the time: lawful for heads without lateralised labels, never for the abdomen."""
    gamma: float = 0.2
    """Source contrast: exponent between 1 - gamma and 1 / (1 - gamma)."""


def augment(source: Tensor, target: Tensor, settings: Augmentation, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Change a batch at random.

    Args:
        source, target: ``(N, C, H, W)`` in network units; they may differ in ``C``.
        settings: amounts.
        rng: CPU generator; the same state gives the same change.
    """
    n, channels = source.shape[0], source.shape[1]
    draw = torch.rand(6, n, generator=rng)
    amount = draw * 2 - 1
    angle = amount[0] * math.radians(settings.rotation_deg)
    scale = 1 + amount[1] * settings.scale
    mirror = torch.where(draw[2] < 0.5, -1.0, 1.0) if settings.flip else torch.ones(n)
    aspect = source.shape[-1] / source.shape[-2]  # grid coordinates are relative: a rotation needs square pixels
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [
            torch.stack([mirror * cos, -mirror * sin / aspect, 2 * settings.shift * amount[3]], -1),
            torch.stack([sin * aspect, cos, 2 * settings.shift * amount[4]], -1),
        ],
        1,
    ).to(source.device)
    both = torch.cat([source, target], 1)
    grid = F.affine_grid(theta, list(both.shape), align_corners=False)
    # shifted so that the zeros beyond the border mean air; bicubic because bilinear would teach the network to blur
    both = F.grid_sample(both + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False) - 1
    both = both.clamp(-1, 3)
    source, target = both[:, :channels], both[:, channels:]
    if settings.gamma:
        power = torch.exp(amount[5] * -math.log(1 - settings.gamma)).to(source.device)[:, None, None, None]
        source = ((source + 1) / 2).pow(power) * 2 - 1
    return source, target
