"""Nothing of a patient is left, and what belongs together still does."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, JPEG2000Lossless

from medstyle.dicom.acquired import write_series as write_acquired
from medstyle.dicom.deidentify import Options, deidentify, deidentify_folder, private_element
from medstyle.dicom.read import read_series
from medstyle.dicom.scan import scan
from medstyle.errors import Refusal, UserError
from medstyle.imaging.volume import Volume
from medstyle.pseudonyms import subject_key
from tests.canary import DIGITS, IN_PATH, WORD, plant, search

Write = Callable[..., Path]
TILTED = np.array([[0.5, 0, 0, -60], [0, 0.47, 1.2, -70], [0, -0.17, 4.8, 10], [0, 0, 0, 1.0]])
EVERYTHING = Options(True, True, True, ((0x0021, 0x02, "ACME SAFE"),))
VERBATIM = {  # what a person types or a vendor invents where a few words are defined
    "ScanOptions": ["FS", WORD],
    "SequenceVariant": WORD,
    "BodyPartExamined": WORD,
    "ConvolutionKernel": WORD,
    "PatientPosition": WORD,
    "LossyImageCompressionMethod": WORD,
}


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSTYLE_SECRET", "a secret of this test")


def canaries(folder: Path, domain: str = "mr_t1", *, body: bool = False) -> Path:
    """Write a series full of canaries, in every kind of field and in the names of its files.

    Returns the folder.
    """
    attributes = {
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.1",
        "FrameOfReferenceUID": "1.2.9",
        "SeriesDescription": "T1 SE",
        "SeriesNumber": 1,
    } | ({"ScanningSequence": "SE", "EchoTime": "10", "RepetitionTime": "500", "EchoTrainLength": 1}
         if domain != "ct" else {})  # fmt: skip
    voxels = np.random.default_rng(0).integers(0, 1500, (3, 16, 20)).astype(np.float32)
    place = folder / f"{IN_PATH}^{domain}"
    write_acquired(place, Volume(voxels, TILTED, domain), attributes, range(3))
    for number in range(3):
        path = place / f"{number:04d}.dcm"
        plant(path, 0, 1 if domain == "ct" else 2, number)
        dataset = pydicom.dcmread(path)
        for name, value in VERBATIM.items():
            setattr(dataset, name, value)
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL" if domain == "ct" else "M", WORD]
        plane, orientation, measures, content = Dataset(), Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient, plane.ImageComments = dataset.ImagePositionPatient, WORD
        orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
        measures.PixelSpacing = dataset.PixelSpacing
        content.StackID, content.FrameComments, content.InStackPositionNumber = WORD, WORD, 7
        group = Dataset()
        group.PlanePositionSequence, group.FrameContentSequence = [plane], [content]
        group.PlaneOrientationSequence, group.PixelMeasuresSequence = [orientation], [measures]
        group.private_block(0x0021, f"{WORD} OTHER", create=True).add_new(2, "LO", WORD)
        dataset.PerFrameFunctionalGroupsSequence = [group]
        dataset.private_block(0x0021, "ACME SAFE", create=True).add_new(2, "DS", "0.25")
        dataset.private_block(0x0021, "ACME SAFE").add_new(3, "LO", WORD)
        dataset.Manufacturer, dataset.ManufacturerModelName = "ACME", "Tesla"
        if domain != "ct":  # which is HU or no original
            dataset.RescaleType = WORD
        if body:  # ordinary values of what keep_patient means to keep
            dataset.PatientSize, dataset.PatientWeight = "1.8", "80"
        dataset.PixelData += f"{WORD} after the pixels ".encode()
        dataset.save_as(path, enforce_file_format=True)
    return folder


@pytest.mark.parametrize("options", [Options(), EVERYTHING], ids=["strict", "everything"])
def test_no_canary_survives_and_what_is_written_conforms(options: Options, tmp_path: Path) -> None:
    for domain in ("mr_t1", "ct"):
        canaries(tmp_path / "in", domain, body=options.keep_patient)
    planted = search(tmp_path / "in")
    assert all(
        any(text in form for form in planted)
        for text in (WORD, *(text for vr, text in DIGITS.items() if vr != "DS" or not options.keep_patient))
    )
    before = {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.dcm")}
    verdicts = deidentify_folder(tmp_path / "in", tmp_path / "out", options)
    assert [v.verdict for v in verdicts] == ["used"] * 6
    assert search(tmp_path / "out") == []
    assert {path: path.read_bytes() for path in (tmp_path / "in").rglob("*.dcm")} == before
    for path in (tmp_path / "out").rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        assert dataset.PatientIdentityRemoved == "YES"
        assert [c.CodeValue for c in dataset.DeidentificationMethodCodeSequence] == (
            ["113100"] if options == Options() else ["113100", "113107", "113108", "113109", "113111"]
        )
        assert (0x0021, 0x1003) not in dataset
        assert ("PatientWeight" in dataset, bool(dataset.Manufacturer)) == (options.keep_patient, options.keep_device)
        kept = dataset.get((0x0021, 0x1002))
        assert (kept.value if kept else None) == (0.25 if options.keep_private else None)
        assert not options.shift_dates or dataset.StudyDate
        assert conformity(path) == []


def conformity(path: Path) -> list[str]:
    if not shutil.which("dciodvfy"):
        return []
    done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, errors="replace", check=False)
    return [line for line in (done.stderr + done.stdout).splitlines() if line.startswith("Error")]


def test_the_image_is_kept(tmp_path: Path) -> None:
    canaries(tmp_path / "in")
    deidentify_folder(tmp_path / "in", tmp_path / "out")
    (before,), (after,) = scan([tmp_path / "in"]).series, scan([tmp_path / "out"]).series
    one, two = read_series(before, "mr_t1"), read_series(after, "mr_t1")
    np.testing.assert_array_equal(one.voxels, two.voxels)
    np.testing.assert_array_equal(one.affine, two.affine)
    source, clean = (pydicom.dcmread(series.files[0]) for series in (before, after))
    for name in ("ImagePositionPatient", "PixelSpacing", "EchoTime", "RepetitionTime", "ScanningSequence", "Modality"):
        assert clean[name] == source[name]
    *standard, vendor = clean.ImageType
    assert standard == ["ORIGINAL", "PRIMARY", "M"]
    assert re.fullmatch("OTHER_[0-9A-F]{8}", vendor)  # tells volumes apart, and says no more
    assert clean.ScanOptions == "FS"
    [group] = clean.PerFrameFunctionalGroupsSequence
    assert group.PlanePositionSequence[0].ImagePositionPatient == clean.ImagePositionPatient
    assert group.FrameContentSequence[0].InStackPositionNumber == 7
    assert len(group.FrameContentSequence[0].StackID) == 12


@pytest.mark.parametrize("syntax", [ExplicitVRBigEndian, JPEG2000Lossless], ids=lambda uid: uid.name)
def test_compressed_and_big_endian_pixels_are_decoded(
    syntax: pydicom.uid.UID, write_series: Write, tmp_path: Path
) -> None:
    stored = np.random.default_rng(0).integers(-900, 900, (1, 40, 36)).astype(np.int16)
    native = syntax == ExplicitVRBigEndian
    write_series(tmp_path, stored, modality="CT", **({"syntax": syntax} if native else {}))
    if not native:
        dataset = pydicom.dcmread(tmp_path / "000.dcm")
        dataset.compress(syntax)
        dataset.save_as(tmp_path / "000.dcm")
    clean = deidentify(tmp_path / "000.dcm")
    np.testing.assert_array_equal(np.frombuffer(clean.PixelData, "<i2").reshape(40, 36), stored[0])


def test_unused_bits_of_pixels_hold_nothing(write_series: Write, tmp_path: Path) -> None:
    stored = np.full((1, 8, 8), 7, np.uint16)
    hidden = stored | np.resize(np.frombuffer(WORD.encode(), "u1"), stored.shape).astype(np.uint16) << 8
    write_series(tmp_path, hidden, bits=8)
    assert deidentify(tmp_path / "000.dcm").PixelData == stored.tobytes()


def test_uids_map_consistently_and_by_the_secret(
    write_series: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path, np.zeros((2, 4, 4), np.uint16))
    one, two = deidentify(tmp_path / "000.dcm"), deidentify(tmp_path / "001.dcm")
    monkeypatch.setenv("MEDSTYLE_SECRET", "another")
    other = deidentify(tmp_path / "000.dcm")
    assert one.StudyInstanceUID == two.StudyInstanceUID != "2.25.10"
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert one.StudyInstanceUID != other.StudyInstanceUID
    assert one.PatientID == two.PatientID != other.PatientID == subject_key("ZZCANARYID")


def test_those_without_a_patient_id_are_told_apart_by_their_study(write_series: Write, tmp_path: Path) -> None:
    pixels = np.zeros((1, 4, 4), np.uint16)
    keys = {
        deidentify(write_series(tmp_path / uid, pixels, PatientID="", StudyInstanceUID=uid) / "000.dcm").PatientID
        for uid in ("2.25.1", "2.25.2")
    }
    assert len(keys) == 2


def test_dates_move_together(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((1, 4, 4), np.uint16), StudyDate="20240101", SeriesDate="20240111")
    clean = deidentify(tmp_path / "000.dcm", Options(shift_dates=True))
    study, series = (datetime.strptime(clean[name].value, "%Y%m%d") for name in ("StudyDate", "SeriesDate"))
    assert (series - study).days == 10
    assert clean.StudyDate != "20240101"
    assert clean.LongitudinalTemporalInformationModified == "MODIFIED"
    assert not deidentify(tmp_path / "000.dcm").StudyDate


@pytest.mark.parametrize("word", ["YES", "NO", None])
@pytest.mark.parametrize(
    "elements",
    [
        {},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1"},
        {"ConversionType": "WSD"},
        {"ConversionType": ""},
        {"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]},
        {"ImageType": "SCREEN SAVE"},
    ],
    ids=str,
)
def test_pixels_that_may_show_the_patient_are_refused(
    elements: dict[str, Any], word: str | None, write_series: Write, tmp_path: Path
) -> None:
    """A scan and the removal of names follow one rule."""
    shown = word == "YES" or (word is None and any(elements.values()))
    folder = write_series(tmp_path, np.ones((2, 4, 5), np.uint16), **elements, BurnedInAnnotation=word)
    assert {file.code for file in scan([folder]).files} == ({"E_BURNED_IN"} if shown else {""})
    with pytest.raises(Refusal, match="E_BURNED_IN") if shown else nullcontext():
        deidentify(folder / "000.dcm")


def test_words_in_place_of_numbers_are_dropped(write_series: Write, tmp_path: Path) -> None:
    path = write_series(tmp_path, np.zeros((1, 4, 4), np.uint16), SliceThickness="22.222222") / "000.dcm"
    path.write_bytes(path.read_bytes().replace(b"22.222222", WORD[:4].encode() + b"WORDS"))
    assert "SliceThickness" not in deidentify(path)
    named = write_series(
        tmp_path / "text",
        np.zeros((1, 4, 4), np.uint16),
        change=lambda _, dataset: dataset.add_new("SliceThickness", "LO", WORD),  # which an explicit file may say
    )
    assert "SliceThickness" not in deidentify(named / "000.dcm")


def test_a_file_is_written_whole_or_not_at_all_and_never_twice(write_series: Write, tmp_path: Path) -> None:
    source, out = write_series(tmp_path / "in", np.ones((2, 16, 16), np.uint16)), tmp_path / "out"
    shutil.copy(source / "000.dcm", source / "copy.dcm")
    (source / "notes.txt").write_text("no image")
    (source / "cut.dcm").write_bytes((source / "001.dcm").read_bytes()[:-9])
    verdicts = {v.path.name: (v.verdict, v.code) for v in deidentify_folder(source, out)}
    assert verdicts == {
        "000.dcm": ("used", ""),
        "001.dcm": ("used", ""),
        "copy.dcm": ("skipped", "E_DUPLICATE"),
        "cut.dcm": ("refused", "E_TRUNCATED"),
        "notes.txt": ("skipped", "E_NOT_DICOM"),
    }
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert len(files) == 2
    again = deidentify_folder(source, out, Options(keep_device=True))
    assert {v.code for v in again} == {"E_EXISTS", "E_TRUNCATED", "E_NOT_DICOM"}
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files


def test_it_is_refused_without_a_secret_or_within_the_source(
    write_series: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "in", np.zeros((1, 4, 4), np.uint16))
    with pytest.raises(UserError, match="lies in"):
        deidentify_folder(tmp_path / "in", tmp_path / "in" / "out")
    monkeypatch.delenv("MEDSTYLE_SECRET")
    with pytest.raises(UserError, match="MEDSTYLE_SECRET"):
        deidentify_folder(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_private_elements_are_named_as_the_standard_does() -> None:
    expected = (0x2005, 0x0E, "Philips MR Imaging DD 001")
    for element in ("2005,xx0E", "(2005,100e)", "2005,0E"):
        assert private_element(f"{element},Philips MR Imaging DD 001") == expected
    for wrong in ("2004,xx0E,ACME", "2005,xx0E", "ACME", "2005,xx0E,"):
        with pytest.raises(UserError, match="GROUP,ELEMENT,CREATOR"):
            private_element(wrong)
