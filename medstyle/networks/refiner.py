"""Add to an image the fine detail that a network trained by a mean difference leaves out.

Of all the images that fit a source, such a network returns the middle one, which is smoother than
each of them. The refiner learns from a discriminator what is missing. It may change nothing else.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medstyle.networks.generator import Generator
from medstyle.transforms.body import is_body

SEEN = 2.0  # pixels: sigma of the low-pass below which the discriminator sees nothing
ADDED = 3.0  # pixels: sigma of the low-pass below which the refiner adds nothing


def detail_of(image: Tensor, sigma: float) -> Tensor:
    """Return ``image`` less its Gaussian low-pass of ``sigma`` pixels, slice by slice.

    Args:
        image: ``(N, C, H, W)`` or ``(N, C, D, H, W)``.
        sigma: standard deviation along rows and columns.
    """
    reach = round(3 * sigma)
    place = torch.arange(-reach, reach + 1, device=image.device, dtype=image.dtype)
    line = torch.exp(-0.5 * (place / sigma) ** 2)
    line = line / line.sum()
    smooth = image.flatten(0, -3)[:, None]  # (planes, 1, H, W)
    smooth = F.conv2d(F.pad(smooth, (reach, reach, 0, 0), mode="replicate"), line[None, None, None, :])
    smooth = F.conv2d(F.pad(smooth, (0, 0, reach, reach), mode="replicate"), line[None, None, :, None])
    return image - smooth.view_as(image)


class Refiner(nn.Module):
    """A small U-Net whose output is added to a rendered image.

    The low-pass of the output is taken away, so that the mean grey level of a region, such as a
    lesion or a tissue, stays that of the image. It starts with no output.

    Args:
        seen: channels of the generator's input.
        colours: channels of an image.
        width: channels of the finest of three levels; they double per level.
        style_size: length of the style code.
        spatial_dims: 2 or 3.
        air: whether -1 is air, to which nothing is added.
    """

    def __init__(self, seen: int, colours: int, width: int, style_size: int, spatial_dims: int, *, air: bool) -> None:
        """Build the layers. There are six parameters, because nothing else describes the shapes."""
        super().__init__()
        self.air = air
        self.network = Generator(
            in_channels=seen + colours, out_channels=colours, widths=(width, 2 * width, 4 * width),
            style_size=style_size, spatial_dims=spatial_dims, bottleneck_blocks=0,
            border="zeros" if air else "replicate",
        )  # fmt: skip
        for weight in self.network.head.parameters():
            nn.init.zeros_(weight)

    @property
    def multiple(self) -> int:
        """Sizes must be multiples of this."""
        return self.network.multiple

    def forward(self, x: Tensor, content: Tensor, image: Tensor, s: Tensor) -> Tensor:
        """Return the detail ``(N, C, ...)`` to be added to ``image``.

        Args:
            x: ``(N, C_in, ...)``, what the generator saw.
            content: ``(N, C, ...)``, the slice of ``x`` that is rendered.
            image: ``(N, C, ...)``, what the generator made of it.
            s: ``(N, S)`` style codes.
        """
        added: Tensor = detail_of(self.network(torch.cat([x, image], 1), s).float(), ADDED)
        return added * is_body(content) if self.air else added
