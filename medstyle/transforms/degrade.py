"""Degrade good images in a known way, so that a network can learn to restore them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import ParamsError
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import Pixels, from_unit, to_unit
from medstyle.imaging.volume import Volume
from medstyle.params import params

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


@params
class Degradation:
    """Degraded copies of a domain's images, by a random share from half to all of the amounts."""

    domain: str
    """Domain of the degraded copies: the name of the domain with a suffix of your choice, such as
    photo@poor."""
    of: str
    """Domain of the good images."""
    noise: float = 0.0
    """Standard deviation of the noise as a share of the range: of white in pictures, of the 99th
    percentile in scans. MR gets Rician noise."""
    blur: float = 0.0
    """Standard deviation, in pixels, of a Gaussian blur within the slice."""
    dark: float = 0.0
    """Pictures only: share of the light that is lost."""
    jpeg: int = 0
    """Pictures only: quality of JPEG compression, 1 to 95; 0 switches it off."""

    def __post_init__(self) -> None:
        base = self.of.partition("@")[0]
        if self.of not in DOMAINS or self.domain not in DOMAINS or not self.domain.startswith(f"{base}@"):
            raise ParamsError(f"degraded: the copy of {self.of!r} must be {base}@ and a suffix, not {self.domain!r}")
        if min(self.noise, self.blur, self.dark, self.jpeg) < 0 or self.dark >= 1 or self.jpeg > 95:
            raise ParamsError("degraded: amounts must not be negative, dark below 1, jpeg at most 95")
        if not DOMAINS[self.of].picture and (self.dark or self.jpeg):
            raise ParamsError("degraded: dark and jpeg are for pictures")

    def picture(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Simulate a poor camera for ``(H, W, 3)``: less light, blur, noise and compression."""
        from PIL import Image

        amount, values = rng.uniform(0.5, 1), to_unit(pixels)
        values = self._blurred(values * (1 - amount * self.dark), amount, axes=(0, 1))
        worse = from_unit(values + rng.normal(0, amount * self.noise, values.shape), np.uint8)
        if self.jpeg:
            file = io.BytesIO()
            Image.fromarray(worse).save(file, "JPEG", quality=self.jpeg)
            worse = np.asarray(Image.open(file))
        return worse

    def scan(self, volume: Volume, rng: np.random.Generator) -> Volume:
        """Simulate a shorter scan or a lower dose."""
        amount = rng.uniform(0.5, 1)
        values = self._blurred(volume.voxels.astype(np.float32), amount, axes=(1, 2))
        low, high = np.percentile(volume.voxels, (0.5, 99))
        sigma = amount * self.noise * float(high - low)
        worse = values + rng.normal(0, sigma, values.shape)
        if DOMAINS[self.of].dicom == "MR":  # the magnitude of two noisy channels
            worse = np.hypot(worse, rng.normal(0, sigma, values.shape))
        return volume.with_voxels(worse.astype(np.float32), self.domain)

    def _blurred(self, values: NDArray[np.float32], amount: float, axes: tuple[int, int]) -> NDArray[np.float32]:
        from scipy.ndimage import gaussian_filter

        return np.asarray(gaussian_filter(values, amount * self.blur, axes=axes), np.float32) if self.blur else values
