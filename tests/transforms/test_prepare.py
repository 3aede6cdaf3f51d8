import itertools
from dataclasses import replace

import numpy as np
import pytest

from medstyle.errors import Refusal, UserError
from medstyle.imaging.modality import Fingerprint
from medstyle.imaging.picture import from_unit
from medstyle.imaging.volume import Volume
from medstyle.transforms.prepare import LPS_TO_RAS, Preparation, axial, picture_slices, prepare
from tests.conftest import affine

RAW = Preparation(denoise="none", bias_field=False)


def ramp(matrix):
    """Values that are a linear function of the patient position, so that any resampling must keep
    them."""
    z, y, x = np.mgrid[:12, :20, :16].astype(np.float64)
    points = np.stack([x, y, z, np.ones_like(x)], -1) @ matrix.T
    return Volume((points[..., :3] @ [1.0, 2.0, 0.5]).astype(np.float32), matrix, "mr_t1")


ORIENTATIONS = list(itertools.product((0, 90, 180), (0, 90), (0, 10)))


@pytest.mark.parametrize("degrees", ORIENTATIONS)
def test_every_orientation_returns_to_its_own_grid(degrees):
    volume = ramp(affine((1.0, 1.5, 3.0), degrees))
    prepared = prepare(volume, RAW)
    grid = np.asarray(axial(volume, RAW)[0][0])
    np.testing.assert_array_equal(prepared.to_source_grid(grid.transpose(2, 1, 0)), volume.voxels)


@pytest.mark.parametrize("degrees", ORIENTATIONS)
def test_slices_are_axial_and_go_up(degrees):
    """Column, row and slice of the prepared grid point to left, posterior and superior (LPS)."""
    prepared = prepare(ramp(affine((1.0, 1.5, 3.0), degrees)), RAW)
    axes = LPS_TO_RAS @ np.asarray(prepared._grid.affine)
    assert np.abs(axes[:3, :3]).argmax(axis=0).tolist() == [0, 1, 2]
    assert (np.diag(axes)[:3] > 0).all()


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (2.5, 0.8)])
def test_resampling_keeps_positions_both_ways(spacing):
    matrix = affine((1.2, 1.3, 3.0), (5, -8, 12))
    volume = ramp(matrix)
    settings = Preparation(denoise="none", bias_field=False, spacing_mm=spacing)
    prepared, grid = prepare(volume, settings), np.asarray(axial(volume, settings)[0][0])
    spacings = np.linalg.norm(np.asarray(prepared._grid.affine)[:3, :3], axis=0)
    np.testing.assert_allclose(spacings, (*spacing, 3.0), rtol=1e-3)
    point = np.array([3, 4, 5])
    position = LPS_TO_RAS @ np.asarray(prepared._grid.affine) @ [*point, 1]
    assert grid[tuple(point)] == pytest.approx(position[:3] @ [1.0, 2.0, 0.5], abs=1e-3)
    back = prepared.to_source_grid(grid.transpose(2, 1, 0))
    np.testing.assert_allclose(back[:, 4:-4, 4:-4], volume.voxels[:, 4:-4, 4:-4], atol=1e-3)


@pytest.mark.parametrize("settings", [RAW, Preparation(bias_field=False), Preparation(denoise="median")], ids=str)
def test_the_scan_itself_is_left_alone(settings, rng):
    volume = head(rng, sigma=25)[0]
    before = volume.voxels.copy()
    prepared = prepare(volume, settings)
    prepared.restore(prepared.slices, "mr_t1", prepared.fingerprint)
    prepared.to_source_grid(prepared.slices[:, 0].numpy())
    np.testing.assert_array_equal(volume.voxels, before)


def test_a_sheared_volume_keeps_its_grid(rng):
    tilted = affine((1.0, 1.0, 3.0), (0, 0, 0))
    tilted[1, 2] = 0.8
    volume = Volume(rng.normal(100, 9, (6, 16, 16)).astype(np.float32), tilted, "ct")
    prepared = prepare(volume, RAW)
    restored = prepared.restore(prepared.slices, "ct", prepared.fingerprint)
    np.testing.assert_array_equal(restored.affine, tilted)
    assert restored.voxels.shape == volume.voxels.shape


def head(rng, sigma=0.0):
    _, y, x = np.mgrid[-1:1:10j, -1:1:64j, -1:1:64j]
    body = (x / 0.7) ** 2 + (y / 0.8) ** 2 < 1
    clean = 400.0 * body + 200.0 * ((x / 0.3) ** 2 + (y / 0.3) ** 2 < 1)
    noisy = np.hypot(clean + rng.normal(0, sigma, clean.shape), rng.normal(0, sigma, clean.shape)) if sigma else clean
    return Volume(noisy.astype(np.float32), affine((3.0, 3.0, 5.0), (0, 0, 0)), "mr_t1"), clean, body


def test_restore_writes_units_inside_and_air_outside(rng):
    volume, clean, body = head(rng)
    prepared = prepare(volume, RAW)
    assert (prepared.foreground == body).mean() > 0.995
    made = prepared.restore(prepared.slices, "mr_t1", prepared.fingerprint)
    np.testing.assert_allclose(made.voxels[body], clean[body], atol=1e-2)
    flat = prepared.restore(prepared.slices * 0 + 1, "ct", Fingerprint((-1024, 3071)))
    assert flat.voxels[0, 0, 0] == -1024
    assert flat.voxels[5, 32, 32] == 3071


def test_a_ct_window_is_the_same_for_every_scan_and_touches_no_mr(rng):
    window = Preparation(ct_window=(-200, 300))
    soft = rng.uniform(-190, 290, (4, 32, 32)).astype(np.float32)
    soft[:, :4], matrix = -1024, affine((1.0, 1.0, 3.0), (0, 0, 0))
    for values in (soft, np.where(soft > -200, soft / 2, soft)):
        volume = Volume(values, matrix, "ct")
        prepared = prepare(volume, window)
        assert prepared.fingerprint == Fingerprint((-200.0, 300.0))
        body = np.asarray(prepared.restore(prepared.slices, "ct", prepared.fingerprint).voxels)[:, 10:-4, 4:-4]
        np.testing.assert_allclose(body, values[:, 10:-4, 4:-4], atol=0.01)
    mr = Volume(soft + 1100, matrix, "mr_t1")
    assert prepare(mr, replace(RAW, ct_window=(-200, 300))).fingerprint == prepare(mr, RAW).fingerprint
    with pytest.raises(UserError, match="must rise"):
        Preparation(ct_window=(300, -200))


@pytest.mark.parametrize(
    "places", [(-1.0, 1.0), (0.0,) * 11, tuple(np.linspace(1, -1, 11))], ids=["2", "flat", "falls"]
)
def test_landmarks_that_are_no_rising_map_are_refused(places):
    with pytest.raises(UserError, match=r"landmarks\.mr_t1: must be 11 rising numbers"):
        Preparation(normalisation="nyul", landmarks={"mr_t1": places})


@pytest.mark.parametrize("axis", [1, 2])
def test_a_single_slice_that_is_not_axial_is_refused(axis):
    shape = [12, 20, 24]
    shape[axis] = 1
    volume = Volume(np.random.default_rng(0).uniform(1, 9, shape).astype(np.float32), np.eye(4), "mr_t1")
    with pytest.raises(Refusal, match="E_SHAPE"):
        prepare(volume, Preparation())


# Pictures


@pytest.mark.parametrize("method", ["none", "nlm", "tv", "median"])
def test_pictures_lose_noise_and_little_else(method, rng):
    """Noise falls by a third at least; without noise nothing moves.

    8 and 16 bits are the same picture.
    """
    y, x = np.mgrid[-1:1:48j, -1:1:64j]
    clean = np.stack([128 + 90 * np.sin(3 * x), 128 + 90 * np.cos(2 * y), 100 + 80 * (x**2 + y**2 < 0.4)], -1)
    noisy = clean + rng.normal(0, 12, clean.shape)
    settings = Preparation(pictures=method)

    def prepared(values, dtype=np.uint16):
        pixels = from_unit(values / 255, dtype)
        return (255 * (1 + picture_slices(pixels, "photo", settings)[0].numpy().transpose(1, 2, 0)) / 2).astype(float)

    errors = [np.abs(values - clean).mean() for values in (noisy, prepared(noisy))]
    assert errors[1] == pytest.approx(errors[0], rel=1e-3) if method == "none" else errors[1] < 0.67 * errors[0]
    np.testing.assert_allclose(prepared(noisy, np.uint8), prepared(noisy), atol=4)
    np.testing.assert_allclose(prepared(np.full((48, 64, 3), 77.0)), 77, atol=0.01)
    assert np.abs(prepared(clean) - clean).mean() < 1


def test_a_known_scale_takes_the_place_of_percentiles():
    """A brighter spot moves percentiles, not a known scale; other domains stay as they were."""
    known = replace(RAW, scales={"mr_t1": (0.0, 2000.0)})
    z, y, x = np.mgrid[-1:1:12j, -1:1:40j, -1:1:40j]
    voxels = (800.0 * (x**2 + y**2 + z**2 < 0.8)).astype(np.float32)
    bright = voxels + 1000.0 * ((x**2 + y**2 < 0.1) & (voxels > 0))
    for values in (voxels, bright.astype(np.float32)):
        prepared = prepare(Volume(values, affine((2.0, 2.0, 3.0), (0, 0, 0)), "mr_t1"), known)
        assert prepared.fingerprint == Fingerprint((0.0, 2000.0))
        np.testing.assert_allclose(prepared.slices[6, 0, 20, 8], -0.2, atol=1e-5)
    other = prepare(Volume(voxels, affine((2.0, 2.0, 3.0), (0, 0, 0)), "mr_t2"), known)
    assert other.fingerprint != Fingerprint((0.0, 2000.0))
    with pytest.raises(UserError, match=r"scales\.mr_t1: must rise"):
        replace(RAW, scales={"mr_t1": (1.0, 1.0)})


def test_detail_of_a_finer_source_returns_with_its_sign():
    """The output is the negative of the source at half its resolution; fine stripes come back."""
    _, y, x = np.mgrid[:6, :64, :64].astype(np.float32)
    inside = ((x - 32) ** 2 + (y - 32) ** 2 < 26**2).astype(np.float32)
    coarse = 500 + 150 * np.sin(x / 6) * np.cos(y / 5)
    values = (coarse + 40 * (x % 4 < 2)) * inside
    volume = Volume(values, affine((1.0, 1.0, 3.0), (0, 0, 0)), "mr_t1")
    core = (x - 32) ** 2 + (y - 32) ** 2 < 18**2
    wanted = volume.with_voxels(1000 - values)
    errors = {}
    for detail in (False, True):
        prepared = prepare(volume, replace(RAW, spacing_mm=(2.0, 2.0), detail=detail))
        low, high = prepared.fingerprint.values
        made = prepared.restore(-prepared.slices, "mr_t2", Fingerprint((1000 - high, 1000 - low)))
        errors[detail] = np.abs(made.voxels - wanted.voxels)[core].mean()
    assert errors[True] < 0.8 * errors[False]
    same = [prepare(volume, replace(RAW, detail=detail)) for detail in (False, True)]
    made = [one.restore(one.slices, "mr_t2", one.fingerprint).voxels for one in same]
    assert np.array_equal(*made), "on the scan's own grid there is nothing to add"
