"""Siemens mosaics: tiles become slices at nibabel's positions; doubtful ones are refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medstyle.dicom.read import read_series
from medstyle.dicom.scan import Scan, Series, scan
from medstyle.dicom.write import Derivation, ModelIdentity, write_derived
from medstyle.errors import Refusal
from tests.dicom.test_write import check

Write = Callable[..., Path]
MODEL = ModelIdentity("unet-t1-t2", "1.2.0", "ab" * 32)
PLAIN = np.diag([2.0, 2.0, 3.3, 1.0])


def only(found: Scan) -> Series:
    (series,) = found.series
    return series


def random_mosaic(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw stored values ``(D, H, W)`` and an oblique, unsheared affine whose slices run either
    way."""
    rng = np.random.default_rng(seed)
    shape = tuple(int(n) for n in rng.integers((2, 3, 3), (40, 9, 9)))
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * rng.uniform(0.5, 5, 3)
    affine[:3, 2] *= rng.choice((-1, 1))
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    return rng.integers(0, 4096, shape).astype(np.uint16), affine


@pytest.mark.parametrize("seed", range(30))
def test_a_random_mosaic_comes_back(seed: int, write_mosaic: Write, tmp_path: Path) -> None:
    stored, affine = random_mosaic(seed)
    syntax = ImplicitVRLittleEndian if seed % 2 else ExplicitVRLittleEndian
    write_mosaic(tmp_path / "x.dcm", stored, affine, syntax=syntax)
    if np.linalg.det(affine) < 0:  # slices are ordered along the normal of row and column
        stored = stored[::-1]
        affine[:3, 3] += affine[:3, 2] * (len(stored) - 1)
        affine[:3, 2] *= -1
    series = only(scan([tmp_path]))
    assert (series.kind, series.code, series.flags) == ("volume", "", {"MOSAIC"})
    volume = read_series(series, "mr_t1")
    np.testing.assert_allclose(volume.affine, affine, atol=1e-5)
    np.testing.assert_array_equal(volume.voxels, stored)


@pytest.mark.parametrize("seed", range(8))
def test_nibabel_agrees(seed: int, write_mosaic: Write, tmp_path: Path) -> None:
    wrappers = pytest.importorskip("nibabel.nicom.dicomwrappers")
    path = write_mosaic(tmp_path / "x.dcm", *random_mosaic(seed))
    with warnings.catch_warnings(action="ignore"):
        theirs = wrappers.wrapper_from_data(pydicom.dcmread(path))
        voxels, affine = np.asarray(theirs.get_data()), theirs.affine  # (row, column, slice)
    volume = read_series(only(scan([path])), "mr_t1")
    depth, rows, columns = volume.voxels.shape
    for k, i, j in ((0, 0, 0), (depth - 1, rows - 1, 0), (depth // 2, 1, columns - 1)):
        index = np.rint(np.linalg.inv(affine) @ volume.affine @ [j, i, k, 1]).astype(int)
        np.testing.assert_allclose(affine @ index, volume.affine @ [j, i, k, 1], atol=1e-3)
        assert voxels[tuple(index[:3])] == volume.voxels[k, i, j]


def test_the_distance_may_be_in_the_private_header(
    write_mosaic: Write, csa_header: Callable[..., bytes], tmp_path: Path
) -> None:
    stored, _ = random_mosaic(0)
    csa = csa_header(NumberOfImagesInMosaic=[len(stored)], SliceNormalVector=[0, 0, 1], SpacingBetweenSlices=[3.3])
    write_mosaic(tmp_path / "x.dcm", stored, PLAIN, csa=csa, SpacingBetweenSlices=None)
    np.testing.assert_allclose(only(scan([tmp_path])).affine, PLAIN, atol=1e-6)


def test_time_points_are_volumes(write_mosaic: Write, tmp_path: Path) -> None:
    stored = np.random.default_rng(0).integers(0, 4096, (3, 7, 5, 4)).astype(np.uint16)
    for number, volume in enumerate(stored):
        write_mosaic(tmp_path / f"{number}.dcm", volume, PLAIN, SOPInstanceUID=f"2.25.{number}", InstanceNumber=number)
    series = only(scan([tmp_path]))
    assert (series.kind, series.code, series.volumes, series.shape) == ("4d", "E_4D", 3, (7, 5, 4))
    for number, volume in enumerate(stored):
        np.testing.assert_array_equal(read_series(series.volume(number), "mr_t1").voxels, volume)


NORMAL = [0, 0, 1]
UNSURE = {
    "no number": {"SliceNormalVector": NORMAL},
    "no direction": {"NumberOfImagesInMosaic": [7]},
    "half a direction": {"NumberOfImagesInMosaic": [7], "SliceNormalVector": [0, 0]},
    "a direction within the plane": {"NumberOfImagesInMosaic": [7], "SliceNormalVector": [0, 1, 0]},
    "no length": {"NumberOfImagesInMosaic": [7], "SliceNormalVector": [0, 0, 0]},
    "not a number": {"NumberOfImagesInMosaic": ["many"], "SliceNormalVector": NORMAL},
    "not finite": {"NumberOfImagesInMosaic": ["nan"], "SliceNormalVector": NORMAL},
    "one": {"NumberOfImagesInMosaic": [1], "SliceNormalVector": NORMAL},
    "minus seven": {"NumberOfImagesInMosaic": [-7], "SliceNormalVector": NORMAL},
    "tiles that do not fill the sheet": {"NumberOfImagesInMosaic": [17], "SliceNormalVector": NORMAL},
    "very many": {"NumberOfImagesInMosaic": [1 << 30], "SliceNormalVector": NORMAL},
}


@pytest.mark.parametrize("case", UNSURE)
def test_what_is_not_sure_is_refused(
    case: str, write_mosaic: Write, csa_header: Callable[..., bytes], tmp_path: Path
) -> None:
    stored = np.zeros((7, 4, 4), np.uint16)  # a sheet of 12 x 12
    path = write_mosaic(tmp_path / "x.dcm", stored, PLAIN, csa=csa_header(**UNSURE[case]))
    (file,) = scan([path]).files
    assert (file.verdict, file.code) == ("refused", "E_4D")
    assert "export it as enhanced" in file.reason
    with pytest.raises(Refusal, match="E_4D"):
        read_series(only(scan([path])), "mr_t1")


def test_no_distance_is_refused(write_mosaic: Write, tmp_path: Path) -> None:
    path = write_mosaic(tmp_path / "x.dcm", np.zeros((7, 4, 4), np.uint16), PLAIN, SpacingBetweenSlices=None)
    assert only(scan([path])).code == "E_4D"


def test_another_owner_of_the_private_block_is_not_read(write_mosaic: Write, tmp_path: Path) -> None:
    path = write_mosaic(tmp_path / "x.dcm", np.zeros((7, 4, 4), np.uint16), PLAIN)
    dataset = pydicom.dcmread(path)
    dataset[0x0029, 0x0010].value = "SOMEBODY ELSE"
    dataset.save_as(path)
    assert only(scan([path])).code == "E_4D"


def test_damage_is_a_verdict(write_mosaic: Write, csa_header: Callable[..., bytes], tmp_path: Path) -> None:
    """Cut anywhere, or with any four bytes overwritten by a huge, a negative or no number: used or
    refused, no more."""
    whole = csa_header(AcquisitionMatrixText=["4*4"], NumberOfImagesInMosaic=[7], SliceNormalVector=NORMAL)
    stored = np.zeros((7, 4, 4), np.uint16)
    cut = [whole[:n] for n in range(0, len(whole), 4)]
    changed = [whole[:n] + word + whole[n + 4 :] for n in range(0, len(whole), 8) for word in (b"\xff" * 4, bytes(4))]
    bare = csa_header(0, NumberOfImagesInMosaic=[7], SliceNormalVector=["0", "0", "1.00000000"])
    cut.append(bare[:-4])  # within the last value, with nothing behind it
    seen = set()
    for csa in cut:
        (file,) = scan([write_mosaic(tmp_path / "x.dcm", stored, PLAIN, csa=csa)]).files
        assert (file.verdict, file.code) == ("refused", "E_4D")
    for csa in changed:
        (file,) = scan([write_mosaic(tmp_path / "x.dcm", stored, PLAIN, csa=csa)]).files
        seen.add((file.verdict, file.code))
    assert seen == {("refused", "E_4D"), ("used", "")}


def test_a_derived_series_lies_where_the_tiles_do(write_mosaic: Write, tmp_path: Path, shared: Path) -> None:
    stored, affine = random_mosaic(2)
    path = write_mosaic(tmp_path / "in" / "x.dcm", stored, affine)
    dataset = pydicom.dcmread(path)
    source = only(scan([path]))
    volume = read_series(source, "mr_t1")
    files = write_derived(volume.with_voxels(volume.voxels, "mr_t2"), Derivation(source, MODEL), tmp_path / "out")
    made = only(scan([tmp_path / "out"]))
    assert (len(files), made.kind, made.code, made.shape) == (len(stored), "volume", "", stored.shape)
    np.testing.assert_allclose(made.affine, volume.affine, atol=1e-4)
    np.testing.assert_array_equal(read_series(made, "mr_t2").voxels, volume.voxels)
    for file in files:
        written = pydicom.dcmread(file)
        (reference,) = written.SourceImageSequence  # all tiles are one image, and no pixel of it is in its place
        assert reference.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
        assert reference.SpatialLocationsPreserved == "NO"
        assert "MOSAIC" not in written.ImageType
    check(tmp_path / "in", tmp_path / "out", shared)
