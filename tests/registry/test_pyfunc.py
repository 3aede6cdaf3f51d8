"""The registered model behind a real `mlflow models serve`, asked by a real HTTP client."""

import base64
import io
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import requests

from tests.conftest import ROOT
from tests.registry.conftest import ask, free_port, registered

pytestmark = pytest.mark.ops


@pytest.fixture(scope="module")
def server(versions: Path, tmp_path_factory):
    """Serve the champion as the README says; yields the URL."""
    folder = tmp_path_factory.mktemp("serving")
    env = registered(versions, folder)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/medstyle@champion"]
    command += ["--env-manager", "local", "-h", "127.0.0.1", "-p", str(port)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=log, stderr=log, start_new_session=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if requests.get(f"{url}/ping", timeout=2).status_code == 200:
                    break
            except requests.ConnectionError:
                assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(20)


def decoded(answer, number=0, column="image"):
    return base64.b64decode(answer.json()["predictions"][number][column])


@pytest.fixture
def slice_file(run):
    files = sorted((run.study / "01_mr_t1").iterdir())
    import pydicom

    return sorted(files, key=lambda f: pydicom.dcmread(f).ImagePositionPatient[2])[4]


def test_a_dicom_slice_comes_back_as_a_derived_dicom_slice(server, slice_file):
    import pydicom

    answer = ask(server, slice_file.read_bytes())
    assert answer.status_code == 200, answer.text
    made, source = pydicom.dcmread(io.BytesIO(decoded(answer))), pydicom.dcmread(slice_file)
    assert made["SyntheticData"].value == "YES"
    assert made.ImagePositionPatient == source.ImagePositionPatient
    assert made.StudyInstanceUID == source.StudyInstanceUID
    assert made.pixel_array.shape == source.pixel_array.shape
    row = answer.json()["predictions"][0]
    assert (row["content_type"], row["domain"]) == ("application/dicom", "mr_t2")
    assert "single slice" in row["warnings"]


def test_a_zipped_series_comes_back_whole_and_as_the_command_line_makes_it(server, run, tmp_path):
    import pydicom

    from medstyle import Translator, translate_path

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in (run.study / "01_mr_t1").iterdir():
            archive.write(file, f"../../{file.name}")  # a name must not lead out of the server's folder
    answer = ask(server, buffer.getvalue(), params={"uncertainty": True})
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(decoded(answer))) as archive:
        served = {
            d.SOPInstanceUID: d for d in (pydicom.dcmread(io.BytesIO(archive.read(n))) for n in archive.namelist())
        }
    translate_path(run.study, tmp_path / "out", Translator.load(run.translator))
    local = [pydicom.dcmread(path) for path in (tmp_path / "out").rglob("*.dcm")]
    assert len(local) == len(served) == 8
    for d in local:
        np.testing.assert_array_equal(served[d.SOPInstanceUID].pixel_array, d.pixel_array)
    assert decoded(answer, column="uncertainty").startswith(b"PK")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".npy"])
def test_a_volume_comes_back_in_the_container_that_it_came_in(server, run, tmp_path, suffix):
    from medstyle import read_volume, write_volume

    volume = read_volume(next((run.root / "data/scans").glob("*/mr_t1.nii.gz")), "mr_t1")
    path = tmp_path / f"scan{suffix}"
    if suffix == ".npy":
        np.save(path, volume.voxels)
    else:
        write_volume(path, volume)
    answer = ask(server, path.read_bytes())
    assert answer.status_code == 200, answer.text
    (tmp_path / f"made{suffix}").write_bytes(decoded(answer))
    if suffix == ".npy":
        assert np.load(tmp_path / "made.npy").shape == volume.voxels.shape
    else:
        made = read_volume(tmp_path / f"made{suffix}", "mr_t2")
        np.testing.assert_allclose(made.affine, volume.affine, atol=1e-4)


def test_several_rows_are_answered_in_order(server, run):
    files = [next((run.root / f"data/raw/studies/PHANTOM-000{i}/01_mr_t1").iterdir()) for i in (0, 1)]
    both = ask(server, *(f.read_bytes() for f in files))
    apart = [ask(server, f.read_bytes()) for f in files]
    for i in (0, 1):
        one, other = (base64.b64decode(a.json()["predictions"][k]["image"]) for a, k in ((both, i), (apart[i], 0)))
        assert one[-2000:] == other[-2000:]  # the pixels; the header holds the time


BAD = {
    "random bytes": (b"\x00junk" * 50, {}, "E_FORMAT"),
    "empty": (b"", {}, "E_FORMAT"),
    "a zip of nothing": (b"PK\x03\x04broken", {}, "E_DECODE"),
    "an unknown target": (None, {"target": "ct"}, "knows mr_t1, mr_t2"),
    "an unknown output": (None, {"output": "gif"}, "output 'gif'"),
    "a seed for a deterministic model": (None, {"seed": 4}, "not from latent"),
    "a picture for a scan model": ("picture", {}, "a picture cannot be an input"),
    "objects in an NPY": ("objects", {}, "E_DECODE"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_is_a_clear_error_and_harms_no_other(server, slice_file, name):
    from PIL import Image

    data, params, message = BAD[name]
    buffer = io.BytesIO()
    if data is None:
        data = slice_file.read_bytes()
    elif data == "picture":
        Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
        data = buffer.getvalue()
    elif data == "objects":
        np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
        data = buffer.getvalue()
    bad = ask(server, data, params=params)
    assert bad.status_code == 400, bad.text
    assert message in bad.text
    assert ask(server, slice_file.read_bytes()).status_code == 200


def test_a_wrong_column_is_named(server, slice_file):
    answer = ask(server, slice_file.read_bytes(), columns=("picture",))
    assert answer.status_code == 400
    assert "image" in answer.text


def test_the_request_of_the_guide(server, run, tmp_path, monkeypatch):
    import re

    guide = (ROOT / "docs/how-to/serve.md").read_text()
    [example] = [b for b in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "requests" in b]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(run.root / "data")
    exec(example.replace("http://127.0.0.1:5101", server), {})
    assert (tmp_path / "answer.dcm").read_bytes()[128:132] == b"DICM"


@pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning")  # of MLflow, at the import of the class
@pytest.mark.parametrize("container", ["zip", "nifti", "npy"])
def test_a_calibrated_model_answers_its_interval_beside_the_uncertainty(run, tmp_path, container):
    import pandas as pd

    from medstyle import Translator, read_volume, write_volume
    from medstyle.networks.conformal import Interval
    from medstyle.registry.pyfunc import ServedTranslator

    served = ServedTranslator()
    served.translator = Translator.load(run.translator)
    served.translator.config = replace(served.translator.config, interval=Interval(12, 4.8, 0.3))
    path = tmp_path / f"scan.{container}"
    volume = read_volume(next((run.root / "data/scans").glob("*/mr_t1.nii.gz")), "mr_t1")
    if container == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file in (run.study / "01_mr_t1").iterdir():
                archive.write(file, file.name)
    elif container == "npy":
        with path.open("wb") as file:
            np.save(file, volume.voxels)
    else:
        write_volume(path.with_suffix(".nii"), volume)
        path = path.with_suffix(".nii")
    [row] = served.predict(None, pd.DataFrame({"image": [path.read_bytes()]}), {"uncertainty": True}).to_dict("records")
    image, sigma, half = (base64.b64decode(row[name]) for name in ("image", "uncertainty", "interval"))
    assert half[:4] == image[:4] == sigma[:4], "the same container"
    assert half not in (image, sigma)
    [plain] = served.predict(None, pd.DataFrame({"image": [path.read_bytes()]})).to_dict("records")
    assert (plain["uncertainty"], plain["interval"]) == ("", "")
