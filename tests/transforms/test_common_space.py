from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import affine_transform

from medstyle.phantom.studies import PhantomParams, acquire, draw_subject
from medstyle.transforms.common_space import CELL_MM, Stored, map_to_space, median_scan
from medstyle.transforms.prepare import Preparation, prepare

PHANTOM = PhantomParams(matrix=64, slices=24, spacing_mm=(3.6, 3.6, 6.0))
SPACING = (6.0, 3.6, 3.6)
# one person's head as another's: (z, y, x) scales and shears, then millimetres
PEOPLE = {
    "smaller": (np.diag([1.15, 1.2, 1.15]), (6, -15, 10)),
    "turned": (np.array([[1, 0.15, 0], [-0.15, 1, 0.1], [0, -0.1, 1]]), (0, 18, -10)),
    "larger": (np.diag([0.92, 0.85, 0.9]), (-8, 0, 15)),
}


@pytest.fixture(scope="module")
def slices():
    """Stored slices of one subject's T1 and T2."""
    subject = draw_subject(PHANTOM, 0)
    made = {d: prepare(acquire(PHANTOM, subject, d)[0], Preparation()) for d in ("mr_t1", "mr_t2")}
    assert made["mr_t1"].spacing_mm == pytest.approx(SPACING)
    return {domain: one.slices.numpy() for domain, one in made.items()}


def stored(folder, name, slices) -> Stored:
    np.save(folder / f"{name}.npy", slices.astype(np.float16))
    return Stored(folder / f"{name}.npy", SPACING)


@pytest.mark.parametrize("person", PEOPLE)
@pytest.mark.parametrize("domain", ["mr_t1", "mr_t2"])
def test_another_persons_head_is_brought_to_the_same_place(person, domain, slices, tmp_path):
    """A known affine map, of the other contrast too, is found again to within a cell, in a scan
    that ends earlier."""
    linear, shift = PEOPLE[person]
    mm, centre = np.diag(SPACING), (np.array(slices["mr_t1"][:, 0].shape) - 1) / 2
    matrix = np.linalg.inv(mm) @ linear @ mm  # voxels of the person to voxels of the space
    offset = centre - matrix @ centre + np.array(shift) / SPACING
    other = affine_transform(slices[domain][:, 0] + 1, matrix, offset, order=1)[:, None] - 1
    other[:4] = -1
    found = map_to_space(stored(tmp_path, "other", other), stored(tmp_path, "space", slices["mr_t1"]))
    assert found is not None
    body = np.argwhere(other[:, 0] > -0.9).T
    there = found[:3, :3] @ body + found[:3, 3:]
    wanted = mm @ (matrix @ body + offset[:, None])
    apart, before = (np.linalg.norm(places - wanted, axis=0) for places in (there, mm @ body))
    assert np.median(apart) < CELL_MM
    assert np.percentile(apart, 95) < 2 * CELL_MM
    assert np.median(before) > 2 * CELL_MM


def test_what_is_no_body_of_the_kind_joins_nothing(slices, tmp_path):
    empty = stored(tmp_path, "empty", np.full_like(slices["mr_t1"], -1))
    assert map_to_space(empty, stored(tmp_path, "space", slices["mr_t1"])) is None
    huge = replace(stored(tmp_path, "space", slices["mr_t1"]), spacing_mm=(18.0, 10.8, 10.8))
    assert map_to_space(huge, stored(tmp_path, "space", slices["mr_t1"])) is None


def test_the_space_is_that_of_the_median_body(slices, tmp_path):
    scans = [replace(stored(tmp_path, "x", slices["mr_t1"]), spacing_mm=(s, s, s)) for s in (3, 1, 2)]
    assert median_scan(scans).spacing_mm == (2, 2, 2)
