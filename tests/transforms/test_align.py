from dataclasses import replace

import numpy as np
import pytest

from medstyle.errors import Refusal
from medstyle.imaging.volume import Volume
from medstyle.phantom.studies import PhantomParams, acquire, draw_subject
from medstyle.transforms.align import COHORT, Fit, measure_fit, onto_grid, pair_verdicts
from tests.transforms.test_prepare import head

PHANTOM = PhantomParams(matrix=64, slices=24, spacing_mm=(3.6, 3.6, 6.0))


@pytest.fixture(scope="module")
def scans() -> list[tuple[Volume, Volume]]:
    """T1 and T2 of three subjects, noisy and shaded."""
    subjects = [draw_subject(PHANTOM, index) for index in range(3)]
    return [(acquire(PHANTOM, s, "mr_t1")[0], acquire(PHANTOM, s, "mr_t2")[0]) for s in subjects]


def moved(volume: Volume, by) -> Volume:
    """Return the volume with a header that places it elsewhere, by mm (x, y, z) or by a 4 x 4
    matrix."""
    matrix = np.asarray(by, float)
    if matrix.ndim == 1:
        matrix = np.block([[np.eye(3), matrix[:, None]], [np.zeros((1, 3)), 1]])
    return Volume(volume.voxels, matrix @ volume.affine, volume.domain)


def verdict(fixed: Volume, moving: Volume, how: str = "headers") -> str:
    ((code, reason),) = pair_verdicts([measure_fit(fixed, onto_grid(moving, fixed, how))])
    assert bool(code) == bool(reason)
    return code


def test_pairs_that_fit_are_left_alone(scans):
    for t1, t2 in scans:
        assert verdict(t1, t2) == ""
        assert verdict(t1, t1) == ""


# registration takes half a second: of one person here, of all where time does not matter
PEOPLE = pytest.mark.parametrize("people", [1, pytest.param(3, marks=pytest.mark.slow)])


@PEOPLE
@pytest.mark.parametrize("by", [(8, 0, 0), (-12, 0, 0), (0, 9, 0), (0, 0, 12), (7, 7, 0)], ids=str)
def test_a_pair_a_few_millimetres_apart_is_seen_and_mended_by_registration(scans, by, people):
    for t1, t2 in scans[:people]:
        assert verdict(t1, moved(t2, by)) == "E_PAIR_SHIFTED"
        assert verdict(t1, moved(t2, by), "rigid") == ""


def turn(volume: Volume, axis: int, degrees: float) -> np.ndarray:
    """Return the matrix of a rotation about the middle of ``volume``."""
    turned = np.eye(4)
    a, b = (k for k in range(3) if k != axis)
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    turned[np.ix_([a, b], [a, b])] = [[cosine, -sine], [sine, cosine]]
    middle = np.eye(4)
    middle[:3, 3] = (volume.affine @ [*(np.array(volume.voxels.shape[::-1]) - 1) / 2, 1])[:3]
    return middle @ turned @ np.linalg.inv(middle)


@PEOPLE
@pytest.mark.parametrize(("axis", "degrees"), [(0, 8), (1, -8), (2, 8), (2, -14)])
def test_a_turned_pair_is_seen_and_turned_back_by_registration(scans, axis, degrees, people):
    for t1, t2 in scans[:people]:
        turned = moved(t2, turn(t2, axis, degrees))
        assert verdict(t1, turned) == "E_PAIR_TURNED"
        back = onto_grid(turned, t1, "rigid")
        assert verdict(t1, back) == ""
        error = np.abs(back.voxels - t2.voxels).mean()
        assert error < 0.6 * np.abs(onto_grid(turned, t1).voxels - t2.voxels).mean()


def test_a_pair_is_judged_where_there_is_nothing_to_turn(scans):
    """In one slice, and where half of the bodies would leave the field of view."""
    t1, t2 = (Volume(v.voxels[12:13], v.affine, v.domain) for v in scans[0])
    assert verdict(t1, t2) == ""


def test_a_pair_without_common_place_is_seen_and_brought_together(scans):
    """As after another table position: positions of another frame of reference mean nothing
    here."""
    t1, t2 = scans[0]
    far = moved(t2, (400, -250, 300))
    assert verdict(t1, far) == "E_PAIR_APART"
    together = onto_grid(far, t1, "rigid")
    assert verdict(t1, together) == ""
    error = np.abs(together.voxels - t2.voxels).mean()
    assert error < 0.15 * np.abs(onto_grid(far, t1).voxels - t2.voxels).mean()


def test_affine_registration_finds_a_scale_that_rigid_cannot(scans):
    t1, t2 = scans[1]
    scale = np.diag([1.07, 1.07, 1.07, 1.0])  # as of another pixel size in the header
    errors = {
        how: float(np.abs(onto_grid(moved(t2, scale), t1, how).voxels - t2.voxels).mean())
        for how in ("headers", "rigid", "affine")
    }
    assert errors["affine"] < 0.6 * errors["rigid"]
    assert errors["affine"] < 0.6 * errors["headers"]


def test_scans_of_two_people_share_less(scans):
    own = [measure_fit(*pair).information for pair in scans]
    others = [
        measure_fit(scans[i][0], onto_grid(scans[j][1], scans[i][0], "rigid")).information
        for i, j in ((0, 1), (1, 2), (2, 0))
    ]
    assert max(others) < min(own)


def test_an_outlier_of_a_cohort_is_named(scans):
    usual = [Fit(0.98, 1.20 + 0.005 * (k % 4), 0.0) for k in range(COHORT)]
    odd = replace(usual[0], information=1.10)
    codes = [code for code, _ in pair_verdicts([*usual, odd])]
    assert codes == [""] * COHORT + ["E_PAIR_UNLIKE"]
    assert not any(code for code, _ in pair_verdicts([*usual[:3], odd]))  # too few to say
    alike = [Fit(0.98, 1.2, 0.0)] * COHORT  # copies of one: any other is an outlier, but no stranger
    assert not any(code for code, _ in pair_verdicts([*alike, replace(odd, information=1.18)]))
    assert pair_verdicts([]) == []


def test_what_cannot_be_brought_together_is_refused():
    empty = Volume(np.zeros((6, 12, 12), np.float32), np.diag([2.0, 2.0, 4.0, 1.0]), "mr_t1")
    with pytest.raises(Refusal, match="E_REGISTRATION"):
        onto_grid(moved(empty, (1000, 0, 0)), empty, "rigid")
    assert measure_fit(empty, empty) == Fit(0.0, 1.0, 0.0)


def test_registration_finds_a_known_shift(rng):
    from scipy.ndimage import gaussian_filter

    from medstyle.transforms.align import onto_grid

    volume, clean, _ = head(rng)
    blobs = gaussian_filter(rng.normal(0, 1, clean.shape), 3) * 3000 * (clean > 0)
    fixed = volume.with_voxels((gaussian_filter(clean, 1) + blobs).astype(np.float32))
    wrong = fixed.affine.copy()
    wrong[:3, 3] += [6.0, -4.5, 0.0]
    moving = Volume(fixed.voxels, wrong, "mr_t2")
    by_headers, rigid = onto_grid(moving, fixed), onto_grid(moving, fixed, "rigid")
    before, after = (float(np.abs(v.voxels - fixed.voxels).mean()) for v in (by_headers, rigid))
    assert after < 0.35 * before
    assert rigid.domain == "mr_t2"
    again = onto_grid(moving, fixed, "rigid").voxels  # seeded; ITK's threads may still round the last bit
    np.testing.assert_allclose(again, rigid.voxels, rtol=1e-5, atol=1e-6)
    assert onto_grid(fixed, fixed) is fixed
