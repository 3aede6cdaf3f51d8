"""Augment medical images validly: one geometry for all images, contrast changes of the source."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from medstyle.errors import ParamsError
from medstyle.params import params


@params
class Augmentation:
    """Random changes to each training example; every amount may be 0."""

    rotation_deg: float = 10.0
    """Largest rotation in either direction, in the plane of the slice, in degrees."""
    scale: float = 0.1
    """Largest relative change of size."""
    shift: float = 0.04
    """Largest shift as a share of the image size."""
    elastic: float = 0.0
    """Largest displacement of a smooth random deformation, as a share of the image size."""
    flip: bool = True
    """Mirror left and right in half of the cases; valid for heads without lateralised labels, never
    for the abdomen."""
    gamma: float = 0.2
    """Source contrast: exponent between 1 - gamma and 1 / (1 - gamma). Changes to source values
    never apply to CT."""
    curve: float = 0.0
    """Source contrast: strength of a random rising curve, whose slopes differ by about this power
    of e between darker and brighter values; widens the contrasts that a model accepts."""
    bias: float = 0.0
    """Source: largest relative change by smooth shading like that of a coil."""
    noise: float = 0.0
    """Source: largest standard deviation of Gaussian noise inside the body, in network units."""
    blur: float = 0.0
    """Source: largest weight of a 3 x 3 mean that is blended in, which simulates lower
    resolution."""

    def __post_init__(self) -> None:
        geometry = {"rotation_deg": 180, "scale": 0.9, "shift": 0.5, "elastic": 0.5}
        for name, most in {**geometry, "gamma": 0.9, "curve": 2, "bias": 1, "noise": 1, "blur": 1}.items():
            if not 0 <= getattr(self, name) <= most:
                raise ParamsError(f"augmentation.{name}: must lie in [0, {most}], got {getattr(self, name)}")


PIECES = 6  # of a random curve, between air and the brightest values
COARSE = 4  # control points per axis of smooth random fields
DRAWS = 10 + 3 * COARSE * COARSE


def augment(images: list[Tensor], settings: Augmentation, seeds: Sequence[int], contrast: Tensor) -> list[Tensor]:
    """Change a batch at random.

    Args:
        images: ``(N, C, H, W)`` or ``(N, C, D, H, W)`` in network units, the source first; ``C``
            may differ. The same map is applied to all of them, with one interpolation each; all
            slices of a volume are mapped alike.
        settings: amounts.
        seeds: one per example, which alone determines its changes.
        contrast: ``(N,)`` bool: examples whose source values may change (not CT).
    """
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    draw = torch.stack([torch.rand(DRAWS, generator=rng) for rng in rngs])
    shapes = [image.shape for image in images]
    flat = [image.flatten(1, -3) for image in images]  # a volume's slices are channels: one map for all
    both = _warp(torch.cat(flat, 1), settings, draw)
    parts = list(both.split([f.shape[1] for f in flat], 1))
    parts[0] = _change_values(parts[0], settings, draw, contrast, rngs)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def _warp(both: Tensor, settings: Augmentation, draw: Tensor) -> Tensor:
    if not (settings.rotation_deg or settings.scale or settings.shift or settings.elastic or settings.flip):
        return both
    amount = draw * 2 - 1
    angle = amount[:, 0] * math.radians(settings.rotation_deg)
    scale = 1 + amount[:, 1] * settings.scale
    mirror = torch.where(draw[:, 2] < 0.5, -1.0, 1.0) if settings.flip else torch.ones(len(draw))
    aspect = both.shape[-1] / both.shape[-2]  # grid coordinates are relative, but a rotation needs square pixels
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack(
        [
            torch.stack([mirror * cos, -mirror * sin / aspect, 2 * settings.shift * amount[:, 3]], -1),
            torch.stack([sin * aspect, cos, 2 * settings.shift * amount[:, 4]], -1),
        ],
        1,
    ).to(both.device)
    grid = F.affine_grid(theta, list(both.shape), align_corners=False)
    if settings.elastic:
        field = amount[:, 10 : 10 + 2 * COARSE * COARSE].reshape(-1, 2, COARSE, COARSE).to(both.device)
        smooth = F.interpolate(field, both.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + 2 * settings.elastic * smooth.permute(0, 2, 3, 1)
    # shifted so that the zeros beyond the border mean air; bicubic, because bilinear would teach
    # the network to blur
    moved = F.grid_sample(both + 1, grid, mode="bicubic", padding_mode="zeros", align_corners=False) - 1
    return moved.clamp(-1, 3)


def _through_curve(level: Tensor, rises: Tensor) -> Tensor:
    """Map levels ``(N, ...)`` through rising lines: 0 stays 0 and 1 stays 1.

    ``rises (N, PIECES)``, which sum to one, are those over pieces of equal length; the last line
    goes on above 1.
    """
    starts = F.pad(rises.cumsum(1)[:, :-1], (1, 0))
    piece = (level * PIECES).long().clamp(0, PIECES - 1)  # (N, ...)
    flat = piece.flatten(1)
    start, rise = (one.gather(1, flat).reshape(level.shape) for one in (starts, rises))
    return start + (level * PIECES - piece) * rise


def _change_values(
    source: Tensor, settings: Augmentation, draw: Tensor, contrast: Tensor, rngs: list[torch.Generator]
) -> Tensor:
    """Change values above air, which stays -1, in the examples that ``contrast`` allows."""
    level = (source + 1) / 2
    own = draw.to(source.device)[..., None, None]
    if settings.gamma:
        level = level.pow(torch.exp((own[:, 5:6] * 2 - 1) * -math.log(1 - settings.gamma)))
    if settings.curve:
        slopes = torch.stack([torch.randn(PIECES, generator=rng) for rng in rngs]).mul(settings.curve).exp()
        level = _through_curve(level, (slopes / slopes.sum(1, keepdim=True)).to(level.device))
    if settings.bias:
        field = own[:, -COARSE * COARSE :].reshape(-1, 1, COARSE, COARSE) * 2 - 1
        shading = F.interpolate(field, source.shape[-2:], mode="bicubic", align_corners=True)
        level = level * (1 + settings.bias * shading)
    if settings.blur:
        mean = F.avg_pool2d(level, 3, stride=1, padding=1, count_include_pad=False)
        level = torch.lerp(level, mean, settings.blur * own[:, 6:7])
    if settings.noise:
        noise = torch.stack([torch.randn(level.shape[1:], generator=rng) for rng in rngs]).to(level.device)
        level = (level + settings.noise / 2 * own[:, 7:8] * noise).clamp(min=0) * (level > 0)
    if level.data_ptr() == source.data_ptr():
        return source
    return torch.where(contrast.to(source.device)[:, None, None, None], level * 2 - 1, source)
