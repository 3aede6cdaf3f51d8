"""The cube of a scan: the same from any storage of a head, turned where the head is turned."""

import numpy as np
import pytest

from medstyle.imaging.volume import Volume
from medstyle.phantom.anatomy import smooth_noise
from medstyle.transforms.cube import SIDE, cube


@pytest.fixture
def body(rng):
    """Return lumps in an ellipsoid off the middle, 2 mm voxels, 144 mm long."""
    shape = (72, 84, 76)
    z, y, x = np.indices(shape)
    inside = ((z - 30) / 24) ** 2 + ((y - 45) / 33) ** 2 + ((x - 36) / 28) ** 2 < 1
    values = np.where(inside, 100 + 30 * smooth_noise(rng, shape, 6), 0).astype(np.float32)
    return Volume(values, np.diag([2.0, 2.0, 2.0, 1.0]), "mr_t1")


def near(one, other):
    return np.abs(one.astype(float) - other.astype(float)).sum() < 0.1 * other.sum()


def test_gain_and_level_do_not_show(body):
    assert np.abs(cube(body.with_voxels(7 * body.voxels - 1000)).astype(int) - cube(body)).max() <= 1


def test_the_order_of_storage_does_not_show_if_the_header_tells_it(body):
    """Sagittal slices from right to left, in a file whose affine says so."""
    stored = np.ascontiguousarray(body.voxels.transpose(2, 0, 1)[::-1])
    affine = np.zeros((4, 4))
    affine[:3, 2] = -2.0, 0, 0
    affine[:3, 1] = 0, 0, 2.0
    affine[:3, 0] = 0, 2.0, 0
    affine[:, 3] = 2.0 * (body.voxels.shape[2] - 1), 0, 0, 1
    assert np.abs(cube(Volume(stored, affine, "mr_t1")).astype(int) - cube(body)).max() <= 1


def test_a_head_that_lies_wrong_lies_wrong_in_the_cube(body):
    for axis in range(3):
        turned = body.with_voxels(np.ascontiguousarray(np.flip(body.voxels, axis)))
        assert near(cube(turned), np.flip(cube(body), axis))
        assert not near(cube(turned), cube(body))


def test_the_body_is_in_the_middle_at_its_size(body):
    at = np.argwhere(cube(body) > 30)
    assert np.abs(at.mean(0) - (SIDE - 1) / 2).max() < 0.5
    assert np.allclose(np.ptp(at, axis=0) * 3, (96, 132, 112), atol=7)


def test_finer_voxels_show_the_same(body):
    fine = np.repeat(np.repeat(np.repeat(body.voxels, 2, 0), 2, 1), 2, 2)
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = -0.5
    assert near(cube(Volume(fine, affine, "mr_t1")), cube(body))


def test_a_thin_slab_and_an_empty_image_have_no_cube(body):
    assert cube(Volume(body.voxels[:20], body.affine, "mr_t1")) is None
    assert cube(body.with_voxels(np.full_like(body.voxels, 5))) is None
