"""Prepare network slices from a volume in patient space, and map outputs back to its grid.

The chain is a MONAI ``Compose``: orientation, in-plane spacing, denoising, bias field. Its
geometric steps are invertible, so the network's output for the slices can be mapped back to the
source grid voxel by voxel.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, Resize, ResizeWithPadOrCrop, Spacing
from numpy.typing import NDArray

from medstyle.errors import Code, ParamsError, Refusal
from medstyle.imaging.modality import DOMAINS, QUANTILES, Fingerprint, Modality
from medstyle.imaging.picture import Pixels, to_unit
from medstyle.imaging.volume import Volume
from medstyle.params import params
from medstyle.transforms.intensity import CorrectBias, Denoise, clean_picture, foreground_mask

FINER = 1.2  # times as many voxels: a source whose detail is worth to be taken
SMOOTH = 0.01  # variance in network units below which a region has no slope
RIM = 3  # pixels around the body in which the network's output is kept
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # MONAI's affines are RAS like NIfTI's, medstyle's are LPS like DICOM's


@params
class Preparation:
    """How images are cleaned and resampled for the network; stored with the translator."""

    denoise: Literal["none", "nlm", "anisotropic", "tv", "median"] = "nlm"
    """Noise filter for MR; CT is not filtered."""
    bias_field: bool = True
    """Correct the smooth shading of the coil in MR (N4)."""
    spacing_mm: tuple[float, float] | None = None
    """In-plane pixel spacing (x, y) to resample to, in mm; null keeps the spacing of each scan."""
    normalisation: Literal["percentile", "zscore", "nyul"] = "percentile"
    """How MR intensities are made comparable (see `imaging.modality`); CT and pictures are always
    scaled by fixed ranges."""
    landmarks: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """For `nyul`: the standard positions of each domain's deciles; `denoise` learns them from the
    training subjects."""
    pictures: Literal["none", "nlm", "tv", "median"] = "none"
    """Noise filter for pictures, in training and in inference."""
    aspect: Literal["crop", "pad", "stretch", "centre"] = "crop"
    """How a picture is fitted to the training size: `crop` scales it to fill the size and crops
    about the centre; `pad` scales it to fit completely and adds black borders; `stretch` distorts
    it; `centre` crops or pads it about the centre without scaling."""
    ct_window: tuple[float, float] = DOMAINS["ct"].range
    """HU that are mapped to -1 and +1 in network units. A narrow window is finer in soft tissue,
    but loses the values below it."""
    detail: bool = False
    """Where a scan is finer than `spacing_mm`, its output takes the detail that resampling left
    out, times the local slope between source and output (as in guided upsampling, Kopf 2007, He
    2010)."""
    scales: dict[str, tuple[float, float]] = field(default_factory=dict)
    """MR domains whose values have a known scale: those that are mapped to -1 and +1 in network
    units, in place of `normalisation`, which differs from image to image."""

    def __post_init__(self) -> None:
        for domain, places in self.landmarks.items():
            if len(places) != len(QUANTILES) or any(a >= b for a, b in itertools.pairwise(places)):
                raise ParamsError(f"landmarks.{domain}: must be {len(QUANTILES)} rising numbers, got {list(places)}")
        if self.ct_window[0] >= self.ct_window[1]:
            raise ParamsError(f"ct_window: must rise, got {list(self.ct_window)}")
        for domain, (low, high) in self.scales.items():
            if low >= high:
                raise ParamsError(f"scales.{domain}: must rise, got {[low, high]}")
        if self.spacing_mm is not None and min(self.spacing_mm) <= 0:
            raise ParamsError(f"spacing_mm: must be positive, got {list(self.spacing_mm)}")

    def fingerprint(self, domain: str, values: NDArray, foreground: NDArray[np.bool_]) -> Fingerprint:
        """Return how ``values`` of ``domain`` are mapped to network units, by their foreground.

        ``foreground`` has the shape of ``values``.
        """
        if DOMAINS[domain].dicom == "CT":
            return Fingerprint(self.ct_window)
        if domain in self.scales:
            return Fingerprint(self.scales[domain])
        return DOMAINS[domain].fingerprint(values, foreground, self.normalisation, self.landmarks.get(domain, ()))


@dataclass(frozen=True)
class Prepared:
    """Network slices of one volume, with everything that is needed to return to its grid.

    Attributes:
        slices: ``(D, M, H, W)`` float32 in network units, axial from inferior to superior, -1
            outside the body; first those of the volume, then those of its contrasts, if there are
            any.
        foreground: ``(D, H, W)`` bool, the body.
        fingerprint: how the values of this volume were mapped to network units.
        source: the volume that they were made from.
        detailed: whether outputs take detail from a finer source, see :attr:`Preparation.detail`.
    """

    slices: torch.Tensor
    foreground: NDArray[np.bool_]
    fingerprint: Fingerprint
    source: Volume
    _grid: MetaTensor
    _geometry: Compose
    detailed: bool = False

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distances of slices, rows and columns in mm."""
        x, y, z = (float(mm) for mm in self._grid.pixdim)
        return z, y, x

    def restore(self, slices: torch.Tensor, domain: str, fingerprint: Fingerprint) -> Volume:
        """Convert network output ``(D, 1, H, W)`` to a volume of ``domain`` on the source grid."""
        modality = DOMAINS[domain]
        made = self._back(self._above_air(slices, modality, fingerprint))
        if self.detailed and made.size > FINER * self.foreground.size:
            rise = (fingerprint.values[-1] - fingerprint.values[0]) / (fingerprint.scaled[-1] - fingerprint.scaled[0])
            finer = made + np.float32(rise) * self._detail(slices[:, 0].float().cpu().numpy())
            low, high = modality.range
            made = np.where(made > 0, np.clip(finer, low - modality.air, high - modality.air), made)
        made += np.float32(modality.air)
        return self.source.with_voxels(made, domain)

    def _detail(self, made: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return what the output ``(D, H, W)`` lacks on the finer source grid, in network units.

        It is the source less its own resampling, times the slope of a local linear fit of output to
        source: where both rise together the detail is added, where they oppose it is subtracted.
        """
        from scipy.ndimage import uniform_filter

        def mean(values: NDArray) -> NDArray[np.float32]:
            return uniform_filter(values, (1, 3, 3), np.float32)

        known = self.slices[:, 0].numpy()
        x, y = mean(known), mean(made)
        slope = mean((mean(known * made) - x * y) / (mean(known * known) - x * x + SMOOTH))
        whole = DOMAINS[self.source.domain].normalise(self.source.voxels, self.fingerprint)
        left_out = whole - self.to_source_grid(known, -1.0)
        return np.clip(left_out, -1, 1) * self.to_source_grid(slope)

    def _above_air(self, slices: torch.Tensor, modality: Modality, fingerprint: Fingerprint) -> NDArray[np.float32]:
        from scipy.ndimage import binary_dilation

        # a margin, because skin that is dark in the source may be bright in the target
        body = binary_dilation(self.foreground, np.ones((1, 3, 3), bool), iterations=RIM)
        values = np.zeros(body.shape, np.float32)
        for painted, inside, one in zip(values, body, slices, strict=True):  # a few copies of a large scan fill memory
            scaled = one[0].float().cpu().numpy()[inside]
            painted[inside] = modality.denormalise(scaled, fingerprint) - np.float32(modality.air)
        return values

    def to_source_grid(self, values: NDArray[np.float32], fill: float = 0.0) -> NDArray[np.float32]:
        """Resample ``(D, H, W)`` values on the prepared grid to the source's voxel grid."""
        back = self._back(values - np.float32(fill))  # MONAI pads with zeros or edges; zeros become the fill value
        back += np.float32(fill)
        return back

    def _back(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        grid = MetaTensor(torch.from_numpy(values.transpose(2, 1, 0))[None]).copy_meta_from(self._grid)
        back = self._geometry.inverse(grid)
        return np.ascontiguousarray(np.asarray(back[0], np.float32).transpose(2, 1, 0))


def axial(volume: Volume, settings: Preparation) -> tuple[MetaTensor, Compose]:
    """Resample voxels to the axial grid, ``(1, W, H, D)``; return them and the transform.

    The result may share the volume's memory.
    """
    geometry: list[object] = [Orientation(axcodes="LPS", labels=None)]
    if settings.spacing_mm is not None:
        geometry.append(
            Spacing((*settings.spacing_mm, -1.0), mode="bilinear", padding_mode="border", align_corners=True)
        )
    chain = Compose(geometry)
    voxels = np.require(volume.voxels, np.float32, ["C", "W"])  # torch can wrap this without a copy
    affine = torch.from_numpy(LPS_TO_RAS @ volume.affine)
    return chain(MetaTensor(torch.from_numpy(voxels.transpose(2, 1, 0))[None], affine=affine)), chain


def prepare(volume: Volume, settings: Preparation) -> Prepared:
    """Prepare network slices of ``volume``.

    Args:
        volume: in any orientation; a sheared grid is allowed.
        settings: parameters of the chain.

    Raises:
        Refusal: ``E_SHAPE`` a single slice that is not axial.
    """
    modality = DOMAINS[volume.domain]
    grid, chain = axial(volume, settings)
    if min(grid.shape[1:3]) == 1:
        raise Refusal(
            Code.E_SHAPE, "a single sagittal or coronal slice cannot be resliced to axial; give the whole series"
        )
    values: torch.Tensor = grid.as_tensor().float()
    if modality.dicom == "MR":
        body = foreground_mask(np.asarray(values[0])) if settings.bias_field or settings.denoise != "none" else None
        values = Denoise(settings.denoise, rician=True)(values, body)
        if settings.bias_field:
            values = CorrectBias()(values, body)
    array = np.asarray(values[0])
    scale = settings.scales.get(volume.domain)  # bright fat must not raise the threshold above the brain
    mask = foreground_mask(array if scale is None else np.minimum(array, np.float32(sum(scale) / 2)))
    fingerprint = settings.fingerprint(volume.domain, array, mask)
    foreground = np.ascontiguousarray(mask.transpose(2, 1, 0))
    slices = torch.full((len(foreground), 1, *foreground.shape[1:]), -1.0)
    for scaled, inside, one in zip(slices.numpy(), foreground, array.transpose(2, 1, 0), strict=True):
        scaled[0][inside] = modality.normalise(one[inside], fingerprint)
    where = MetaTensor(torch.zeros(0)).copy_meta_from(grid)  # the inverse needs the geometry, not the voxels
    return Prepared(slices, foreground, fingerprint, volume, where, chain, settings.detail)


def picture_slices(pixels: Pixels, domain: str, settings: Preparation) -> torch.Tensor:
    """Convert ``(H, W, 3)`` RGB of 8 or 16 bits to network units, ``(1, 3, H, W)``."""
    modality = DOMAINS[domain]
    cleaned = clean_picture(255 * to_unit(pixels), settings.pictures)
    scaled = modality.normalise(cleaned, Fingerprint(modality.range))
    return torch.from_numpy(np.ascontiguousarray(scaled.transpose(2, 0, 1)))[None]


def frame_picture(slices: torch.Tensor, size: Sequence[int], aspect: str) -> torch.Tensor:
    """Fit ``(1, C, H, W)`` to ``(1, C, *size)`` as :attr:`Preparation.aspect` says."""
    ratios = [n / m for n, m in zip(size, slices.shape[2:], strict=True)]
    scales = {"crop": [max(ratios)] * 2, "pad": [min(ratios)] * 2, "stretch": ratios, "centre": [1.0, 1.0]}[aspect]
    scaled = [max(1, round(m * scale)) for m, scale in zip(slices.shape[2:], scales, strict=True)]
    chain = Compose(
        [Resize(scaled, mode="bilinear", anti_aliasing=True), ResizeWithPadOrCrop(size, mode="constant", value=-1)]
    )
    return torch.as_tensor(np.asarray(chain(slices[0])))[None]


def unit_picture(slices: torch.Tensor, domain: str) -> NDArray[np.float32]:
    """Convert ``(1, 3, H, W)`` network output to an RGB picture ``(H, W, 3)`` in [0, 1].

    The values are not rounded.
    """
    modality = DOMAINS[domain]
    values = modality.denormalise(slices[0].float().cpu().numpy(), Fingerprint(modality.range))
    return np.ascontiguousarray((values / np.float32(255)).transpose(1, 2, 0))
