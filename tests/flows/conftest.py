"""A Prefect server, worker and deployment of their own, around a copy of the project."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
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
def prefect(finished: Project, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """Start a server and a worker on a copy of the finished project, with its deployments and their schedules."""
    folder = tmp_path_factory.mktemp("prefect")
    shutil.copytree(finished.folder, folder / "project", ignore=shutil.ignore_patterns("mlflow.db*", "mlruns"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    project, api = Project(folder / "project"), f"http://127.0.0.1:{port}/api"
    project.more_env = {
        "PREFECT_HOME": str(folder / "home"),
        "PREFECT_API_URL": api,
        "PREFECT_CLI_PROMPT": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
    }
    groups: list[subprocess.Popen[bytes]] = []

    def background(name: str, *command: str) -> None:
        with (folder / f"{name}.log").open("wb") as log:  # a pipe that nobody reads would fill and stop it
            process = subprocess.Popen(
                command, cwd=project.folder, env=project.env, stdin=subprocess.DEVNULL,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        groups.append(process)

    def healthy() -> bool:
        assert groups[0].poll() is None, (folder / "server.log").read_text()
        try:
            return requests.get(f"{api}/health", timeout=5).ok
        except requests.ConnectionError:
            return False

    try:
        background("server", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), "--no-ui")
        wait_for(healthy)
        project.run("prefect", "work-pool", "create", "local-process", "--type", "process")
        project.run("prefect", "--no-prompt", "deploy", "--all")
        background("worker", "prefect", "worker", "start", "--pool", "local-process", "--type", "process")
        yield Prefect(project, api)
    finally:
        for process in reversed(groups):
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
