"""Nothing of a patient is left, and what belongs together still does."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from medstyle.errors import Refusal
from medstyle.imaging.dicom.deidentify import Options, deidentify, subject_key
from medstyle.imaging.dicom.scan import scan


def canary(slice_header: Callable[..., Dataset], **elements: object) -> Dataset:
    """Return a slice that holds a canary in every kind of field."""
    dataset = slice_header(Rows=2, Columns=2, **elements)
    names = (
        "OtherPatientIDs PatientComments StudyDescription SeriesDescription ProtocolName OperatorsName StationName "
        "InstitutionName InstitutionAddress DeviceSerialNumber ImageComments RequestedProcedureDescription "
        "PerformingPhysicianName PatientTelephoneNumbers AdmissionID"
    )
    for name in names.split():
        setattr(dataset, name, "ZZCANARY")
    item = Dataset()
    item.PatientName = "ZZCANARY^NESTED"
    item.CodeMeaning = "ZZCANARY"
    dataset.RequestAttributesSequence = [item]
    group = Dataset()
    plane = Dataset()
    plane.ImagePositionPatient = ["1", "2", "3"]
    plane.ImageComments = "ZZCANARY"
    group.PlanePositionSequence = [plane]
    dataset.PerFrameFunctionalGroupsSequence = [group]
    dataset.private_block(0x0019, "ZZCANARY", create=True).add_new(1, "LO", "ZZCANARY")
    dataset.add_new((0x6000, 0x4000), "LO", "ZZCANARY")
    dataset.PixelData = bytes(8)
    dataset["PixelData"].VR = "OW"
    return dataset


def written(dataset: Dataset) -> bytes:
    from pydicom.uid import ExplicitVRLittleEndian

    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [Options(), Options(shift_dates=True, keep_patient=True)])
def test_no_canary_survives(options: Options, slice_header: Callable[..., Dataset]) -> None:
    dataset = canary(slice_header)
    before = dataset.to_json()
    clean = deidentify(dataset, "secret", options)
    assert b"ZZCANARY" not in written(clean)
    assert b"19700101" not in written(clean)
    assert b"20240101" not in written(clean)
    assert dataset.to_json() == before


def test_the_image_is_kept(slice_header: Callable[..., Dataset]) -> None:
    dataset = canary(slice_header)
    clean = deidentify(dataset, "secret")
    for name in ("PixelData", "Rows", "ImagePositionPatient", "PixelSpacing", "Modality", "ImageType"):
        assert clean[name] == dataset[name]
    item = clean.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0]
    assert item.ImagePositionPatient == [1, 2, 3]
    assert clean.PatientIdentityRemoved == "YES"
    assert [c.CodeValue for c in clean.DeidentificationMethodCodeSequence] == ["113100", "113109"]


def test_uids_map_consistently_and_by_the_secret(slice_header: Callable[..., Dataset]) -> None:
    a, b = (slice_header(SOPInstanceUID=f"2.25.{n}") for n in (1, 2))
    one, two, other = deidentify(a, "s"), deidentify(b, "s"), deidentify(a, "t")
    assert one.StudyInstanceUID == two.StudyInstanceUID != a.StudyInstanceUID
    assert one.SOPInstanceUID != two.SOPInstanceUID
    assert one.StudyInstanceUID != other.StudyInstanceUID
    assert one.PatientID == two.PatientID == subject_key("ZZCANARYID", "s") != other.PatientID


def test_dates_move_together(slice_header: Callable[..., Dataset]) -> None:
    options = Options(shift_dates=True)
    first = deidentify(slice_header(StudyDate="20240101", SeriesDate="20240111"), "s", options)
    from datetime import datetime

    days = [datetime.strptime(first[name].value, "%Y%m%d") for name in ("StudyDate", "SeriesDate")]
    assert (days[1] - days[0]).days == 10
    assert first.LongitudinalTemporalInformationModified == "MODIFIED"
    assert deidentify(slice_header(), "s").StudyDate in (None, "")


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
    elements: dict[str, Any], word: str | None, slice_header: Callable[..., Dataset], write_series: Any, tmp_path: Path
) -> None:
    """A scan and the removal of names follow one rule."""
    shown = word == "YES" or (word is None and any(elements.values()))
    header = slice_header(**elements, BurnedInAnnotation=word)
    folder = write_series(tmp_path, np.ones((2, 4, 5), np.uint16), **elements, BurnedInAnnotation=word)
    assert {file.code for file in scan([folder]).files} == ({"E_BURNED_IN"} if shown else {""})
    if not shown:
        deidentify(header, "s")
        return
    with pytest.raises(Refusal, match="E_BURNED_IN"):
        deidentify(header, "s")


def test_subject_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDSTYLE_SECRET", raising=False)
    public = subject_key("12345")
    assert public == subject_key(" 12345 ")
    assert public.startswith("sub-")
    assert len(public) == 16
    assert "12345" not in public
    monkeypatch.setenv("MEDSTYLE_SECRET", "hospital")
    assert subject_key("12345") != public
    assert subject_key("12345") == subject_key("12345", "hospital") != subject_key("12346")
