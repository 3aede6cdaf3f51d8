"""A running `medstyle studio` in a project of its own, and a browser that looks at it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from tests.conftest import Run
from tests.flows.conftest import wait_for
from tests.inference.conftest import make_translator
from tests.registry.conftest import DESCRIPTORS, registered, versions

__all__ = ["versions"]  # the fixture
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
GRAPHICS = ("--no-sandbox", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # WebGL without a GPU


class Running:
    """A studio in a process of its own."""

    def __init__(self, folder: Path, env: dict[str, str], *options: str) -> None:
        self.folder = folder
        self.temporary = Path(tempfile.mkdtemp(prefix="studio-", dir="/tmp"))
        self.env = {**env, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        command = [
            "prlimit",
            f"--nofile={DESCRIPTORS}",
            sys.executable,
            "-m",
            "medstyle.cli",
            "studio",
            "--port",
            "0",
            *options,
        ]
        self.errors = (folder / "studio.errors").open("w")
        self.process = subprocess.Popen(
            command, cwd=folder, env=self.env, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        assert self.process.stdout
        self.link = self.process.stdout.readline().strip()
        assert self.link, (folder / "studio.errors").read_text()
        self.url = self.link.partition("?")[0]
        wait_for(self._ready, 60)

    def _ready(self) -> bool:
        try:
            return requests.get(self.url, timeout=5).status_code in (200, 401)
        except requests.ConnectionError:
            return False

    @property
    def sessions(self) -> list[Path]:
        """The private folders."""
        return [path for path in self.temporary.glob("medstyle-studio-*/*") if path.is_dir()]

    @property
    def memory(self) -> int:
        """Bytes of the server, without its workers."""
        return psutil.Process(self.process.pid).memory_info().rss

    def end(self, kind: int = signal.SIGTERM) -> None:
        self.process.send_signal(kind)
        self.process.wait(60)
        assert self.process.stdout
        self.process.stdout.close()
        self.errors.close()


class Visitor:
    """Asks as the page does, without a browser."""

    def __init__(self, running: Running) -> None:
        self.url, self.session = running.url, requests.Session()
        self.session.headers["Origin"] = running.url.rstrip("/")
        self.session.get(running.link, timeout=30).raise_for_status()

    def ask(self, method: str, path: str, **more: Any) -> requests.Response:
        return self.session.request(method, self.url + path, timeout=180, **more)

    def upload(self, name: str, content: Any, **more: Any) -> tuple[str, requests.Response]:
        made = self.ask("POST", "api/sets").json()["set"]
        return made, self.ask("PUT", f"api/sets/{made}", data=content, headers={"X-Name": name}, **more)

    def job(self, kind: str, **arguments: Any) -> dict[str, Any]:
        """Return a job as it has ended; its files lie at ``api/jobs/NAME/files/``."""
        name = self.ask("POST", f"api/jobs/{kind}", json=arguments).json()["name"]
        events = self.ask("GET", f"api/jobs/{name}/events").text
        return dict(json.loads(events.rpartition("data: ")[2]))


@contextlib.contextmanager
def studio(folder: Path, env: dict[str, str], *options: str) -> Iterator[Running]:
    running = Running(folder, env, *options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.end()
        shutil.rmtree(running.temporary, ignore_errors=True)


@pytest.fixture(scope="module")
def project(run: Run, versions: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Return a project that the tests of a module share."""
    return make_project(run, versions, tmp_path_factory.mktemp("project"))


def make_project(run: Run, versions: Path, folder: Path) -> tuple[Path, dict[str, str]]:
    """Make a project with data, versions and a model of pictures; return it and its environment."""
    env = registered(versions, folder)
    (folder / "data").mkdir()
    for name in ("data/raw", "data/slices", "reports", "params.yaml"):
        (folder / name).symlink_to(run.root / name)
    pictures = make_translator(("photo", "painting"), rules=(), style=("domain", "reference"), size=[32, 32])
    pictures.save(folder / "models/translator")
    return folder, env


@pytest.fixture(scope="module")
def running(project: tuple[Path, dict[str, str]], run: Run) -> Iterator[Running]:
    """Return the studio that the tests of a module share."""
    with studio(*project, "--model", str(run.translator), "--upload-mb", "24") as one:
        yield one


def here() -> dict[str, str]:
    """Return an environment in which this checkout runs."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
