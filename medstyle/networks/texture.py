"""A fixed bank of random filters at several scales: texture features where no trained network is at hand.

Correlations of such features describe texture nearly as well as those of a trained network (Ustyuzhaninov 2017); no
weights have to be fetched, and the same seed is the same bank everywhere.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medstyle.networks.generator import blur_pool

FILTERS, SIDE, SCALES = 32, 7, 4


class Texture(nn.Module):
    """Random filters of 7 x 7 pixels on an image pyramid, rectified both ways, beside the pixels themselves.

    Args:
        channels: of the images.
        seed: of the filters.
    """

    bank: Tensor

    def __init__(self, channels: int, seed: int = 0) -> None:
        super().__init__()
        bank = torch.randn(FILTERS, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
        bank = bank - bank.mean((2, 3), keepdim=True)  # edges and grain; colour is in the pixels
        bank = bank / bank.flatten(1).norm(dim=1)[:, None, None, None]
        self.register_buffer("bank", bank, persistent=False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Describe ``(N, C, H, W)``: a map ``(N, 2 FILTERS + C, h, w)`` for each scale that is large enough."""
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
    """Return the correlations of the features at each scale, ``(N, K, K)`` with a constant as one of the ``K``."""
    found = []
    with torch.autocast(maps[0].device.type, enabled=False):
        for level in maps:
            flat = F.pad(level.float().flatten(2), (0, 0, 0, 1), value=1.0)  # the constant: means count as well
            found.append(flat @ flat.transpose(1, 2) / flat.shape[2])
    return found


def style_distance(ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Return ``|A - B| / |B|`` of the :func:`correlations` ``A`` and ``B`` of all scales, ``(N,)`` (Gatys 2016)."""
    both = list(zip(ours, theirs, strict=False))  # of two sizes the smaller one has fewer scales
    apart = torch.stack([(a - b).flatten(1).square().sum(1) for a, b in both]).sum(0)
    whole = torch.stack([b.flatten(1).square().sum(1) for _, b in both]).sum(0)
    return ((apart + 1e-8) / whole).sqrt()
