"""Map down to which size the structures of an output agree with those of the real image.

Fourier ring correlation in small patches that scan the slices (sFRC: Kc et al., arXiv 2603.04673):
an invented structure may look real, but the spatial frequencies of its patch do not correlate with
those of the truth.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.float32]

PATCH_MM = 28.0  # side of a patch: the coarsest structure that is judged
STEPS = 4  # patches start at every fourth of their side
AGREES = 0.5  # correlation of a ring at which signal and error are equal
LEAST = 0.5  # share of a patch that must be body


class Agreement(NamedTuple):
    """Size of the finest structures that agree, in mm.

    Attributes:
        map: ``(D, H, W)``, the mean over the patches that hold a voxel; 0 where nothing was judged.
        median, worst: over patches: the median, and the size that a tenth of them exceed.
    """

    map: Image
    median: float
    worst: float


def agreement(output: Image, truth: Image, mask: NDArray[np.bool_], pixel_mm: tuple[float, float]) -> Agreement:
    """Compare an output with the truth, slice by slice and patch by patch.

    A patch agrees down to the wavelength before the first ring whose correlation is below one half,
    and at best down to two pixels. Half a wavelength is the size of a structure. Patches with less
    than half of the body, and those without any structure, are left out.

    Args:
        output, truth: ``(D, H, W)`` on one grid.
        mask: ``(D, H, W)``, the body.
        pixel_mm: distance of rows and of columns.
    """
    sides = [min(n, 2 * round(PATCH_MM / mm / 2)) for n, mm in zip(mask.shape[1:], pixel_mm, strict=True)]
    steps = [max(1, side // STEPS) for side in sides]
    rings, wavelengths = _rings(sides, pixel_mm)
    window = np.hanning(sides[0] + 2)[1:-1, None] * np.hanning(sides[1] + 2)[None, 1:-1]
    total, count, sizes = np.zeros_like(truth), np.zeros(mask.shape, np.uint16), []
    for z in np.flatnonzero(mask.any((1, 2))):
        made, real, inside = (_patches(image[z], sides, steps) for image in (output, truth, mask))
        chosen = np.argwhere((inside.mean((2, 3)) >= LEAST) & (np.ptp(real, (2, 3)) > 0))
        ours, theirs = (_spectra(image[tuple(chosen.T)], window) for image in (made, real))
        found = wavelengths[_agreeing(ours, theirs, rings)] / 2
        sizes.append(found)
        for (top, left), size in zip(chosen * steps, found, strict=True):
            where = (z, slice(top, top + sides[0]), slice(left, left + sides[1]))
            total[where] += size
            count[where] += 1
    shown = np.where(mask, total / np.maximum(count, 1), 0).astype(np.float32)
    every = np.concatenate([*sizes, []])
    return Agreement(shown, *(float(np.quantile(every, q)) if len(every) else 0.0 for q in (0.5, 0.9)))


def _patches(image: NDArray, sides: list[int], steps: list[int]) -> NDArray:
    """Return a view ``(R, C, h, w)`` of the patches of ``(H, W)``."""
    return np.lib.stride_tricks.sliding_window_view(image, sides)[:: steps[0], :: steps[1]]


def _rings(sides: list[int], pixel_mm: tuple[float, float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which coefficients of ``rfft2`` each ring holds, and wavelengths in mm.

    A ring is as wide as the lowest frequency of the patch. The rings, ``(M, R)`` of 0 and 1 for M
    coefficients, end at the lowest Nyquist frequency. Of the ``R + 1`` wavelengths, the first,
    twice the patch, stands for no agreement.
    """
    across = np.hypot(np.fft.fftfreq(sides[0], pixel_mm[0])[:, None], np.fft.rfftfreq(sides[1], pixel_mm[1])[None])
    width = max(1 / (side * mm) for side, mm in zip(sides, pixel_mm, strict=True))
    numbers = 1 + np.arange(int(min(0.5 / mm for mm in pixel_mm) / width + 1e-6))
    rings = np.rint(across.reshape(-1, 1) / width) == numbers
    return rings.astype(np.float64), 1 / (width * np.array([0.5, *numbers]))


def _spectra(patches: NDArray, window: NDArray) -> NDArray[np.complex128]:
    """Return the coefficients ``(K, M)`` of patches ``(K, h, w)`` without their means."""
    flat = (patches - patches.mean((1, 2), keepdims=True)) * window
    spectra = np.fft.rfft2(flat)
    return spectra.reshape(len(patches), spectra.shape[1] * spectra.shape[2])


def _agreeing(ours: NDArray[Any], theirs: NDArray[Any], rings: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the number of rings, from the lowest one, that correlate: ``(K,)``."""
    both = (ours * theirs.conj()).real @ rings
    power = (np.square(np.abs(ours)) @ rings) * (np.square(np.abs(theirs)) @ rings)
    wrong = both < AGREES * np.sqrt(np.maximum(power, 1e-18))
    return np.where(wrong.any(1), wrong.argmax(1), rings.shape[1])
