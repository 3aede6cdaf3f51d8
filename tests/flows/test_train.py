"""The flow on a real Prefect server: schedule, a run by the worker, a run by hand, cancel."""

from __future__ import annotations

import shutil
import time

import psutil
import pytest
import yaml

from tests.flows.conftest import Prefect, wait_for

pytestmark = pytest.mark.ops


def set_steps(prefect: Prefect, steps: int) -> None:
    """Change the length of training, so that `train` and what follows are to be made again."""
    path = prefect.project.folder / "params.yaml"
    document = yaml.safe_load(path.read_text())
    document["train"]["training"]["steps"] = steps
    path.write_text(yaml.safe_dump(document))


def finished_state(prefect: Prefect, run: str) -> dict:
    return wait_for(lambda: (s := prefect.state(run))["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") and s)


def test_the_schedule_makes_runs(prefect):
    # With SQLAlchemy 2.1 the deployment says that it is active, and nothing ever happens.
    runs = wait_for(
        lambda: prefect.ask(
            "flow_runs/filter",
            flow_runs={"state": {"type": {"any_": ["SCHEDULED"]}}},
            deployments={"name": {"any_": ["nightly"]}},
        )
    )
    assert all(run["auto_scheduled"] and run["expected_start_time"][11:16] == "02:00" for run in runs)


def test_by_hand_nothing_is_made_twice(prefect):
    weights, start = prefect.project.weights, time.monotonic()
    output = prefect.project.run("python", "-m", "flows.train")
    assert time.monotonic() - start < 60
    assert "Finished in state Completed" in output
    assert "Running stage 'train'" not in output
    assert prefect.project.weights == weights


@pytest.mark.slow
def test_the_deployment_makes_a_new_model_and_shows_the_result(prefect):
    set_steps(prefect, 15)
    run = prefect.start_run()
    state = finished_state(prefect, run)
    assert state["type"] == "COMPLETED", state
    (artifact,) = prefect.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    assert "| model |" in artifact["data"]
    logs = prefect.ask("logs/filter", logs={"flow_run_id": {"any_": [run]}})
    assert any("train: 15/15 steps" in line["message"] for line in logs)
    tasks = prefect.ask("task_runs/filter", flow_runs={"id": {"any_": [run]}}, sort="EXPECTED_START_TIME_ASC")
    assert [task["name"] for task in tasks] == ["acquire", "ingest", "denoise", "train", "evaluate", "register"]


@pytest.mark.slow
def test_a_mistake_in_params_is_shown_and_not_tried_again(prefect):
    set_steps(prefect, 0)
    run = prefect.start_run()
    state = finished_state(prefect, run)
    assert state["type"] == "FAILED"
    assert "training.steps: must be at least 1, got 0" in state["message"]
    assert (
        prefect.ask("task_runs/filter", flow_runs={"id": {"any_": [run]}}, task_runs={"name": {"like_": "train"}})[0][
            "run_count"
        ]
        == 1
    )


@pytest.mark.slow
def test_a_cancelled_run_leaves_no_process_behind(prefect):
    def training() -> list[psutil.Process]:
        own = str(prefect.project.folder)
        found = psutil.process_iter(["cmdline", "cwd"])
        return [p for p in found if p.info["cwd"] == own and (p.info["cmdline"] or [])[-1:] == ["train"]]

    set_steps(prefect, 1_000_000)
    run = prefect.start_run()
    wait_for(training)
    wait_for(lambda: list((prefect.project.folder / ".medstyle/train").glob("*/step-*.pt")))
    prefect.project.run("prefect", "flow-run", "cancel", run)
    assert finished_state(prefect, run)["type"] == "CANCELLED"
    wait_for(lambda: not training(), seconds=1)  # an orphan ends too, at the next line that nobody reads


@pytest.mark.slow
def test_the_inbox_is_emptied_on_schedule_and_by_hand(prefect, finished):
    folder = prefect.project.folder
    model = str(finished.folder / "models/translator")  # a cancelled training has left the copy without one
    wait_for(lambda: prefect.ask("flow_runs/filter", deployments={"name": {"any_": ["inbox"]}}))  # by its schedule
    shutil.copytree(folder / "data/raw/studies/PHANTOM-0001", folder / "data/station/inbox/Doe^Jane")
    run = prefect.start_run("inbox", folder="data/station", model=model, settle_s=0)
    state = finished_state(prefect, run)
    assert state["type"] == "COMPLETED", state
    (derived,) = (folder / "data/station/derived").iterdir()
    assert list(derived.rglob("*.dcm"))
    (artifact,) = prefect.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    assert artifact["key"] == f"study-{derived.name}"

    def logs() -> list[str]:  # they arrive a little later than the state
        found = prefect.ask("logs/filter", logs={"flow_run_id": {"any_": [run]}})
        return [line["message"] for line in found]

    wait_for(lambda: any("1 derived" in line for line in logs()))
    assert not any("Doe" in line for line in logs())
    run = prefect.start_run("daily", folder="data/station", model=model, false_alarms=1.1)
    assert finished_state(prefect, run)["type"] == "COMPLETED"
    (artifact,) = prefect.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
    assert "of 1 images of the last 30 days" in artifact["data"]
    events = wait_for(lambda: prefect.ask("events/filter", filter={"event": {"name": ["medstyle.drift"]}})["events"])
    assert events[0]["payload"]["images"] == 1
