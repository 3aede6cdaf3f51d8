"""Process values on one grid: foreground, noise, bias field; channel-first ``(1, W, H, D)``."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def foreground_mask(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the body: half of Otsu's threshold, the largest component, holes filled slice by slice.

    Half of the threshold is used, because Otsu's threshold separates bright from dark tissue if
    both are present.

    Args:
        values: ``(..., D)``, three spatial axes, in any unit.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    low, high = np.percentile(values, (0.1, 99.9)).astype(np.float32)  # doubles would double the clipped array
    if high <= low:
        return np.zeros(values.shape, bool)
    clipped = np.clip(values, low, high)
    threshold = threshold_otsu(clipped.ravel(order="K"))  # flat: three or four slices would be taken as colours
    mask = clipped > low + (threshold - low) / 2
    del clipped  # a few copies of a large scan fill the memory
    mask = ndimage.binary_opening(
        mask, ndimage.generate_binary_structure(2, 1)[..., None]
    )  # in-plane, because there may be a single slice
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros(values.shape, bool)
    sizes = np.zeros(count + 1, int)
    for plane in labels:  # plane by plane, because bincount converts its input to a wider type
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    mask = labels == 1 + np.argmax(sizes[1:])
    del labels
    for z in range(mask.shape[-1]):
        mask[..., z] = ndimage.binary_fill_holes(ndimage.binary_closing(mask[..., z], iterations=2))
    return mask


def noise_sigma(values: NDArray[np.float32]) -> float:
    """Estimate the standard deviation of the noise, in the unit of ``values``.

    It is the median over slices of the robust wavelet estimate (Donoho and Johnstone 1994) within
    the body. In the surrounding air, the noise of magnitude images has 0.66 of its standard
    deviation (Gudbjartsson 1995), or was set to zero.

    Args:
        values: ``(W, H, D)``.
    """
    import pywt

    found = []
    for image, body in zip(np.moveaxis(values, -1, 0), np.moveaxis(foreground_mask(values), -1, 0), strict=True):
        detail = pywt.dwt2(image, "db2", mode="periodization")[1][2]
        inside = np.abs(detail[body[::2, ::2] & (detail != 0)])
        if inside.size > 99:
            found.append(np.median(inside) / 0.6745)  # the value for a standard normal distribution
    return float(np.median(found)) if found else 0.0


def _nlm(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    from skimage.restoration import denoise_nl_means

    out: NDArray[np.float32] = denoise_nl_means(
        image, patch_size=3, patch_distance=4, h=0.6 * sigma, sigma=sigma, fast_mode=True
    )
    return out


def _anisotropic(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    import SimpleITK as sitk

    # ITK's conductance is relative to the mean squared gradient; this makes it relative to the
    # noise:
    gradient = float(np.mean(np.square(np.gradient(image)), dtype=np.float64) * 2)
    conductance = 2 * sigma / (2 * gradient) ** 0.5 if gradient else 1.0
    smooth = sitk.CurvatureAnisotropicDiffusion(
        sitk.GetImageFromArray(image), timeStep=0.125, conductanceParameter=conductance, numberOfIterations=8
    )
    out: NDArray[np.float32] = sitk.GetArrayFromImage(smooth)
    return out


def _total_variation(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    from skimage.restoration import denoise_tv_chambolle

    out: NDArray[np.float32] = denoise_tv_chambolle(image, weight=sigma, eps=1e-4, max_num_iter=60)
    return out


def _median(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    from scipy import ndimage

    out: NDArray[np.float32] = ndimage.median_filter(image, size=3)
    return out


# (W, H) and the standard deviation of its noise -> denoised (W, H); docs/benchmarks.md has the gain
# of each
FILTERS: dict[str, Callable[[NDArray[np.float32], float], NDArray[np.float32]]] = {
    "nlm": _nlm,  # non-local means (Buades 2005)
    "anisotropic": _anisotropic,  # curvature diffusion, which stops at edges (Perona 1990, Whitaker 2001)
    "tv": _total_variation,  # least total variation (Rudin 1992, Chambolle 2004)
    "median": _median,  # 3 x 3
}


class Denoise(Transform):
    """Remove noise from a volume, slice by slice, with a strength set by the measured noise.

    For magnitude MR, the Rician bias is removed by ``sqrt(max(x^2 - 2 sigma^2, 0))`` (Nowak 1999).

    Args:
        method: a key of :data:`FILTERS`, or ``none``, which changes nothing.
        rician: whether the values are magnitudes.
    """

    def __init__(self, method: str, rician: bool) -> None:
        self.method, self.rician = method, rician

    def __call__(self, volume: torch.Tensor) -> torch.Tensor:
        """Return ``(1, W, H, D)`` denoised."""
        if self.method == "none":
            return volume
        values = np.asarray(volume[0], np.float32).copy()  # the input may share its memory with the scan
        sigma = noise_sigma(values)
        if sigma <= 0:
            return volume
        for z in range(values.shape[-1]):
            values[..., z] = FILTERS[self.method](np.ascontiguousarray(values[..., z]), sigma)
        if self.rician:
            values = np.sqrt(np.maximum(values**2 - 2 * sigma**2, 0))
        out = volume.clone()
        out[0] = torch.from_numpy(values)
        return out


def clean_picture(values: NDArray[np.float32], method: str) -> NDArray[np.float32]:
    """Remove noise from a picture ``(H, W, 3)``, channel by channel, adapted to the measured noise.

    Args:
        values: in any unit.
        method: a key of :data:`FILTERS`, or ``none``, which changes nothing.
    """
    if method == "none":
        return values
    from skimage.restoration import estimate_sigma

    cleaned = values.copy()
    for band in np.moveaxis(cleaned, -1, 0):
        with warnings.catch_warnings(action="ignore"):  # a constant image has no detail whose median could be taken
            sigma = float(estimate_sigma(band))
        if sigma > 0:
            band[:] = FILTERS[method](np.ascontiguousarray(band), sigma)
    return cleaned


class CorrectBias(Transform):
    """Correct the smooth coil sensitivity (N4, Tustison 2010), fitted on a shrunken grid.

    The grid is shrunk in-plane by ``shrink``.
    """

    def __init__(self, shrink: int = 4) -> None:
        self.shrink = shrink

    def __call__(self, volume: torch.Tensor) -> torch.Tensor:
        """Return ``(1, W, H, D)`` without the field; the mean over the body is kept."""
        import SimpleITK as sitk

        values = np.ascontiguousarray(np.asarray(volume[0], np.float32))
        mask = foreground_mask(values)
        if not mask.any():
            return volume
        depth = values.shape[2]
        spare = ((0, 0), (0, 0), (0, max(0, 4 - depth)))  # the fit needs four slices; thin stacks repeat their last
        image = sitk.GetImageFromArray(np.pad(values, spare, mode="edge"))
        body = sitk.GetImageFromArray(np.pad(mask, spare, mode="edge").astype(np.uint8))
        factors = [self.shrink if n >= 4 * self.shrink else 1 for n in image.GetSize()]
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations([20, 20, 10])
        corrector.SetNumberOfThreads(1)  # with threads, the order of sums would change bits between machines
        corrector.Execute(sitk.Shrink(image, factors), sitk.Shrink(body, factors))
        field = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)))[..., :depth]
        out = volume.clone()
        out[0] = torch.from_numpy((values / (field / field[mask].mean())).astype(np.float32))
        return out
