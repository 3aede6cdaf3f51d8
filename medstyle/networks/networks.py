"""Combine generator and style source in one network, and define the parameters that build them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from medstyle.errors import ParamsError
from medstyle.imaging.modality import DOMAINS
from medstyle.networks.generator import GENERATORS, build_generator
from medstyle.networks.refiner import Refiner
from medstyle.networks.style import STYLES, Style
from medstyle.params import params

Width = Annotated[int, Field(ge=1, le=4096)]


@params
class Architecture:
    """The generator and the sources of its style."""

    generator: str = "medstyle"
    """`medstyle`, or a MONAI network instead: `unet`, `dynunet`, `swin_unetr`."""
    widths: Annotated[tuple[Width, ...], Field(min_length=2, max_length=9)] = (16, 32, 64, 128)
    """Channels per resolution level, fine to coarse."""
    style: tuple[str, ...] = ("domain",)
    """Sources of the style code: `domain` (one code per domain), `latent` (random, diverse),
    `reference` (from an image)."""
    style_size: Annotated[int, Field(ge=1, le=4096)] = 8
    """Length of the style code."""
    style_features: Literal["learned", "imagenet"] = "learned"
    """What describes a reference image: `learned`, an encoder that is trained with the generator;
    `imagenet`, for pictures, statistics of frozen features (needs `medstyle[art]`)."""
    palette: Annotated[int, Field(ge=0, le=256)] = 0
    """Levels per channel of the palette of a reference image, which the output takes exactly, as by
    histogram matching; 0: the generator alone finds its colours."""
    bottleneck_blocks: Annotated[int, Field(ge=0, le=99)] = 4
    """Residual blocks at the coarsest level."""
    levels_without_skip: Annotated[int, Field(ge=0)] = 0
    """Number of finest levels without a skip connection: 0 preserves anatomy; 1 or 2 give freedom
    for art."""
    fold: Annotated[int, Field(ge=1, le=4)] = 1
    """Side of the square of pixels that the finest level holds as channels: 2 takes about 0.7 of
    the time, with `widths` that begin one level coarser."""
    residual: bool = False
    """Predict the change instead of the image; source and target must share a unit."""
    dimensions: Literal[2, 3] = 2
    """2: render slices; 3: render volumes in windows."""
    neighbours: Annotated[int, Field(ge=1, le=99)] = 1
    """Number of neighbouring slices, including the slice itself, that a two-dimensional generator
    sees: 1, or 3 or 5 (2.5-D)."""
    refiner: Annotated[int, Field(ge=0, le=999)] = 0
    """Channels of a small network that adds fine detail to the output, trained by
    `paired_refined`; 0: none."""
    sharpness: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the refiner's detail that the model adds unless a user asks for another."""

    def __post_init__(self) -> None:
        if self.generator not in GENERATORS:
            raise ParamsError(f"network.generator: {self.generator!r} is none of {', '.join(GENERATORS)}")
        if self.levels_without_skip and self.generator != "medstyle":
            raise ParamsError("network.levels_without_skip: MONAI's networks have their own skips; set it to 0")
        if self.fold > 1 and self.generator != "medstyle":
            raise ParamsError("network.fold: MONAI's networks take pixels as they are; set it to 1")
        if not self.style or not set(self.style) <= set(STYLES):
            raise ParamsError(f"network.style: {list(self.style)} must be some of {', '.join(STYLES)}")
        if (self.palette or self.style_features == "imagenet") and self.style != ("reference",):
            raise ParamsError("network.palette, network.style_features: need style: [reference] alone")
        if self.levels_without_skip >= len(self.widths):
            raise ParamsError(f"network.levels_without_skip: must lie in [0, {len(self.widths) - 1}]")
        if self.neighbours % 2 == 0 or (self.neighbours > 1 and self.dimensions == 3):
            raise ParamsError("network.neighbours: must be odd, and 1 where dimensions is 3")


class Networks(nn.Module):
    """Generator and style source, trained and saved together.

    Args:
        architecture: parameters of the generator and its style.
        domains: names; their order is the index of the style code.
        contrasts: number ``M`` of images of a subject that are inputs together.
    """

    def __init__(self, architecture: Architecture, domains: Sequence[str], contrasts: int = 1) -> None:
        super().__init__()
        channels = {DOMAINS[name].channels for name in domains}
        if len(channels) != 1:
            raise ParamsError(f"domains {', '.join(domains)} mix grey and colour images; train them separately")
        colours = max(channels)
        self.colours, self.neighbours = colours, architecture.neighbours
        self.residual, self.dimensions = architecture.residual, architecture.dimensions
        picture = DOMAINS[domains[0]].unit == "8-bit"
        seen = colours * contrasts * architecture.neighbours
        self.generator = build_generator(
            architecture.generator,
            in_channels=seen,
            out_channels=colours,
            widths=architecture.widths,
            style_size=architecture.style_size,
            spatial_dims=architecture.dimensions,
            bottleneck_blocks=architecture.bottleneck_blocks,
            levels_without_skip=architecture.levels_without_skip,
            fold=architecture.fold,
            bounded=picture and not architecture.residual and not architecture.palette,  # which bounds it, too
            border="replicate" if picture else "zeros",
        )
        size, dims = architecture.style_size, architecture.dimensions
        self.style = Style(
            architecture.style, len(domains), size, colours, dims, architecture.style_features, architecture.palette
        )
        self.size = size
        self.refiner, self.sharpness = None, architecture.sharpness
        if architecture.refiner:
            self.refiner = Refiner(seen, colours, architecture.refiner, size, dims, air=not picture)

    def forward(self, x: Tensor, domain: Tensor, z: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
        """Render content ``(N, C_in, ...)`` in a style: domains ``(N,)``, latent or reference."""
        return self.render(x, self.style(domain, z, reference))

    def content(self, x: Tensor) -> Tensor:
        """Return the image ``(N, C, ...)`` to render, without its contrasts and neighbours."""
        return x[:, self.neighbours // 2 : self.colours * self.neighbours : self.neighbours]

    @property
    def multiple(self) -> int:
        """Sizes that are multiples of this need no padding."""
        return max(self.generator.multiple, self.refiner.multiple if self.refiner else 1)

    def render(self, x: Tensor, s: Tensor, sharpness: float | None = None) -> Tensor:
        """Render content of any size in style ``(N, S)``, padded to a multiple of :attr:`multiple`.

        Args:
            x: ``(N, C_in, ...)`` in network units.
            s: ``(N, S)`` style codes, ``(N, S + C Q)`` with a palette.
            sharpness: share of the refiner's detail that is added; 0: the generator's output.
                Default: that of the architecture.
        """
        return _cropped(self.padded(self._fitted(x), s, sharpness), x)

    def padded(self, x: Tensor, s: Tensor, sharpness: float | None = None) -> Tensor:
        """Render content whose sizes are multiples of :attr:`multiple`; see :meth:`render`."""
        code = s[:, : self.size]
        y: Tensor = self.generator(x, code)
        y = self.coloured(y + self.content(x) if self.residual else y, s)
        sharpness = self.sharpness if sharpness is None else sharpness
        if self.refiner is None or sharpness == 0:
            return y
        added: Tensor = self.refiner(x, self.content(x), y, code)
        return y + sharpness * added

    def coloured(self, image: Tensor, s: Tensor) -> Tensor:
        """Give an image ``(N, C, ...)`` the palette in style ``(N, S + C Q)``, if it has one."""
        if self.style.palette is None:
            return image
        coloured: Tensor = self.style.palette(image, s[:, self.size :].unflatten(1, (self.colours, -1)))
        return coloured

    def refined(self, x: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """Return the generator's output ``y`` for ``x`` of any size with the refiner's detail."""
        assert self.refiner is not None
        inside = self._fitted(x)
        return y + _cropped(self.refiner(inside, self.content(inside), self._fitted(y), s[:, : self.size]), x)

    def _fitted(self, x: Tensor) -> Tensor:
        short = [-size % self.multiple for size in x.shape[2:]]
        return nn.functional.pad(x, [n for size in reversed(short) for n in (0, size)], mode="replicate")


def _cropped(y: Tensor, x: Tensor) -> Tensor:
    whole: list[Any] = [slice(size) for size in x.shape[2:]]
    return y[(..., *whole)]
