"""Bring the scans of one subject onto one grid."""

from __future__ import annotations

import numpy as np

from medstyle.imaging.volume import Volume


def onto_grid(moving: Volume, fixed: Volume, rigid: bool = False, nearest: bool = False) -> Volume:
    """Resample ``moving`` onto the grid of ``fixed``, linearly, or by ``nearest`` neighbour for labels.

    Positions agree by the headers; with ``rigid`` a rotation and translation that maximise Mattes mutual information
    (Mattes 2003) correct what the headers do not know. Nothing is done where the grids are equal and ``rigid`` is off.
    """
    import SimpleITK as sitk

    same_grid = moving.voxels.shape == fixed.voxels.shape and np.allclose(moving.affine, fixed.affine, atol=1e-3)
    if same_grid and not rigid:
        return moving
    fixed_image, moving_image = fixed.to_image(), moving.to_image()
    transform: sitk.Transform = sitk.Transform(3, sitk.sitkIdentity)
    if rigid:
        start = sitk.CenteredTransformInitializer(
            fixed_image, moving_image, sitk.Euler3DTransform(), sitk.CenteredTransformInitializerFilter.GEOMETRY
        )
        start.SetTranslation((0, 0, 0))  # headers are right to a few millimetres; the field of view may differ
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(0.1, seed=1)  # points are moved at random, by the clock unless seeded
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        method.SetNumberOfThreads(1)  # same bits on every machine
        method.SetInitialTransform(start, inPlace=False)
        transform = method.Execute(fixed_image, moving_image)
    how = sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear
    out = sitk.Resample(moving_image, fixed_image, transform, how, float(moving.voxels.min()))
    return fixed.with_voxels(sitk.GetArrayFromImage(out), moving.domain)
