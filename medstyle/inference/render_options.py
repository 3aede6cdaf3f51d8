"""How much of a style a picture gets, and how it is post-processed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Code, ParamsError, Refusal
from medstyle.imaging.picture import MAX_PIXELS, Pixels, from_unit, over_white, to_unit

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text


@dataclass(frozen=True)
class RenderOptions:
    """How much of the style a picture gets, and what is done to it afterwards.

    Attributes:
        strength: 0 leaves the picture as it is, 1 is the whole style; between them the two are mixed.
        keep_colour: take the lightness alone from the style (CIELAB), the colours from the picture.
        size: shorter side, pixels, at which the picture is painted; the change is enlarged and added to the picture, so
            that strokes become larger and details stay. None: its own size.
        mask: ``(h, w)`` in [0, 1], stretched over the picture: how much of the style each place gets.
        temporal_smoothing: frames of a video: share of the frame before, where it is found again; see :class:`Shot`.
        sharpen: in [0, 1], how strongly edges are raised.
        upscale: 1 to 4, how many times the rows and columns; interpolated, so no detail is added.
    """

    strength: float = 1.0
    keep_colour: bool = False
    sharpen: float = 0.0
    upscale: int = 1
    size: int | None = None
    mask: NDArray[np.float32] | None = field(default=None, compare=False)
    temporal_smoothing: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ParamsError(f"strength: must lie in [0, 1], got {self.strength:g}")
        if not 0 <= self.sharpen <= 1:
            raise ParamsError(f"sharpen: must lie in [0, 1], got {self.sharpen:g}")
        if not 1 <= self.upscale <= 4:
            raise ParamsError(f"upscale: must be 1, 2, 3 or 4, got {self.upscale}")
        if self.size is not None and self.size < 32:
            raise ParamsError(f"size: must be at least 32 pixels, got {self.size}")

    @property
    def whole(self) -> bool:
        """Tell whether the output is the network's as it is."""
        return replace(self, temporal_smoothing=FULL.temporal_smoothing) == FULL and self.mask is None

    def apply(self, source: Pixels, rendered: NDArray[np.float32]) -> Pixels:
        """Blend the ``rendered`` picture ``(H, W, 3)`` in [0, 1] with its source, and post-process it.

        The result has the type of ``source``, to which it is rounded once, at the end, and its opacity.
        """
        original, opacity = to_unit(over_white(source)), to_unit(source[..., 3:])
        image = rendered
        if self.keep_colour:
            lab = _to_lab(original)
            lab[..., 0] = _to_lab(image)[..., 0]
            image = _from_lab(lab)
        if self.strength < 1 or self.mask is not None:
            share: Any = np.float32(self.strength)
            if self.mask is not None:
                from skimage.transform import resize

                share = share * resize(self.mask, image.shape[:2], order=1, mode="edge").astype(np.float32)[..., None]
            image = (1 - share) * original + share * image
        if self.sharpen:
            image = sharpen(image, self.sharpen)
        image = np.dstack([image, opacity])
        return from_unit(enlarge(image, self.upscale) if self.upscale > 1 else image, source.dtype)


FULL = RenderOptions()


RADIUS = 2.0  # pixels: standard deviation of the blur whose loss is given back


def _to_lab(image: NDArray[np.float32]) -> NDArray[np.float32]:
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(image), np.float32)


def _from_lab(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    from skimage.color import lab2rgb

    with warnings.catch_warnings(action="ignore"):  # colours beyond what a screen shows are cut
        return np.asarray(lab2rgb(lab), np.float32)


def sharpen(image: NDArray[np.float32], amount: float) -> NDArray[np.float32]:
    """Add ``amount`` of what a blur takes from the lightness (CIELAB) of ``(H, W, 3)`` in [0, 1]; colours stay."""
    from skimage.filters import unsharp_mask

    lab = _to_lab(image)
    lab[..., 0] = 100 * unsharp_mask(lab[..., 0] / 100, radius=RADIUS, amount=amount)
    return _from_lab(lab)


def enlarge(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Return ``(H, W, C)`` with ``factor`` times the rows and columns (Lanczos); it invents no detail.

    Raises:
        Refusal: ``E_TOO_LARGE`` the result would be larger than any picture that is read.
    """
    from PIL import Image

    height, width = (factor * n for n in image.shape[:2])
    if height * width > MAX_PIXELS:
        raise Refusal(Code.E_TOO_LARGE, f"enlarged to {width} x {height} pixels; the limit is {MAX_PIXELS}")
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image, -1, 0)]
    large = [np.asarray(band.resize((width, height), Image.Resampling.LANCZOS)) for band in bands]
    return np.dstack(large)
