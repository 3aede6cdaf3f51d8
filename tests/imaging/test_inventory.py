"""One inventory of DICOM, volume files, pictures and video."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medstyle.errors import Refusal
from medstyle.imaging.inventory import inventory
from medstyle.imaging.volume import Volume, write_volume

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def volume(shape: tuple[int, int, int] = (4, 5, 6)) -> Volume:
    affine = np.diag([1.0, 2.0, 3.0, 1.0])
    affine[:3, 3] = (7, 8, 9)
    return Volume(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), affine, "mr_t1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_volume(tmp_path / "t1.nii.gz", volume())
    write_volume(tmp_path / "t2.mha", volume())
    Image.new("RGB", (30, 20)).save(tmp_path / "photo.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("hello")
    return tmp_path


def test_every_kind_is_found_and_every_file_judged(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = inventory([folder])
    assert [(f.path.name, f.verdict, f.code) for f in found.files] == [
        ("broken.mp4", "refused", "E_DECODE"),
        ("broken.nii.gz", "refused", "E_DECODE"),
        ("broken.png", "refused", "E_DECODE"),
        ("notes.txt", "skipped", "E_NOT_DICOM"),
        ("photo.png", "used", ""),
        ("t1.nii.gz", "used", ""),
        ("t2.mha", "used", ""),
    ]
    kinds = {item.path.name: (item.source, item.kind, item.shape) for item in found.volumes if item.usable}
    assert kinds == {
        "photo.png": ("picture", "image", (1, 20, 30)),
        "t1.nii.gz": ("volume", "volume", (4, 5, 6)),
        "t2.mha": ("volume", "volume", (4, 5, 6)),
    }
    loaded = next(item for item in found.volumes if item.path.name == "t1.nii.gz").load("mr_t1")
    np.testing.assert_array_equal(loaded.voxels, volume().voxels)
    np.testing.assert_allclose(loaded.affine, volume().affine)


def test_the_json_keeps_its_contract(folder: Path) -> None:
    found = inventory([folder])
    rows = json.loads(json.dumps(found.to_json(lambda item: "mr_t1" if "t1" in item.path.name else None, values=True)))
    assert set(rows) == {"files", "volumes"}
    assert all(set(row) == {"path", "verdict", "code", "reason"} for row in rows["files"])
    keys = {"series", "domain", "kind", "code", "reason", "shape", "spacing_mm", "affine", "value_range", "files"}
    assert all(set(row) == keys for row in rows["volumes"])
    row = next(row for row in rows["volumes"] if row["files"][0].endswith("t1.nii.gz"))
    assert (row["domain"], row["spacing_mm"], row["value_range"]) == ("mr_t1", [1, 2, 3], [0, 119])
    assert len({row["series"] for row in rows["volumes"]}) == len(rows["volumes"])
    assert inventory([folder]).to_json() == inventory([folder]).to_json()


def test_four_dimensional_and_vector_files_are_refused(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    sitk.WriteImage(sitk.Image([3, 3, 3, 2], sitk.sitkFloat32), str(tmp_path / "4d.nii"))
    sitk.WriteImage(sitk.Image([3, 3, 3], sitk.sitkVectorFloat32, 3), str(tmp_path / "vector.mha"))
    assert [f.code for f in inventory([tmp_path]).files] == ["E_4D", "E_COLOR"]


@pytest.mark.parametrize(("shift", "code"), [(0.0, ""), (4.0, "E_MIXED_ORIENTATION")])
def test_conflicting_nifti_orientations_are_refused(shift: float, code: str, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.zeros((4, 5, 6), np.float32), np.eye(4))
    other = np.eye(4)
    other[0, 3] = shift
    image.set_sform(np.eye(4), 1)
    image.set_qform(other, 1)
    nibabel.save(image, tmp_path / "x.nii.gz")
    (item,) = inventory([tmp_path]).volumes
    assert item.code == code
    if code:
        with pytest.raises(Refusal, match=code):
            item.load("mr_t1")


def test_an_item_that_cannot_be_loaded_is_not_called_by_its_file(tmp_path: Path) -> None:
    path = tmp_path / "DOE_JOHN.nii"
    write_volume(path, volume())
    path.write_bytes(path.read_bytes()[:-100])
    (item,) = inventory([tmp_path]).volumes
    with pytest.raises(Refusal, match="E_TRUNCATED") as caught:
        item.load("mr_t1")
    assert "DOE" not in str(caught.value)


def test_keys_are_hashes_that_only_the_secret_can_repeat(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(secret: str) -> set[str]:
        monkeypatch.setenv("MEDSTYLE_SECRET", secret)
        return {item.key for item in inventory([folder]).volumes}

    assert keys("one") == keys("one")
    assert not keys("one") & keys("two")


def test_a_huge_picture_is_refused_by_its_header(tmp_path: Path) -> None:
    Image.new("1", (20000, 10000)).save(tmp_path / "bomb.png")
    assert [f.code for f in inventory([tmp_path]).files] == ["E_TOO_LARGE"]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the development data beside the project is absent")
def test_real_data_of_every_kind() -> None:
    found = inventory(
        [SHARED / "brain_t1_flair" / "sub-04", SHARED / "video", SHARED / "dicom_corpus" / "mixed_folder"]
    )
    assert {item.source for item in found.volumes} == {"dicom", "volume", "video"}
    assert all(f.verdict == "used" for f in found.files if f.path.suffix in (".gz", ".mp4", ".avi"))
