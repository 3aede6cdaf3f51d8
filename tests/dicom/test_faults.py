"""Series that were once read wrongly without an error must be read correctly or refused."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.valuerep import validate_value

from medstyle.cohort.inventory import inventory
from medstyle.data.canonical import shared_ids
from medstyle.dicom.deidentify import deidentify_folder
from medstyle.dicom.header import read_frames
from medstyle.dicom.read import read_image, read_series
from medstyle.dicom.scan import Series, scan
from medstyle.dicom.write import _IDENTIFIERS, _KEEP, Derivation, ModelIdentity, write_derived
from medstyle.errors import Refusal, reading
from tests.dicom.conftest import enhanced, save, slice_header, write_series

STORED = np.arange(6 * 4 * 5, dtype=np.int16).reshape(6, 4, 5)


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSTYLE_SECRET", "a secret of this test")


def only(folder: Path) -> Series:
    [series] = scan([folder]).series
    return series


def another(k: int, dataset: Dataset) -> None:
    dataset.SOPInstanceUID = f"2.25.30{k}"


def person(k: int, dataset: Dataset) -> None:
    dataset.PatientID = "A" if k < 3 else "B"


def birth(k: int, dataset: Dataset) -> None:
    dataset.PatientBirthDate = "19700101" if k < 3 else "19800101"


@pytest.mark.parametrize("change", [person, birth])
def test_slices_of_two_people_are_never_one_volume(change: Any, tmp_path: Path) -> None:
    write_series(tmp_path, STORED, change=change)
    assert [series.shape[0] for series in scan([tmp_path]).series] == [3, 3]


def test_one_id_given_to_several_people_is_noticed(tmp_path: Path) -> None:
    write_series(tmp_path / "a", STORED)
    write_series(tmp_path / "b", STORED, StudyInstanceUID="2.25.11", SeriesInstanceUID="2.25.21", PatientSex=None)
    assert shared_ids(inventory([tmp_path]).volumes) == set()  # what is empty contradicts nothing
    write_series(tmp_path / "c", STORED, StudyInstanceUID="2.25.12", SeriesInstanceUID="2.25.22", PatientSex="F")
    assert shared_ids(inventory([tmp_path]).volumes) == {"ZZCANARYID"}


def test_empty_uids_join_nothing(tmp_path: Path) -> None:
    for folder, change in (("a", None), ("b", another)):
        write_series(tmp_path / folder, STORED, change=change, StudyInstanceUID="", SeriesInstanceUID="")
    assert [series.shape[0] for series in scan([tmp_path]).series] == [6, 6]


@pytest.mark.parametrize(
    ("name", "values"), [("EchoTime", ("2.98", "2.980001")), ("InversionTime", ("900", "900.00001"))]
)
def test_rounding_makes_no_second_contrast(name: str, values: tuple[str, str], tmp_path: Path) -> None:
    write_series(tmp_path, STORED, change=lambda k, dataset: setattr(dataset, name, values[k % 2]))
    assert (only(tmp_path).shape[0], only(tmp_path).code) == (6, "")


def test_slices_of_signed_and_unsigned_pixels_are_one_scan(tmp_path: Path) -> None:
    def change(k: int, dataset: Dataset) -> None:
        dataset.PixelRepresentation = k % 2

    write_series(tmp_path, STORED, change=change)
    np.testing.assert_array_equal(read_series(only(tmp_path), "mr_t1").voxels, STORED)


def test_volumes_with_slices_between_each_others_are_doubted(tmp_path: Path) -> None:
    write_series(tmp_path, STORED, change=lambda k, dataset: setattr(dataset, "EchoTime", ("10", "90")[k % 2]))
    items = inventory([tmp_path]).volumes
    assert [[doubt.code for doubt in item.doubts()] for item in items] == [["E_INTERLEAVED"]] * 2


@pytest.mark.parametrize(
    ("elements", "code"),
    [
        ({"RescaleSlope": None, "RescaleIntercept": None}, "E_UNIT"),
        ({"RescaleIntercept": None}, "E_UNIT"),
        ({"RescaleType": "OD"}, "E_UNIT"),
        ({"RescaleType": "HU"}, ""),
    ],
)
def test_ct_without_a_unit_is_refused(elements: dict[str, Any], code: str, tmp_path: Path) -> None:
    write_series(tmp_path, STORED, modality="CT", **elements)
    assert {file.code for file in scan([tmp_path]).files} == {code}


def test_a_rescale_beside_the_functional_groups_holds_for_all_frames(tmp_path: Path) -> None:
    dataset = enhanced([{"z": 4 * k, "slope": 1, "type": "M", "t": 1} for k in range(3)], STORED[:3])
    for group in dataset.PerFrameFunctionalGroupsSequence:
        del group.PixelValueTransformationSequence
    dataset.RescaleSlope, dataset.RescaleIntercept = "2", "-7"
    save(dataset, tmp_path / "a.dcm")
    np.testing.assert_array_equal(read_series(only(tmp_path), "mr_t1").voxels, STORED[:3] * 2.0 - 7)


def test_the_temporal_position_of_a_frame_is_read(tmp_path: Path) -> None:
    dataset = enhanced([{"z": 4 * (k // 2), "slope": 1, "type": "M", "t": 7 + k % 2} for k in range(4)], STORED[:4])
    frames = read_frames(save(dataset, tmp_path / "a.dcm"))
    assert [frame.labels[0] for frame in frames] == [7, 8, 7, 8]


def diffusion(folder: Path, *, directions: bool) -> None:
    """Write 5 positions of 3 gradient directions, numbered in another order at each position."""
    for place in range(5):
        for turn in range(3):
            which = (place + turn) % 3
            elements: dict[str, Any] = {"DiffusionGradientOrientation": list(np.eye(3)[which])} if directions else {}
            pixels = np.full((1, 4, 5), 100 * (which + 1), np.int16)
            affine = np.diag([1.0, 1, 2, 1])
            affine[2, 3] = 2 * place
            number = 3 * place + turn + 1
            write_series(
                folder / str(number), pixels, affine, SOPInstanceUID=f"2.25.{100 + number}", InstanceNumber=number,
                TemporalPositionIdentifier=1, AcquisitionTime="101010", change=None, **elements,
            )  # fmt: skip


def test_a_volume_of_a_diffusion_series_holds_one_direction(tmp_path: Path) -> None:
    diffusion(tmp_path, directions=True)
    series = only(tmp_path)
    assert (series.code, series.volumes) == ("E_4D", 3)
    for n in range(3):
        assert len(np.unique(read_series(series.volume(n), "mr_t1").voxels)) == 1


@pytest.mark.parametrize(
    ("name", "slices", "code"),
    [
        ("NumberOfSlices", 4, "E_4D"),
        ("ImagesInAcquisition", 4, "E_4D"),
        ("ImagesInAcquisition", 1, ""),
        ("ImagesInAcquisition", 9, ""),
    ],
)
def test_a_sheet_of_slices_that_says_nothing_but_their_number_is_doubted(
    name: str, slices: int, code: str, tmp_path: Path
) -> None:
    """One that does not fit (9 slices on 4 x 6 pixels) is a picture."""
    sheet = np.zeros((1, 4, 6), np.uint16)
    write_series(tmp_path, sheet, **{name: slices, "ImagePositionPatient": None, "ImageOrientationPatient": None})
    assert only(tmp_path).code == code


def test_times_that_nothing_tells_apart_are_refused(tmp_path: Path) -> None:
    diffusion(tmp_path, directions=False)
    assert only(tmp_path).code == "E_DUP_CONFLICT"


def table(entries: int, *, bits: int = 16, spare: bytes = b"") -> Dataset:
    lut = Dataset()
    lut.LUTDescriptor = [entries, 0, bits]
    lut.ModalityLUTType = "US"
    values = (np.linspace(0, 1, entries) ** 2 * (entries - 1)).round().astype("<u2")
    lut.add_new("LUTData", "OW", values.tobytes() + spare)
    return lut


def radiograph(path: Path, lut: Dataset, **elements: Any) -> Path:
    dataset = slice_header(SOPClassUID="1.2.840.10008.5.1.4.1.1.1", Rows=1, Columns=3, **elements)
    dataset.Modality, dataset.BitsStored, dataset.HighBit = "CR", 10, 9
    dataset.PixelData = np.array([0, 512, 1023], "<u2").tobytes()
    dataset.ModalityLUTSequence = [lut]
    return save(dataset, path)


def test_the_table_comes_before_the_inversion(tmp_path: Path) -> None:
    radiograph(tmp_path / "a.dcm", table(1024), PhotometricInterpretation="MONOCHROME1")
    voxels = read_image(only(tmp_path), "mr_t1", allow={"E_DOMAIN"}).voxels
    np.testing.assert_array_equal(voxels.ravel(), [1023, 1023 - 256, 0])


def without(name: str) -> Dataset:
    lut = table(1024)
    del lut[name]
    return lut


@pytest.mark.parametrize("lut", [table(1024, bits=12), without("LUTData"), without("LUTDescriptor")])
def test_a_damaged_table_refuses_its_series_alone(lut: Dataset, tmp_path: Path) -> None:
    lut = Dataset.from_json(lut.to_json())
    if "LUTData" in lut:
        lut["LUTData"].value = lut["LUTData"].value[:100]
    write_series(tmp_path / "bad", STORED, PatientID="B", SeriesInstanceUID="2.25.9", ModalityLUTSequence=[lut])
    write_series(tmp_path / "good", STORED)
    rows = inventory([tmp_path]).to_json(values=True)["volumes"]
    assert {Path(row["files"][0]).parent.name: row["code"] for row in rows} == {"bad": "E_DECODE", "good": ""}


def test_what_no_reader_meant_to_raise_is_a_verdict_but_not_a_full_disk() -> None:
    with pytest.raises(Refusal, match="KeyError"), reading():
        raise KeyError("ZZCANARY^NAME")
    with pytest.raises(OSError, match="full"), reading():
        raise OSError(errno.ENOSPC, "full")


def test_a_copy_holds_of_a_table_what_its_descriptor_says(tmp_path: Path) -> None:
    radiograph(tmp_path / "in/a.dcm", table(1024, spare=b"ZZCANARY"), BurnedInAnnotation="NO")
    deidentify_folder(tmp_path / "in", tmp_path / "out")
    [copy] = (tmp_path / "out").rglob("*.dcm")
    assert b"ZZCANARY" not in copy.read_bytes()
    assert len(pydicom.dcmread(copy).ModalityLUTSequence[0].LUTData) in (1024, 2048)


def test_vendors_kinds_of_images_stay_apart_in_a_copy(tmp_path: Path) -> None:
    for kind, change in (("SW_M_FFE", None), ("SW_P_FFE", another)):
        write_series(tmp_path / "in" / kind, STORED, change=change, ImageType=["ORIGINAL", "PRIMARY", kind])
    deidentify_folder(tmp_path / "in", tmp_path / "out")
    assert [one.shape[0] for one in scan([tmp_path / "out"]).series] == [6, 6]
    assert all(b"FFE" not in path.read_bytes() for path in (tmp_path / "out").rglob("*.dcm"))


JUNK = ["x" * 100, "lower", "1.23456789012345678901", "20241399", "-5", "1e400", "a\\b", "\u00e9" * 17]


@pytest.mark.filterwarnings("ignore:The value length")
@pytest.mark.parametrize("value", JUNK)
def test_no_value_that_the_standard_forbids_is_carried_on(value: str, tmp_path: Path) -> None:
    """Whatever element of the source has it; identifiers stay what they are."""
    descriptive = set(_KEEP) - set(_IDENTIFIERS) - {"DeidentificationMethodCodeSequence"}

    def change(k: int, dataset: Dataset) -> None:
        dataset.SpecificCharacterSet = "ISO_IR 192"
        for name in sorted(descriptive):
            element = pydicom.DataElement(name, "LO", value, validation_mode=pydicom.config.IGNORE)
            element.VR = "LO"
            dataset[element.tag] = element
        dataset.PatientID = "x" * 70

    write_series(tmp_path / "in", STORED, change=change)
    source = only(tmp_path / "in")
    files = write_derived(
        read_series(source, "mr_t1"), Derivation(source, ModelIdentity("m", "1.0.0", "ab" * 32)), tmp_path / "out"
    )
    for path in files:
        made = pydicom.dcmread(path)
        assert made.PatientID == "x" * 70
        for element in made.iterall():
            if element.VR != "SQ" and element.keyword not in _IDENTIFIERS and not element.tag.is_private:
                for one in element.value if element.VM > 1 else [element.value] * element.VM:
                    text = str(one) if element.VR in ("DS", "IS") else one
                    validate_value(element.VR, text, pydicom.config.RAISE)
                assert pydicom.datadict.dictionary_VR(element.tag).count(element.VR)


def test_a_derived_series_has_the_identifiers_that_it_must_have(tmp_path: Path) -> None:
    write_series(tmp_path / "in", STORED, StudyInstanceUID="", FrameOfReferenceUID=None, SeriesNumber=2**31 - 1)
    source = only(tmp_path / "in")
    files = write_derived(
        read_series(source, "mr_t1"), Derivation(source, ModelIdentity("m", "1.0.0", "ab" * 32)), tmp_path / "out"
    )
    made = [pydicom.dcmread(path) for path in files]
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        assert len({str(one[name].value) for one in made}) == 1
        assert made[0][name].value
    assert {int(one.SeriesNumber) for one in made} == {9000}
