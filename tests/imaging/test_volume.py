import os
import zlib

import numpy as np
import pytest
import SimpleITK as sitk

from medstyle import Refusal, Volume, read_volume, write_volume
from medstyle.imaging.formats import VOLUMES
from tests.conftest import affine


@pytest.fixture
def volume(rng):
    voxels = rng.normal(100, 30, (5, 7, 6)).astype(np.float32)
    return Volume(voxels, affine((1.5, 0.7, 4.0), (80, 12, -20)), "mr_t1")


@pytest.mark.parametrize("suffix", VOLUMES)
def test_files_keep_voxels_and_geometry(volume, tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    write_volume(path, volume, "a note")
    back = read_volume(path, "mr_t1")
    np.testing.assert_array_equal(back.voxels, volume.voxels)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-4)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", VOLUMES)
def test_every_file_carries_the_note(volume, tmp_path, suffix):
    path = tmp_path / f"scan{suffix}"
    write_volume(path, volume, "AI SYNTHETIC")
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    assert reader.GetMetaData("ITK_FileNotes") == "AI SYNTHETIC"


@pytest.mark.parametrize("suffix", VOLUMES)
@pytest.mark.parametrize(("low", "high", "bits"), [(0, 4095, 16), (-32768, 32767, 16), (0, 32768, 32), (-32769, 0, 32)])
def test_whole_numbers_take_16_bits_and_come_back(volume, tmp_path, rng, suffix, low, high, bits):
    voxels = rng.integers(low, high + 1, volume.voxels.shape).astype(np.float32)
    voxels[0, 0, :2] = low, high
    path = tmp_path / f"scan{suffix}"
    write_volume(path, volume.with_voxels(voxels), "a note")
    np.testing.assert_array_equal(read_volume(path, "mr_t1").voxels, voxels)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    assert sitk.GetPixelIDValueAsString(reader.GetPixelID()) == {16: "16-bit signed integer", 32: "32-bit float"}[bits]


def test_a_compressed_file_is_one_gzip_stream_and_always_the_same(tmp_path, rng, monkeypatch):
    """Any reader takes it, some know no second member.

    Its bytes depend on its content alone, or DVC would not skip.
    """
    voxels = rng.integers(0, 4096, (30, 150, 160)).astype(np.float32)
    large = Volume(voxels, affine((1, 1, 1), (0, 0, 0)), "mr_t1")  # more than one block
    write_volume(tmp_path / "plain.nii", large)
    written = []
    for cores in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda cores=cores: cores)
        write_volume(tmp_path / f"{cores}.nii.gz", large)
        written.append((tmp_path / f"{cores}.nii.gz").read_bytes())
    stream = zlib.decompressobj(wbits=31)
    assert stream.decompress(written[0]) == (tmp_path / "plain.nii").read_bytes()
    assert (stream.eof, stream.unused_data) == (True, b"")
    assert written[0] == written[1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_nifti_is_ras_on_disk_and_carries_the_note(volume, tmp_path):
    import nibabel

    write_volume(tmp_path / "scan.nii.gz", volume, "AI SYNTHETIC")
    image = nibabel.load(tmp_path / "scan.nii.gz")
    np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ image.affine, volume.affine, atol=1e-4)
    assert image.header["descrip"].item().decode() == "AI SYNTHETIC"


def test_spacing_and_direction_follow_from_the_affine(volume):
    np.testing.assert_allclose(volume.spacing_mm, (1.5, 0.7, 4.0))
    np.testing.assert_allclose(volume.direction @ np.diag(volume.spacing_mm), volume.affine[:3, :3])
    assert not volume.is_sheared


def test_a_sheared_grid_is_not_handed_to_itk(volume):
    tilted = volume.affine.copy()
    tilted[:3, 2] += 0.3 * tilted[:3, 1]
    sheared = Volume(volume.voxels, tilted, "ct")
    assert sheared.is_sheared
    with pytest.raises(Refusal, match="E_TILT"):
        sheared.to_image()


def test_new_voxels_need_the_same_grid(volume):
    assert volume.with_voxels(volume.voxels * 2, "mr_t2").domain == "mr_t2"
    with pytest.raises(ValueError, match="do not fit"):
        volume.with_voxels(volume.voxels[1:])


def test_bad_files_are_refused(tmp_path, volume):
    import nibabel

    (tmp_path / "text.nii").write_text("not a volume")
    with pytest.raises(Refusal, match="E_DECODE"):
        read_volume(tmp_path / "text.nii", "mr_t1")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.float32), np.eye(4)), tmp_path / "time.nii")
    with pytest.raises(Refusal, match="E_4D"):
        read_volume(tmp_path / "time.nii", "mr_t1")
    write_volume(tmp_path / "nan.nrrd", volume.with_voxels(np.full_like(volume.voxels, np.nan)))
    with pytest.raises(Refusal, match="E_NOT_FINITE"):
        read_volume(tmp_path / "nan.nrrd", "mr_t1")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", [np.float32, np.dtype(">f4"), np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_nifti_file_with_a_voxel_that_is_no_number_is_refused(tmp_path, suffix, kind, value):
    """The last one too; ITK makes zeros of them."""
    import nibabel

    voxels = np.ones((3, 5, 7), kind)
    path = tmp_path / f"scan{suffix}"
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    assert (read_volume(path, "mr_t1").voxels == 1).all()
    voxels[-1, -1, -1] = value
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), path)
    with pytest.raises(Refusal, match="E_NOT_FINITE"):
        read_volume(path, "mr_t1")


@pytest.mark.parametrize("suffix", VOLUMES)
@pytest.mark.parametrize("kept", [0.3, 0.9])
def test_a_file_that_is_cut_short_is_never_filled_with_zeros(tmp_path, volume, suffix, kept):
    path = tmp_path / f"scan{suffix}"
    write_volume(path, volume)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(Refusal, match=r"E_TRUNCATED|E_DECODE"):
        read_volume(path, "mr_t1")
