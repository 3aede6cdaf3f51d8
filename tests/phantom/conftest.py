"""A head of ellipsoids as a label map: nothing here needs the real maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

SPACING = np.array([3.0, 3.0, 3.0])


def toy_labels() -> NDArray[np.int16]:
    """Return ``(D, H, W)``, LPS: scalp, bone, fluid, cortex and white matter of two sides."""
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in (60, 70, 58))
    reach = np.sqrt((z[:, None, None] / 26) ** 2 + (y[None, :, None] / 31) ** 2 + (x[None, None] / 25) ** 2)
    labels = np.zeros(reach.shape, np.int16)
    left = np.broadcast_to(x[None, None] > 0, reach.shape)  # LPS: larger x is the patient's left
    for outer, one, other in ((1.0, 511, 511), (0.88, 515, 515), (0.8, 24, 24), (0.74, 3, 42), (0.62, 2, 41)):
        inside = reach < outer
        labels[inside] = np.where(left[inside], one, other)
    fluid = (np.abs(z)[:, None, None] < 6) & (np.abs(y)[None, :, None] < 9)
    labels[fluid & (np.abs(x + 5)[None, None] < 3)] = 43
    labels[fluid & (np.abs(x - 5)[None, None] < 3)] = 4
    return labels


def write_labels(folder: Path) -> Path:
    """Write the toy head as ``folder/seg_01.nii.gz``; return the folder."""
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(toy_labels())
    image.SetSpacing(SPACING.tolist())
    sitk.WriteImage(image, str(folder / "seg_01.nii.gz"), useCompression=True)
    return folder


@pytest.fixture
def labels_folder(tmp_path: Path) -> Path:
    return write_labels(tmp_path / "labels")
