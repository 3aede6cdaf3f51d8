"""The flow `train` on a real Prefect server: schedule, a call, a run by the worker, cancel."""

from __future__ import annotations

import base64
import contextlib
import gc
import io
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
import requests
import yaml
from PIL import Image

from medstyle import Translator, translate_path
from tests.conftest import Project, stamps
from tests.flows.conftest import Prefect, wait_for

pytestmark = pytest.mark.ops

STAGES = ["acquire", "ingest", "denoise", "train", "evaluate", "register"]
MADE = ["data", "models", "reports"]


def set_steps(project: Project, steps: int) -> None:
    """Change the length of training, so that `train` and what follows are to be made again."""
    path = project.folder / "params.yaml"
    document = yaml.safe_load(path.read_text())
    document["train"]["training"]["steps"] = steps
    path.write_text(yaml.safe_dump(document))


def test_the_schedule_makes_runs(deployed):
    # With SQLAlchemy 2.1 the deployment says that it is active, and nothing ever happens.
    runs = wait_for(
        lambda: deployed.ask(
            "flow_runs/filter",
            flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
            deployments={"name": {"any_": ["nightly"]}},
        )
    )
    assert all(run["auto_scheduled"] and run["expected_start_time"][11:16] == "02:00" for run in runs)


def test_every_flow_can_be_asked_for_by_the_name_of_a_deployment_and_with_its_parameters(deployed):
    found = {deployment["entrypoint"]: deployment for deployment in deployed.ask("deployments/filter")}
    parameters = {
        "flows/train.py:train": {"force"},
        "flows/translate.py:translate": {"folder", "model", "target", "settle_s", "workers"},
        "flows/monitor.py:monitor": {"folder", "model", "days", "false_alarms"},
        "flows/tune.py:tune": {"space", "trials", "study", "startup", "seed"},
        "flows/promote.py:promote": {"version", "because"},
        "flows/promote.py:rollback": set(),
    }
    assert {entry: set(one["parameter_openapi_schema"]["properties"]) for entry, one in found.items()} == parameters


def called_in(project: Project, called: Prefect) -> tuple[dict, str]:
    """Call the flow in a project's folder; returns its state and its lines."""
    from flows.train import train

    with contextlib.chdir(project.folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(project.folder))
        run = str(train(return_state=True).state_details.flow_run_id)
    wait_for(lambda: "Finished in state" in called.logs(run))
    return {**called.state(run), "tasks": called.tasks(run), "artifacts": called.artifacts(run)}, called.logs(run)


@pytest.mark.filterwarnings("ignore")  # Prefect's own
def test_a_call_makes_nothing_twice(called, copied):
    lock, before = (copied.folder / "dvc.lock").read_bytes(), [stamps(copied.folder / name) for name in MADE]
    state, lines = called_in(copied, called)
    assert state["type"] == "COMPLETED", state
    assert list(state["tasks"])[1:] == STAGES
    assert lines.count("didn't change, skipping") == len(STAGES) - 1  # the registry looks each time
    assert "Running stage 'register'" in lines
    assert "Running stage 'train'" not in lines
    assert (copied.folder / "dvc.lock").read_bytes() == lock
    assert [stamps(copied.folder / name) for name in MADE] == before


@pytest.mark.slow
def test_the_deployment_makes_a_new_model_and_shows_the_result(worker):
    prefect = worker
    set_steps(prefect.project, 15)
    run = prefect.start_run()
    state = prefect.finish(run)
    assert state["type"] == "COMPLETED", state
    artifacts = prefect.artifacts(run)
    assert artifacts["progress"] == 100
    assert "| model |" in artifacts["result"]
    assert re.search(r"version \d+, gate (passed|failed)", artifacts["result"])
    [run_id] = re.findall("MLflow run ([0-9a-f]{32})", artifacts["result"])
    assert list((prefect.project.folder / "mlruns").rglob(f"{run_id}/artifacts/report/subjects.csv"))
    [report] = re.findall(r"\[report\]\(file://([^)]+)\)", artifacts["result"])
    assert Path(report).is_file()
    [picture] = re.findall(r"\(data:image/png;base64,([^)]+)\)", artifacts["result"])
    assert Image.open(io.BytesIO(base64.b64decode(picture))).width > 100
    wait_for(lambda: "train: 15/15 steps" in prefect.logs(run))
    assert [name.split("-")[0] for name in prefect.tasks(run)] == ["pull", *STAGES]


@pytest.fixture
def bucket(tmp_path) -> Iterator[str]:
    """A bucket of an S3 server; yields the server's address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with (tmp_path / "s3.log").open("w") as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)

    def made() -> bool:
        try:
            return requests.put(f"{address}/bucket", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(made)
        yield address
    finally:
        server.terminate()
        server.wait(10)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Prefect's own
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_what_a_remote_has_is_pulled_and_not_made_again(finished, copied, called, tmp_path, kind, request):
    """By the command, which starts a server of its own, and by a call."""
    project = copied
    address = str(tmp_path / "remote") if kind == "folder" else "s3://bucket/medstyle"
    project.run("dvc", "remote", "add", "--default", "--local", "place", address)
    if kind == "s3":
        keys = {"access_key_id": "a", "secret_access_key": "b", "endpointurl": request.getfixturevalue("bucket")}
        for key, value in keys.items():
            project.run("dvc", "remote", "modify", "--local", "place", key, value)
    project.run("dvc", "push")
    for name in ("data", "models", ".dvc/cache", ".medstyle"):
        shutil.rmtree(project.folder / name, ignore_errors=True)
    output = project.run("python", "-m", "flows.train") if kind == "folder" else called_in(project, called)[1]
    assert "Running stage 'register'" in output
    assert not any(f"Running stage '{stage}'" in output for stage in STAGES[:-1])
    assert project.weights == finished.weights


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Prefect's own
def test_a_file_of_ones_own_among_the_data_stops_the_pull_at_once_and_is_not_named(called, copied, tmp_path, capfd):
    project = copied
    project.run("dvc", "remote", "add", "--default", "--local", "place", str(tmp_path / "remote"))
    project.run("dvc", "push")
    stray = project.folder / "data/raw/studies/Doe^Jane.dcm"
    stray.write_bytes(b"not tracked")
    state, lines = called_in(project, called)
    assert state["type"] == "FAILED"
    assert "Can't remove the following unsaved files" in state["message"]
    assert {name.split("-")[0]: task["run_count"] for name, task in state["tasks"].items()} == {"pull": 1}
    assert "Doe" not in "".join((str(state), lines, *capfd.readouterr()))
    assert stray.is_file()


def test_a_command_that_fails_leaves_no_pipe_open(tmp_path, monkeypatch):
    from flows.train import _dvc

    monkeypatch.chdir(tmp_path)
    with pytest.raises(RuntimeError, match="exit code"):
        _dvc("repro", heard=lambda line: None)  # no repository is here
    gc.collect()  # an open pipe would be a warning here, which is an error


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Prefect's own
def test_a_mistake_in_params_is_shown_and_not_tried_again(called, copied):
    set_steps(copied, 0)
    state, _ = called_in(copied, called)
    assert state["type"] == "FAILED"
    assert "training.steps: input should be greater than or equal to 1, got 0" in state["message"]
    assert state["tasks"]["train"]["run_count"] == 1


@pytest.mark.slow
def test_a_cancelled_run_leaves_no_process_behind(worker):
    prefect = worker

    def training() -> list[psutil.Process]:
        own = str(prefect.project.folder)
        found = psutil.process_iter(["cmdline", "cwd"])
        return [p for p in found if p.info["cwd"] == own and (p.info["cmdline"] or [])[-1:] == ["train"]]

    set_steps(prefect.project, 1_000_000)
    run = prefect.start_run()
    wait_for(training)
    wait_for(lambda: list((prefect.project.folder / ".medstyle/train").glob("*/step-*.pt")))
    prefect.project.run("prefect", "flow-run", "cancel", run)
    assert prefect.finish(run)["type"] == "CANCELLED"
    wait_for(lambda: not training(), seconds=1)  # an orphan ends too, at the next line that nobody reads


def stored(root: Path) -> np.ndarray:
    """Read the stored values of the one series below ``root``, by instance number."""
    slices = sorted(map(pydicom.dcmread, root.rglob("*.dcm")), key=lambda dataset: dataset.InstanceNumber)
    return np.stack([dataset.pixel_array for dataset in slices]).astype(int)


@pytest.mark.slow
def test_the_inbox_is_emptied_on_schedule_and_drift_makes_a_new_model(worker, finished):
    prefect = worker
    folder = prefect.project.folder
    model = str(finished.folder / "models/translator")  # a cancelled training has left the copy without one
    wait_for(lambda: prefect.ask("flow_runs/filter", deployments={"name": {"any_": ["inbox"]}}))  # by its schedule
    shutil.copytree(folder / "data/raw/studies/PHANTOM-0001", folder / "data/station/inbox/Doe^Jane")
    run = prefect.start_run("translate/inbox", folder="data/station", model=model, settle_s=0)
    state = prefect.finish(run)
    assert state["type"] == "COMPLETED", state
    (derived,) = (folder / "data/station/derived").iterdir()
    translate_path(folder / "data/raw/studies/PHANTOM-0001", folder / "direct", Translator.load(model))
    made, direct = (stored(root) for root in (derived, folder / "direct"))
    np.testing.assert_allclose(made, direct, atol=1)  # of 4095: another number of threads rounds another way
    assert set(prefect.artifacts(run)) == {f"study-{derived.name}"}

    wait_for(lambda: "1 derived" in prefect.logs(run))
    assert "Doe" not in prefect.logs(run)
    set_steps(prefect.project, 15)
    run = prefect.start_run("monitor/daily", folder="data/station", model=model, false_alarms=1.1)
    assert prefect.finish(run)["type"] == "COMPLETED"
    assert "of 1 images of the last 30 days" in prefect.artifacts(run)["drift"]
    events = wait_for(lambda: prefect.events("medstyle.drift"))
    assert events[0]["payload"]["images"] == 1

    def retraining() -> list[dict]:
        runs = prefect.ask("flow_runs/filter", deployments={"name": {"any_": ["nightly"]}})
        return [run for run in runs if (run["created_by"] or {}).get("type") == "AUTOMATION"]

    [run] = wait_for(retraining)
    assert prefect.finish(run["id"])["type"] == "COMPLETED"
