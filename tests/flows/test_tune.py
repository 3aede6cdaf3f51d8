"""A search over params.yaml: killed, resumed, pruned; the checkout is not touched."""

import json
import os
import re
import signal
import sqlite3
import time

import optuna
import pytest
import yaml

from tests.conftest import ROOT, TINY, write_params
from tests.flows.conftest import Prefect

pytestmark = [pytest.mark.ops, pytest.mark.filterwarnings("ignore")]  # of Prefect, Optuna and MLflow

RATE = {"low": 1e-9, "high": 1e-2, "log": True}
SPACE = json.dumps({"train.training.learning_rate": RATE, "train.training.batch": {"choices": [2]}})


def trials(folder):
    study = optuna.load_study(study_name="rate", storage=f"sqlite:///{folder}/.medstyle/tune/rate/study.db")
    return study.trials


@pytest.mark.slow
def test_a_killed_search_goes_on_and_its_winner_is_a_params_file(copied, prefect: Prefect):
    project, server = copied, {"PREFECT_API_URL": prefect.api}
    training = {**TINY["train"]["training"], "steps": 80, "validate_every": 6, "checkpoint_s": 0.2}
    write_params(project.folder, {"train": {**TINY["train"], "training": training}})
    params = project.folder / "params.yaml"
    params.write_text("# why this run is made\n" + params.read_text())
    before = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*") if ".medstyle" not in str(path)}
    command = ["python", "-m", "flows.tune", SPACE, "--trials", "4", "--startup", "1", "--study", "rate"]

    project.more_env = server
    process = project.start(*command)
    place = project.folder / ".medstyle/tune/rate"
    while not list(place.glob("trials/*/state/*/step-*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    [interrupted] = trials(project.folder)
    assert interrupted.state.name == "RUNNING"

    project.more_env = {}  # without an address the command starts a server of its own, which takes long
    output = project.run(*command)
    assert "resumed at step" in output
    found = trials(project.folder)
    states = [trial.state.name for trial in found]
    assert states[0] == "FAIL"
    assert found[1].params == interrupted.params
    assert found[1].state.name == "COMPLETE"
    assert len(states) == 1 + 4
    assert "PRUNED" in states, states
    early = next(trial for trial in found if trial.state.name == "PRUNED")
    assert max(early.intermediate_values) < 80

    best = min((trial for trial in found if trial.state.name == "COMPLETE"), key=lambda trial: trial.value)
    winner = (place / "params.yaml").read_text()
    assert winner.startswith("# why this run is made")
    expected = yaml.safe_load(params.read_text())
    expected["train"]["training"] |= {"learning_rate": best.params["train.training.learning_rate"], "batch": 2}
    assert yaml.safe_load(winner) == expected
    after = {path: path.stat().st_mtime_ns for path in before if path.exists()}
    assert {path for path in before if before[path] != after.get(path) and path.is_file()} == set()

    with sqlite3.connect(project.folder / "mlflow.db") as registry:
        [[parent]] = registry.execute("SELECT run_uuid FROM tags WHERE key = 'medstyle.search'")
        nested = registry.execute("SELECT run_uuid FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?", [parent])
        assert len(list(nested)) == 1 + 4

    project.more_env = server
    assert project.run(*command).count("validation/l1 ") == 0, "a finished search trains nothing"
    (project.folder / "data/slices/index.json").chmod(0o644)
    text = (project.folder / "data/slices/index.json").read_text()
    (project.folder / "data/slices/index.json").write_text(text + " ")
    process = project.start(*command[:5], "9", *command[6:])
    assert "changed since the study rate began" in process.communicate()[0]


def test_a_search_shows_its_trials_and_leaves_the_data_alone(called: Prefect, run, registry_folder):
    from flows.tune import tune

    (registry_folder / "data").mkdir()
    (registry_folder / "data/slices").symlink_to(run.root / "data/slices")
    write_params(registry_folder)
    space = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"][3]["parameters"]["space"]
    state = tune(space, trials=2, study="called", return_state=True)
    assert state.is_completed(), state
    table = called.artifacts(str(state.state_details.flow_run_id))["search"]
    assert len(re.findall(r"^\| \d \| complete", table, re.MULTILINE)) == 2
    assert (registry_folder / ".medstyle/tune/called/params.yaml").is_file()
    state = tune({"evaluate.seed": {"choices": [1]}}, trials=2, study="wrong", return_state=True)
    assert state.is_failed()
    assert "only keys of the section train" in state.message
