"""Give an image the palette of a style exactly: histogram matching as a layer of the network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FLAT = 1 / 255  # network units: levels closer than half a step of 8 bits would amplify noise without bounds


class Palette(nn.Module):
    """Map each channel through the rising curve that gives it the quantiles of a palette.

    A palette is the quantile function of each channel at ``size`` evenly spaced levels. The mean of
    several palettes is their barycentre in the 1-D Wasserstein distance, so styles can be blended.

    Args:
        size: number ``Q`` of levels per channel.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def measure(self, image: Tensor) -> Tensor:
        """Return the palette ``(N, C, Q)`` of ``(N, C, ...)``, from the minimum to the maximum."""
        values = image.float().flatten(2).sort(2).values
        return F.interpolate(values, size=self.size, mode="linear", align_corners=True)

    def forward(self, image: Tensor, palette: Tensor) -> Tensor:
        """Return ``(N, C, ...)`` with the palette ``(N, C, Q)``."""
        return self.mapped(image, self.measure(image), palette)

    def mapped(self, image: Tensor, own: Tensor, palette: Tensor) -> Tensor:
        """Map the levels ``own`` to those of ``palette``, both ``(N, C, Q)``, and all between."""
        at = (..., *[None] * (image.ndim - 2))
        rises, widths = palette.diff(dim=2), own.diff(dim=2).clamp(min=FLAT)
        mapped = palette[:, :, 0][at].expand_as(image)
        for level in range(self.size - 1):  # one sum of ramps: no search, so that it can be exported
            ramp = ((image.float() - own[:, :, level][at]) / widths[:, :, level][at]).clamp(0, 1)
            mapped = torch.addcmul(mapped, ramp, rises[:, :, level][at])
        return mapped
