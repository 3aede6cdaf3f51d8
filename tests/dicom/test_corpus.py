"""The conformance set: 69 difficult cases with verdicts, and a geometry computed from the tags.

Those whose files pydicom ships are read from there, with or without the set beside the project.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import subprocess
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest

from medstyle.dicom.deidentify import deidentify_folder
from medstyle.dicom.elements import words
from medstyle.dicom.read import read_colour, read_image, read_series, read_stored
from medstyle.dicom.scan import Scan, Series, find_files, scan
from medstyle.errors import Refusal
from tests.conftest import SHARED

CORPUS = SHARED / "data" / "dicom_corpus"
INDEX = CORPUS / "INDEX.tsv"
PYDICOM = Path(pydicom.__file__).parent / "data"  # not by pydicom's functions, which may download
SHIPPED = {  # case -> (verdict, files or folders that pydicom ships)
    "bad_vr_numframes": ("reject", "test_files/badVR.dcm"),
    "meta_missing_tsyntax": ("reject", "test_files/meta_missing_tsyntax.dcm"),
    "mr_truncated_pixels": ("reject", "test_files/MR_truncated.dcm"),
    "dicomdir_tree": ("mixed", "test_files/dicomdirtests/DICOMDIR", "test_files/dicomdirtests/[0-9]*"),
    "pydicom_test_dir": ("mixed_no_crash", "test_files/*.dcm"),
    "ct_huge_gap": ("reject_or_split", "test_files/dicomdirtests/77654033/CT2"),
    "charsets": ("metadata_ok", *(f"charset_files/chr{n}.dcm" for n in words("Arab FrenMulti H31 SQEncoding X1 X2"))),
    "private_nested_sq": ("skip", *(f"test_files/{n}.dcm" for n in ("UN_sequence", "nested_priv_SQ", "priv_SQ"))),
    "deflated": ("image2d", "test_files/image_dfl.dcm"),
    "j2k_pixelrep_mismatch": ("image2d", "test_files/J2K_pixelrep_mismatch.dcm"),
    "mr_bigendian": ("image2d", "test_files/MR_small_bigendian.dcm"),
    "overlay_plane": ("image2d", "test_files/examples_overlay.dcm"),
    "palette_color": ("image2d_rgb_or_skip", "test_files/examples_palette.dcm"),
    "rgb_sc": ("image2d_rgb", "test_files/examples_rgb_color.dcm"),
    "ybr_full_422_uncompressed": ("image2d_rgb", "test_files/SC_ybr_full_422_uncompressed.dcm"),
    "ybr_rct_j2k": ("image2d_rgb", "test_files/examples_jpeg2k.dcm"),
    "rtdose_multiframe_32bit": ("skip", "test_files/rtdose.dcm"),
    "seg_1bit": ("skip", "test_files/liver_1frame.dcm"),
    "us_cine_ybr": ("video", "test_files/examples_ybr_color.dcm"),
}


class Case(NamedTuple):
    """What to read, and what is known of it."""

    verdict: str
    paths: list[Path]
    files: int
    facts: str = ""


def shipped(verdict: str, *patterns: str) -> Case:
    paths = [path for pattern in patterns for path in sorted(PYDICOM.glob(pattern))]
    return Case(verdict, paths, sum(file.is_file() for path in paths for file in (path, *path.rglob("*"))))


CASES = {name: shipped(*of) for name, of in SHIPPED.items()}
if INDEX.is_file():
    with INDEX.open(encoding="utf-8", newline="") as _file:
        for row in csv.DictReader(_file, delimiter="\t"):
            paths = CASES[row["case"]].paths if row["case"] in SHIPPED else [CORPUS / row["path"]]
            CASES[row["case"]] = Case(row["verdict"], paths, int(row["files"]), row["facts_from_tags"])


class Scans(dict[str, Scan]):
    def __missing__(self, case: str) -> Scan:
        pytest.skip("the conformance set beside the project is absent")


def only(found: Scan) -> Series:
    (series,) = found.series
    return series


def refused(found: Scan) -> bool:
    return not any(s.usable for s in found.series) and all(f.verdict == "refused" and f.code for f in found.files)


def skipped(found: Scan) -> bool:
    return not found.series and all(f.verdict != "used" and f.code for f in found.files)


VERDICTS: dict[str, Callable[[Scan], bool]] = {
    "volume": lambda s: only(s).kind == "volume" and only(s).code == "",
    "volume_sheared": lambda s: (only(s).kind, only(s).code) == ("volume", "E_TILT_NEEDS_RESAMPLE") and only(s).usable,
    "volume_rgb": lambda s: only(s).kind == "volume" and "COLOUR" in only(s).flags and not only(s).usable,
    "4d:4": lambda s: (only(s).kind, only(s).code, only(s).volumes) == ("4d", "E_4D", 4),
    "4d:2": lambda s: (only(s).kind, only(s).code, only(s).volumes) == ("4d", "E_4D", 2),
    "4d_or_reject": lambda s: refused(s) and only(s).code == "E_4D",
    "2d+t": lambda s: (only(s).kind, only(s).shape[0], only(s).volumes) == ("4d", 1, 19),
    "split:2": lambda s: [(x.kind, x.code, x.shape[0]) for x in s.series] == [("volume", "", 2)] * 2,
    "split:3_irregular": lambda s: (
        [(x.kind, x.code, "INCOMPLETE" in x.flags) for x in s.series]
        == [("refused", "E_GAP", False), ("volume", "", True), ("volume", "", True)]
    ),
    "skip_or_split:3": lambda s: [(x.kind, x.code, x.shape[0]) for x in s.series] == [("volume", "", 7)] * 3,
    "image2d": lambda s: only(s).kind == "image" and only(s).code in ("", "E_BURNED_IN"),
    "image2d_or_reject": lambda s: refused(s) or only(s).kind == "image",
    "image2d_or_named_syntax": lambda s: only(s).kind == "image",
    "image2d_inverted": lambda s: only(s).kind == "image" and "MONOCHROME1" in only(s).flags,
    "image2d_no_spacing_or_reject": lambda s: only(s).kind == "image" and only(s).affine is None,
    "image2d_rgb": lambda s: only(s).kind == "image" and "COLOUR" in only(s).flags and not only(s).usable,
    "image2d_masked(mosaic)": lambda s: (only(s).kind, only(s).code, only(s).shape) == ("volume", "", (35, 64, 64)),
    "9_equal_images(mosaic)": lambda s: [(x.code, x.shape) for x in s.series] == [("", (35, 64, 64))] * 9,
    "reject": refused,
    "reject_no_geometry": lambda s: refused(s) and s.files[0].code == "E_NO_GEOMETRY",
    "reject_or_split": refused,
    "block": lambda s: refused(s) and s.files[0].code == "E_BURNED_IN",
    "skip": skipped,
    "video": lambda s: only(s).kind == "video" and only(s).shape == (30, 240, 320),
    "mixed:2_volumes": lambda s: (
        sorted(x.kind for x in s.series) == ["image", "image", "volume", "volume"]
        and {f.verdict for f in s.files} == {"used", "skipped", "refused"}
    ),
    "mixed": lambda s: [x.shape[0] for x in s.series if x.kind == "volume"] == [5],
    "mixed_no_crash": lambda s: all(f.code for f in s.files if f.verdict != "used"),
    "metadata_ok": lambda s: len(s.series) == 5 and all(x.kind == "image" for x in s.series),
}
for name in ("volume_deid_carried", "volume_no_leak", "image_private_dropped"):
    VERDICTS[name] = VERDICTS["volume"]
VERDICTS["image2d_rgb_or_skip"] = VERDICTS["image2d_rgb"]

RANGES: dict[str, tuple[float, float]] = {  # of the values that are read, measured with other tools
    "mr_per_slice_rescale": (33.4438, 96.468),
    "pet_tiny_slope": (0, 0.00194931),
    "mr_enhanced_philips_anat": (0, 1081.75),
    "ct_enhanced_supplemental": (-1024, 172),
    "ct_negative_spacing_between_slices": (-1024, 1376),  # padding of -3024 HU became air
    "dx_monochrome1": (0, 250),
    "cr_mono1_no_preamble": (44, 1023),
    "modality_lut": (0, 65535),
    "j2k_pixelrep_mismatch": (-2000, 1896),
    "mr_bigendian": (127, 2145),
    "explicit_vr_un": (-1024, 1186),
    "bad_sequence": (-1011, 1243),
    "rle_fragmented": (-1024, 1254),  # padding of -3024 HU became air
    "overlay_plane": (0, 1123),
    "deflated": (0, 255),
    "ct_gantry_tilt_philips_18p5": (-1024, 791),
    "mr_shuffled_names_no_instance_number": (0, 1764),
    "private_renamed_agfa": (0, 2633),
}


def read(series: Series) -> np.ndarray:
    function = read_image if series.kind == "image" else read_series
    domain = "ct" if series.attributes.get("Modality") == "CT" else "mr_t1"
    return function(series, domain, allow=("E_BURNED_IN", "E_DOMAIN")).voxels


@pytest.fixture(scope="module")
def scans() -> Scans:
    return Scans({name: scan(case.paths) for name, case in CASES.items()})


@pytest.mark.skipif(not INDEX.is_file(), reason="the conformance set beside the project is absent")
def test_the_set_is_whole_and_what_is_shipped_is_the_same() -> None:
    assert len(CASES) == 69
    for name, (verdict, *patterns) in SHIPPED.items():
        assert (verdict, shipped(verdict, *patterns).files) == (CASES[name].verdict, CASES[name].files)
        assert contents(CASES[name].paths) == contents([CORPUS / name])


def contents(paths: Iterable[Path]) -> list[str]:
    return sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in find_files(paths))


@pytest.mark.parametrize("case", CASES)
def test_each_case_has_the_verdict_that_its_maker_expects(case: str, scans: Scans) -> None:
    found = scans[case]
    assert VERDICTS[CASES[case].verdict](found), [(f.verdict, f.code, f.reason) for f in found.files][:5]
    assert len(found.files) == len({f.path for f in found.files}) == CASES[case].files > 0
    for file in found.files:
        assert (file.verdict == "used") <= (file.code in ("", "E_TILT_NEEDS_RESAMPLE"))
        assert (file.verdict != "used") <= bool(file.code and file.reason)


@pytest.mark.parametrize("case", CASES)
def test_geometry_from_the_tags(case: str, scans: Scans) -> None:
    """Every slice lies where its own ImagePositionPatient says, and the facts of the index
    agree."""
    for series in scans[case].series:
        if series.kind not in ("volume", "4d") or "MOSAIC" in series.flags:  # whose tags place the whole sheet
            continue
        assert series.affine is not None
        for k, frame in enumerate(series.frames):
            position = plane(frame.instance.path, frame.number)
            computed = series.affine @ [0, 0, k % series.shape[0], 1]
            np.testing.assert_allclose(computed[:3], position["ImagePositionPatient"], atol=0.02)
            row, column = position["PixelSpacing"]
            orientation = position["ImageOrientationPatient"]
            np.testing.assert_allclose(series.affine[:3, 0], orientation[:3] * column, atol=1e-4)
            np.testing.assert_allclose(series.affine[:3, 1], orientation[3:] * row, atol=1e-4)
        assert np.linalg.det(series.affine) > 0
    facts = json.loads(CASES[case].facts) if CASES[case].facts.startswith("[{") else []
    volumes = [s for s in scans[case].series if s.kind in ("volume", "4d")]
    if len(facts) == 1 and len(volumes) == 1 and "dz_normal" in facts[0]:
        (fact,), (series,) = facts, volumes
        normal = np.cross(*series.affine[:3, :2].T)
        normal /= np.linalg.norm(normal)
        step = series.affine[:3, 2]
        assert series.shape[0] == fact["n_positions"]
        assert abs(step @ normal - fact["dz_normal"][1]) < 5e-4
        assert abs(np.degrees(np.arccos(min(1, step @ normal / np.linalg.norm(step)))) - fact["shear_deg"]) < 0.06


def plane(path: Path, frame: int) -> dict[str, np.ndarray]:
    """Read the plane of one frame by another way than the product does."""
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        found = {}
        for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            holders = [dataset]
            if "PerFrameFunctionalGroupsSequence" in dataset:
                groups = [dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence[frame]]
                holders += [item for group in groups for e in group if e.VR == "SQ" for item in e.value]
            found[name] = next(np.array(h[name].value, float) for h in holders if name in h)
    return found


@pytest.mark.parametrize("case", RANGES)
def test_each_case_has_the_range_of_values_that_its_maker_states(case: str, scans: Scans) -> None:
    voxels = read(only(scans[case]))
    assert voxels.dtype == np.float32
    np.testing.assert_allclose((voxels.min(), voxels.max()), RANGES[case], rtol=1e-4, atol=1e-6)


def test_padding_is_air_and_nothing_else_is(scans: Scans) -> None:
    series = only(scans["ct_negative_spacing_between_slices"])
    voxels, (stored,) = read(series)[0], read_stored(series)
    assert (stored == -2000).sum() == (voxels == -1024).sum() > 1000
    np.testing.assert_array_equal(voxels[stored != -2000], stored[stored != -2000] - 1024.0)


def test_unused_high_bits_are_masked(scans: Scans) -> None:
    pixels = np.array(list(read_stored(only(scans["mr_12bit_dirty_high_bits"]))))
    assert (pixels.min(), pixels.max()) == (0, 4095)


def test_packed_12_bit_pixels_of_an_old_file(scans: Scans, tmp_path: Path) -> None:
    """It names no SOP class; with one it is smooth and ends at 266, which is what GDCM reads."""
    [file] = scans["bits_allocated_12"].files
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(file.path, force=True)
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", "2.25.1"
        dataset.PhotometricInterpretation = "MONOCHROME2"
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        dataset.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    voxels = read(only(scan([tmp_path])))[0]
    assert (voxels.shape, voxels.min(), voxels.max()) == ((256, 256), 0, 266)
    assert np.corrcoef(voxels[:, 1:].ravel(), voxels[:, :-1].ravel())[0, 1] > 0.9


def test_nine_transfer_syntaxes_hold_the_same_pixels(scans: Scans) -> None:
    found = scans["transfer_syntaxes_same_image"].series
    assert len({s.frames[0].instance.transfer_syntax for s in found}) >= 7
    assert len({hashlib.sha256(np.array(list(read_stored(s)), "<u2").tobytes()).hexdigest() for s in found}) == 1


def test_compressed_series_hold_the_same_pixels(scans: Scans) -> None:
    one, other = (read(only(scans[case])) for case in ("compressed_j2k_series", "compressed_jpegll_series"))
    np.testing.assert_array_equal(one, other)


def test_big_endian_equals_little_endian(scans: Scans) -> None:
    little = next(s for s in scans["mixed_folder"].series if s.shape == (1, 64, 64))
    np.testing.assert_array_equal(read(only(scans["mr_bigendian"])), read(little))


def test_overlay_is_not_burned_in(scans: Scans) -> None:
    series = only(scans["overlay_plane"])
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(series.files[0])
        assert any(0x6000 <= element.tag.group < 0x6100 for element in dataset)
        np.testing.assert_array_equal(read(series)[0], dataset.pixel_array)


COLOURS = {
    "rgb_sc": 1,
    "ybr_full_422_uncompressed": 1,
    "ybr_rct_j2k": 1,
    "palette_color": 1,
    "us_cine_ybr": 30,
    "htj2k": 1,
}


@pytest.mark.parametrize("case", COLOURS)
def test_colours_can_be_seen_on_request_and_are_no_scan(case: str, scans: Scans) -> None:
    series = only(scans[case])
    with pytest.raises(Refusal, match="E_BURNED_IN"):
        next(read_colour(series))
    frames = list(read_colour(series, allow=("E_BURNED_IN",)))
    assert len(frames) == COLOURS[case]
    assert {(f.shape, f.dtype.name) for f in frames} == {((*series.shape[1:], 3), "uint8")}
    assert frames[0].max() > 200
    with pytest.raises(Refusal, match=r"E_COLOR|E_SOPCLASS"):
        read_image(series, "mr_t1", allow=("E_BURNED_IN",))


def test_palette_is_applied(scans: Scans) -> None:
    (frame,) = read_colour(only(scans["palette_color"]), allow=("E_BURNED_IN",))
    with warnings.catch_warnings(action="ignore"):
        dataset = pydicom.dcmread(only(scans["palette_color"]).files[0])
    table = np.frombuffer(dataset.RedPaletteColorLookupTableData, "<u2")
    np.testing.assert_array_equal(frame[..., 0], (table[dataset.pixel_array] >> 8).astype(np.uint8))


def test_names_in_other_scripts_are_decoded(scans: Scans) -> None:
    for series in scans["charsets"].series:
        assert "�" not in series.patient_id
    arabic = next(s for s in scans["charsets"].series if s.files[0].name == "chrArab.dcm")
    assert arabic.patient_id


@pytest.mark.parametrize("case", CASES)
def test_whatever_is_usable_can_be_read(case: str, scans: Scans) -> None:
    for series in scans[case].series:
        if series.usable and series.kind in ("volume", "image"):
            assert read(series).shape == series.shape
        elif series.kind != "refused" and series.code not in ("", "E_BURNED_IN"):
            with pytest.raises(Refusal, match=series.code):
                read_series(series, "mr_t1")


@pytest.mark.parametrize("case", CASES)
def test_a_deidentified_copy_is_read_alike(
    case: str, scans: Scans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for mosaics, whose private header is gone, and what was made of a film or a screen
    (ConversionType)."""

    def content(found: Scan) -> Counter[tuple[object, ...]]:
        series = [s for s in found.series if s.usable and s.kind in ("volume", "image") and "MOSAIC" not in s.flags]
        series = [s for s in series if not converted.issuperset(s.files)]
        return Counter((s.kind, s.shape, str(s.affine), read(s).tobytes()) for s in series)

    monkeypatch.setenv("MEDSTYLE_SECRET", "of this test")
    converted = set()
    for number, path in enumerate(CASES[case].paths):
        verdicts = deidentify_folder(path, tmp_path / f"{number}")
        converted |= {verdict.path for verdict in verdicts if verdict.code == "E_BURNED_IN"}
    assert content(scans[case]) <= content(scan([tmp_path]))


def test_no_patient_data_in_what_may_be_printed(scans: Scans) -> None:
    found = scans["phi_canary"]
    assert "ZZCANARY" not in repr(found) + repr([vars(f) | {"path": ""} for f in found.files])
    assert all("ZZCANARY" in str(f.path) for f in found.files)


DCM2NIIX = ("ct_enhanced_supplemental", "mr_oblique_philips", "mr_per_slice_rescale", "mr_sagittal_prone_HFP",
            "mr_sagittal_decubitus_HFDL", "mr_shuffled_names_no_instance_number", "deident_reference",
            "compressed_jpegll_series", "duplicates_same_sop", "mr_localizer_3plane",
            "mr_two_geometries_one_series_uid", "mr_12bit_dirty_high_bits",
            "transfer_syntaxes_same_image")  # fmt: skip


@pytest.mark.parametrize("case", DCM2NIIX)
def test_dcm2niix_agrees(case: str, scans: Scans, tmp_path: Path) -> None:
    """Compare voxels and affines where dcm2niix is right; it stores the axes in another order."""
    nibabel = pytest.importorskip("nibabel")
    volumes = [s for s in scans[case].series if s.kind == "volume"]
    program = shutil.which("dcm2niix") or pytest.importorskip("dcm2niix").bin
    subprocess.run(
        [program, "-z", "n", "-f", "%s_%r_%e", "-o", tmp_path, *CASES[case].paths],
        capture_output=True,
        check=False,
    )
    images = [nibabel.load(path) for path in sorted(tmp_path.glob("*.nii"))]
    assert len(images) == len(volumes) > 0
    for series in volumes:
        ours = np.diag([-1, -1, 1, 1]) @ series.affine  # LPS to RAS
        matches = []
        for image in images:
            index = np.linalg.inv(image.affine) @ ours  # our (column, row, slice) -> theirs
            whole = np.rint(index)
            if np.abs(index - whole).max() < 0.02 and image.ndim == 3:
                matches.append((image, whole.astype(int)))
        assert matches, "no image of dcm2niix lies on the same grid"
        voxels = read(series)
        grid = np.indices(series.shape).reshape(3, -1)[::-1]  # column, row, slice of each voxel
        for image, whole in matches:
            i, j, k = whole[:3, :3] @ grid + whole[:3, 3:]
            theirs = np.asanyarray(image.dataobj)[i, j, k].reshape(series.shape)
            if np.allclose(theirs, voxels, rtol=1e-5, atol=1e-3):
                break
        else:
            pytest.fail("the voxels differ")
