"""A real archive accepts the derived series, files it with its source, and returns it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import requests
from pydicom.dataset import Dataset

from medstyle.dicom.scan import Series
from medstyle.dicom.write import Derivation, write_derived
from tests.dicom.test_write import CASES, MODEL, NOW, OBLIQUE, brain, only, read
from tests.flows.conftest import wait_for

PROGRAM = shutil.which("Orthanc", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PROGRAM, reason="Orthanc is absent: install the Debian package orthanc"),
]

Write = Callable[..., Path]
ALL = {**CASES, "Enhanced MR": ("MR", OBLIQUE, 4, 1200, "mr_t2")}  # modality, affine, slices, highest value, target


class Archive:
    """An Orthanc of its own, asked over its REST interface."""

    def __init__(self, url: str) -> None:
        self.url = url

    def send(self, path: Path) -> dict[str, Any]:
        """Store a file; returns what the archive says of it."""
        answer = requests.post(f"{self.url}/instances", data=path.read_bytes(), timeout=30)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.url}/{path}", timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def file(self, instance: str) -> Dataset:
        """Fetch a stored file."""
        return pydicom.dcmread(BytesIO(requests.get(f"{self.url}/instances/{instance}/file", timeout=30).content))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    """Start Orthanc on free ports of this machine alone, with an empty storage."""
    folder = tmp_path_factory.mktemp("orthanc")
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "Plugins": [],
        "HttpPort": free_port(),
        "DicomPort": free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "OverwriteInstances": False,
        "Dictionary": {"0008,001c": ["CS", "SyntheticData", 1, 1]},  # newer than the archive
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    archive = Archive(f"http://127.0.0.1:{configuration['HttpPort']}")
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([str(PROGRAM), folder / "orthanc.json"], stdout=log, stderr=log)

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return bool(archive.get("system"))
        except requests.ConnectionError:
            return False

    try:
        wait_for(ready, 60)
        yield archive
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(params=ALL)
def case(request: pytest.FixtureRequest, write_series: Write, tmp_path: Path) -> tuple[Series, list[Path], str]:
    """Write a source and what is derived from it.

    Returns the source, the derived files and their domain.
    """
    number, (modality, affine, depth, high, target) = list(ALL).index(request.param), ALL[request.param]

    def change(k: int, dataset: Dataset) -> None:
        dataset.SOPInstanceUID = f"2.25.1{number}{k}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = f"2.25.4{number}", f"2.25.2{number}"
        dataset.FrameOfReferenceUID = f"2.25.3{number}"
        dataset.PatientID = f"patient {number}"
        dataset.StudyDescription = "Köpf MRT"
        dataset.SpecificCharacterSet = "ISO_IR 100"

    intercept = "-1024" if modality == "CT" else "0"
    elements = {"RescaleIntercept": intercept, "RescaleSlope": "1"}
    write_series(tmp_path / "in", brain(depth, high), affine, modality=modality, change=change, **elements)
    if request.param == "Enhanced MR":
        make_enhanced(tmp_path / "in")
    source = only(tmp_path / "in")
    made = read(source, "mr_t1").with_voxels(brain(depth, high, 1) - (1024.0 if target == "ct" else 0.0), target)
    files = write_derived(made, Derivation(source, MODEL, now=NOW, source_domain="mr_t1"), tmp_path / "out")
    return source, files, target


def make_enhanced(folder: Path) -> None:
    """Put the slices of ``folder`` into one multi-frame object in their place."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    whole, frames = slices[0], []
    for dataset in slices:
        group, plane, orientation, measures = Dataset(), Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = dataset.ImagePositionPatient
        orientation.ImageOrientationPatient = dataset.ImageOrientationPatient
        measures.PixelSpacing, measures.SliceThickness = dataset.PixelSpacing, dataset.SliceThickness
        group.PlanePositionSequence, group.PlaneOrientationSequence = [plane], [orientation]
        group.PixelMeasuresSequence = [measures]
        frames.append(group)
    pixels = b"".join(dataset.PixelData for dataset in slices)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(whole, name)
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4.1"
    whole.SharedFunctionalGroupsSequence, whole.PerFrameFunctionalGroupsSequence = [Dataset()], frames
    whole.NumberOfFrames, whole.PixelData = len(slices), pixels
    for path in folder.iterdir():
        path.unlink()
    whole.save_as(folder / "enhanced.dcm", enforce_file_format=True)


def test_the_archive_files_a_derived_series_with_its_source(
    archive: Archive, case: tuple[Series, list[Path], str]
) -> None:
    source, files, target = case
    originals = [archive.send(path) for path in source.files]
    derived = [archive.send(path) for path in files]
    assert {answer["Status"] for answer in (*originals, *derived)} == {"Success"}
    for parent in ("ParentPatient", "ParentStudy"):
        assert {answer[parent] for answer in derived} == {originals[0][parent]}
    (series,) = {answer["ParentSeries"] for answer in derived}
    assert series not in {answer["ParentSeries"] for answer in originals}
    assert len(archive.get(f"series/{series}")["Instances"]) == len(files) == source.shape[0]
    assert archive.get(f"series/{series}")["MainDicomTags"]["Modality"] == ("CT" if target == "ct" else "MR")
    for answer, path in zip(derived, files, strict=True):
        simple = archive.get(f"instances/{answer['ID']}/simplified-tags")
        assert simple["SyntheticData"] == "YES"
        assert simple["SeriesDescription"].startswith("SYNTHETIC AI")
        assert simple["SeriesDescription"].endswith("NOT FOR DIAGNOSIS")
        assert simple["ImageComments"] == "AI SYNTHETIC - NOT FOR DIAGNOSTIC USE"
        assert simple["StudyDescription"] == "Köpf MRT"
        assert simple["FrameOfReferenceUID"] == source.frame_of_reference_uid
        written, stored = pydicom.dcmread(path), archive.file(answer["ID"])
        assert stored == written
        assert stored.PixelData == written.PixelData


def test_the_archive_orders_the_slices_along_the_normal(archive: Archive, case: tuple[Series, list[Path], str]) -> None:
    source, files, _ = case
    answers = [archive.send(path) for path in files]
    ordered = archive.get(f"series/{answers[0]['ParentSeries']}/ordered-slices")
    expected = [answer["ID"] for answer in answers]
    assert [short[0] for short in ordered["SlicesShort"]] == expected
    assert ordered["Type"] == "Volume" or len(files) == 1
    assert source.shape[0] == len(files)


def test_sending_again_changes_nothing(archive: Archive, case: tuple[Series, list[Path], str]) -> None:
    _, files, _ = case
    first = [archive.send(path)["ID"] for path in files]
    again = [archive.send(path) for path in files]
    assert {answer["Status"] for answer in again} == {"AlreadyStored"}
    assert [answer["ID"] for answer in again] == first


def test_the_archive_draws_what_it_got(archive: Archive, case: tuple[Series, list[Path], str]) -> None:
    """A preview needs a pixel module that another decoder understands."""
    from PIL import Image

    _, files, _ = case
    answer = archive.send(files[0])
    written = pydicom.dcmread(files[0])
    png = requests.get(f"{archive.url}/instances/{answer['ID']}/image-uint16", timeout=30)
    assert png.status_code == 200, png.text
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(png.content))), written.pixel_array)
