"""Provide Prefect servers for called flows, for deployments, and for flows of a worker."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tests.conftest import Project


class Prefect:
    """A project with the address of the server that runs it."""

    def __init__(self, project: Project, api: str) -> None:
        self.project, self.api, self.session = project, api, requests.Session()
        # a busy SQLite is 503 with Retry-After, which Prefect's own client obeys too
        retry = Retry(total=8, status_forcelist=[503], allowed_methods=None, backoff_factor=0.2)
        self.session.mount(api, HTTPAdapter(max_retries=retry))

    def ask(self, path: str, **body: Any) -> Any:
        """Post to the server's API."""
        answer = self.session.post(f"{self.api}/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def start_run(self, name: str = "train/nightly", **parameters: Any) -> str:
        """Ask for a run of a deployment as a person would; returns its id."""
        flow, deployment = ({"name": {"any_": [part]}} for part in name.split("/"))
        (deployment,) = self.ask("deployments/filter", deployments=deployment, flows=flow)
        return str(self.ask(f"deployments/{deployment['id']}/create_flow_run", parameters=parameters)["id"])

    def finish(self, run: str) -> dict[str, Any]:
        """Wait for the end of a flow run and return its state."""
        over = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        return dict(wait_for(lambda: (state := self.state(run))["type"] in over and state, seconds=300))

    def artifacts(self, run: str) -> dict[str, Any]:
        """Return the artifacts of a flow run by key."""
        found = self.ask("artifacts/filter", artifacts={"flow_run_id": {"any_": [run]}})
        return {artifact["key"]: artifact["data"] for artifact in found}

    def tasks(self, run: str) -> dict[str, dict[str, Any]]:
        """Return the task runs of a flow run by name, in their order."""
        found = self.ask("task_runs/filter", flow_runs={"id": {"any_": [run]}}, sort="EXPECTED_START_TIME_ASC")
        return {task["name"]: task for task in found}

    def logs(self, run: str) -> str:
        """Return the lines of a flow run; they arrive a little later than its state."""
        found = self.ask("logs/filter", logs={"flow_run_id": {"any_": [run]}})
        return "\n".join(line["message"] for line in found)

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of a name.

        They arrive a little later than the state of the run that sent them.
        """
        return list(self.ask("events/filter", filter={"event": {"name": [name]}})["events"])

    def state(self, run: str) -> dict[str, Any]:
        """Return the state of a flow run: its type, name and message."""
        (found,) = self.ask("flow_runs/filter", flow_runs={"id": {"any_": [run]}})
        return dict(found["state"])


def wait_for(what: Callable[[], Any], seconds: float = 90) -> Any:
    """Return the first truthy answer of ``what``."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)
    return answer


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """Start a server around a project in which nothing was made yet."""
    folder = tmp_path_factory.mktemp("prefect")
    (folder / "project").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    project, api = Project.copy(folder / "project"), f"http://127.0.0.1:{port}/api"
    project.more_env = {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": api,
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }

    def healthy() -> bool:
        assert process.poll() is None, (folder / "server.log").read_text()
        try:
            return requests.get(f"{api}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    start = ("prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
    with background(project, folder / "server.log", *start) as process:
        wait_for(healthy, seconds=180)
        yield Prefect(project, api)


@pytest.fixture(scope="session")
def called(prefect: Prefect) -> Iterator[Prefect]:
    """Let flows that are called in this process run against the server."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("PREFECT_HOME", str(prefect.project.folder.parent / "home"))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        warnings.simplefilter("ignore")  # of Prefect's imports
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: prefect.api}):
            yield prefect
            APILogWorker.instance().drain()
            EventsWorker.drain_all()


@pytest.fixture(scope="session")
def deployed(prefect: Prefect) -> Prefect:
    """Return the server with the project's deployments and their schedules."""
    prefect.project.run("prefect", "work-pool", "create", "local-process", "--type", "process")
    prefect.project.run("prefect", "--no-prompt", "deploy", "--all")
    return prefect


@pytest.fixture(scope="session")
def worker(deployed: Prefect, finished: Project) -> Iterator[Prefect]:
    """Start a worker on the server's project, in which the whole run has been made."""
    left_out = shutil.ignore_patterns(".git", "mlflow.db*", "mlruns")
    prefect, folder = deployed, deployed.project.folder
    shutil.copytree(finished.folder, folder, dirs_exist_ok=True, ignore=left_out)
    start = ("prefect", "worker", "start", "--pool", "local-process", "--type", "process")
    with background(prefect.project, folder.parent / "worker.log", *start):
        yield prefect


@contextmanager
def background(project: Project, log: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside the tests; its whole process group ends with the block."""
    with log.open("wb") as file:  # a pipe that nobody reads would fill and stop it
        process = subprocess.Popen(
            command, cwd=project.folder, env=project.env, stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, kind)
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
        except ProcessLookupError:
            pass
        return
