"""A real scan beside a synthetic one: where both are the same, there is no difference."""

from __future__ import annotations

import numpy as np
import pytest

from medstyle import Volume
from medstyle.cohort.inventory import inventory
from medstyle.errors import DataError
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import write_volume
from medstyle.networks.translator import Translator
from medstyle.studio.compare import differ, frames_of, real_scan, within
from tests.conftest import Run
from tests.inference.conftest import head, make_translator


@pytest.fixture(scope="module")
def translator() -> Translator:
    return make_translator()


@pytest.fixture(scope="module")
def real() -> Volume:
    return head("mr_t2")


def as_the_model_would(real: Volume, translator: Translator) -> Volume:
    """Return the synthetic image of a perfect model: the real scan in the model's grey levels, and
    air outside the body."""
    found = differ(real, real.with_voxels(np.zeros_like(real.voxels) + 1), translator)
    return real.with_voxels(np.where(found.body, found.volume.voxels + 1, 0))


@pytest.mark.parametrize("scale", [1.0, 7.5])
def test_the_difference_to_a_perfect_image_is_nothing_in_whatever_grey_levels_the_scan_is(translator, real, scale):
    perfect = as_the_model_would(real, translator)
    body = perfect.voxels > 0
    assert np.ptp(perfect.voxels[body]) > 0.8 * np.ptp(translator.config.fingerprints["mr_t2"].values)
    found = differ(real.with_voxels(real.voxels * scale), perfect, translator)
    assert np.abs(found.volume.voxels[body]).max() < 1
    assert found.covered == 1


def test_the_sign_tells_which_is_brighter_and_only_where_they_differ(translator, real):
    perfect = as_the_model_would(real, translator)
    voxels = perfect.voxels.copy()
    voxels[5, 22:26, 18:22] += 200
    apart = differ(real, perfect.with_voxels(voxels), translator).volume.voxels
    assert apart[5, 22:26, 18:22] == pytest.approx(-200, abs=1)
    apart[5, 22:26, 18:22] = 0
    assert np.abs(apart).max() < 1


def test_a_scan_on_another_grid_is_resampled_by_positions(translator, real):
    perfect = as_the_model_would(real, translator)
    finer = np.diag([0.5, 0.5, 1, 1])
    doubled = Volume(real.voxels.repeat(2, 1).repeat(2, 2), real.affine @ finer, "mr_t2")
    doubled.affine[:3, 3] -= 0.25 * (real.affine[:3, 0] + real.affine[:3, 1])
    found = differ(doubled, perfect, translator)
    moved = real.affine.copy()
    moved[0, 3] += 8
    shifted = differ(Volume(real.voxels, moved, "mr_t2"), perfect, translator)
    assert found.volume.voxels.shape == perfect.voxels.shape
    assert np.abs(found.volume.voxels).mean() < np.abs(shifted.volume.voxels).mean() / 3


def test_half_a_scan_covers_half_and_is_compared_there_alone(translator, real):
    perfect = as_the_model_would(real, translator)
    found = differ(Volume(real.voxels[:5], real.affine, "mr_t2"), perfect, translator)
    assert found.covered == pytest.approx(0.5, abs=0.05)
    assert not found.body[5:].any()
    assert not found.volume.voxels[5:].any()


def test_a_scan_of_another_place_is_refused(translator, real):
    away = real.affine.copy()
    away[0, 3] += 1000
    with pytest.raises(DataError, match="another place"):
        differ(Volume(real.voxels, away, "mr_t2"), as_the_model_would(real, translator), translator)


def test_within_counts_whole_voxels(real):
    assert within(real, real).all()
    inner = Volume(real.voxels[2:-3, 4:-5, 6:-7], real.affine.copy(), "mr_t2")
    inner.affine[:3, 3] = (real.affine @ [6, 4, 2, 1])[:3]
    expected = np.zeros(real.voxels.shape, bool)
    expected[2:-3, 4:-5, 6:-7] = True
    assert (within(real, inner) == expected).all()


def test_the_real_scan_is_found_by_the_rules_or_is_the_only_one(run: Run, translator, real, tmp_path):
    assert DOMAINS["mr_t2"].label == "T2"
    assert "T2" in real_scan(run.study, translator, "mr_t2").attributes["SeriesDescription"]
    (tmp_path / "a").mkdir()
    write_volume(tmp_path / "a/scan.nii.gz", real)
    assert real_scan(tmp_path / "a", translator, "mr_t2").path.name == "scan.nii.gz"
    write_volume(tmp_path / "a/other.nii.gz", real)
    with pytest.raises(DataError, match="found 0 among 2 scans"):
        real_scan(tmp_path / "a", translator, "mr_t2")
    (tmp_path / "b").mkdir()
    write_volume(tmp_path / "b/mr_t1.nii.gz", real)
    with pytest.raises(DataError, match="found 0 among 1 scans"):
        real_scan(tmp_path / "b", translator, "mr_t2")


def test_frames_of_reference_are_compared_where_there_are_any(run: Run, real, tmp_path):
    one, other = (run.study.with_name(f"PHANTOM-000{n}") for n in (0, 1))
    a, b, *_ = [item for item in inventory([one]).volumes if item.usable]
    [c, *_] = [item for item in inventory([other]).volumes if item.usable]
    assert (frames_of(a, b), frames_of(a, c)) == ("same", "other")
    write_volume(tmp_path / "a.nii.gz", real)
    [file] = inventory([tmp_path]).volumes
    assert (frames_of(a, file), frames_of(None, a)) == ("unknown", "unknown")
