"""Render a content image ``x`` in the style of a code ``s``: the generator ``G(x, s)``.

::

    x (N, C_in, H, W) ──► encoder ──► bottleneck ──► decoder ──► head ──► y (N, C_out, H, W)
                             └── skips ──────────────┘ ▲
    s (N, S) ──────────────────────── modulation ──────┘

The encoder never sees ``s``, and its normalisation removes the contrast of the image. The decoder
applies the contrast of the style by modulation (AdaIN, Huang and Belongie 2017; FiLM, Perez 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.networks.blocks import Convolution
from monai.networks.layers.utils import get_norm_layer
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

FINE = 8  # channels at full resolution where the levels hold folded pixels


def _norm(spatial_dims: int, channels: int, affine: bool) -> nn.Module:
    # One group per channel is instance normalisation by value, on the fast channels_last path. The
    # large eps prevents division by zero for constant crops.
    name = ("group", {"num_groups": channels, "eps": 1e-3, "affine": affine})
    return get_norm_layer(name, spatial_dims=spatial_dims, channels=channels)


def _conv(dims: int, channels_in: int, channels_out: int, kernel_size: int = 3, bias: bool = True) -> nn.Module:
    return Convolution(dims, channels_in, channels_out, kernel_size=kernel_size, conv_only=True, bias=bias)


class ModulatedConv(nn.Module):
    """Convolution, normalisation, ``(1 + gamma(s)) h + beta(s)``, SiLU.

    Unmodulated without ``style_size``.

    The style projection is initialised with zeros, so the network starts as a plain U-Net.
    """

    def __init__(self, spatial_dims: int, channels_in: int, channels_out: int, style_size: int | None = None) -> None:
        super().__init__()
        # the normalisation would remove a bias
        self.conv = _conv(spatial_dims, channels_in, channels_out, bias=False)
        self.norm = _norm(spatial_dims, channels_out, affine=style_size is None)  # the style is the affine map
        self.style = nn.Linear(style_size, 2 * channels_out) if style_size else None
        if self.style is not None:
            nn.init.zeros_(self.style.weight)
            nn.init.zeros_(self.style.bias)

    def forward(self, x: Tensor, s: Tensor | None = None) -> Tensor:
        """Map ``(N, C_in, ...)`` to ``(N, C_out, ...)``."""
        h: Tensor = self.norm(self.conv(x))
        if self.style is not None and s is not None:
            gamma, beta = self.style(s)[(..., *[None] * (h.ndim - 2))].chunk(2, 1)
            h = torch.addcmul(beta, h, 1 + gamma)
        return F.silu(h)


class ResidualBlock(nn.Module):
    """Two modulated convolutions added to their input."""

    def __init__(self, spatial_dims: int, channels: int, style_size: int | None) -> None:
        super().__init__()
        self.first = ModulatedConv(spatial_dims, channels, channels, style_size)
        self.second = ModulatedConv(spatial_dims, channels, channels, style_size)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Return an array of the same shape ``(N, C, ...)``."""
        return x + self.second(self.first(x, s), s)


def blur_pool(x: Tensor, border: str = "zeros") -> Tensor:
    """Halve every spatial axis after a binomial [1 3 3 1] filter, against aliasing (Zhang 2019)."""
    dims, channels = x.ndim - 2, x.shape[1]
    line = torch.tensor([1.0, 3.0, 3.0, 1.0], device=x.device, dtype=x.dtype) / 8
    kernel = line
    for _ in range(dims - 1):
        kernel = kernel[..., None] * line
    kernel = kernel.expand(channels, 1, *kernel.shape)
    convolve = F.conv2d if dims == 2 else F.conv3d
    if border == "zeros":
        return convolve(x, kernel, stride=2, padding=1, groups=channels)
    return convolve(F.pad(x, (1, 1) * dims, mode=border), kernel, stride=2, groups=channels)


class FineHead(nn.Module):
    """Unfold the features to full resolution, and make the image from them beside the content.

    The content enters as it is: it is not normalised, so that grey levels arrive.

    Args:
        spatial_dims: 2 or 3.
        width: channels of the features.
        seen: channels of the content; 0 leaves it out.
        out_channels: channels of the image.
        fold: side of the square or cube of pixels that a feature holds.
    """

    def __init__(self, spatial_dims: int, width: int, seen: int, out_channels: int, fold: int) -> None:
        super().__init__()
        self.fold, self.sees = fold, seen > 0
        self.spread = _conv(spatial_dims, width, FINE * fold**spatial_dims)
        self.first = _conv(spatial_dims, FINE + seen, FINE)
        self.last = _conv(spatial_dims, FINE, out_channels)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """Map features ``(N, C, h, w)`` and content ``(N, C_in, H, W)`` to ``(N, C_out, H, W)``."""
        fine = pixelshuffle(self.spread(h), h.ndim - 2, self.fold)  # (N, FINE, H, W)
        y: Tensor = self.last(F.silu(self.first(torch.cat([fine, x], 1) if self.sees else fine)))
        return y


class Generator(nn.Module):
    """Style-modulated U-Net.

    Args:
        in_channels, out_channels: channels of content and output.
        widths: channels per resolution level, fine to coarse; every level halves the size.
        style_size: length ``S`` of the style code.
        spatial_dims: 2 or 3.
        bottleneck_blocks: residual blocks at the coarsest level, the later half modulated.
        bounded: end in ``tanh``, for 8-bit pictures only (it would flatten bone and CSF).
        levels_without_skip: number of finest levels without a skip connection; there, details do
            not pass from the encoder to the decoder, which renders its own.
        border: padding of the convolutions: ``zeros``, which is nearly air, or ``replicate`` for
            pictures, which zeros would frame.
        fold: side of the square (cube) of pixels that the finest level holds as channels (pixel
            unshuffle, Shi 2016), finished by a :class:`FineHead`. Most of the arithmetic of a U-Net
            is at full resolution, so 2 costs about 0.7 of 1.
    """

    def __init__(
        self,
        *,
        in_channels: int = 1,
        out_channels: int = 1,
        widths: Sequence[int] = (32, 64, 128, 256),
        style_size: int = 8,
        spatial_dims: int = 2,
        bottleneck_blocks: int = 4,
        bounded: bool = False,
        levels_without_skip: int = 0,
        border: Literal["zeros", "replicate"] = "zeros",
        fold: int = 1,
    ) -> None:
        """Build the layers. There are many parameters, because nothing else describes a network."""
        super().__init__()
        self.bounded, self.levels_without_skip, self.border = bounded, levels_without_skip, border
        self.fold, self.multiple = fold, fold * 2 ** (len(widths) - 1)
        self.widths = tuple(widths)
        dims = spatial_dims
        ins = [in_channels * fold**dims, *widths[:-1]]
        self.encoder = nn.ModuleList(
            nn.ModuleList([ModulatedConv(dims, a, b), ModulatedConv(dims, b, b)])
            for a, b in zip(ins, widths, strict=True)
        )
        self.bottleneck = nn.ModuleList(
            ResidualBlock(dims, widths[-1], style_size if i >= bottleneck_blocks // 2 else None)
            for i in range(bottleneck_blocks)
        )
        self.decoder = nn.ModuleList(
            nn.ModuleList(
                [
                    _conv(dims, deep, wide, kernel_size=1),  # before upsampling, at a quarter of the cost
                    ModulatedConv(dims, wide if level < levels_without_skip else 2 * wide, wide, style_size),
                    ModulatedConv(dims, wide, wide, style_size),
                ]
            )
            for level, deep, wide in reversed(list(zip(range(len(widths)), widths[1:], widths[:-1], strict=False)))
        )
        seen = 0 if levels_without_skip else in_channels
        self.head = (
            FineHead(dims, widths[0], seen, out_channels, fold) if fold > 1 else _conv(dims, widths[0], out_channels)
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                layer.padding_mode = border

    def features(self, x: Tensor) -> list[Tensor]:
        """Encode content ``(N, C_in, ...)`` to one feature map per level, fine to coarse."""
        maps: list[Tensor] = []
        h = pixelunshuffle(x, x.ndim - 2, self.fold) if self.fold > 1 else x
        for level, block in enumerate(self.encoder):
            first, second = block.children()
            h = second(first(blur_pool(h, self.border) if level else h))
            maps.append(h)
        return maps

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Render content ``(N, C_in, ...)`` in style ``(N, S)``.

        Sizes must be multiples of ``multiple``.
        """
        *skips, h = self.features(x)
        for block in self.bottleneck:
            h = block(h, s)
        for block, level in zip(self.decoder, reversed(range(len(skips))), strict=True):
            reduce, first, second = block.children()
            h = F.interpolate(reduce(h), scale_factor=2.0, mode="nearest")
            h = second(first(h if level < self.levels_without_skip else torch.cat([h, skips[level]], 1), s), s)
        y: Tensor = self.head(h, x) if self.fold > 1 else self.head(h)
        return y.tanh() if self.bounded else y


class StandIn(nn.Module):
    """Use a network without style input as the generator: the code enters as constant channels.

    Args:
        network: maps ``(N, C_in + S, ...)`` to ``(N, C_out, ...)``.
        multiple: accepted sizes are multiples of this.
        bounded: as for :class:`Generator`.
    """

    def __init__(self, network: nn.Module, multiple: int, bounded: bool) -> None:
        super().__init__()
        self.network, self.multiple, self.bounded = network, multiple, bounded

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """Render content ``(N, C_in, ...)`` in style ``(N, S)``."""
        plane = s[(..., *[None] * (x.ndim - 2))].expand(*s.shape, *x.shape[2:])
        y: Tensor = self.network(torch.cat([x, plane], 1))
        return y.tanh() if self.bounded else y


def _unet(dims: int, ins: int, outs: int, widths: Sequence[int], blocks: int) -> tuple[nn.Module, int]:
    from monai.networks.nets import UNet

    strides = (2,) * (len(widths) - 1)
    network = UNet(dims, ins, outs, widths, strides, num_res_units=blocks, norm=("instance", {"eps": 1e-3}))
    return network, 2 ** len(strides)


def _dynunet(dims: int, ins: int, outs: int, widths: Sequence[int], blocks: int) -> tuple[nn.Module, int]:
    from monai.networks.nets import DynUNet

    strides = (1, *(2,) * (len(widths) - 1))
    norm = ("instance", {"eps": 1e-3, "affine": True})
    network = DynUNet(
        dims, ins, outs, (3,) * len(widths), strides, strides[1:], filters=widths, norm_name=norm, res_block=blocks > 0
    )
    return network, 2 ** (len(widths) - 1)


def _swin_unetr(dims: int, ins: int, outs: int, widths: Sequence[int], blocks: int) -> tuple[nn.Module, int]:
    from monai.networks.nets import SwinUNETR

    size = -(-widths[0] // 12) * 12  # the first width must be divisible by the number of attention heads
    return SwinUNETR(ins, outs, feature_size=size, depths=(max(1, blocks),) * 4, spatial_dims=dims), 32


# name -> (spatial_dims, channels in, channels out, widths, blocks) -> (network, multiple of sizes)
STAND_INS: dict[str, Callable[[int, int, int, Sequence[int], int], tuple[nn.Module, int]]] = {
    "unet": _unet,
    "dynunet": _dynunet,
    "swin_unetr": _swin_unetr,
}
GENERATORS = ("medstyle", *STAND_INS)


def build_generator(name: str, **arguments: Any) -> Generator | StandIn:
    """Build the generator ``name`` of ``GENERATORS``.

    The arguments are those of :class:`Generator`.
    """
    if name == "medstyle":
        return Generator(**arguments)
    network, multiple = STAND_INS[name](
        arguments["spatial_dims"],
        arguments["in_channels"] + arguments["style_size"],
        arguments["out_channels"],
        arguments["widths"],
        arguments["bottleneck_blocks"],
    )
    return StandIn(network, multiple, arguments["bounded"])
