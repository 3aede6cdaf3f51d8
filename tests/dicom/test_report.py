"""The structured report says what was made, and others can read it."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import highdicom
import pydicom
import pytest

from medstyle.dicom.report import Finding, write_report
from medstyle.dicom.scan import Series
from medstyle.dicom.write import Derivation, ModelIdentity, write_derived
from tests.dicom.test_write import NOW, OBLIQUE, brain, only, read

SHA = "ab" * 32
FINDING = Finding("medstyle", "7", "passed", "0.1.0", SHA, "mr_t2", 1.25, "ok", 12.5, ("note of a doubt",))


@pytest.fixture
def derived(write_series, tmp_path: Path) -> tuple[Series, list[Path]]:
    """Return a source, and what is derived from it: a series and its uncertainty."""
    write_series(tmp_path / "in", brain(4, 1200), OBLIQUE, modality="MR")
    source = only(tmp_path / "in")
    made = read(source, "mr_t1").with_voxels(brain(4, 1200, 1), "mr_t2")
    derivation = Derivation(source, ModelIdentity("medstyle", "0.1.0", SHA), "mr_t1", now=NOW)
    files = write_derived(made, derivation, tmp_path / "out")
    return source, [*files, *write_derived(made, replace(derivation, kind="uncertainty"), tmp_path / "out")]


def test_highdicom_reads_what_was_said(derived: tuple[Series, list[Path]], tmp_path: Path) -> None:
    source, files = derived
    path = write_report(FINDING, source, files, tmp_path / "out")
    report = highdicom.sr.srread(path)
    [group] = report.content.get_image_measurement_groups()
    measured = {one.name.meaning: (one.value, one.unit.value) for one in group.get_measurements()}
    assert measured["Out-of-distribution score"] == (1.25, "1")
    assert measured["Mean uncalibrated standard deviation of the output"] == (12.5, "[arb'U]")
    judged = {one.name.meaning: one.value.meaning for one in group.get_qualitative_evaluations()}
    assert judged == {
        "Algorithm Family": "Artificial Intelligence",
        "Out-of-distribution verdict": "ok",
        "Verdict of the quality gate on the model": "passed",
        "Purpose of use": "Research only",
    }
    text = "\n".join(str(item.value) for item in report.iterall())
    for said in (SHA, "medstyle", "synthetic", "note of a doubt", "not for diagnostic use", source.series_uid):
        assert said in text
    named = {str(one.value) for one in report.iterall() if one.keyword == "ReferencedSOPInstanceUID"}
    everything = {pydicom.dcmread(one).SOPInstanceUID for one in (*source.files, *files)}
    assert named == everything


def test_it_belongs_to_the_study_and_is_the_same_again(derived: tuple[Series, list[Path]], tmp_path: Path) -> None:
    source, files = derived
    report = pydicom.dcmread(write_report(FINDING, source, files, tmp_path / "out"))
    original = pydicom.dcmread(source.files[0])
    for name in ("StudyInstanceUID", "PatientID", "PatientName", "StudyDate", "StudyID", "AccessionNumber"):
        assert report.get(name) == original.get(name), name
    assert report.SyntheticData == "YES"
    again = pydicom.dcmread(write_report(FINDING, source, files, tmp_path / "again"))
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert report[name] == again[name]
    assert report.SeriesInstanceUID not in {pydicom.dcmread(path).SeriesInstanceUID for path in files}


@pytest.mark.parametrize("change", [{"uncertainty": None}, {"gate": "not asked"}, {"domain": "ct"}, {"notes": ()}])
def test_what_is_not_known_is_left_out(derived: tuple[Series, list[Path]], tmp_path: Path, change: dict) -> None:
    source, files = derived
    path = write_report(replace(FINDING, **change), source, files, tmp_path / "out")
    [group] = highdicom.sr.srread(path).content.get_image_measurement_groups()
    assert len(group.get_measurements()) == (1 if change.get("uncertainty", 0) is None else 2)


@pytest.mark.skipif(not shutil.which("dciodvfy"), reason="dciodvfy is absent: install the Debian package dicom3tools")
def test_dciodvfy_finds_no_error(derived: tuple[Series, list[Path]], tmp_path: Path) -> None:
    source, files = derived
    report = write_report(FINDING, source, files, tmp_path / "out")
    for path in (report, files[-1]):
        done = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        errors = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
        assert [line for line in errors if "(0008,001c)" not in line] == []  # Synthetic Data: newer than the program


@pytest.mark.skipif(not shutil.which("dsrdump"), reason="dsrdump is absent: install the Debian package dcmtk")
def test_dcmtk_reads_it_as_template_1500(derived: tuple[Series, list[Path]], tmp_path: Path) -> None:
    source, files = derived
    path = write_report(FINDING, source, files, tmp_path / "out")
    done = subprocess.run(["dsrdump", "+Pt", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "TID 1500" in done.stdout
    assert "Research only" in done.stdout
