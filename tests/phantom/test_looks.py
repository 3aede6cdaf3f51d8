"""Scans of known contrast: what they are called is what their tissues show."""

import numpy as np
import pytest

from medstyle.phantom.contrasts import PROTOCOLS
from medstyle.phantom.heads import label_map
from medstyle.phantom.looks import CONTRASTS, contrast_of_levels, draw_object, draw_scans
from medstyle.phantom.studies import TISSUE_VALUES
from tests.phantom.conftest import SPACING, toy_labels


def scans(seed=0):
    return list(draw_scans(np.random.default_rng(seed), label_map(toy_labels(), SPACING)))


@pytest.mark.parametrize("domain", PROTOCOLS)
def test_the_usual_protocols_have_the_contrasts_of_their_names(domain):
    t1, t2, pd = (np.array([TISSUE_VALUES[name][k] for name in ("gm", "wm", "csf")]) for k in (1, 2, 3))
    assert contrast_of_levels(*PROTOCOLS[domain].signal(t1, t2, pd)) == domain


def test_levels_in_no_usual_order_have_no_name():
    assert contrast_of_levels(gm=1, wm=1, csf=1) == ""
    assert contrast_of_levels(gm=0.5, wm=1, csf=2) == ""


def test_a_head_is_scanned_once_in_each_contrast_and_in_a_free_one():
    found = scans()
    assert [contrast for contrast, _ in found] == [*CONTRASTS, ""]
    assert all(np.isfinite(volume.voxels).all() and np.ptp(volume.voxels) > 0 for _, volume in found)
    assert all(np.array_equal(a.voxels, b.voxels) for (_, a), (_, b) in zip(found, scans(), strict=True))


def test_objects_differ_and_show_something():
    head = scans()[0][1]
    found = [draw_object(np.random.default_rng(seed), head) for seed in range(30)]
    assert all(np.isfinite(one.voxels).all() and one.voxels.std() > 0 for one in found)
    assert len({one.voxels.shape for one in found}) > 20
