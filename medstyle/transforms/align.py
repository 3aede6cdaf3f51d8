"""Align the scans of one subject on one grid, and measure how well they fit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Code, Refusal
from medstyle.imaging.volume import Volume
from medstyle.transforms.intensity import foreground_mask

if TYPE_CHECKING:
    import SimpleITK as sitk

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

COARSE_MM = 3.0  # approximate size of the cells on which the fit is measured
SHIFT_MM = 6.0  # scans that are misplaced by more than half of this fit better after a shift by it
TURN_DEG = 6.0  # the same for a rotation
SEEN = 0.5  # smallest share of the bodies that must stay in the field of view for a rotation to count
OVERLAP = 0.5
COHORT, OUTLIER = 8, 5.0  # smallest cohort, and limit in robust standard deviations below the other pairs
STRANGERS = 0.7  # of what the other pairs share; scans of two people shared 0.4 of it at most


def onto_grid(moving: Volume, fixed: Volume, alignment: str = "headers", nearest: bool = False) -> Volume:
    """Resample ``moving`` onto the grid of ``fixed``, linearly or by ``nearest`` neighbour.

    Use ``nearest`` for labels. ``headers`` trusts the positions in the headers. ``rigid`` (a
    rotation and a translation) and ``affine`` (also scales and shears) correct errors of the
    headers by maximising Mattes mutual information (Mattes 2003), from the better of two starts:
    the headers, and the centres of mass. If the grids are equal and the headers are trusted, the
    volume is returned unchanged.

    Raises:
        Refusal: ``E_REGISTRATION`` no overlap could be found.
    """
    import SimpleITK as sitk

    same_grid = moving.voxels.shape == fixed.voxels.shape and np.allclose(moving.affine, fixed.affine, atol=1e-3)
    if same_grid and alignment == "headers":
        return moving
    fixed_image, moving_image = fixed.to_image(), moving.to_image()
    transform: sitk.Transform = sitk.Transform(3, sitk.sitkIdentity)
    if alignment != "headers":
        try:
            transform = _align_scans(fixed_image, moving_image, affine=alignment == "affine")
        except RuntimeError:  # the text of ITK's own error fills a page
            raise Refusal(Code.E_REGISTRATION, "the scans could not be aligned; do they show the same body?") from None
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    out = sitk.Resample(moving_image, fixed_image, transform, how, float(moving.voxels.min()))
    return fixed.with_voxels(sitk.GetArrayFromImage(out), moving.domain)


def _align_scans(fixed: sitk.Image, moving: sitk.Image, affine: bool) -> sitk.Transform:
    import SimpleITK as sitk

    headers = sitk.Euler3DTransform()  # correct to a few millimetres; the field of view may differ
    middle = np.array(fixed.GetSize()) / 2 - 0.5
    headers.SetCenter(fixed.TransformContinuousIndexToPhysicalPoint(middle.tolist()))
    return align(fixed, moving, [headers, bodies_together(fixed, moving)], affine=affine)


def bodies_together(fixed: sitk.Image, moving: sitk.Image) -> sitk.Euler3DTransform:
    """Return the translation that aligns the centres of mass."""
    import SimpleITK as sitk

    how = sitk.CenteredTransformInitializerFilter.MOMENTS
    return sitk.Euler3DTransform(sitk.CenteredTransformInitializer(fixed, moving, sitk.Euler3DTransform(), how))


def align(
    fixed: sitk.Image,
    moving: sitk.Image,
    starts: Sequence[sitk.Euler3DTransform],
    *,
    affine: bool,
    levels: Sequence[int] = (4, 2, 1),
    share: float = 0.1,
    first_step_mm: float = 1.0,
) -> sitk.Transform:
    """Return the map from ``fixed`` to ``moving`` with the largest Mattes mutual information.

    The optimisation starts from the best of ``starts``.

    Args:
        fixed, moving: images of any contrasts.
        starts: rigid maps.
        affine: whether scales and shears are optimised after the rigid map.
        levels: shrink factors of the successive resolution levels.
        share: share of the voxels that are sampled.
        first_step_mm: first step of the affine optimisation, in which coarse cells make long steps
            diverge.

    Raises:
        RuntimeError: no overlap was found.
    """
    import SimpleITK as sitk

    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricSamplingStrategy(method.REGULAR)
    method.SetMetricSamplingPercentage(share, seed=1)  # sample points are jittered, by the clock unless seeded
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel(list(levels))
    method.SetSmoothingSigmasPerLevel([level // 2 for level in levels])
    method.SetNumberOfThreads(1)  # for the same bits on every machine

    def cost(start: sitk.Transform) -> float:
        method.SetInitialTransform(start, inPlace=False)
        try:
            return float(method.MetricEvaluate(fixed, moving))
        except RuntimeError:  # no overlap at this start
            return float("inf")

    method.SetInitialTransform(min(starts, key=cost), inPlace=False)
    rigid = method.Execute(fixed, moving)
    if not affine:
        return rigid
    centred = sitk.CenteredTransformInitializerFilter
    rest = sitk.CenteredTransformInitializer(fixed, moving, sitk.AffineTransform(3), centred.GEOMETRY)
    rest.SetTranslation((0, 0, 0))
    method.SetOptimizerAsRegularStepGradientDescent(first_step_mm, 1e-3, 200)
    method.SetMovingInitialTransform(rigid)
    method.SetInitialTransform(rest, inPlace=False)
    return sitk.CompositeTransform([rigid, method.Execute(fixed, moving)])  # the last one is applied first


@dataclass(frozen=True)
class Fit:
    """How well two scans on one grid fit.

    Attributes:
        overlap: share of the smaller body that lies in the other.
        information: normalised mutual information of the two (Studholme 1999), from 1 (none) to 2
            (all).
        better_mm: length of the shift that would improve the fit most; 0 if none does.
        better_deg: angle of the rotation that would improve the fit most; 0 if none does.
    """

    overlap: float
    information: float
    better_mm: float = 0.0
    better_deg: float = 0.0


def measure_fit(fixed: Volume, moving: Volume) -> Fit:
    """Measure the mutual information of two scans, and whether moving one would raise it.

    The tested motions are shifts of ``SHIFT_MM`` and twice that along each axis, and rotations by
    ``TURN_DEG`` and twice that about each axis through the middle of the bodies; errors of more
    than half a step are therefore detected. The contrasts may be any, because only mutual
    information values of the same pair are compared.
    """
    from skimage.measure import block_reduce
    from skimage.metrics import normalized_mutual_information

    cell = tuple(max(1, round(COARSE_MM / spacing)) for spacing in fixed.spacing_mm[::-1])
    spacing = np.array(fixed.spacing_mm[::-1]) * cell
    images = [block_reduce(volume.voxels, cell, np.mean) for volume in (fixed, moving)]
    bodies = [foreground_mask(image.transpose(2, 1, 0)).transpose(2, 1, 0) for image in images]
    smaller = min(int(body.sum()) for body in bodies)
    either = bodies[0] | bodies[1]
    if not smaller:
        return Fit(0.0, 1.0)
    levels = [np.clip(image, *np.percentile(image[either], (0.5, 99.5))) for image in images]

    def information(one: NDArray, other: NDArray, mask: NDArray[np.bool_]) -> float:
        return float(normalized_mutual_information(one[mask], other[mask], bins=32))

    gains = {(0.0, 0.0): 0.0}  # (mm, degrees) -> gain in mutual information

    def note(place: tuple[float, float], gain: float) -> None:
        gains[place] = max(gain, gains.get(place, 0.0))

    for axis, step in _steps(spacing, either.shape):
        near, far = ([slice(None)] * 3 for _ in range(2))
        near[axis], far[axis] = slice(abs(step), None), slice(None, -abs(step))
        here, there = (tuple(near), tuple(far)) if step > 0 else (tuple(far), tuple(near))
        part, mask = (
            levels[0][here],
            either[here],
        )  # the same voxels of one image, so that the two values are comparable
        if mask.any():
            gain = information(part, levels[1][there], mask) - information(part, levels[1][here], mask)
            note((abs(step) * float(spacing[axis]), 0.0), gain)
    centre = np.argwhere(either).mean(axis=0)
    for axis, degrees in itertools.product(range(3), (TURN_DEG, 2 * TURN_DEG)):
        # each image by half of the angle, in both directions: all are interpolated alike, which
        # affects the information
        ways = [
            [_turned(level, axis, half, centre, spacing) for level in levels] for half in (degrees / 2, -degrees / 2)
        ]
        mask = np.isfinite(ways).all(axis=(0, 1)) & either
        if mask.sum() < SEEN * either.sum():
            continue
        for (one, same), (_, turned) in (ways, ways[::-1]):
            note((0.0, degrees), information(one, turned, mask) - information(one, same, mask))
    overlap = int((bodies[0] & bodies[1]).sum()) / smaller
    better_mm, better_deg = max(gains, key=lambda place: gains[place])
    return Fit(overlap, information(levels[0], levels[1], either), better_mm, better_deg)


def _turned(
    image: NDArray[Any], axis: int, degrees: float, centre: NDArray[np.float64], spacing: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Rotate ``image`` (z, y, x) about an axis through the cell ``centre``.

    NaN comes from outside.
    """
    from scipy.ndimage import affine_transform

    a, b = (k for k in range(3) if k != axis)
    turn = np.eye(3)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turn[np.ix_([a, b], [a, b])] = [[cosine, -sine], [sine, cosine]]
    matrix = turn * spacing / spacing[:, None]  # acts on indices, such that the angle holds in millimetres
    out: NDArray[np.float32] = affine_transform(
        image.astype(np.float32), matrix, centre - matrix @ centre, order=1, cval=np.nan
    )
    return out


def _steps(spacing: NDArray[np.float64], shape: tuple[int, ...]) -> Iterator[tuple[int, int]]:
    for axis in range(3):
        least = max(1, int(np.ceil(SHIFT_MM / spacing[axis] - 1e-6)))
        for step in (least, 2 * least):
            if shape[axis] > 2 * step:
                yield from ((axis, step), (axis, -step))


def pair_verdicts(fits: Sequence[Fit]) -> list[tuple[str, str]]:
    """Return a code and its reason for each pair of one cohort, ("", "") for pairs that fit.

    ``E_PAIR_APART``: the bodies hardly overlap. ``E_PAIR_SHIFTED``, ``E_PAIR_TURNED``: the scans
    would fit better after a motion. ``E_PAIR_UNLIKE``: they share far less information than the
    other pairs, like scans of two people.
    """
    shared = np.array([one.information for one in fits])
    centre = float(np.median(shared)) if fits else 0.0
    spread = 1.4826 * float(np.median(np.abs(shared - centre))) if fits else 0.0

    def one(pair: Fit) -> tuple[str, str]:
        if pair.overlap < OVERLAP:
            return Code.E_PAIR_APART, f"only {pair.overlap:.0%} of the smaller body lies in the other"
        if pair.better_mm:
            return Code.E_PAIR_SHIFTED, f"the scans fit better after a shift by {pair.better_mm:.0f} mm"
        if pair.better_deg:
            return Code.E_PAIR_TURNED, f"the scans fit better after a turn by {pair.better_deg:.0f} degrees"
        less = min(centre - OUTLIER * max(spread, 1e-3), 1 + STRANGERS * (centre - 1))
        if len(fits) >= COHORT and pair.information < less:
            what = f"{pair.information:.3f} of shared information, {centre:.3f} in the others"
            return Code.E_PAIR_UNLIKE, f"the scans look like two bodies: {what}"
        return "", ""

    return [one(pair) for pair in fits]
