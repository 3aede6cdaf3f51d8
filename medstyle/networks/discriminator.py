"""Discriminate between real and generated image patches of a domain."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from monai.networks.nets import PatchDiscriminator
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Module):
    """PatchGAN (Isola 2017) at several scales, spectrally normalised (Miyato 2018).

    Each domain has its own output.

    Args:
        in_channels: channels of the input (paired training: source and target side by side).
        domains: number of domains ``K``; each has its own output channel.
        width: channels of the first layer; they double per layer.
        layers: strided layers per scale: 3 give a receptive field of 70 x 70 pixels.
        scales: levels of the image pyramid: full size, 1/2, 1/4...
        spatial_dims: 2 or 3.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        domains: int = 2,
        width: int = 64,
        layers: int = 3,
        scales: int = 3,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        arguments: dict[str, Any] = {
            "spatial_dims": spatial_dims, "channels": width, "in_channels": in_channels,
            "out_channels": domains, "num_layers_d": layers, "norm": None, "bias": True,
        }  # fmt: skip
        self.scales = nn.ModuleList(PatchDiscriminator(**arguments) for _ in range(scales))
        for network in self.scales:
            # all but the last layer: with normalisation, it would keep the logits too close to zero
            # to discriminate
            for module in [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)][:-1]:
                spectral_norm(module)

    def forward(self, y: Tensor, domain: Tensor) -> list[Tensor]:
        """Classify the patches of images.

        Args:
            y: ``(N, C, ...)`` in network units.
            domain: ``(N,)`` indices of the domain that each image is meant to belong to.

        Returns:
            One logit map ``(N, 1, h, w)`` per scale.
        """
        logits = []
        for network in self.scales:
            every = network(y)[-1]  # (N, K, h, w)
            logits.append(every[torch.arange(len(y), device=y.device), domain][:, None])
            y = F.avg_pool2d(y, 2) if y.ndim == 4 else F.avg_pool3d(y, 2)
        return logits


def probability(logits: list[Tensor]) -> Tensor:
    """Return ``(N,)``: the mean over patches, then scales, of ``sigmoid(logit)``.

    Only with the log-form objectives (``minimax``, ``nonsaturating``) is this the probability that
    the image is real; with least squares and hinge it is a monotone score.
    """
    return torch.stack([level.sigmoid().flatten(1).mean(1) for level in logits]).mean(0)
