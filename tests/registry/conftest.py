"""Registries, `medstyle serve` as a process, and requests as clients send them."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import requests
import torch
from prometheus_client.parser import text_string_to_metric_families

from medstyle import Translator
from tests.conftest import ROOT, Once, Run
from tests.flows.conftest import wait_for

DESCRIPTORS = 256  # of each service: few enough for a test to use up


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def vary(translator: Path, out: Path, noise: float) -> Path:
    """Copy a translator with ``noise`` added to its weights."""
    torch.manual_seed(0)
    made = Translator.load(translator)
    for parameter in made.members[0].parameters():
        parameter.add_(torch.randn_like(parameter) * noise)
    shutil.copytree(translator, out)
    made.save(out)
    return out


@pytest.fixture(scope="session")
def versions(run: Run, once: Once) -> Path:
    """Return the folder of a registry, made once: the champion, another version, and one that makes
    no numbers."""

    def make(folder: Path) -> None:
        others = [vary(run.translator, folder / name, noise) for name, noise in (("second", 1e-2), ("broken", np.nan))]
        env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(ROOT)}
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"
        code = (
            "import json; from pathlib import Path; from medstyle.registry.models import add_version, promote\n"
            f"root = Path({str(run.root)!r}); metrics = json.loads((root / 'reports/metrics.json').read_text())\n"
            f"for path in {[str(path) for path in (run.translator, *others)]!r}:\n"
            "    add_version(Path(path), metrics, [root / 'reports/report.html', root / 'reports/metrics.json'])\n"
            "promote('1', 'a test')"
        )
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=env, check=True, capture_output=True)

    return once("versions", make)


def registered(versions: Path, folder: Path) -> dict[str, str]:
    """Copy the registry's database to ``folder``; returns the environment in which it is used."""
    shutil.copy(versions / "mlflow.db", folder)
    env = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db", "PYTHONPATH": str(ROOT)}
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"}


def body_of(*images: bytes, params: dict[str, Any] | None = None, columns: Sequence[str] = ("image",)) -> bytes:
    rows = [[base64.b64encode(image).decode()] for image in images]
    table = {"columns": list(columns), "data": rows}
    return json.dumps({"dataframe_split": table, **({"params": params} if params else {})}).encode()


def ask(url: str, *images: bytes, **options: Any) -> requests.Response:
    headers = {"Content-Type": "application/json"}
    return requests.post(f"{url}/invocations", data=body_of(*images, **options), headers=headers, timeout=120)


class Service:
    """A running `medstyle serve`."""

    def __init__(self, folder: Path, env: dict[str, str], *options: str) -> None:
        port = free_port()
        self.folder, self.url = folder, f"http://127.0.0.1:{port}"
        # of sockets, whose paths may have 107 bytes: pytest's folders can be longer
        self.temporary = Path(tempfile.mkdtemp(prefix="medstyle-", dir="/tmp"))
        self.env = {**env, "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1"}
        command = ["prlimit", f"--nofile={DESCRIPTORS}", sys.executable, "-m", "medstyle.cli"]
        command += ["serve", "--port", str(port), "--poll", "0.3"]
        with (folder / "log").open("w") as out, (folder / "errors").open("w") as errors:
            self.process = subprocess.Popen([*command, *options], cwd=folder, env=self.env, stdout=out, stderr=errors)
        wait_for(self._ready, 180)

    def _ready(self) -> bool:
        assert self.process.poll() is None, (self.folder / "errors").read_text()
        try:
            return requests.get(f"{self.url}/ping", timeout=5).ok
        except requests.ConnectionError:
            return False

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    @property
    def version(self) -> dict[str, Any]:
        return dict(requests.get(f"{self.url}/version", timeout=30).json())

    def log(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        return [line for line in lines if line["event"] == event]

    def medstyle(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "medstyle.cli", *arguments]
        subprocess.run(command, cwd=self.folder, env=self.env, check=True, capture_output=True)

    def metric(self, name: str, **labels: str) -> float:
        text = requests.get(f"{self.url}/metrics", timeout=30).text
        samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
        return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())

    def end(self, kind: int = signal.SIGTERM) -> int:
        self.process.send_signal(kind)
        return self.process.wait(60)


@contextlib.contextmanager
def serving(env: dict[str, str], folder: Path, *options: str) -> Iterator[Service]:
    service = Service(folder, env, *options)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.end()
        shutil.rmtree(service.temporary, ignore_errors=True)


@pytest.fixture
def registry(registry_folder: Path) -> Any:
    """Return the module of the registry, at an empty one in SQLite that is reached as in a fresh
    clone."""
    from medstyle.registry import models

    return models
