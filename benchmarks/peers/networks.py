"""Implement the published networks in plain PyTorch: U-Net, PatchGAN and ResNet generator.

U-Net and PatchGAN are those of Isola 2017, the ResNet generator is that of Zhu 2017 and Park 2020.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UNet(nn.Module):
    """The generator of pix2pix: ``downs`` halvings to one pixel and back, a skip at every size.

    Encoder C64-C128-C256-C512-..., decoder CD512-CD512-CD512-...-C128-C64 (Isola 2017, appendix
    6.1.1): batch normalisation but in the first layer and at the one pixel, where with batch 1 it
    would erase everything (the paper's errata); dropout 0.5 in the two decoder blocks after the
    innermost, as the authors' code has it at 128.

    Args:
        channels: of input and of output.
        width: of the first layer; doubles up to 8 times.
        downs: 8 for 256 x 256 pixels, 7 for 128 x 128; sizes must be multiples of ``2 ** downs``.
    """

    def __init__(self, channels: int = 1, width: int = 64, downs: int = 7) -> None:
        super().__init__()
        widths = [min(width * 2**i, 8 * width) for i in range(downs)]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for i, (before, after) in enumerate(zip([channels, *widths], widths, strict=False)):
            block: list[nn.Module] = [nn.LeakyReLU(0.2, inplace=True)] if i else []
            block.append(nn.Conv2d(before, after, 4, 2, 1, bias=False))
            if 0 < i < downs - 1:
                block.append(nn.BatchNorm2d(after))
            self.down.append(nn.Sequential(*block))
        for i, after in enumerate(reversed(widths[:-1])):
            before = widths[-1] if i == 0 else 2 * widths[downs - 1 - i]
            block = [
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False),
                nn.BatchNorm2d(after),
            ]
            self.up.append(nn.Sequential(*block, *([nn.Dropout(0.5)] if 0 < i < 3 else [])))
        self.up.append(
            nn.Sequential(nn.ReLU(inplace=True), nn.ConvTranspose2d(2 * width, channels, 4, 2, 1), nn.Tanh())
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape in [-1, 1]."""
        skips: list[Tensor] = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        x = self.up[0](skips.pop())
        for block in list(self.up)[1:]:
            x = block(torch.cat([skips.pop(), x], 1))
        return x


class PatchGAN(nn.Sequential):
    """The discriminator C64-C128-C256-C512 that sees 70 x 70 pixels (Isola 2017).

    Logits ``(N, 1, h, w)``.

    Args:
        channels: of the judged image, with the source beside it where there is one.
        width: of the first layer.
        instance: instance instead of batch normalisation (Zhu 2017).
    """

    def __init__(self, channels: int = 1, width: int = 64, instance: bool = True) -> None:
        norm = nn.InstanceNorm2d if instance else nn.BatchNorm2d
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2, inplace=True)]
        for before, after, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers.append(nn.Conv2d(before * width, after * width, 4, stride, 1, bias=instance))
            layers += [norm(after * width), nn.LeakyReLU(0.2, inplace=True)]
        super().__init__(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))


class Blur(nn.Module):
    """Halve the size after a [1 2 1] filter, against aliasing (Zhang 2019)."""

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line).expand(channels, 1, 3, 3).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to ``(N, C, H / 2, W / 2)``."""
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.kernel, stride=2, groups=x.shape[1])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with reflected borders and instance normalisation, added to their
    input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width), nn.ReLU(inplace=True),
            nn.ReflectionPad2d(1), nn.Conv2d(width, width, 3), nn.InstanceNorm2d(width),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Return an array of the same shape ``(N, C, H, W)``."""
        return x + self.body(x)


class ResNet(nn.Module):
    """The generator of CycleGAN (Zhu 2017, appendix 7.2): c7s1-64, d128, d256, R256 x 9, u128, u64,
    c7s1-C, tanh.

    With ``antialias`` the generator of CUT (Park 2020): blurred instead of strided down-sampling,
    and bilinear up-sampling (a [1 3 3 1] filter) before a plain instead of by a transposed
    convolution.
    """

    def __init__(self, channels: int = 1, width: int = 64, blocks: int = 9, antialias: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.ReflectionPad2d(3), *_normal(nn.Conv2d(channels, width, 7), width)]
        taps = [0]  # CUT compares the input, both down-sampling convolutions, the first and the fifth residual block
        for before, after in ((width, 2 * width), (2 * width, 4 * width)):
            taps.append(len(layers))
            layers += _normal(nn.Conv2d(before, after, 3, 1 if antialias else 2, 1), after)
            layers += [Blur(after)] if antialias else []
        taps += [len(layers), len(layers) + 4]
        layers += [ResidualBlock(4 * width) for _ in range(blocks)]
        for before, after in ((4 * width, 2 * width), (2 * width, width)):
            if antialias:
                layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
                layers += _normal(nn.Conv2d(before, after, 3, 1, 1), after)
            else:
                layers += _normal(nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=1), after)
        layers += [nn.ReflectionPad2d(3), nn.Conv2d(width, channels, 7), nn.Tanh()]
        self.layers, self.taps = nn.ModuleList(layers), taps

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape in [-1, 1]; sizes must be multiples of 4."""
        for layer in self.layers:
            x = layer(x)
        return x

    def features(self, x: Tensor) -> list[Tensor]:
        """Return the five maps ``(N, C, h, w)`` that CUT compares, and compute nothing beyond
        them."""
        maps = []
        for i, layer in enumerate(self.layers[: self.taps[-1] + 1]):
            x = layer(x)
            if i in self.taps:
                maps.append(x)
        return maps


def _normal(convolution: nn.Module, width: int) -> list[nn.Module]:
    return [convolution, nn.InstanceNorm2d(width), nn.ReLU(inplace=True)]


def gaussian_(network: nn.Module, std: float = 0.02) -> nn.Module:
    """Draw weights from N(0, 0.02), scales of normalisations from N(1, 0.02), biases zero (pix2pix,
    CycleGAN)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0.0, std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1.0, std)
    return network


def xavier_(network: nn.Module) -> nn.Module:
    """Draw weights by Glorot's rule, biases zero (CUT, as its paper says).

    Scaled by 0.02 a trial at width 16 failed: after 110 steps the critic had won while the air was
    still grey.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.xavier_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
