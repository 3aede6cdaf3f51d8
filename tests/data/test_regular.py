"""Gaps are filled and tilt is straightened: a linear image is reproduced exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medstyle.data.regular import read_with_gaps, straighten
from medstyle.dicom.read import read_series
from medstyle.dicom.scan import scan
from medstyle.errors import Refusal
from medstyle.imaging.volume import Volume
from tests.dicom.conftest import write_series


def ramp(affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Return a value that is linear in patient space, (D, H, W)."""
    k, j, i = np.indices(shape)
    world = affine @ np.stack([i, j, k, np.ones(shape)]).reshape(4, -1)
    return (np.array([3.0, -2.0, 5.0, 100.0]) @ world).reshape(shape)


def test_a_filled_gap_is_interpolated_and_counted(tmp_path: Path) -> None:
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    stored = np.rint(ramp(affine, (9, 4, 5))).astype(np.int16)
    write_series(tmp_path, stored, affine)
    for gone in ("003.dcm", "006.dcm"):
        (tmp_path / gone).unlink()
    (series,) = scan([tmp_path]).series
    with pytest.raises(Refusal, match="E_GAP"):
        read_series(series, "mr_t1")
    volume, made_up = read_with_gaps(series, "mr_t1")
    assert made_up == 2
    np.testing.assert_allclose(volume.affine, affine)
    np.testing.assert_allclose(volume.voxels, stored, atol=1e-4)


def test_a_sparse_stack_stays_refused(tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((20, 4, 5), np.int16))
    for gone in range(2, 18):
        (tmp_path / f"{gone:03d}.dcm").unlink()
    (series,) = scan([tmp_path]).series
    with pytest.raises(Refusal, match="only 4; split"):
        read_with_gaps(series, "mr_t1")


def test_a_regular_series_is_read_as_it_is(tmp_path: Path) -> None:
    write_series(tmp_path, np.ones((3, 4, 5), np.int16))
    (series,) = scan([tmp_path]).series
    volume, made_up = read_with_gaps(series, "mr_t1")
    assert made_up == 0
    assert (volume.voxels == 1).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_straightened_volume_shows_the_same_place(seed: int) -> None:
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = axes * rng.uniform(0.5, 3, 3)
    affine[:3, 2] += axes[:, :2] @ rng.uniform(-2, 2, 2)
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    shape = (6, 9, 8)
    volume = Volume(ramp(affine, shape).astype(np.float32), affine, "mr_t1")
    straight = straighten(volume)
    assert volume.is_sheared
    assert not straight.is_sheared
    inside = np.ones(shape, np.float32)
    weight = straighten(Volume(inside, affine, "mr_t1")).voxels
    expected = ramp(straight.affine, straight.voxels.shape)
    np.testing.assert_allclose(straight.voxels[weight > 0.999], expected[weight > 0.999], atol=1e-2)
    assert weight.sum() == pytest.approx(inside.sum(), rel=1e-4)  # nothing is cut
    straight.to_image()
