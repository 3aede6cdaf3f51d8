"""Define the metric protocols; a number has a meaning only with its protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medstyle.networks.texture import Texture, correlations, style_distance

Image = NDArray[np.float32]


@dataclass(frozen=True)
class Protocol:
    """The definition of how an output is measured.

    Attributes:
        version: increases whenever the resulting numbers change.
        paired: whether the reference is a real image of the same slice; otherwise it is a set of
            images of the target domain.
        unit: ``scaled``: images in [0, 1] by the fixed normalisation of training. ``HU``: unscaled
            CT numbers.
        measures: measure -> whether higher or lower is better.
        headline: measures in which a model must beat its baselines to pass the gate.
        measure: ``(output, reference, mask) -> {measure: value}``.
    """

    version: int
    paired: bool
    unit: Literal["scaled", "HU"]
    measures: dict[str, Literal["higher", "lower"]]
    headline: tuple[str, ...]
    measure: Callable[..., dict[str, float]]


def plain(output: Image, reference: Image, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Measure a volume against its reference, both ``(D, H, W)`` in [0, 1], within the mask.

    Both are scaled by a fixed normalisation, and no gain is fitted to the output. The measures are
    MAE; PSNR with peak 1; SSIM (Wang 2004) slice by slice, with a Gaussian window 11/1.5 and K
    0.01/0.03, averaged in the mask; NMSE, the squared error divided by the squared values of the
    reference; NMI, 1 to 2, 64 bins (Studholme 1999); ``edges``, the correlation of in-plane
    gradient magnitudes; ``sharpness``, ``|ln r|`` of the ratio of the gradient energies of output
    and reference; and ``through_plane``, ``|ln r|`` of :func:`through_plane`. For the last two, 0.1
    means 10 % more, or less, than in the reference.
    """
    from skimage.metrics import normalized_mutual_information

    difference = (output - reference)[mask].astype(np.float64)
    squared = max(float((difference**2).mean()), 1e-12)
    ours, real = (_steepness(image)[mask] for image in (output, reference))
    energy = max(float(np.square(ours).mean()), 1e-12) / max(float(np.square(real).mean()), 1e-12)
    flat = min(ours.std(), real.std()) == 0
    return {
        "psnr": float(-10 * np.log10(squared)),
        "ssim": float(ssim_map(output, reference)[mask].mean()),
        "mae": float(np.abs(difference).mean()),
        "nmse": float((difference**2).sum() / max(float(np.square(reference[mask], dtype=np.float64).sum()), 1e-12)),
        "nmi": float(normalized_mutual_information(output[mask], reference[mask], bins=64)),
        "edges": 0.0 if flat else float(np.corrcoef(ours, real)[0, 1]),
        "sharpness": abs(float(np.log(energy))),
        "through_plane": abs(float(np.log(through_plane(output, reference, mask)))),
    }


def ssim_map(output: Image, reference: Image) -> Image:
    """Return the slice-wise SSIM at each voxel of ``(D, H, W)`` in [0, 1], as in :func:`plain`."""
    from skimage.metrics import structural_similarity

    options = {"data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "full": True}
    maps = [structural_similarity(a, b, **options)[1] for a, b in zip(output, reference, strict=True)]
    return np.stack(maps)


def _steepness(image: Image) -> NDArray[np.float64]:
    """Return the in-plane gradient magnitude of ``(D, H, W)`` by central differences."""
    down, right = np.gradient(image.astype(np.float64), axis=(1, 2))
    steep: NDArray[np.float64] = np.hypot(down, right)
    return steep


def through_plane(output: Image, reference: Image, mask: NDArray[np.bool_]) -> float:
    """Return the ratio of ``mean |y[z+1] - y[z]|`` of output and reference.

    Only voxels count where both slices are in the mask. Above 1, slices flicker; below 1, they are
    blurred into each other. With a single slice the ratio is 1.
    """
    both = mask[1:] & mask[:-1]
    if not both.any():
        return 1.0
    ours, real = (float(np.abs(np.diff(image, axis=0))[both].mean()) for image in (output, reference))
    return max(ours, 1e-6) / max(real, 1e-6)


HU = (-1024.0, 3071.0)
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of the scales (Wang 2003)
BLOCK = 7  # side of the window of SSIM in voxels


def paired_pictures(output: Image, reference: Image, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Measure a picture against its reference, both ``(3, H, W)`` in [0, 1], as :func:`plain` does.

    Channels are treated like slices; ``mask`` covers the whole picture.
    """
    measured = plain(output, reference, mask)
    return {name: measured[name] for name in ("psnr", "ssim", "mae", "edges", "sharpness")}


def synthrad2025(output: Image, reference: Image, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Measure a synthetic CT in HU, ``(D, H, W)``, as in SynthRAD 2025 (Thummerer 2025).

    The measures are MAE in the mask, unclipped; PSNR in the mask, with both images clipped to
    [-1024, 3071] and peak 4095; and three-dimensional MS-SSIM of the clipped images, with air
    outside the mask.
    """
    out, real = (np.where(mask, image, HU[0]).astype(np.float64) for image in (output, reference))
    clipped, target = np.clip(out, *HU), np.clip(real, *HU)
    squared = max(float(np.square(clipped - target)[mask].mean()), 1e-12)
    return {
        "mae_hu": float(np.abs(out - real)[mask].mean()),
        "psnr": float(10 * np.log10((HU[1] - HU[0]) ** 2 / squared)),
        "ms_ssim": ms_ssim(clipped - HU[0], target - HU[0], mask, HU[1] - HU[0]),
    }


def ms_ssim(
    output: NDArray, reference: NDArray, mask: NDArray[np.bool_], peak: float, weights: Sequence[float] = SCALES
) -> float:
    """Return the multi-scale SSIM of volumes ``(D, H, W)`` with values >= 0, as in SynthRAD 2025.

    It differs from Wang 2003 in three ways: windows are uniform with 7 voxels, the sample
    covariance is used, and the luminance counts at every scale. Each scale is the mean in the mask;
    the next scale consists of the means of blocks of 2 voxels.
    """
    from scipy.ndimage import uniform_filter

    spare = [(0, max(0, 97 - n)) for n in output.shape]  # five scales need at least this size
    x, y = (np.pad(image.astype(np.float64), spare, mode="edge") for image in (output, reference))
    inside = np.pad(mask, spare, mode="edge")
    c1, c2 = (0.01 * peak) ** 2, (0.03 * peak) ** 2
    unbiased = BLOCK**3 / (BLOCK**3 - 1)
    crop = (slice(BLOCK // 2, -(BLOCK // 2)),) * 3
    result = 1.0
    for weight in weights:
        mean_x, mean_y = uniform_filter(x, BLOCK), uniform_filter(y, BLOCK)
        var_x = np.maximum(unbiased * (uniform_filter(x * x, BLOCK) - mean_x**2), 0)
        var_y = np.maximum(unbiased * (uniform_filter(y * y, BLOCK) - mean_y**2), 0)
        both = unbiased * (uniform_filter(x * y, BLOCK) - mean_x * mean_y)
        spread = np.sqrt(var_x * var_y)
        light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
        contrast = (2 * spread + c2) / (var_x + var_y + c2)
        structure = (both + c2 / 2) / (spread + c2 / 2)
        terms = (np.maximum(term, 0) ** weight for term in (light, contrast, structure))
        where = inside[crop]
        result *= float(np.prod(list(terms), axis=0)[crop][where].mean()) if where.any() else 1.0
        x, y = (uniform_filter(image, 2)[1::2, 1::2, 1::2] for image in (x, y))
        inside = inside[1::2, 1::2, 1::2]
    return float(np.clip(result, 0, 1))


def selfrdb(output: Image, reference: Image, mask: NDArray[np.bool_]) -> dict[str, float]:
    """Measure volumes ``(D, H, W)`` in [0, 1] as SelfRDB does (Arslan 2024).

    Every slice is divided by its own mean, which forgives errors of gain; the numbers are therefore
    higher than those of ``plain``. The mean is over slices that show the body, and air is 0. PSNR
    and SSIM (uniform window of 7) use the largest value of the reference slice as the range.
    """
    from skimage.metrics import structural_similarity

    psnr, ssim = [], []
    for made, real, inside in zip(output, reference, mask, strict=True):
        a, b = (np.where(inside, image, 0).astype(np.float64) for image in (made, real))
        if not inside.any() or b.mean() <= 0:
            continue
        a, b = a / max(a.mean(), 1e-6), b / b.mean()
        psnr.append(10 * np.log10(b.max() ** 2 / max(float(np.square(a - b).mean()), 1e-12)))
        ssim.append(structural_similarity(a, b, data_range=float(b.max())))
    return {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))} if psnr else {"psnr": 0.0, "ssim": 0.0}


@dataclass(frozen=True)
class PictureSet:
    """Pictures ``(H, W, 3)`` in [0, 1] that define a style, with cached features."""

    pictures: Image | Sequence[Image]

    @cached_property
    def colours(self) -> Image:
        """Return evenly chosen pixels ``(n, 3)``."""
        return _some(np.concatenate([picture.reshape(-1, picture.shape[-1]) for picture in self.pictures]))

    @cached_property
    def gradients(self) -> Image:
        """Return evenly chosen gradient magnitudes of the luminance, as a flat array."""
        from skimage.color import rgb2gray

        return _some(np.concatenate([_gradient(rgb2gray(picture)) for picture in self.pictures]))

    @cached_property
    def correlations(self) -> list[Tensor]:
        """Return the mean correlations of texture features at each scale."""
        each = [_correlations(picture) for picture in self.pictures]
        return [torch.cat(level).mean(0, keepdim=True) for level in zip(*each, strict=True)]


def _some(values: Image, most: int = 100_000) -> Image:
    return values[:: -(-len(values) // most)]


def _correlations(picture: Image) -> list[Tensor]:
    pixels = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]
    return correlations(_texture()(2 * pixels - 1))


@cache
def _texture() -> Texture:
    return Texture(3, seed=1)  # not the same filters as those that training may use


def picture_style_distance(output: Image, targets: PictureSet) -> float:
    """Return the distance in texture and colour of ``(H, W, 3)`` to a set.

    See :func:`style_distance`.
    """
    return float(style_distance(_correlations(output), targets.correlations)[0])


def unpaired(output: Image, source: Image, targets: PictureSet) -> dict[str, float]:
    """Measure a picture ``(H, W, 3)`` in [0, 1] against its own content and a target set.

    ``style_distance`` is the distance of the correlations of texture features (:class:`Texture`);
    it is sensitive to colour and brush strokes. ``colour_distance`` is the 1-D Wasserstein distance
    between the pixel values of output and target set, averaged over channels. ``texture_distance``
    is the same for gradient magnitudes of the luminance. ``structure`` is the SSIM of the luminance
    of output and source, for the preservation of content.
    """
    from scipy.stats import wasserstein_distance
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    colour = [wasserstein_distance(output[..., c].ravel(), targets.colours[:, c]) for c in range(output.shape[-1])]
    grey = rgb2gray(output)
    return {
        "style_distance": picture_style_distance(output, targets),
        "colour_distance": float(np.mean(colour)),
        "texture_distance": float(wasserstein_distance(_gradient(grey), targets.gradients)),
        "structure": float(structural_similarity(grey, rgb2gray(source), data_range=1.0)),
    }


def unpaired_scans(output: Image, source: Image, targets: Image) -> dict[str, float]:
    """Measure a scan ``(D, H, W)`` in [0, 1], 0 in air, against its source and a target set.

    The target set is slices ``(N, H, W)``. ``intensity_distance`` is the 1-D Wasserstein distance
    between the body values of output and target set. ``texture_distance`` is the same for in-plane
    gradient magnitudes in the body. ``edges`` is the correlation of gradient magnitudes of output
    and source in the source's body, for the preservation of anatomy.
    """
    from scipy.stats import wasserstein_distance

    of_output, of_source, of_targets = (_steepness(image) for image in (output, source, targets))
    body, flat = source > 0, min(of_output[source > 0].std(), of_source[source > 0].std()) == 0
    return {
        "intensity_distance": float(wasserstein_distance(output[body], targets[targets > 0])),
        "texture_distance": float(wasserstein_distance(of_output[body], of_targets[targets > 0])),
        "edges": 0.0 if flat else float(np.corrcoef(of_output[body], of_source[body])[0, 1]),
    }


def _gradient(grey: Image) -> Image:
    return np.hypot(np.diff(grey, axis=0)[:, 1:], np.diff(grey, axis=1)[1:]).ravel()


PROTOCOLS: dict[str, Protocol] = {
    "plain": Protocol(
        2,
        True,
        "scaled",
        {
            "psnr": "higher", "ssim": "higher", "mae": "lower", "nmse": "lower", "nmi": "higher", "edges": "higher",
            "sharpness": "lower", "through_plane": "lower",
        },
        ("psnr", "ssim", "mae"),
        plain,
    ),
    "synthrad2025": Protocol(
        1,
        True,
        "HU",
        {"mae_hu": "lower", "psnr": "higher", "ms_ssim": "higher"},
        ("mae_hu", "psnr", "ms_ssim"),
        synthrad2025,
    ),
    "selfrdb": Protocol(1, True, "scaled", {"psnr": "higher", "ssim": "higher"}, ("psnr", "ssim"), selfrdb),
    "paired_pictures": Protocol(
        1,
        True,
        "scaled",
        {"psnr": "higher", "ssim": "higher", "mae": "lower", "edges": "higher", "sharpness": "lower"},
        ("psnr", "ssim", "mae"),
        paired_pictures,
    ),
    "unpaired": Protocol(
        2,
        False,
        "scaled",
        {"style_distance": "lower", "colour_distance": "lower", "texture_distance": "lower", "structure": "higher"},
        ("texture_distance",),  # matching a histogram matches the colours, and with them most of the style distance
        unpaired,
    ),
    "unpaired_scans": Protocol(
        1,
        False,
        "scaled",
        {"intensity_distance": "lower", "texture_distance": "lower", "edges": "higher"},
        ("intensity_distance", "texture_distance"),
        unpaired_scans,
    ),
}  # fmt: skip
