"""Process values on one grid: foreground, noise, bias field; channel-first ``(1, W, H, D)``."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from monai.transforms import Transform
from numpy.typing import NDArray

CLOSED = 2  # pixels by which gaps in the rim of a body are closed
REACH = 4  # pixels in each direction from which non-local means takes its averages
UNLIKE = 5.0  # distance from which two patches of it have nothing in common
AROUND = 16  # pixels about a body that are denoised with it: a filter sees less far, but for diffusion, which fades
__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def foreground_mask(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Find the body: half of Otsu's threshold, the largest component, holes filled slice by slice.

    Half of the threshold is used, because Otsu's threshold separates bright from dark tissue if
    both are present.

    Args:
        values: ``(W, H, D)``, in any unit; a view of contiguous ``(D, H, W)`` is fastest.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    values = values.T  # (D, H, W)
    low, high = np.percentile(values, (0.1, 99.9)).astype(np.float32)  # doubles would double the clipped array
    if high <= low:
        return np.zeros(values.T.shape, bool)
    clipped = np.clip(values, low, high)
    threshold = threshold_otsu(clipped.ravel(order="K"))  # flat: three or four slices would be taken as colours
    mask = clipped > low + (threshold - low) / 2
    del clipped  # a few copies of a large scan fill the memory
    mask = _dilated(_eroded(mask))  # in-plane, because there may be a single slice
    labels, count = ndimage.label(mask)
    if count == 0:
        return np.zeros(values.T.shape, bool)
    sizes = np.zeros(count + 1, int)
    for plane in labels:  # plane by plane, because bincount converts its input to a wider type
        sizes += np.bincount(plane.ravel(), minlength=count + 1)
    mask = labels == 1 + np.argmax(sizes[1:])
    del labels
    rows, columns = _around(mask, CLOSED + 1)  # outside the closed body there is nothing to fill
    near = mask[:, rows, columns]
    for step in (*[_dilated] * CLOSED, *[_eroded] * CLOSED):
        near = step(near)
    for filled, plane in zip(mask[:, rows, columns], near, strict=True):
        filled[:] = _filled(plane)
    return mask.T


def _dilated(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Dilate ``(D, H, W)`` by the four neighbours in-plane, in a tenth of SciPy's time."""
    out = mask.copy()
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    out[..., 1:] |= mask[..., :-1]
    out[..., :-1] |= mask[..., 1:]
    return out


def _eroded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Erode ``(D, H, W)`` by the four neighbours in-plane; beyond the border there is no mask."""
    out = ~_dilated(~mask)
    out[:, [0, -1]] = False
    out[..., [0, -1]] = False
    return out


def _around(mask: NDArray[np.bool_], margin: int) -> tuple[slice, slice]:
    """Return the rows and columns of ``(D, H, W)`` that hold the mask, and a margin."""
    sides = []
    for axis, length in ((1, mask.shape[1]), (2, mask.shape[2])):
        places = np.flatnonzero(mask.any(axis=(0, 3 - axis)))
        low, high = (places[0], places[-1]) if len(places) else (0, length - 1)
        sides.append(slice(max(0, low - margin), min(length, high + margin + 1)))
    return sides[0], sides[1]


def _filled(plane: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Fill the holes of a mask ``(H, W)``: what is outside it and does not touch the border."""
    from scipy import ndimage

    outside, count = ndimage.label(~plane)
    hole = np.ones(count + 1, bool)
    for edge in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        hole[edge] = False
    hole[0] = True  # the mask itself
    filled: NDArray[np.bool_] = hole[outside]
    return filled


def noise_sigma(values: NDArray[np.float32], body: NDArray[np.bool_] | None = None) -> float:
    """Estimate the standard deviation of the noise, in the unit of ``values``.

    It is the median over slices of the robust wavelet estimate (Donoho and Johnstone 1994) within
    the body. In the surrounding air, the noise of magnitude images has 0.66 of its standard
    deviation (Gudbjartsson 1995), or was set to zero.

    Args:
        values: ``(W, H, D)``.
        body: mask of that shape; None finds it with :func:`foreground_mask`.
    """
    import pywt

    body = foreground_mask(values) if body is None else body

    found = []
    for image, shown in zip(values.T, body.T, strict=True):  # (H, W)
        if not shown.any():
            continue
        detail = pywt.dwt2(image, "db2", mode="periodization")[1][2]
        inside = np.abs(detail[shown[::2, ::2] & (detail != 0)])
        if inside.size > 99:
            found.append(np.median(inside) / 0.6745)  # the value for a standard normal distribution
    return float(np.median(found)) if found else 0.0


def _nlm(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    """Average pixels with those near them whose surroundings are alike (Buades, CVPR 2005).

    It is scikit-image's ``denoise_nl_means(image, 3, 4, 0.6 sigma, fast_mode=True, sigma=sigma)``,
    which in fact compares patches of two by two pixels, one shift for all pixels at a time (Darbon,
    ISBI 2008), in a third of its time.
    """
    padded = torch.from_numpy(np.pad(image, REACH + 1, mode="reflect"))
    rows, columns = padded.shape
    planes = torch.stack([padded, padded, torch.ones_like(padded)])  # (values, weighted sums, weights)
    for down, right in itertools.product(range(REACH + 1), range(-REACH, REACH + 1)):
        if down == 0 and right <= 0:  # each pair once
            continue
        one = planes[:, : rows - down, max(0, -right) : columns - max(0, right)]
        other = planes[:, down:, max(0, right) : columns + min(0, right)]
        apart = (one[0] - other[0]).square_()
        apart = apart[:-1] + apart[1:]
        apart = apart[:, :-1] + apart[:, 1:]
        apart = apart.sub_(4 * 2 * sigma**2).mul_(1 / (3 * 0.6 * sigma) ** 2).clamp_(0, UNLIKE + 1)
        weight = F.threshold(apart.neg_().exp_(), math.exp(-UNLIKE), 0)
        for here, there in ((one, other), (other, one)):
            here[1, :-1, :-1].addcmul_(weight, there[0, :-1, :-1])
            here[2, :-1, :-1].add_(weight)
    total, weights = planes[1:, REACH + 1 : -REACH - 1, REACH + 1 : -REACH - 1]
    out: NDArray[np.float32] = (total / weights).numpy()
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


# (H, W) and the standard deviation of its noise -> denoised (H, W); docs/benchmarks.md has the gain
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

    def __call__(self, volume: torch.Tensor, body: NDArray[np.bool_] | None = None) -> torch.Tensor:
        """Return ``(1, W, H, D)`` denoised around the ``body``, whose mask is found if None."""
        if self.method == "none":
            return volume
        values = np.asarray(volume[0], np.float32).copy("K")  # the input may share its memory with the scan
        body = foreground_mask(values) if body is None else body
        sigma = noise_sigma(values, body)
        if sigma <= 0:
            return volume
        rows, columns = _around(body.T, AROUND)
        for plane, shown in zip(values.T, body.T, strict=True):
            if shown.any():
                near = plane[rows, columns]
                near[:] = FILTERS[self.method](np.ascontiguousarray(near), sigma)
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
    """Correct the smooth coil sensitivity (N4, Tustison 2010), fitted to a few voxels of each axis.

    Args:
        samples: number of voxels along an axis, at least, if the volume has so many.
    """

    def __init__(self, samples: int = 32) -> None:
        self.samples = samples

    def __call__(self, volume: torch.Tensor, body: NDArray[np.bool_] | None = None) -> torch.Tensor:
        """Return ``(1, W, H, D)`` without the field; the mean over the body is kept.

        The mask of the ``body`` is found if None.
        """
        import SimpleITK as sitk

        given = np.asarray(volume[0], np.float32)
        mask = (foreground_mask(given) if body is None else body).T
        if not mask.any():
            return volume
        values = given.T  # (D, H, W)
        depth = len(values)
        spare = ((0, max(0, 4 - depth)), (0, 0), (0, 0))  # the fit needs four slices; thin stacks repeat their last
        image = sitk.GetImageFromArray(np.pad(values, spare, mode="edge"))
        inside = sitk.GetImageFromArray(np.pad(mask, spare, mode="edge").astype(np.uint8))
        factors = [max(1, n // self.samples) for n in image.GetSize()]
        corrector = sitk.N4BiasFieldCorrectionImageFilter()
        corrector.SetMaximumNumberOfIterations([20, 20, 10])
        corrector.SetNumberOfThreads(1)  # with threads, the order of sums would change bits between machines
        small = sitk.Shrink(image, factors)
        corrector.Execute(small, sitk.Shrink(inside, factors))
        coarse = corrector.GetLogBiasFieldAsImage(small)  # so smooth that it may be interpolated
        fine = sitk.Resample(coarse, image, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32, True)
        field = np.exp(sitk.GetArrayFromImage(fine))[:depth]
        out = volume.clone()
        out[0] = torch.from_numpy((values / (field / field[mask].mean())).astype(np.float32).T)
        return out
