"""Heads from label maps: the same again, both sides true, tissues at their places."""

from dataclasses import replace

import numpy as np
import pytest

from medstyle.errors import DataError
from medstyle.phantom.heads import INDEX, PAIRS, TISSUES, draw_head, flipped, label_files, label_map, load_labels
from tests.phantom.conftest import SPACING, toy_labels

SHAPE, GRID = (24, 60, 56), (4.0, 4.0, 7.0)


def head(seed=0):
    return draw_head(np.random.default_rng(seed), label_map(toy_labels(), SPACING), SHAPE, GRID)


def test_a_head_is_a_function_of_the_generator():
    one, other, third = head(), head(), head(1)
    for name in ("tissues", "labels", "water", "lesions", "inside", "affine"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name
    assert not np.array_equal(one.labels, third.labels)


def test_a_flip_exchanges_the_labels_of_the_sides():
    """The left cortex is still on the left: mirrored voxels alone would put it on the right."""
    there = label_map(toy_labels(), SPACING)
    back = flipped(there)
    middle = there.labels.shape[2] / 2
    for one in (there, back):
        assert np.argwhere(one.labels == 2)[:, 2].mean() > middle > np.argwhere(one.labels == 41)[:, 2].mean()
    for left, right in PAIRS:
        assert (back.labels == left).sum() == (there.labels == right).sum()
    again = flipped(back)
    assert np.array_equal(again.labels, there.labels)
    assert np.array_equal(again.tissues, there.tissues)
    assert np.allclose(again.brain_mm, there.brain_mm)


def test_partial_volume_lies_between_the_tissues_of_a_voxel():
    one = head()
    table = np.random.default_rng(3).uniform(0, 100, len(TISSUES))
    values, own = one.mean(table), table[one.tissues]
    assert (values >= own.min(0) - 1e-3).all()
    assert (values <= own.max(0) + 1e-3).all()
    mixed = (own.min(0) < own.max(0)).mean()
    assert 0.1 < mixed < 0.9, "some voxels hold several tissues, others one"
    shares = sum(one.share(name) for name in TISSUES)
    assert np.allclose(shares, 1, atol=1e-5)


def test_scale_and_shift_stay_in_their_ranges_and_nothing_folds():
    """The volume of the brain is that of the map times at most 1.2 cubed, at least 0.8 cubed."""
    own = np.isin(toy_labels(), (2, 41, 3, 42)).sum() * SPACING.prod()
    for seed in range(5):
        one = draw_head(np.random.default_rng(seed), label_map(toy_labels(), SPACING), (60, 60, 60), (4.0, 4.0, 4.0))
        volume = np.isin(one.labels, (2, 41, 3, 42)).sum() * 64.0
        assert 0.8**3 * 0.85 < volume / own < 1.2**3 * 1.15


def test_fat_and_skin_are_set_apart_and_white_matter_has_layers():
    tissues = label_map(toy_labels(), SPACING).tissues
    for name in ("skin", "fat", "wm", "wm_middle", "wm_deep", "gm", "csf", "bone"):
        assert (tissues == INDEX[name]).any(), name


def test_lesions_lie_in_the_brain():
    found = [one for one in map(head, range(12)) if len(one.lesion_kinds)]
    assert found
    assert len(found) < 12, "a third of the heads have none"
    for one in found:
        brain = one.share("gm", "wm", "wm_middle", "wm_deep")
        assert (one.lesions <= brain + 1e-5).all()
    assert np.median([one.lesions.max() for one in found]) > 0.3, "only the smallest do not fill a voxel"
    assert not np.array_equal(replace(found[0], lesions=found[0].lesions[:0]).lesions, found[0].lesions)


def test_errors_name_the_file_and_the_remedy(tmp_path):
    with pytest.raises(DataError, match=r"holds no label map .*acquire\.labels"):
        label_files(tmp_path)
    (tmp_path / "seg.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"seg\.nii\.gz: cannot be read .*remove it"):
        load_labels(tmp_path / "seg.nii.gz")
    with pytest.raises(DataError, match="no cerebral white matter"):
        label_map(np.ones((4, 4, 4)), SPACING)
