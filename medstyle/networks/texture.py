"""Compute texture features by fixed random filters at several scales, without a pretrained network.

Correlations of such features describe texture nearly as well as those of a trained network
(Ustyuzhaninov 2017). No weights have to be downloaded, and the same seed gives the same filters
everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medstyle.networks.generator import blur_pool

FILTERS, SIDE, SCALES = 32, 7, 4


class Texture(nn.Module):
    """Rectified random filters of 7 x 7 pixels on an image pyramid, and the pixels themselves.

    Args:
        channels: channels of the images.
        seed: seed of the filters.
    """

    bank: Tensor

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        bank = torch.randn(FILTERS, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        bank = bank - bank.mean((2, 3), keepdim=True)  # edges and grain only; the pixels represent colour
        bank = bank / bank.flatten(1).norm(dim=1)[:, None, None, None]
        self.register_buffer("bank", bank, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return a map ``(N, 2 FILTERS + C, h, w)`` for each scale that is large enough."""
        maps, level = [], x.float()
        for _ in range(SCALES):
            response = F.conv2d(level, self.bank.to(level.device))
            inside = level[..., SIDE // 2 : -(SIDE // 2), SIDE // 2 : -(SIDE // 2)]
            maps.append(torch.cat([response.relu(), (-response).relu(), inside], 1))
            if min(level.shape[2:]) < 4 * SIDE:
                break
            level = blur_pool(level, "replicate")
        return maps


def correlations(maps: list[Tensor]) -> list[Tensor]:
    """Return the feature correlations at each scale, ``(N, K, K)``, including a constant.

    The constant is one of the ``K`` features.
    """
    found = []
    with torch.autocast(maps[0].device.type, enabled=False):
        for level in maps:
            flat = F.pad(level.float().flatten(2), (0, 0, 0, 1), value=1.0)  # the constant includes the means
            found.append(flat @ flat.transpose(1, 2) / flat.shape[2])
    return found


def style_distance(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Return ``|A - B| / |B|``, ``(N,)``, of the :func:`correlations` A and B (Gatys 2016)."""
    both = list(zip(ours, theirs, strict=False))  # a smaller image has fewer scales
    apart = torch.stack([(a - b).flatten(1).square().sum(1) for a, b in both]).sum(0)
    whole = torch.stack([b.flatten(1).square().sum(1) for _, b in both]).sum(0)
    return ((apart + 1e-8) / whole).sqrt()
