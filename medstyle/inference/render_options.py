"""Apply a style to a picture: its strength, its colours, and post-processing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Code, ParamsError, Refusal
from medstyle.imaging.picture import MAX_PIXELS, Pixels, from_unit, over_white, to_unit

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


@dataclass(frozen=True)
class RenderOptions:
    """How the style is applied to a picture, and how the result is post-processed.

    Attributes:
        strength: 0 leaves the picture unchanged, 1 applies the full style; values in between blend
            the two.
        keep_colour: take only the lightness of the style (CIELAB); the colours are those of the
            picture.
        size: length in pixels of the shorter side at which the picture is rendered. The change is
            enlarged and added to the picture, so that strokes become larger and details remain.
            None: the picture's own size.
        mask: ``(h, w)`` in [0, 1], stretched over the picture: strength of the style at each
            location.
        temporal_smoothing: for the frames of a video: share of the previous frame in regions that
            match; see :class:`Shot`.
        sharpen: strength of the sharpening, in [0, 1].
        upscale: factor of the numbers of rows and columns, 1 to 4; by interpolation, so no detail
            is added.
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
        """Whether the output of the network is used unchanged."""
        return replace(self, temporal_smoothing=FULL.temporal_smoothing) == FULL and self.mask is None

    def apply(self, source: Pixels, rendered: NDArray[np.float32]) -> Pixels:
        """Blend a ``rendered`` picture ``(H, W, 3)`` in [0, 1] with its source; post-process it.

        The result has the type and the opacity of ``source``; it is rounded only once, at the end.
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


RADIUS = 2.0  # standard deviation in pixels of the blur for sharpening


def _to_lab(image: NDArray[np.float32]) -> NDArray[np.float32]:
    from skimage.color import rgb2lab

    return np.asarray(rgb2lab(image), np.float32)


def _from_lab(lab: NDArray[np.float32]) -> NDArray[np.float32]:
    from skimage.color import lab2rgb

    with warnings.catch_warnings(action="ignore"):  # colours outside the gamut of a screen are clipped
        return np.asarray(lab2rgb(lab), np.float32)


def sharpen(image: NDArray[np.float32], amount: float) -> NDArray[np.float32]:
    """Sharpen the lightness (CIELAB) of ``(H, W, 3)`` in [0, 1] by an unsharp mask.

    Colours are unchanged.
    """
    from skimage.filters import unsharp_mask

    lab = _to_lab(image)
    lab[..., 0] = 100 * unsharp_mask(lab[..., 0] / 100, radius=RADIUS, amount=amount)
    return _from_lab(lab)


def enlarge(image: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Return ``(H, W, C)`` with ``factor`` times the rows and columns (Lanczos).

    No detail is added.

    Raises:
        Refusal: ``E_TOO_LARGE`` the result would exceed the largest picture that can be read.
    """
    from PIL import Image

    height, width = (factor * n for n in image.shape[:2])
    if height * width > MAX_PIXELS:
        raise Refusal(Code.E_TOO_LARGE, f"enlarged to {width} x {height} pixels; the limit is {MAX_PIXELS}")
    bands = [Image.fromarray(np.ascontiguousarray(band)) for band in np.moveaxis(image, -1, 0)]
    large = [np.asarray(band.resize((width, height), Image.Resampling.LANCZOS)) for band in bands]
    return np.dstack(large)
