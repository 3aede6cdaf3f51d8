"""Files to series to voxels, on series made in memory: geometry, order, scaling, refusals."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medstyle.cohort.inventory import inventory
from medstyle.dicom.header import Limits
from medstyle.dicom.read import read_colour, read_image, read_series
from medstyle.dicom.scan import Series, scan
from medstyle.errors import Refusal
from tests.dicom.conftest import enhanced

Write = Callable[..., Path]
NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)


def only(*paths: Path, **options: Any) -> Series:
    (series,) = scan(paths, **options).series
    return series


def stored_values(rng: np.random.Generator, shape: tuple[int, int, int] = (5, 6, 8), bits: int = 12) -> np.ndarray:
    return rng.integers(0, 1 << bits, shape).astype(np.uint16)


def random_affine(rng: np.random.Generator, shear: bool) -> np.ndarray:
    axes, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = axes * rng.uniform(0.3, 6, 3) * rng.choice((-1, 1), 3)
    if shear:
        affine[:3, 2] += axes[:, :2] @ rng.uniform(-2, 2, 2)
    affine[:3, 3] = rng.uniform(-300, 300, 3)
    return affine


@pytest.mark.parametrize("seed", range(60))
def test_a_random_volume_comes_back(seed: int, write_series: Write, tmp_path: Path) -> None:
    """Oblique, sheared, anisotropic, signed, 8 to 16 bits, any native syntax, rescaled for each
    slice: the same."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(str(rng.choice(["u1", "i1", "u2", "i2"])))
    bits = int(rng.integers(8 if dtype.itemsize == 2 else 4, dtype.itemsize * 8 + 1))
    low, high = (-(1 << bits - 1), 1 << bits - 1) if dtype.kind == "i" else (0, 1 << bits)
    shape = tuple(int(n) for n in rng.integers(2, 9, 3))
    stored = rng.integers(low, high, shape).astype(dtype)
    affine = random_affine(rng, shear=bool(seed % 2))
    slopes, intercepts = rng.uniform(1e-6, 3, shape[0]), rng.uniform(-1024, 10, shape[0])

    def change(k: int, dataset: Dataset) -> None:
        if seed % 3:
            dataset.RescaleSlope, dataset.RescaleIntercept = f"{slopes[k]:.9e}", f"{intercepts[k]:.9e}"
        if seed % 4 == 0:  # garbage above the stored bits must not be read
            garbage = (rng.integers(0, 1 << 16, shape[1:]) << bits).astype(f"u{dtype.itemsize}")
            pixels = (stored[k].view(f"u{dtype.itemsize}") & ((1 << bits) - 1)) | garbage
            order = ">" if syntax == ExplicitVRBigEndian else "<"
            dataset.PixelData = pixels.astype(f"{order}u{dtype.itemsize}").tobytes() + b"\0" * (pixels.nbytes % 2)

    syntax = NATIVE[seed % 4]
    write_series(tmp_path, stored, affine, syntax=syntax, bits=bits, change=change)
    names = list(rng.permutation(shape[0]))
    for k, path in enumerate(sorted(tmp_path.iterdir())):
        path.rename(tmp_path / f"x{names[k]:03d}")
    slopes, intercepts = (slopes, intercepts) if seed % 3 else (np.ones_like(slopes), np.zeros_like(slopes))
    expected = stored * np.array([float(f"{s:.9e}") for s in slopes])[:, None, None]
    expected = (expected + np.array([float(f"{v:.9e}") for v in intercepts])[:, None, None]).astype(np.float32)
    if np.linalg.det(affine) < 0:  # slices are ordered along the normal of row and column
        expected = expected[::-1]
        affine[:3, 3] += affine[:3, 2] * (shape[0] - 1)
        affine[:3, 2] *= -1

    series = only(tmp_path)
    volume = read_series(series, "mr_t1")
    assert series.code in ("", "E_TILT_NEEDS_RESAMPLE")
    assert volume.is_sheared == (series.code == "E_TILT_NEEDS_RESAMPLE") == bool(seed % 2)
    np.testing.assert_allclose(volume.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(volume.voxels, expected)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=lambda uid: uid.name)
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_compressed_pixels_come_back(syntax: UID, bits: int, write_series: Write, tmp_path: Path) -> None:
    stored = stored_values(np.random.default_rng(bits), (3, 64, 65), bits)
    stored = stored.astype(np.uint8) if bits == 8 else stored
    write_series(tmp_path, stored, bits=bits)
    for path in tmp_path.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_array_equal(read_series(only(tmp_path), "mr_t1").voxels, stored)


@pytest.mark.parametrize("seed", range(12))
def test_packed_12_bit_pixels_come_back(seed: int, write_series: Write, tmp_path: Path) -> None:
    """Two values in three bytes, one stream from the lowest bit on.

    Odd numbers of pixels, signed ones, fewer bits.
    """
    rng = np.random.default_rng(seed)
    bits, signed = int(rng.integers(2, 13)), bool(seed % 2)
    shape = tuple(int(n) for n in rng.integers(1, 8, 3))
    stored = rng.integers(-(1 << bits - 1) if signed else 0, 1 << bits - signed, shape).astype(np.int16)
    garbage = rng.integers(0, 1 << 12, shape) >> bits << bits  # above the stored bits

    def change(k: int, dataset: Dataset) -> None:
        cells = (stored[k].astype(int) & (1 << bits) - 1 | garbage[k]).ravel()
        data = sum(int(cell) << 12 * n for n, cell in enumerate(cells)).to_bytes(-(-12 * cells.size // 8), "little")
        dataset.PixelData = data + b"\0" * (len(data) % 2)
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 12, bits, bits - 1
        dataset.PixelRepresentation = int(signed)

    syntax = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)[seed % 3]
    write_series(tmp_path, stored.view(np.uint16), syntax=syntax, change=change)
    series = only(tmp_path)
    np.testing.assert_array_equal((read_image if shape[0] == 1 else read_series)(series, "mr_t1").voxels, stored)


def test_frames_of_12_bits_that_share_a_byte_are_refused(write_series: Write, tmp_path: Path) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.SOPClassUID, dataset.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.12.1", 2
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelData = 12, 12, 11, bytes(28)

    write_series(tmp_path, np.zeros((1, 3, 3), np.uint16), change=change)
    assert {f.code for f in scan([tmp_path]).files} == {"E_DECODE"}


def test_order_comes_from_positions(write_series: Write, tmp_path: Path) -> None:
    stored = stored_values(np.random.default_rng(0))

    def change(k: int, dataset: Dataset) -> None:
        dataset.InstanceNumber = 99 - k
        dataset.SliceLocation = f"{-k}"

    write_series(tmp_path / "b" / "c", stored, change=change)
    series = only(tmp_path)
    assert [path.name for path in series.files] == [f"{k:03d}.dcm" for k in range(5)]
    np.testing.assert_array_equal(read_series(series, "mr_t1").voxels, stored)


def test_a_gap_is_named_and_refused(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path, stored_values(np.random.default_rng(0), (9, 4, 4)))
    (tmp_path / "004.dcm").unlink()
    series = only(tmp_path)
    assert (series.kind, series.code, series.usable) == ("refused", "E_GAP", False)
    assert "4.000 mm" in series.reason
    assert "2.000 mm" in series.reason
    assert "1 slice" in series.reason
    with pytest.raises(Refusal, match="E_GAP"):
        read_series(series, "mr_t1")


@pytest.mark.parametrize(("jitter", "kind"), [(0.019, "volume"), (0.05, "refused")])
def test_the_spacing_may_vary_by_one_percent(jitter: float, kind: str, write_series: Write, tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = ["0", "0", f"{2 * k + jitter * (k == 2):.4f}"]

    write_series(tmp_path, stored_values(np.random.default_rng(0)), change=change)
    assert only(tmp_path).kind == kind


def test_positions_off_a_straight_line_are_refused(write_series: Write, tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.ImagePositionPatient = [f"{5 * (k == 2)}", "0", f"{2 * k}"]

    write_series(tmp_path, stored_values(np.random.default_rng(0)), change=change)
    assert only(tmp_path).code == "E_GAP"
    assert "5.000 mm" in only(tmp_path).reason


def test_copies_are_dropped_and_conflicts_refused(write_series: Write, tmp_path: Path) -> None:
    stored = stored_values(np.random.default_rng(0))
    write_series(tmp_path / "a", stored)
    write_series(tmp_path / "b", stored)
    found = scan([tmp_path])
    assert [f.code for f in found.files] == [""] * 5 + ["E_DUPLICATE"] * 5
    assert found.series[0].shape[0] == 5
    assert "DUPLICATES" in found.series[0].flags
    write_series(tmp_path / "b", stored + 1)
    assert only(tmp_path).code == "E_DUP_CONFLICT"


def test_two_images_at_one_position_are_a_conflict(write_series: Write, tmp_path: Path) -> None:
    stored = stored_values(np.random.default_rng(0))
    write_series(tmp_path / "a", stored)
    write_series(tmp_path / "b", stored[:1], SOPInstanceUID="2.25.999")
    assert only(tmp_path).code == "E_DUP_CONFLICT"


def test_time_points_make_volumes(write_series: Write, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    times = [stored_values(rng) for _ in range(3)]
    for t, stored in enumerate(times):

        def change(k: int, dataset: Dataset, t: int = t) -> None:
            dataset.SOPInstanceUID = f"2.25.1{t}{k}"
            dataset.AcquisitionTime = f"10{30 - t:02d}00"
            dataset.TemporalPositionIdentifier = t + 1

        write_series(tmp_path / str(2 - t), stored, change=change)
    series = only(tmp_path)
    assert (series.kind, series.code, series.volumes, series.shape) == ("4d", "E_4D", 3, (5, 6, 8))
    for t, stored in enumerate(times):
        np.testing.assert_array_equal(read_series(series.volume(t), "mr_t1").voxels, stored)
    with pytest.raises(Refusal, match="E_4D"):
        read_series(series, "mr_t1")
    with pytest.raises(Refusal, match="E_4D"):
        series.volume(3)


@pytest.mark.parametrize(
    ("labels", "code"),
    [
        ([[1, 2, 3], [1, 2, 3]], "E_4D"),
        ([[3, 1, 2], [1, 2, 3]], "E_4D"),
        ([[1, 1, 1, 2, 2], [2, 2, 2, 3, 3]], "E_DUP_CONFLICT"),
        ([[1, 1, 2], [1, 2, 2]], "E_DUP_CONFLICT"),
    ],
)
@pytest.mark.parametrize("keyword", ["TemporalPositionIdentifier", "AcquisitionNumber"])
def test_images_of_other_times_make_no_volume(
    keyword: str, labels: list[list[int]], code: str, write_series: Write, tmp_path: Path
) -> None:
    write_times(tmp_path, keyword, labels, write_series)
    assert only(tmp_path).code == code


def test_slices_acquired_in_turns_are_volumes(write_series: Write, tmp_path: Path) -> None:
    """Their acquisition numbers are never the same; a temporal position is."""
    write_times(tmp_path / "a", "AcquisitionNumber", [[1, 3, 5], [2, 4, 6]], write_series)
    write_times(tmp_path / "b", "TemporalPositionIdentifier", [[1, 3, 5], [2, 4, 6]], write_series)
    assert [only(tmp_path / name).code for name in "ab"] == ["E_4D", "E_DUP_CONFLICT"]


def write_times(folder: Path, keyword: str, labels: list[list[int]], write_series: Write) -> None:
    """Write images at two positions, with a label each."""
    for n, pair in enumerate(zip(*labels, strict=True)):

        def change(k: int, dataset: Dataset, n: int = n, pair: tuple[int, ...] = pair) -> None:
            dataset.SOPInstanceUID = f"2.25.1{n}{k}"
            dataset.InstanceNumber = 10 * n + k
            setattr(dataset, keyword, pair[k])

        write_series(folder / str(n), np.full((2, 4, 5), n, np.uint16), change=change)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"EchoTime": "10"}, {"EchoTime": "90"}),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M"]}, {"ImageType": ["ORIGINAL", "PRIMARY", "P"]}),
        ({"SeriesInstanceUID": "2.25.1"}, {"SeriesInstanceUID": "2.25.2"}),
        ({"StudyInstanceUID": "2.25.1"}, {"StudyInstanceUID": "2.25.2"}),
        ({"FrameOfReferenceUID": "2.25.1"}, {"FrameOfReferenceUID": None}),
        ({"DiffusionBValue": 0.0}, {"DiffusionBValue": 1000.0}),
    ],
    ids=lambda x: next(iter(x)),
)
def test_what_differs_makes_another_volume(
    first: dict[str, Any], second: dict[str, Any], write_series: Write, tmp_path: Path
) -> None:
    stored = stored_values(np.random.default_rng(0))

    def other(k: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = f"2.25.77{k}"

    write_series(tmp_path / "a", stored, **first)
    write_series(tmp_path / "b", stored + 1, change=other, **second)
    found = scan([tmp_path])
    assert [(s.kind, s.shape[0]) for s in found.series] == [("volume", 5)] * 2


def test_small_noise_in_the_orientation_does_not_split(write_series: Write, tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        tilt = 4.9996e-4 + k * 1e-7  # straddles what rounding to 3 digits would tell apart
        dataset.ImageOrientationPatient = ["1", f"{tilt:.9f}", "0", f"{-tilt:.9f}", "1", "0"]

    write_series(tmp_path, stored_values(np.random.default_rng(0)), change=change)
    assert only(tmp_path).kind == "volume"


def test_rotating_views_are_refused(write_series: Write, tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        c, s = np.cos(k), np.sin(k)
        dataset.ImageOrientationPatient = [f"{v:.9f}" for v in (c, s, 0, 0, 0, -1)]

    write_series(tmp_path, stored_values(np.random.default_rng(0)), change=change)
    assert only(tmp_path).code == "E_MIXED_ORIENTATION"


def test_parts_with_another_spacing_are_not_two_volumes(write_series: Write, tmp_path: Path) -> None:
    """A head CT with thin slices below and thick above, told apart by image type only, is one
    irregular scan."""

    def thick(k: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = f"2.25.77{k}"
        dataset.ImagePositionPatient = ["0", "0", f"{20 + 5 * k}"]
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL", "ADD"]

    stored = stored_values(np.random.default_rng(0))
    write_series(tmp_path / "a", stored, modality="CT")
    write_series(tmp_path / "b", stored, modality="CT", change=thick)
    assert only(tmp_path).code == "E_GAP"


@pytest.mark.parametrize(
    ("elements", "verdict", "code"),
    [
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "skipped", "E_LOCALIZER"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"}, "skipped", "E_SOPCLASS"),
        ({"BurnedInAnnotation": "YES"}, "refused", "E_BURNED_IN"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "refused", "E_BURNED_IN"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "ImagePositionPatient": None}, "skipped", "E_SOPCLASS"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7", "BurnedInAnnotation": "NO"}, "used", ""),
        ({"PixelSpacing": ["0", "0"]}, "refused", "E_ZERO_SPACING"),
        ({"PixelSpacing": None}, "refused", "E_ZERO_SPACING"),
        ({"ImagePositionPatient": None}, "refused", "E_NO_GEOMETRY"),
        ({"ImageOrientationPatient": ["1", "0", "0", "1", "0", "0"]}, "refused", "E_NO_GEOMETRY"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]}, "refused", "E_4D"),
        ({"RescaleSlope": "0"}, "refused", "E_DECODE"),
        ({"BitsStored": 17}, "refused", "E_DECODE"),
        ({"NumberOfFrames": 0}, "refused", "E_DECODE"),
        ({"Rows": 7}, "refused", "E_TRUNCATED"),
        ({"Rows": 65535, "Columns": 65535}, "refused", "E_TOO_LARGE"),
    ],
)
def test_each_header_has_its_verdict_and_code(
    elements: dict[str, Any], verdict: str, code: str, write_series: Write, tmp_path: Path
) -> None:
    def change(_: int, dataset: Dataset) -> None:
        for name, value in elements.items():
            setattr(dataset, name, value)
            if value is None:
                delattr(dataset, name)

    write_series(tmp_path, stored_values(np.random.default_rng(0)), change=change)
    found = scan([tmp_path])
    assert {(f.verdict, f.code) for f in found.files} == {(verdict, code)}
    assert not any("ZZCANARY" in f.reason for f in found.files)


def test_floating_point_pixels_are_not_read_as_integers(write_series: Write, tmp_path: Path) -> None:
    def change(_: int, dataset: Dataset) -> None:
        del dataset.PixelData
        dataset.FloatPixelData = bytes(192)
        dataset.BitsAllocated = dataset.BitsStored = 32
        dataset.HighBit = 31

    write_series(tmp_path, stored_values(np.random.default_rng(0)), change=change)
    assert {f.code for f in scan([tmp_path]).files} == {"E_DECODE"}


def test_an_allowed_code_can_be_read(write_series: Write, tmp_path: Path) -> None:
    stored = stored_values(np.random.default_rng(0))
    write_series(tmp_path, stored, SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    with pytest.raises(Refusal, match="E_BURNED_IN"):
        read_series(only(tmp_path), "mr_t1")
    np.testing.assert_array_equal(read_series(only(tmp_path), "mr_t1", allow={"E_BURNED_IN"}).voxels, stored)


def test_a_truncated_slice_marks_its_series_incomplete(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path, stored_values(np.random.default_rng(0)))
    last = tmp_path / "004.dcm"
    last.write_bytes(last.read_bytes()[:-10])
    found = scan([tmp_path])
    assert [f.code for f in found.files] == [""] * 4 + ["E_TRUNCATED"]
    assert "expected 96 bytes of pixels, found 86" in found.files[-1].reason
    assert found.series[0].shape[0] == 4
    assert "INCOMPLETE" in found.series[0].flags


def test_padding_becomes_air(write_series: Write, tmp_path: Path) -> None:
    """PixelPaddingValue is US on signed data in many files: 63536 means -2000."""
    stored = np.random.default_rng(0).integers(-100, 100, (3, 4, 5)).astype(np.int16)
    stored[:, 0] = -2000

    def change(_: int, dataset: Dataset) -> None:
        dataset.add_new("PixelPaddingValue", "US", 63536)
        dataset.RescaleSlope, dataset.RescaleIntercept = "1", "-1024"

    write_series(tmp_path, stored, modality="CT", change=change)
    voxels = read_series(only(tmp_path), "ct").voxels
    assert (voxels[:, 0] == -1024).all()
    np.testing.assert_array_equal(voxels[:, 1:], stored[:, 1:] - 1024.0)


def test_the_range_of_a_scan_without_a_domain_is_that_of_its_modality(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path, np.full((3, 4, 5), 50, np.int16), modality="CT", PixelPaddingValue=50)
    [row] = inventory([tmp_path]).to_json(values=True)["volumes"]
    assert (row["domain"], row["value_range"]) == (None, [-1024, -1024])


def test_a_cine_is_no_scan_but_its_frames_can_be_seen(slice_header: Any, save: Write, tmp_path: Path) -> None:
    cine = slice_header(SOPClassUID="1.2.840.10008.5.1.4.1.1.12.1", NumberOfFrames=3, Rows=4, Columns=5)
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 5), np.uint8)
    cine.Modality, cine.BitsAllocated, cine.BitsStored, cine.HighBit = "XA", 8, 8, 7
    cine.PixelData = frames.tobytes()
    save(cine, tmp_path / "x.dcm")
    document = inventory([tmp_path]).to_json(values=True)
    [row], [file] = document["volumes"], document["files"]
    assert (row["kind"], row["code"]) == ("video", "E_SOPCLASS")
    assert (file["verdict"], file["code"]) == ("refused", "E_SOPCLASS")
    np.testing.assert_array_equal([colour[..., 0] for colour in read_colour(only(tmp_path))], frames)


def test_monochrome1_is_inverted_within_the_stored_range(write_series: Write, tmp_path: Path) -> None:
    stored = stored_values(np.random.default_rng(0))
    write_series(tmp_path / "mr", stored, bits=12, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_series(only(tmp_path / "mr"), "mr_t1").voxels, 4095.0 - stored)
    write_series(tmp_path / "ct", stored, bits=12, modality="CT", PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read_series(only(tmp_path / "ct"), "ct").voxels, stored)  # HU stays HU


@pytest.mark.parametrize(("modality", "domain"), [("MR", "ct"), ("CT", "mr_t1")])
def test_hounsfield_units_are_not_mixed_with_mr(
    modality: str, domain: str, write_series: Write, tmp_path: Path
) -> None:
    write_series(tmp_path, stored_values(np.random.default_rng(0)), modality=modality)
    with pytest.raises(Refusal, match="E_DOMAIN"):
        read_series(only(tmp_path), domain)


def test_a_single_slice_keeps_its_place(write_series: Write, tmp_path: Path) -> None:
    affine = np.diag([0.5, 0.7, 3.0, 1.0])
    affine[:3, 3] = (-10, 20, 30)
    stored = stored_values(np.random.default_rng(0), (1, 4, 5))
    write_series(tmp_path, stored, affine, SliceThickness="3", SpacingBetweenSlices="-2.5")
    series = only(tmp_path)
    assert series.kind == "image"
    volume = read_image(series, "mr_t1")
    np.testing.assert_allclose(volume.affine, affine)
    np.testing.assert_array_equal(volume.voxels, stored)
    with pytest.raises(Refusal, match="E_SOPCLASS"):
        read_series(series, "mr_t1")


def test_a_plain_radiograph_has_no_geometry(write_series: Write, tmp_path: Path) -> None:
    elements = {"ImagePositionPatient": None, "ImageOrientationPatient": None, "Modality": "CR"}
    stored = stored_values(np.random.default_rng(0), (1, 4, 5))
    write_series(tmp_path, stored, SOPClassUID="1.2.840.10008.5.1.4.1.1.1", **elements)
    series = only(tmp_path)
    assert (series.kind, series.code) == ("image", "")
    assert series.affine is None
    np.testing.assert_array_equal(read_image(series, "mr_t1").affine, np.eye(4))


def test_enhanced_frames_have_their_own_place_scale_and_type(
    slice_header: Callable[..., Dataset], save: Write, tmp_path: Path
) -> None:
    """Magnitude and field-map frames in one object, each with its own slope, in any order."""
    rng = np.random.default_rng(0)
    frames = [
        {"z": 4 * z, "slope": 1 + z + 10 * (kind == "B0"), "type": kind, "t": 1}
        for kind in ("T1", "B0")
        for z in range(3)
    ]
    pixels = stored_values(rng, (6, 4, 5))
    order = rng.permutation(6)
    save(enhanced([frames[k] for k in order], pixels[order]), tmp_path / "e.dcm")
    found = scan([tmp_path])
    assert [(s.kind, s.shape) for s in found.series] == [("volume", (3, 4, 5))] * 2
    for series in found.series:
        kind = series.frames[0].contrast[0][0]
        expected = [pixels[k] * float(f["slope"]) for k, f in enumerate(frames) if f["type"] == kind]
        volume = read_series(series, "mr_t1")
        np.testing.assert_array_equal(volume.voxels, expected)
        np.testing.assert_allclose(np.diag(volume.affine), [3, 2, 4, 1])


def test_enhanced_time_points_are_volumes(slice_header: Callable[..., Dataset], save: Write, tmp_path: Path) -> None:
    frames = [{"z": 4 * z, "slope": 1, "type": "T1", "t": t} for t in (1, 2) for z in range(3)]
    pixels = stored_values(np.random.default_rng(0), (6, 4, 5))
    save(enhanced(frames, pixels), tmp_path / "e.dcm")
    series = only(tmp_path)
    assert (series.kind, series.volumes) == ("4d", 2)
    np.testing.assert_array_equal(read_series(series.volume(1), "mr_t1").voxels, pixels[3:])


def test_an_enhanced_object_that_kept_the_word_is_no_mosaic(
    slice_header: Callable[..., Dataset], save: Write, tmp_path: Path
) -> None:
    """Newer scanners write the slices of a mosaic as frames and leave MOSAIC in ImageType."""
    frames = [{"z": 4 * z, "slope": 1, "type": "T1", "t": 1} for z in range(3)]
    dataset = enhanced(frames, stored_values(np.random.default_rng(0), (3, 4, 5)))
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
    save(dataset, tmp_path / "e.dcm")
    series = only(tmp_path)
    assert (series.kind, series.code, series.flags) == ("volume", "", frozenset())


def test_every_file_gets_a_verdict_in_a_bad_folder(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path / "good", stored_values(np.random.default_rng(0)))
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "zeros").write_bytes(bytes(2000))
    (tmp_path / "x.dcm").write_bytes(b"\x89PNG" + bytes(200))
    (tmp_path / "half.dcm").write_bytes(bytes(128) + b"DICM\x02\x00")
    found = scan([tmp_path, tmp_path / "good", tmp_path / "missing"])
    verdicts = {f.path.name: (f.verdict, f.code) for f in found.files if f.path.parent == tmp_path}
    assert verdicts == {
        "dangling": ("refused", "E_DECODE"),
        "pipe": ("skipped", "E_NOT_DICOM"),
        "empty.dcm": ("refused", "E_NOT_DICOM"),
        "notes.txt": ("skipped", "E_NOT_DICOM"),
        "zeros": ("skipped", "E_NOT_DICOM"),
        "x.dcm": ("refused", "E_NOT_DICOM"),
        "half.dcm": ("refused", "E_DECODE"),
        "missing": ("refused", "E_DECODE"),
    }
    assert len([f for f in found.files if f.verdict == "used"]) == 5


def test_a_very_deep_folder(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(300):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.txt").write_text("x")
    assert len(scan([tmp_path]).files) == 1


def test_a_deflated_bomb_is_not_inflated(tmp_path: Path, write_series: Write) -> None:
    write_series(tmp_path, stored_values(np.random.default_rng(0), (1, 4, 4)), syntax=DeflatedExplicitVRLittleEndian)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    length = struct.unpack_from("<L", data, 140)[0]
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(data[: 144 + length] + bomb.compress(bytes(1 << 24)) + bomb.flush())
    found = scan([tmp_path], Limits(inflated_bytes=1 << 20))
    assert [f.code for f in found.files] == ["E_TOO_LARGE"]
    path.write_bytes(data[:-30])
    assert [f.code for f in scan([tmp_path]).files] == ["E_TRUNCATED"]


def test_a_file_that_changes_after_the_scan_is_refused(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path, stored_values(np.random.default_rng(0)))
    series = only(tmp_path)
    (tmp_path / "002.dcm").write_bytes((tmp_path / "002.dcm").read_bytes() + b"  ")
    with pytest.raises(Refusal, match="E_DECODE"):
        read_series(series, "mr_t1")


def test_undefined_length_sequences_and_unknown_private_data_are_stepped_over(
    native_syntax: UID, write_series: Write, tmp_path: Path
) -> None:
    def change(_: int, dataset: Dataset) -> None:
        inner = Dataset()
        inner.CodeValue = "1"
        outer = Dataset()
        outer.PurposeOfReferenceCodeSequence = [inner]
        outer.is_undefined_length_sequence_item = True
        dataset.ReferencedImageSequence = [outer, Dataset()]
        dataset["ReferencedImageSequence"].is_undefined_length = True
        dataset.private_block(0x0019, "ACME", create=True).add_new(1, "UN", os.urandom(70_000))
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientID = "Jérôme"

    stored = stored_values(np.random.default_rng(0))
    write_series(tmp_path, stored, syntax=native_syntax, change=change)
    series = only(tmp_path)
    assert series.patient_id == "Jérôme"
    np.testing.assert_array_equal(read_series(series, "mr_t1").voxels, stored)


def test_nothing_is_printed(write_series: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.add_new("SeriesDate", "DA", "ZZCANARYDATE")

    with pytest.warns(UserWarning, match="ZZCANARYDATE"):  # pydicom quotes the value: the scan must not
        write_series(tmp_path, stored_values(np.random.default_rng(0)), change=change)
    found = scan([tmp_path])
    read_series(found.series[0], "mr_t1")
    assert "".join(capfd.readouterr()) == ""
    assert "ZZCANARY" not in repr(found)


def test_pydicoms_own_files_never_crash() -> None:
    folder = Path(pydicom.__file__).parent / "data" / "test_files"
    found = scan([folder])
    assert len(found.files) > 70
    assert all(f.verdict == "used" or f.code for f in found.files)
    codes = {f.path.name: f.code for f in found.files}
    assert codes["badVR.dcm"] == "E_DECODE"
    assert codes["MR_truncated.dcm"] == "E_TRUNCATED"
    assert codes["DICOMDIR"] == "E_SOPCLASS"
    assert codes["liver_1frame.dcm"] == "E_SOPCLASS"
