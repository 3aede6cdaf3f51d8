"""Simulated subjects: files that ingest takes, the same again, the truth beside them."""

import json
from pathlib import Path

import numpy as np
import pytest

from medstyle import DOMAINS, read_volume
from medstyle.errors import ParamsError, UserError
from medstyle.phantom.simulated import draw_subject, write_heads
from medstyle.phantom.studies import PhantomParams
from tests.conftest import SHARED

SCANS = ("mr_t1", "ct", "brain", "brain@2")


def params(folder, **changes):
    settings = {"subjects": 2, "labels": str(folder), "domains": SCANS, "matrix": 40, "slices": 16,
                "spacing_mm": (6.0, 6.0, 10.0)}  # fmt: skip
    return PhantomParams(**(settings | changes))


def test_files_are_functions_of_seed_and_number(labels_folder, tmp_path):
    for out in ("one", "two"):
        write_heads(tmp_path / out, params(labels_folder))
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(files) == 2 * (len(SCANS) + 4)
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)
    _, other = draw_subject(params(labels_folder, seed=1), 0)
    assert not np.array_equal(
        other["mr_t1"].voxels, read_volume(tmp_path / "one/sub-0000/mr_t1.nii.gz", "mr_t1").voxels
    )


def test_another_list_of_domains_draws_the_same_head(labels_folder):
    head, scans = draw_subject(params(labels_folder), 1)
    fewer, alone = draw_subject(params(labels_folder, domains=("mr_t1",)), 1)
    assert np.array_equal(head.tissues, fewer.tissues)
    assert np.array_equal(scans["mr_t1"].voxels, alone["mr_t1"].voxels)


def test_all_scans_share_a_grid_and_keep_their_ranges(labels_folder, tmp_path):
    write_heads(tmp_path / "raw", params(labels_folder))
    for subject in ("sub-0000", "sub-0001"):
        scans = [read_volume(tmp_path / "raw" / subject / f"{d}.nii.gz", d) for d in SCANS]
        assert all(np.allclose(scan.affine, scans[0].affine, atol=1e-4) for scan in scans)
        for scan in scans:
            low, high = DOMAINS[scan.domain].range
            assert low <= scan.voxels.min()
            assert scan.voxels.max() <= high
            assert np.array_equal(scan.voxels, np.rint(scan.voxels))
        truth = tmp_path / "raw/truth" / subject
        assert read_volume(truth / "labels.nii.gz", "mr_t1").voxels.shape == scans[0].voxels.shape
        facts = json.loads((truth / "subject.json").read_text())
        assert facts["lesions"] is not None
        assert read_volume(truth / "labels.nii.gz", "mr_t1").voxels.max() < len(facts["labels"]) < 256


def test_wrong_parameters_are_named(labels_folder, tmp_path):
    with pytest.raises(ParamsError, match="domains: expected different ones of"):
        params(labels_folder, domains=("photo",))
    with pytest.raises(ParamsError, match="domains: expected different ones of"):
        PhantomParams(domains=("brain",))  # the MNI152 phantom has fixed contrasts alone
    with pytest.raises(UserError, match="holds no label map"):
        write_heads(tmp_path, params(tmp_path / "nowhere"))


@pytest.mark.skipif(not (SHARED / "data/head_labels").is_dir(), reason="the real label maps are not here")
def test_the_real_maps_give_heads_with_all_tissues():
    settings = params(Path(SHARED / "data/head_labels"), matrix=64, slices=50, spacing_mm=(4.0, 4.0, 4.0))
    head, scans = draw_subject(settings, 3)
    for name in ("gm", "wm", "csf", "bone", "fat", "muscle"):
        assert head.share(name).max() > 0.9, name
    assert scans["ct"].voxels.max() > 700, "there is bone"
