"""One inventory of DICOM, volume files, pictures and video."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from medstyle.cohort.inventory import inventory
from medstyle.errors import Refusal
from medstyle.imaging.formats import VOLUMES
from medstyle.imaging.picture import SYNTHETIC_NOTE, write_picture
from medstyle.imaging.volume import Volume, read_volume, write_volume
from tests.conftest import SHARED

DATA = SHARED / "data"


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


def nifti(path: Path, **fields: Any) -> None:
    """Write a NIfTI-1 file whose header says what nibabel would not let it say."""
    nibabel = pytest.importorskip("nibabel")
    image = nibabel.Nifti1Image(np.ones((4, 5, 6), np.float32), np.diag([1.0, 2.0, 3.0, 1.0]))
    image.set_qform(image.affine, 1)
    header = image.header
    for name, value in fields.items():
        header[name] = value
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4) + np.ones((4, 5, 6), np.float32).tobytes("F"))


TILTED = [[1, 0.02, 0, 0], [0, 2, 0, 0], [0, 0, 3, 0]]
ROWS = ("srow_x", "srow_y", "srow_z")


@pytest.mark.parametrize(
    ("code", "fields"),
    [
        ("", {}),
        ("", {"qform_code": 0}),
        ("", {"sform_code": 0}),
        ("", {"xyzt_units": 3}),
        ("E_NO_GEOMETRY", {"qform_code": 0, "sform_code": 0}),
        ("E_ZERO_SPACING", {"pixdim": [1, 1, 2, 0, 0, 0, 0, 0], "qform_code": 0}),
        ("E_ZERO_SPACING", {"pixdim": [1, 1, 2, np.nan, 0, 0, 0, 0], "sform_code": 0}),
        ("E_ZERO_SPACING", {"srow_z": [0, 0, 0, 0], "qform_code": 0}),
        ("E_MIXED_ORIENTATION", {"pixdim": [1, 1, 1, 1, 0, 0, 0, 0], "qform_code": 0}),
        ("E_NO_GEOMETRY", {"quatern_b": np.nan}),
        ("E_TILT_NEEDS_RESAMPLE", dict(zip(ROWS, TILTED, strict=True))),
        ("E_TILT_NEEDS_RESAMPLE", {"qform_code": 0, **dict(zip(ROWS, TILTED, strict=True))}),
        ("E_DECODE", {"vox_offset": np.nan}),
    ],
)
def test_a_nifti_header_that_does_not_say_where_its_voxels_lie_is_refused(
    code: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    nifti(tmp_path / "scan.nii", **fields)
    if "vox_offset" in fields:
        data = bytearray((tmp_path / "scan.nii").read_bytes())
        data[108:112] = np.float32(fields["vox_offset"]).tobytes()
        (tmp_path / "scan.nii").write_bytes(data)
    judge(tmp_path / "scan.nii", code)


def judge(path: Path, code: str, says: str = "") -> None:
    """Check that the inventory and a direct read give ``code`` alike."""
    (item,) = (one for one in inventory([path.parent]).volumes if one.path == path)
    assert item.code == code, item.reason
    assert says in item.reason
    if not code:
        np.testing.assert_array_equal(item.load("mr_t1").affine, read_volume(path, "mr_t1").affine)
        return
    for read in (item.load, lambda domain: read_volume(path, domain)):
        with pytest.raises(Refusal, match=code):
            read("mr_t1")


def test_a_file_is_read_as_what_its_suffix_says(tmp_path: Path) -> None:
    """Lines that both readers of text headers take: one must not check what the other reads."""
    lines = ["NRRD: 4", "ObjectType = Image", "NDims = 3", "DimSize: 5 4 3", "ElementSpacing: 1 1 1", "space: RAS"]
    lines += ["space directions: (1,0,0) (0,1,0) (0,0,1)", "space origin: (0,0,0)", "data file: x.raw"]
    lines += ["ElementType = MET_UCHAR", "ElementDataFile = /etc/passwd", ""]
    (tmp_path / "x.raw").write_bytes(bytes(60))
    for name in ("x.mha", "x.mhd", "x.nrrd"):
        (tmp_path / name).write_text("\n".join(lines))
    assert {item.code for item in inventory([tmp_path]).volumes} == {"E_DETACHED", "E_DECODE"}
    for name in ("absent.nii.gz", "absent.mha", "x.raw"):
        with pytest.raises(Refusal, match="E_DECODE"):
            read_volume(tmp_path / name, "mr_t1")


def test_a_nifti_2_file_is_called_that(tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    nibabel.save(nibabel.Nifti2Image(np.ones((4, 5, 6), np.float32), np.eye(4)), tmp_path / "x.nii.gz")
    judge(tmp_path / "x.nii.gz", "E_DECODE", "convert it to NIfTI-1")


VECTORS = "space directions: (1,0,0) (0,2,0) (0,0,3)"
SPACE, ORIGIN = "space: RAS", "space origin: (1,2,3)"


def beside_voxels(tmp_path: Path) -> tuple[Path, bytes]:
    """Return a folder for a header of 6 x 5 x 4, and voxels, which also lie in ``x.raw`` there and
    outside of it."""
    folder, voxels = tmp_path / "scans", np.ones(120, np.float32).tobytes()
    folder.mkdir()
    for place in (folder, tmp_path):
        (place / "x.raw").write_bytes(voxels)
    return folder, voxels


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("", [SPACE, VECTORS, ORIGIN]),
        (
            "",
            ["# a comment", "Space: left-Posterior-superior", VECTORS, ORIGIN, "note:=space: RAS", "data file: x.raw"],
        ),
        ("", [SPACE, VECTORS, ORIGIN, 'space units: "mm" "mm" "mm"']),
        ("E_NO_GEOMETRY", []),
        ("E_NO_GEOMETRY", ["spacings: 1 2 3"]),
        ("E_NO_GEOMETRY", [VECTORS, ORIGIN, "space dimension: 3"]),
        ("E_NO_GEOMETRY", ["space: scanner-xyz", VECTORS, ORIGIN]),
        ("E_NO_GEOMETRY", [SPACE, ORIGIN]),
        ("E_NO_GEOMETRY", [SPACE, VECTORS]),
        ("E_NO_GEOMETRY", [SPACE, VECTORS.replace("(1,0,0)", "none"), ORIGIN]),
        ("E_NO_GEOMETRY", [SPACE, VECTORS, ORIGIN, 'space units: "m" "m" "m"']),
        ("E_ZERO_SPACING", [SPACE, VECTORS.replace("3", "0"), ORIGIN]),
        ("E_TILT_NEEDS_RESAMPLE", [SPACE, VECTORS.replace("(0,2,0)", "(0.02,2,0)"), ORIGIN]),
        ("E_DETACHED", [SPACE, VECTORS, ORIGIN, "data file: ../x.raw"]),
        ("E_DETACHED", [SPACE, VECTORS, ORIGIN, "DataFile: {folder}/x.raw"]),
        ("E_DETACHED", [SPACE, VECTORS, ORIGIN, "data file: x%d.raw 1 3 1 2"]),
        ("E_DETACHED", [SPACE, VECTORS, ORIGIN, "data file: LIST"]),
        ("E_DETACHED", [SPACE, VECTORS, ORIGIN, "data file: absent.raw"]),
        ("E_DECODE", [SPACE, VECTORS, ORIGIN, "note:=x\rdata file: /dev/null"]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_an_nrrd_header_says_all_and_opens_nothing_else(
    code: str, lines: list[str], newline: str, tmp_path: Path
) -> None:
    folder, voxels = beside_voxels(tmp_path)
    head = [
        "NRRD0005",
        "type: float",
        "dimension: 3",
        "sizes: 6 5 4",
        "endian: little",
        "encoding: raw",
        *lines,
        "",
        "",
    ]
    (folder / "x.nrrd").write_bytes(newline.join(head).format(folder=tmp_path).encode() + voxels)
    judge(folder / "x.nrrd", code)


MATRIX, OFFSET = "TransformMatrix = 1 0 0 0 1 0 0 0 1", "Offset = 1 2 3"
SPACING, OWN = "ElementSpacing = 1 2 3", "ElementDataFile = LOCAL"


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("", [MATRIX, OFFSET, SPACING, OWN]),
        ("", ["0008|0060 = MR", "Orientation = 0 1 0 1 0 0 0 0 1", "Position: 1 2 3", "ElementSize = 1 2 3", OWN]),
        ("", [MATRIX, OFFSET, SPACING, "Comment = ElementDataFile = /dev/null", "ElementDataFile = x.raw"]),
        ("E_ZERO_SPACING", [MATRIX, OFFSET, OWN]),
        ("E_ZERO_SPACING", [MATRIX, OFFSET, SPACING.lower(), OWN]),
        ("E_ZERO_SPACING", [MATRIX, OFFSET, "ElementSpacing = 1 2 0", OWN]),
        ("E_ZERO_SPACING", [MATRIX, OFFSET, "ElementSpacing = 1 2 -3", OWN]),
        ("E_ZERO_SPACING", ["TransformMatrix = 1 0 0 0 1 0 0 0 0", OFFSET, SPACING, OWN]),
        ("E_NO_GEOMETRY", [OFFSET, SPACING, OWN]),
        ("E_NO_GEOMETRY", [MATRIX, SPACING, OWN]),
        ("E_TILT_NEEDS_RESAMPLE", ["TransformMatrix = 1 0 0 0.02 1 0 0 0 1", OFFSET, SPACING, OWN]),
        ("E_DETACHED", [MATRIX, OFFSET, SPACING, "ElementDataFile = ../x.raw"]),
        ("E_DETACHED", [MATRIX, OFFSET, SPACING, " ElementDataFile: {folder}/x.raw"]),
        ("E_DETACHED", [MATRIX, OFFSET, SPACING, "ElementDataFile = LIST"]),
        ("E_DETACHED", [MATRIX, OFFSET, SPACING, "ElementDataFile = x%d.raw 1 4 1"]),
        ("E_DETACHED", [MATRIX, OFFSET, SPACING, "ElementDataFile = absent.raw"]),
        ("E_DECODE", [MATRIX, OFFSET, SPACING, "x", OWN]),
        ("E_DECODE", [MATRIX, OFFSET, SPACING, "", OWN]),
        ("E_DECODE", [MATRIX, OFFSET, SPACING, "ElementDataFile\0 = /dev/null", OWN]),
        ("E_DECODE", [MATRIX, OFFSET, SPACING, "ElementDataFile\xa0 = LOCAL", "ElementDataFile = /dev/null"]),
        ("E_DECODE", [MATRIX, OFFSET, SPACING]),
    ],
)
@pytest.mark.parametrize("suffix", [".mha", ".mhd"])
def test_a_metaimage_header_says_all_and_opens_nothing_else(
    code: str, lines: list[str], suffix: str, tmp_path: Path
) -> None:
    folder, voxels = beside_voxels(tmp_path)
    head = ["ObjectType = Image", "NDims = 3", "DimSize = 6 5 4", "ElementType = MET_FLOAT", *lines, ""]
    (folder / f"x{suffix}").write_bytes("\n".join(head).format(folder=tmp_path).encode() + voxels)
    judge(folder / f"x{suffix}", code)


def test_a_name_that_is_no_utf_8_is_refused_like_any_other_bad_file(tmp_path: Path) -> None:
    """SimpleITK would end the process."""
    write_volume(tmp_path / "good.nii", volume())
    for suffix in VOLUMES:
        (tmp_path / os.fsdecode(b"M\xfcller")).with_suffix(suffix).write_bytes((tmp_path / "good.nii").read_bytes())
    bad = tmp_path / os.fsdecode(b"M\xfcller")
    bad.mkdir()
    shutil.copy(tmp_path / "good.nii", bad)
    found = {item.path: item for item in inventory([tmp_path]).volumes}
    assert found.pop(tmp_path / "good.nii").usable
    assert len(found) == len(VOLUMES) + 1
    for path, item in found.items():
        assert (item.code, "rename it" in item.reason) == ("E_DECODE", True)
        for use in (lambda path: read_volume(path, "mr_t1"), lambda path: write_volume(path, volume())):
            with pytest.raises(Refusal, match="rename it"):
                use(path)


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


@pytest.mark.skipif(not DATA.is_dir(), reason="the development data beside the project is absent")
def test_real_data_of_every_kind() -> None:
    found = inventory([DATA / "brain_t1_flair" / "sub-04", DATA / "video", DATA / "dicom_corpus" / "mixed_folder"])
    assert {item.source for item in found.volumes} == {"dicom", "volume", "video"}
    assert all(f.verdict == "used" for f in found.files if f.path.suffix in (".gz", ".mp4", ".avi"))


@pytest.mark.parametrize("suffix", [*VOLUMES, ".png", ".jpg", ".tif", ".webp"])
def test_what_medstyle_made_is_known_again(tmp_path: Path, suffix: str) -> None:
    for name, note in (("made", f"{SYNTHETIC_NOTE} - NOT FOR DIAGNOSTIC USE"), ("real", "")):
        if suffix in VOLUMES:
            write_volume(
                tmp_path / f"{name}{suffix}", Volume(np.zeros((3, 4, 5), np.float32), np.eye(4), "mr_t1"), note
            )
        else:
            write_picture(tmp_path / f"{name}{suffix}", np.zeros((20, 30, 3), np.uint8), note)
    made, real = inventory([tmp_path]).volumes
    assert (made.flags, real.flags) == ({"SYNTHETIC"}, set())
    assert [doubt.code for doubt in made.doubts()] == ["E_SYNTHETIC"]
    assert [row["code"] for row in inventory([tmp_path]).to_json()["volumes"]] == ["E_SYNTHETIC", ""]
