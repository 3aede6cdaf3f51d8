"""What the jobs of the studio do with what was dropped."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from medstyle import Translator, Volume, read_volume, translate_volume, write_volume
from medstyle.errors import Refusal
from medstyle.networks.conformal import Interval
from medstyle.studio import shelf, work
from medstyle.studio.place import Place
from tests.inference.conftest import make_translator
from tests.project.conftest import head


@pytest.fixture
def nifti_head(tmp_path: Path) -> Path:
    path = tmp_path / "head.nii.gz"
    write_volume(path, Volume(head(0, 0), np.diag([2.0, 2.0, 2.5, 1.0]), "mr_t1"))
    return path


def packed(folder: Path, size: int) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(size))
    return folder


def test_what_all_sets_of_a_session_unpack_to_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "UNPACKED", 10 << 20)
    work.unpack(packed(tmp_path / "sets/one", 6 << 20))
    assert (tmp_path / "sets/one/a/zeros.dcm").stat().st_size == 6 << 20
    with pytest.raises(Refusal, match="unpacks to more than"):
        work.unpack(packed(tmp_path / "sets/two", 6 << 20))


def test_the_sharpness_of_the_page_is_that_of_the_command(nifti_head: Path, tmp_path: Path) -> None:
    translator = make_translator(refiner=4)
    for weight in translator.members[0].refiner.network.head.parameters():
        torch.nn.init.normal_(weight)
    translator.save(tmp_path / "model")
    assert shelf.model(str(tmp_path / "model"), "given")["sharpness"] == 1.0
    place = Place(tmp_path / "session", tmp_path / "out", str(tmp_path / "model"), lambda said: None)
    folder = place.dropped("one")
    folder.mkdir(parents=True)
    shutil.copy(nifti_head, folder / "mr_t1.nii.gz")
    made = {}
    for sharpness in (None, 1.0, 0.25):
        place.out = tmp_path / f"out-{sharpness}"
        place.out.mkdir()
        work.translate(place, {"set": "one", "sharpness": sharpness})
        [path] = place.out.glob("made/*.nii.gz")
        made[sharpness] = read_volume(path, "mr_t2").voxels
    expected = translate_volume(read_volume(nifti_head, "mr_t1"), Translator.load(tmp_path / "model").sharpened(0.25))
    np.testing.assert_array_equal(made[0.25], expected.image.voxels)
    np.testing.assert_array_equal(made[None], made[1.0])
    assert np.abs(made[0.25] - made[1.0]).max() > 1


@pytest.mark.parametrize("asked", [True, False])
def test_a_calibrated_model_offers_the_view_its_interval_too(nifti_head: Path, tmp_path: Path, asked: bool) -> None:
    make_translator(interval=Interval(12, 4.8, 0.3)).save(tmp_path / "model")
    place = Place(tmp_path / "session", tmp_path / "out", str(tmp_path / "model"), lambda said: None)
    folder = place.dropped("one")
    folder.mkdir(parents=True)
    shutil.copy(nifti_head, folder / "mr_t1.nii.gz")
    place.out.mkdir()
    [image] = work.translate(place, {"set": "one", "uncertainty": asked})["images"]
    for kind in ("uncertainty", "interval"):
        assert (kind in image) == asked
        if asked:
            assert place.files[f"0-{kind}.nii.gz"]
            assert image[f"{kind}_window"][1] > 0
