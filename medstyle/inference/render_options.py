"""How much of a style a picture gets, and how it is post-processed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Refusal, UserError
from medstyle.imaging.picture import MAX_PIXELS, Pixels, from_unit, over_white, to_unit

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text


@dataclass(frozen=True)
class Look:
    """How much of the style a picture gets, and what is done to it afterwards.

    Attributes:
        strength: 0 leaves the picture as it is, 1 is the whole style; between them the two are mixed.
        keep_colour: take the lightness alone from the style (CIELAB), the colours from the picture.
        size: shorter side, pixels, at which the picture is painted; the change is enlarged and added to the picture, so
            that strokes become larger and details stay. None: its own size.
        mask: ``(h, w)`` in [0, 1], stretched over the picture: how much of the style each place gets.
        steady: frames of a video: share of what the frame before showed, where it is found again; see :class:`Shot`.
        sharpen: in [0, 1], how strongly edges are raised.
        upscale: 1 to 4, how many times the rows and columns; interpolated, so no detail is added.
    """

    strength: float = 1.0
    keep_colour: bool = False
    sharpen: float = 0.0
    upscale: int = 1
    size: int | None = None
    mask: NDArray[np.float32] | None = field(default=None, compare=False)
    steady: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength: must lie in [0, 1], got {self.strength:g}")
        if not 0 <= self.sharpen <= 1:
            raise UserError(f"sharpen: must lie in [0, 1], got {self.sharpen:g}")
        if not 1 <= self.upscale <= 4:
            raise UserError(f"upscale: must be 1, 2, 3 or 4, got {self.upscale}")
        if self.size is not None and self.size < 32:
            raise UserError(f"size: must be at least 32 pixels, got {self.size}")

    @property
    def whole(self) -> bool:
        """Tell whether the output is the network's as it is."""
        return replace(self, steady=FULL.steady) == FULL and self.mask is None

    def applied(self, source: Pixels, made: Pixels) -> Pixels:
        """Mix and finish RGB pictures of one type, both ``(H, W, 3)``; a fourth channel of the source is taken over."""
        source, opacity = over_white(source), source[..., 3:]
        if self.keep_colour:
            from skimage.color import lab2rgb, rgb2lab

            lab = rgb2lab(source)
            lab[..., 0] = rgb2lab(made)[..., 0]
            with warnings.catch_warnings(action="ignore"):  # colours beyond what a screen shows are cut
                made = from_unit(lab2rgb(lab), made.dtype)
        if self.strength < 1 or self.mask is not None:
            share: Any = self.strength
            if self.mask is not None:
                from skimage.transform import resize

                share = share * resize(self.mask, source.shape[:2], order=1, mode="edge").astype(np.float32)[..., None]
            made = from_unit((1 - share) * to_unit(source) + share * to_unit(made), made.dtype)
        if self.sharpen:
            made = sharpen(made, self.sharpen)
        image = np.dstack([made, opacity])
        return enlarge(image, self.upscale) if self.upscale > 1 else image


FULL = Look()


RADIUS = 2.0  # pixels: standard deviation of the blur whose loss is given back


def sharpen(pixels: Pixels, amount: float) -> Pixels:
    """Add ``amount`` of what a blur takes from the lightness (CIELAB) of ``(H, W, 3)``; colours stay as they are."""
    from skimage.color import lab2rgb, rgb2lab
    from skimage.filters import unsharp_mask

    lab = rgb2lab(pixels)
    lab[..., 0] = 100 * unsharp_mask(lab[..., 0] / 100, radius=RADIUS, amount=amount)
    with warnings.catch_warnings(action="ignore"):  # colours beyond what a screen shows are cut
        return from_unit(lab2rgb(lab), pixels.dtype)


def enlarge(pixels: Pixels, factor: int) -> Pixels:
    """Return ``(H, W, C)`` with ``factor`` times the rows and columns (Lanczos); it invents no detail.

    Raises:
        Refusal: ``E_TOO_LARGE`` the result would be larger than any picture that is read.
    """
    from PIL import Image

    height, width = (factor * n for n in pixels.shape[:2])
    if height * width > MAX_PIXELS:
        raise Refusal("E_TOO_LARGE", f"enlarged to {width} x {height} pixels; the limit is {MAX_PIXELS}")
    bands = [Image.fromarray(band) for band in np.moveaxis(to_unit(pixels), -1, 0)]
    large = [np.asarray(band.resize((width, height), Image.Resampling.LANCZOS)) for band in bands]
    return from_unit(np.dstack(large), pixels.dtype)
