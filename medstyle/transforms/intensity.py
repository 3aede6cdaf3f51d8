"""MONAI transforms of values on one grid: foreground, noise, bias field. Arrays are channel-first ``(1, W, H, D)``."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import Transform
from numpy.typing import NDArray


def foreground_mask(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the body: half of Otsu's threshold, the largest component, holes filled slice by slice.

    Half, because Otsu's threshold divides bright from dark tissue as soon as both are present.

    Args:
        values: ``(..., D)`` three spatial axes, any unit.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    low, high = np.percentile(values, (0.1, 99.9)).astype(np.float32)  # doubles would double what is clipped
    if high <= low:
        return np.zeros(values.shape, bool)
    clipped = np.clip(values, low, high)
    threshold = threshold_otsu(clipped.ravel(order="K"))  # flat: three or four slices are not colours
    mask = clipped > low + (threshold - low) / 2
    del clipped  # a large scan fills memory with few copies
    mask = ndimage.binary_opening(
        mask, ndimage.generate_binary_structure(2, 1)[..., None]
    )  # in-plane: one slice may come
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros(values.shape, bool)
    sizes = np.zeros(count + 1, int)
    for plane in labels:  # one by one, because bincount widens what it counts
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    mask = labels == 1 + np.argmax(sizes[1:])
    del labels
    for z in range(mask.shape[-1]):
        mask[..., z] = ndimage.binary_fill_holes(ndimage.binary_closing(mask[..., z], iterations=2))
    return mask


def noise_sigma(values: NDArray[np.float32]) -> float:
    """Estimate the standard deviation of the noise, in the unit of ``values``.

    The median over slices of the robust wavelet estimate (Donoho and Johnstone 1994, as scikit-image has it).

    Args:
        values: ``(W, H, D)``.
    """
    from skimage.restoration import estimate_sigma

    # a slice without detail (air that was masked to zero) says nothing about the noise
    slices = [values[..., z] for z in range(values.shape[-1]) if np.count_nonzero(np.diff(values[..., z], axis=0)) > 99]
    return float(np.median([estimate_sigma(one) for one in slices])) if slices else 0.0


class Denoise(Transform):
    """Remove noise from a volume, slice by slice.

    ``nlm``: non-local means (Buades 2005) with the measured sigma and, for magnitude MR, the Rician bias removed by
    ``sqrt(max(x^2 - 2 sigma^2, 0))`` (Nowak 1999). ``median``: 3x3 median. ``none``: unchanged.
    """

    def __init__(self, method: str, rician: bool) -> None:
        self.method, self.rician = method, rician

    def __call__(self, volume: torch.Tensor) -> torch.Tensor:
        """Return ``(1, W, H, D)`` denoised."""
        if self.method == "none":
            return volume
        from scipy import ndimage
        from skimage.restoration import denoise_nl_means

        values = volume[0].float().numpy().copy()  # the input may share the memory of the scan itself
        if self.method == "median":
            values = ndimage.median_filter(values, size=(3, 3, 1))
        else:
            sigma = noise_sigma(values)
            if sigma > 0:
                for z in range(values.shape[-1]):
                    values[..., z] = denoise_nl_means(
                        values[..., z], patch_size=3, patch_distance=4, h=0.8 * sigma, sigma=sigma, fast_mode=True
                    )
                if self.rician:
                    values = np.sqrt(np.maximum(values**2 - 2 * sigma**2, 0))
        out = volume.clone()
        out[0] = torch.from_numpy(values)
        return out


class CorrectBias(Transform):
    """Divide out the smooth coil sensitivity (N4, Tustison 2010), fitted on a grid shrunk by ``shrink`` in-plane."""

    def __init__(self, shrink: int = 4) -> None:
        self.shrink = shrink

    def __call__(self, volume: torch.Tensor) -> torch.Tensor:
        """Return ``(1, W, H, D)`` with the field removed; its mean over the body stays."""
        import SimpleITK as sitk

        values = np.ascontiguousarray(np.asarray(volume[0], np.float32))
        mask = foreground_mask(values)
        if not mask.any():
            return volume
        depth = values.shape[2]
        spare = ((0, 0), (0, 0), (0, max(0, 4 - depth)))  # the fit needs four slices; a thin stack repeats its last
        image = sitk.GetImageFromArray(np.pad(values, spare, mode="edge"))
        body = sitk.GetImageFromArray(np.pad(mask, spare, mode="edge").astype(np.uint8))
        factors = [self.shrink if n >= 4 * self.shrink else 1 for n in image.GetSize()]
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations([20, 20, 10])
        corrector.SetNumberOfThreads(1)  # sums over threads would change bits from one machine to the next
        corrector.Execute(sitk.Shrink(image, factors), sitk.Shrink(body, factors))
        field = np.exp(sitk.GetArrayFromImage(corrector.GetLogBiasFieldAsImage(image)))[..., :depth]
        out = volume.clone()
        out[0] = torch.from_numpy((values / (field / field[mask].mean())).astype(np.float32))
        return out
