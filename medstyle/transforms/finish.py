"""What is done to a picture after its translation: sharper, larger."""

from __future__ import annotations

import warnings

import numpy as np

from medstyle.errors import Refusal
from medstyle.imaging.picture import MAX_PIXELS, Pixels, from_unit, to_unit

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

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
