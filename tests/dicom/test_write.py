"""Derived series: conformance by outside tools, honest content, all or nothing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medstyle.dicom import write
from medstyle.dicom.read import read_image, read_series
from medstyle.dicom.scan import Series, scan
from medstyle.dicom.write import Derivation, ModelIdentity, write_derived
from medstyle.errors import Refusal
from medstyle.imaging.volume import Volume

Write = Callable[..., Path]
MODEL = ModelIdentity("unet-t1-t2", "1.2.0", "ab" * 32, {"ood_score": 0.25})
NOW = datetime(2025, 1, 2, 3, 4, 5)
TILTED = np.array([[0.5, 0, 0, -60], [0, 0.47, 1.2, -70], [0, -0.17, 4.8, 10], [0, 0, 0, 1.0]])
OBLIQUE = np.array([[0.9, 0.1, 0.4, 5], [-0.1, 1.2, -0.3, 6], [-0.35, 0.25, 3.6, 7], [0, 0, 0, 1.0]])
OBLIQUE[:3, :3] = np.linalg.qr(OBLIQUE[:3, :3])[0] * [-0.9, -1.2, -3.6]


def only(path: Path) -> Series:
    (series,) = scan([path]).series
    return series


def read(series: Series, domain: str) -> Volume:
    return (read_image if series.kind == "image" else read_series)(series, domain, allow=("E_DOMAIN",))


def check(source: Path, out: Path, shared: Path) -> None:
    """Run dciodvfy, the standard's module tables and the project's rules over ``out``."""
    if not shutil.which("dciodvfy"):
        pytest.skip("dciodvfy is absent: install the Debian package dicom3tools")
    pytest.importorskip("highdicom")
    program = [sys.executable, shared / "tools" / "check_derived_dicom.py", source, out]
    result = subprocess.run(program, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def brain(depth: int = 4, high: int = 1200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, high, (depth, 16, 20)).astype(np.uint16)


CASES = {
    "MR to MR": ("MR", OBLIQUE, 4, 1200, "mr_t2"),
    "MR to CT": ("MR", OBLIQUE, 4, 1200, "ct"),
    "CT to MR": ("CT", TILTED, 4, 1200, "mr_t1"),
    "tilted CT": ("CT", TILTED, 4, 2400, "ct"),
    "single slice": ("MR", OBLIQUE, 1, 1200, "mr_t2"),
    "16 bits": ("MR", OBLIQUE, 4, 60000, "mr_t2"),
}


def test_derived_series_conform(write_series: Write, tmp_path: Path, shared: Path) -> None:
    """Every case and kind comes back as it was and passes one run of the checker, which takes its
    time to start."""
    for number, (case, (modality, affine, depth, high, target)) in enumerate(CASES.items()):
        folder = tmp_path / "in" / case

        def change(k: int, dataset: Dataset, number: int = number) -> None:
            dataset.SOPInstanceUID = f"2.25.1{number}{k}"
            dataset.SeriesInstanceUID = f"2.25.2{number}"

        intercept = "-1024" if modality == "CT" else "0"
        elements = {"RescaleIntercept": intercept, "RescaleSlope": "1"}
        write_series(folder, brain(depth, high), affine, modality=modality, change=change, **elements)
        source = only(folder)
        voxels = brain(depth, high, 1) - (1024.0 if target == "ct" else 0.0)
        volume = read(source, "mr_t1").with_voxels(voxels, target)
        out = tmp_path / "out" / case
        files = write_derived(volume, Derivation(source, MODEL, now=NOW, source_domain="mr_t1"), out)
        assert len(files) == depth
        back = read(only(out), target)
        np.testing.assert_array_equal(back.affine, source.affine)
        np.testing.assert_array_equal(back.voxels, np.clip(voxels, -1024, 3071) if target == "ct" else voxels)
        assert pydicom.dcmread(files[0]).BitsStored == (16 if high > 4096 else 12)
    check(tmp_path / "in", tmp_path / "out", shared)


@pytest.mark.parametrize(
    ("target", "unit", "kind"), [("mr_t2", "[arb'U]", "uncertainty"), ("ct", "[hnsf'U]", "interval")]
)
@pytest.mark.parametrize("resampled", [False, True])
def test_a_spread_is_a_parametric_map_with_its_unit(write_series: Write, tmp_path: Path, target, unit, kind, resampled):
    """Values come back as they were, where they were.

    An image of the target's modality would claim that they are.
    """
    write_series(tmp_path / "in", brain(4), OBLIQUE)
    source = only(tmp_path / "in")
    grid = read(source, "mr_t1")
    if resampled:
        grid = Volume(np.zeros((3, 7, 9), np.float32), TILTED @ np.diag([0.5, 0.5, 0.25, 1]), "mr_t1")
    values = np.random.default_rng(0).gamma(2, 0.3, grid.voxels.shape).astype(np.float32)
    derivation = Derivation(source, MODEL, now=NOW, kind=kind, source_domain="mr_t1")
    [file] = write_derived(Volume(values, grid.affine, target), derivation, tmp_path / "out")
    dataset = pydicom.dcmread(file)
    assert dataset.SOPClassUID == pydicom.uid.ParametricMapStorage
    assert dataset.ContentLabel == kind.upper()
    stored = np.frombuffer(dataset.FloatPixelData, np.float32).reshape(values.shape)
    shared, frames = dataset.SharedFunctionalGroupsSequence[0], dataset.PerFrameFunctionalGroupsSequence
    [mapping] = shared.RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == unit
    assert (mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept) == (1, 0)
    positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
    expected = [(grid.affine @ (0, 0, k, 1))[:3] for k in range(len(values))]
    apart = np.linalg.norm(np.array(positions, float)[:, None] - expected, axis=-1)  # (frames, slices)
    assert apart.min(axis=1).max() < 1e-3
    np.testing.assert_array_equal(stored, values[apart.argmin(axis=1)])
    assert (dataset.PatientID, dataset.StudyInstanceUID) == (source.patient_id, source.study_uid)
    assert "NOT FOR DIAGNOSIS" in dataset.SeriesDescription
    if shutil.which("dciodvfy"):
        said = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False).stderr
        newer = "(0008,001c)"  # SyntheticData is younger than this checker
        assert [line for line in said.splitlines() if line.startswith("Error") and newer not in line] == []
    [refused] = scan([file]).files
    assert (refused.verdict, refused.code) == ("skipped", "E_SOPCLASS"), "a map is no training image"


REAL = ("enhanced_mr_dicom/BRTUM005", "dicom_corpus/deident_reference", "dicom_corpus/ct_gantry_tilt_siemens",
        "dicom_corpus/mr_sagittal_prone_HFP", "dicom_corpus/mr_enhanced_philips_anat")  # fmt: skip


def test_series_derived_from_real_ones_conform(shared: Path, tmp_path: Path) -> None:
    for folder in REAL:
        (source,) = scan([shared / "data" / folder]).series
        name = folder.replace("/", "-")
        for path in source.files:
            (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "in" / name / path.name).symlink_to(path)
        volume = read(source, "mr_t1").with_voxels(np.full(source.shape, 7.25, np.float32), "mr_t2")
        files = write_derived(volume, Derivation(source, MODEL, now=NOW), tmp_path / "out" / name)
        for path, frame in zip(files, source.frames, strict=True):
            same_as_source(pydicom.dcmread(path), pydicom.dcmread(frame.instance.path, stop_before_pixels=True))
    check(tmp_path / "in", tmp_path / "out", shared)


def same_as_source(derived: Dataset, original: Dataset) -> None:
    """Identity, geometry digit by digit, and what says that the source was de-identified."""
    assert derived.PatientID == original.PatientID
    assert derived.get("PatientIdentityRemoved") == original.get("PatientIdentityRemoved")
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if name in original:
            assert [str(v) for v in derived[name].value] == [str(v) for v in original[name].value]
    with warnings.catch_warnings(action="ignore"):  # the source's code values are too long for their VR
        old, new = (
            [(c.get("CodeValue") or c.get("LongCodeValue")) for c in d.get("DeidentificationMethodCodeSequence", [])]
            for d in (original, derived)
        )
    assert old == new


def test_the_checker_finds_faults(write_series: Write, tmp_path: Path, shared: Path) -> None:
    write_series(tmp_path / "in", brain())
    source = only(tmp_path / "in")
    (path, *_) = write_derived(read(source, "mr_t1"), Derivation(source, MODEL, now=NOW), tmp_path / "out")
    dataset = pydicom.dcmread(path)
    del dataset.SyntheticData
    dataset.save_as(path)
    with pytest.raises(AssertionError, match="SyntheticData"):
        check(tmp_path / "in", tmp_path / "out", shared)


def test_nothing_is_claimed_that_did_not_happen(write_series: Write, tmp_path: Path) -> None:
    def change(_: int, dataset: Dataset) -> None:
        dataset.EchoTime, dataset.RepetitionTime, dataset.MagneticFieldStrength = "10", "500", "3"
        dataset.WindowCenter, dataset.WindowWidth = "1", "2"
        dataset.ContrastBolusAgent = "ZZGADOLINIUM"
        dataset.OperatorsName = "ZZOPERATOR"
        dataset.add_new((0x6000, 0x3000), "OW", b"\1\2")
        dataset.private_block(0x0019, "ACME", create=True).add_new(1, "LO", "ZZPRIVATE")
        dataset.SpecificCharacterSet = "ISO_IR 100"
        dataset.PatientName = "Müller^Jörg"
        dataset.LossyImageCompression, dataset.LossyImageCompressionRatio = "01", "9.5"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"

    write_series(tmp_path / "in", brain(), change=change)
    source = only(tmp_path / "in")
    files = write_derived(
        read(source, "mr_t1").with_voxels(brain(seed=1), "mr_t2"), Derivation(source, MODEL, now=NOW), tmp_path / "out"
    )
    dataset = pydicom.dcmread(files[0])
    for name in ("EchoTime", "RepetitionTime", "EchoTrainLength"):
        assert dataset[name].is_empty
    for name in ("MagneticFieldStrength", "ContrastBolusAgent", "OperatorsName"):
        assert name not in dataset
    assert (0x6000, 0x3000) not in dataset
    assert b"ZZ" not in files[0].read_bytes().replace(b"ZZCANARY", b"")
    assert files[0].read_bytes()[:128] == bytes(128)
    assert dataset.SpecificCharacterSet == "ISO_IR 192"
    assert "Müller^Jörg".encode() in files[0].read_bytes()
    assert dataset.SyntheticData == "YES"
    assert dataset.Manufacturer == "medstyle project"
    assert dataset.SeriesDescription == "SYNTHETIC AI MR->T2 NOT FOR DIAGNOSIS"
    assert dataset.ImageComments == "AI SYNTHETIC - NOT FOR DIAGNOSTIC USE"
    assert dataset.SeriesNumber == 9003
    assert (dataset.LossyImageCompression, str(dataset.LossyImageCompressionRatio)) == ("01", "9.5")
    assert [d.InstanceNumber for d in map(pydicom.dcmread, files)] == [1, 2, 3, 4]
    block = dataset.private_block(0x0099, "MEDSTYLE AI 1.0")
    assert block[2].value == "ab" * 32
    assert json.loads(block[3].value)["ood_score"] == 0.25
    assert (dataset.SmallestImagePixelValue, dataset.LargestImagePixelValue) == (
        dataset.pixel_array.min(),
        dataset.pixel_array.max(),
    )


def test_words_in_place_of_numbers_are_left_out(write_series: Write, tmp_path: Path) -> None:
    numbers = {"PatientWeight": "11.111111", "SliceThickness": "22.222222", "SeriesNumber": "333333333"}
    write_series(tmp_path / "in", brain(), **numbers)
    for path in (tmp_path / "in").iterdir():
        data = path.read_bytes()
        for number in numbers.values():
            assert data.count(number.encode()) == 1
            data = data.replace(number.encode(), b"ZZNUMBERS")
        path.write_bytes(data)
    source = only(tmp_path / "in")
    for path in write_derived(read(source, "mr_t1"), Derivation(source, MODEL, now=NOW), tmp_path / "out"):
        assert b"ZZNUMBERS" not in path.read_bytes()
        assert pydicom.dcmread(path).SeriesNumber == 9000


def test_uids_are_new_and_follow_from_source_weights_and_kind(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path / "in", brain())
    source = only(tmp_path / "in")
    volume = read(source, "mr_t1")
    other = ModelIdentity("unet", "1", "cd" * 32)

    def uids(folder: str, model: ModelIdentity = MODEL, domain: str = "mr_t2", **others: Any) -> list[str]:
        written = write_derived(
            volume.with_voxels(volume.voxels, domain), Derivation(source, model, **others), tmp_path / folder
        )
        return [
            uid for path in written for d in [pydicom.dcmread(path)] for uid in (d.SeriesInstanceUID, d.SOPInstanceUID)
        ]

    first = uids("a")
    assert uids("b") == first
    runs = [first, uids("c", other), uids("d", kind="uncertainty"), uids("e", domain="ct"), uids("f", variant=("7",))]
    assert len({uid for run in runs for uid in run}) == 4 * (1 + 4) + 2, "a map is one object"
    assert all(uid.startswith("2.25.") and len(uid) <= 64 for run in runs for uid in run)
    assert not set(first) & {source.series_uid, *(f.instance.sop_uid for f in source.frames)}


def test_one_frame_of_reference_is_invented_for_a_series_without(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path / "in", brain(), FrameOfReferenceUID=None)
    source = only(tmp_path / "in")
    files = write_derived(read(source, "mr_t1"), Derivation(source, MODEL), tmp_path / "out")
    assert len({pydicom.dcmread(path).FrameOfReferenceUID for path in files}) == 1


def test_another_grid_is_computed(write_series: Write, tmp_path: Path, shared: Path) -> None:
    write_series(tmp_path / "in", brain(), TILTED)
    source = only(tmp_path / "in")
    affine = TILTED @ np.diag([0.5, 0.5, 0.25, 1])
    volume = Volume(np.zeros((7, 9, 11), np.float32), affine, "mr_t2")
    files = write_derived(volume, Derivation(source, MODEL, now=NOW), tmp_path / "out")
    np.testing.assert_allclose(only(tmp_path / "out").affine, affine, atol=1e-6)
    item, *rest = pydicom.dcmread(files[0]).SourceImageSequence
    assert item.SpatialLocationsPreserved == "NO"
    assert len(rest) == 3
    check(tmp_path / "in", tmp_path / "out", shared)


def sources(path: Path) -> dict[str, str]:
    """Return the last part of each source image's UID and whether pixels stayed in place.

    Every one has its series.
    """
    dataset = pydicom.dcmread(path)
    listed = [
        i.ReferencedSOPInstanceUID for s in dataset.ReferencedSeriesSequence for i in s.ReferencedInstanceSequence
    ]
    found = {i.ReferencedSOPInstanceUID: i.SpatialLocationsPreserved for i in dataset.SourceImageSequence}
    assert sorted(listed) == sorted(found)
    return {uid.removeprefix("2.25."): kept for uid, kept in found.items()}


def test_every_slice_that_entered_is_a_source(write_series: Write, tmp_path: Path, shared: Path) -> None:
    """Neighbours, and of further series those between whose slices the output lies."""

    def beside(name: str, number: int, affine: np.ndarray, depth: int) -> Series:
        def change(k: int, dataset: Dataset) -> None:
            dataset.SOPInstanceUID = f"2.25.{number}{k}"

        folder = tmp_path / "in" / name
        write_series(folder, brain(depth), affine, SeriesInstanceUID=f"2.25.{number}", change=change)
        return only(folder)

    upright = np.diag([1, 1.2, 3.6, 1])
    source = beside("source", 1, upright, 4)
    same = beside("same", 2, upright, 4)
    thin = beside("thin", 3, upright @ np.diag([1, 1, 0.4, 1]), 12)  # slices 2.5 times as dense
    volume = read(source, "mr_t1").with_voxels(brain(seed=1), "mr_t2")

    def written(out: str, **how: object) -> list[dict[str, str]]:
        return [
            sources(path)
            for path in write_derived(volume, Derivation(source, MODEL, now=NOW, **how), tmp_path / "out" / out)
        ]

    assert written("alone")[2] == {"12": "YES"}
    near = written("near", neighbourhood=1)
    assert near[0] == {"10": "YES", "11": "NO"}
    assert near[2] == {"12": "YES", "11": "NO", "13": "NO"}
    assert written("all", neighbourhood=None)[2] == {"12": "YES", "10": "NO", "11": "NO", "13": "NO"}
    assert written("contrasts", contrasts=[same, thin])[1] == {"11": "YES", "21": "YES", "32": "NO", "33": "NO"}
    moved = written("moved", contrasts=[same], aligned=True)[1]
    assert moved == {"11": "YES", "21": "YES", "20": "NO", "22": "NO", "23": "NO"}
    series = [pydicom.dcmread(path).SeriesInstanceUID for path in (tmp_path / "out").rglob("0001.dcm")]
    assert len(set(series)) == 3  # it depends on what entered: nothing else, two series, one
    check(tmp_path / "in", tmp_path / "out" / "contrasts", shared)


def test_a_ct_from_ct_is_padded_where_its_source_is(write_series: Write, tmp_path: Path, shared: Path) -> None:
    stored = brain().astype(np.int16)
    stored[:, :3] = -2000

    def change(_: int, dataset: Dataset) -> None:
        dataset.add_new("PixelPaddingValue", "US", 63536)  # -2000, as some scanners write it

    elements = {"RescaleIntercept": "-1024", "RescaleSlope": "1"}
    write_series(tmp_path / "in", stored, modality="CT", change=change, **elements)
    source = only(tmp_path / "in")
    volume = read(source, "ct").with_voxels(np.full(source.shape, 50, np.float32), "ct")
    for path in write_derived(volume, Derivation(source, MODEL, now=NOW), tmp_path / "out"):
        dataset = pydicom.dcmread(path)
        assert dataset.PixelPaddingValue == 0
        np.testing.assert_array_equal(dataset.pixel_array == 0, stored[0] == -2000)
    np.testing.assert_array_equal(read(only(tmp_path / "out"), "ct").voxels, np.where(stored == -2000, -1024, 50))
    check(tmp_path / "in", tmp_path / "out", shared)
    for path in write_derived(
        volume.with_voxels(volume.voxels, "mr_t1"), Derivation(source, MODEL, now=NOW), tmp_path / "mr"
    ):
        assert "PixelPaddingValue" not in pydicom.dcmread(path)


def test_the_scanner_is_named_with_its_model(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path / "in", brain(1), ManufacturerModelName="Tesla 3")
    source = only(tmp_path / "in")
    (path,) = write_derived(read(source, "mr_t1"), Derivation(source, MODEL), tmp_path / "out")
    scanner, _ = pydicom.dcmread(path).ContributingEquipmentSequence
    assert (scanner.Manufacturer, scanner.ManufacturerModelName) == ("ACME", "Tesla 3")


def test_a_small_range_is_spread_and_recorded(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path / "in", brain())
    source = only(tmp_path / "in")
    values = np.random.default_rng(0).uniform(0, 1.5, source.shape).astype(np.float32)
    files = write_derived(
        read(source, "mr_t1").with_voxels(values, "mr_t2"), Derivation(source, MODEL), tmp_path / "out"
    )
    stored = np.stack([pydicom.dcmread(path).pixel_array for path in files])
    step = json.loads(pydicom.dcmread(files[0]).private_block(0x0099, "MEDSTYLE AI 1.0")[3].value)[
        "unit_per_stored_value"
    ]
    assert stored.max() == 4095
    assert pydicom.dcmread(files[0]).LossyImageCompression == "00"
    np.testing.assert_allclose(stored * step, values, atol=step)


def test_clipped_voxels_are_counted(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path / "in", brain())
    source = only(tmp_path / "in")
    voxels = np.zeros(source.shape, np.float32)
    voxels[0, 0, :3] = (-3000, 5000, 70)
    files = write_derived(read(source, "mr_t1").with_voxels(voxels, "ct"), Derivation(source, MODEL), tmp_path / "out")
    dataset = pydicom.dcmread(files[0])
    assert json.loads(dataset.private_block(0x0099, "MEDSTYLE AI 1.0")[3].value)["clipped_voxels"] == 2
    np.testing.assert_array_equal(read(only(tmp_path / "out"), "ct").voxels[0, 0, :3], (-1024, 3071, 70))
    assert (dataset.WindowCenter, dataset.WindowWidth) == (40, 400)


def test_a_derived_series_is_written_whole_or_not_at_all(
    write_series: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_series(tmp_path / "in", brain())
    source = only(tmp_path / "in")
    volume = read(source, "mr_t1")
    save, count = write.save, iter(range(9))

    def fail(dataset: Dataset, path: Path) -> None:
        if next(count) == 2:
            raise KeyboardInterrupt
        save(dataset, path)

    monkeypatch.setattr(write, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        write_derived(volume, Derivation(source, MODEL), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    files = write_derived(volume, Derivation(source, MODEL), tmp_path / "out")
    before = files[0].read_bytes()
    with pytest.raises(Refusal, match="E_EXISTS"):
        write_derived(volume, Derivation(source, MODEL), tmp_path / "out")
    assert files[0].read_bytes() == before
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_what_cannot_be_written_is_refused(write_series: Write, tmp_path: Path) -> None:
    write_series(tmp_path / "in", brain())
    source = only(tmp_path / "in")
    volume = read(source, "mr_t1")
    with pytest.raises(Refusal, match="E_SOPCLASS"):
        write_derived(volume.with_voxels(volume.voxels, "photo"), Derivation(source, MODEL), tmp_path / "out")
    bad = volume.voxels.copy()
    bad[0, 0, 0] = np.nan
    with pytest.raises(Refusal, match="E_NOT_FINITE"):
        write_derived(volume.with_voxels(bad), Derivation(source, MODEL), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "elements",
    [
        {"Laterality": "", "BodyPartExamined": "HEAD"},
        {"SpacingBetweenSlices": "-2.5"},
        {"PatientIdentityRemoved": "YES"},
        {"PatientBirthDate": "", "StudyID": None, "PatientID": ""},
    ],
    ids=lambda elements: next(iter(elements)),
)
def test_common_faults_of_the_source_are_not_carried_on(
    elements: dict[str, str | None], write_series: Write, tmp_path: Path, shared: Path
) -> None:
    write_series(tmp_path / "in", brain(2), **elements)
    source = only(tmp_path / "in")
    write_derived(read(source, "mr_t1"), Derivation(source, MODEL, now=NOW), tmp_path / "out")
    check(tmp_path / "in", tmp_path / "out", shared)
