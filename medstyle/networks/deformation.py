"""Estimate the displacement between an image and its misaligned target."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from monai.networks.blocks import Warp
from monai.networks.nets import UNet
from torch import Tensor, nn


class DeformationFieldNetwork(nn.Module):
    """Small U-Net that estimates the displacement from one image to another (RegGAN, Kong 2021).

    Args:
        channels: channels of each image.
        limit: largest displacement along an axis, in pixels; a larger one could hide wrong anatomy.
        spatial_dims: 2 or 3.
    """

    def __init__(self, channels: int = 1, limit: float = 5.0, spatial_dims: int = 2) -> None:
        super().__init__()
        self.limit = limit
        widths = (16, 32, 32, 32)
        norm = ("instance", {"eps": 1e-3})
        self.body = UNet(spatial_dims, 2 * channels, 16, widths, (2, 2, 2), norm=norm)
        self.head = (nn.Conv2d if spatial_dims == 2 else nn.Conv3d)(16, spatial_dims, 3, padding=1)
        nn.init.normal_(self.head.weight, std=1e-4)  # starts close to the identity
        nn.init.zeros_(self.head.bias)  # type: ignore[arg-type]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a note that it uses grid_sample, as intended
            self.warp = Warp(mode="bilinear", padding_mode="border")

    def forward(self, image: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``image`` ``(N, C, ...)`` warped to ``target``, and the field in pixels.

        The field is ``(N, dims, ...)``.
        """
        both = torch.cat([image, target], 1)
        short = [-size % 8 for size in both.shape[2:]]
        padded = nn.functional.pad(both, [n for size in reversed(short) for n in (0, size)], mode="replicate")
        field: Tensor = self.head(self.body(padded)).float()
        inside: list[Any] = [slice(size) for size in both.shape[2:]]
        field = self.limit * torch.tanh(field[(..., *inside)] / self.limit)
        with torch.autocast(image.device.type, enabled=False):
            warped: Tensor = self.warp(image.float(), field)
        return warped, field
