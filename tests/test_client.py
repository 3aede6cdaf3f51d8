"""`medstyle.Client` and a real server."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medstyle import Client, Refusal, Translator, UserError, read_volume, translate_path
from tests.conftest import Run
from tests.registry.conftest import Service, free_port, registered, serving, versions

pytestmark = pytest.mark.ops
__all__ = ["versions"]  # a fixture of the registry's tests


@pytest.fixture(scope="module")
def service(versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    with serving(registered(versions, folder), folder, "--capacity", "1") as running:
        yield running


@pytest.fixture
def client(service: Service) -> Client:
    return Client(service.url)


@pytest.fixture
def volume(run: Run) -> Path:
    return next((run.root / "data/scans").glob("*/mr_t1.nii.gz"))


def test_a_study_becomes_the_series_that_the_command_line_makes(client: Client, run: Run, tmp_path: Path) -> None:
    answer = client.translate(run.study, uncertainty=True)
    answer.save(tmp_path / "made")
    translate_path(run.study, tmp_path / "out", Translator.load(run.translator))
    local = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (tmp_path / "out").rglob("*.dcm"))}
    served = {d.SOPInstanceUID: d for d in map(pydicom.dcmread, (tmp_path / "made").iterdir())}
    assert local.keys() == served.keys()
    for name, one in local.items():
        np.testing.assert_array_equal(one.pixel_array, served[name].pixel_array)
    assert len(list((tmp_path / "uncertainty_made").iterdir())) == 1, "one Parametric Map"
    assert (answer.domain, answer.ood_verdict) == ("mr_t2", "ok")
    with pytest.raises(UserError, match="exists already"):
        answer.save(tmp_path / "made")


def test_a_folder_is_translated_and_what_was_cut_short_continued(
    client: Client, run: Run, volume: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "in", tmp_path / "out"
    shutil.copytree(run.study, source / "study")
    shutil.copy(volume, source / "scan.nii.gz")
    shutil.copy(min((run.study / "01_mr_t1").iterdir()), source / "slice.dcm")
    (source / "notes.txt").write_text("these are no voxels " * 20)
    refused = client.translate_folder(source, out)
    assert list(refused) == ["notes.txt"]
    assert refused["notes.txt"].startswith("E_FORMAT")
    assert sorted(path.name for path in out.iterdir()) == ["scan.nii.gz", "slice.dcm", "study"]
    assert read_volume(out / "scan.nii.gz", "mr_t2").voxels.shape == read_volume(volume, "mr_t1").voxels.shape
    assert pydicom.dcmread(out / "slice.dcm")["SyntheticData"].value == "YES"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    shutil.rmtree(out / "study")
    assert list(client.translate_folder(source, out)) == ["notes.txt"]
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert after.keys() == before.keys()
    assert after[out / "scan.nii.gz"] == before[out / "scan.nii.gz"]


def test_a_busy_server_is_asked_again(service: Service, client: Client, volume: Path) -> None:
    """Its capacity is one request."""
    answers = []
    clients = [threading.Thread(target=lambda: answers.append(client.translate(volume))) for _ in range(4)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()
    assert len({answer.image for answer in answers}) == 1
    assert len(answers) == 4
    assert service.metric("medstyle_requests_total", status="503") > 0


BAD = {
    "no image": ({"image": b"no image" * 40}, "E_FORMAT"),
    "an unknown domain": ({"target": "ct"}, "knows mr_t1, mr_t2"),
    "a seed for a deterministic model": ({"seed": 3}, "not from latent"),
    "a reference that it does not take": ({"reference": "same"}, "not from reference"),
}


@pytest.mark.parametrize("name", BAD)
def test_the_reason_of_a_refusal_reaches_the_caller(client: Client, volume: Path, name: str) -> None:
    changes, message = BAD[name]
    arguments = {"image": volume, **{k: volume if v == "same" else v for k, v in changes.items()}}
    with pytest.raises(Refusal, match=message):
        client.translate(**arguments)


def test_no_server_and_no_file(client: Client, volume: Path, tmp_path: Path) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match="no answer"):
        Client(f"http://127.0.0.1:{free_port()}", retries=2).translate(volume)
    assert time.monotonic() - start < 10
    with pytest.raises(UserError, match="no such file"):
        client.translate(tmp_path / "nothing")


def test_bytes_come_back_as_bytes(client: Client) -> None:
    y, x = np.mgrid[-1:1:40j, -1:1:48j]
    file = io.BytesIO()
    np.save(file, 300 * (x**2 + y**2 < 0.6) + 200 * (x**2 + y**2 < 0.2))
    made = np.load(io.BytesIO(client.translate(file.getvalue()).image))
    assert made.shape == (40, 48)
    assert np.isfinite(made).all()
