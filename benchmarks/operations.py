"""Measure the overhead when nothing has changed: ``dvc repro`` and the flow around it.

A copy of this checkout is run once with a tiny phantom; then each command is timed in turns, each
in a process of its own. The flow runs with a Prefect server that is up, and without one, where it
starts a temporary one.
Usage: python benchmarks/operations.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import sys
import tempfile
import time
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parents[1]))  # the copy of the project is that of the tests
from tests.conftest import Project
from tests.flows.conftest import wait_for

COMMANDS = {
    "`python -c 'import mlflow, torch, monai'`": ("python", "-c", "import mlflow, torch, monai"),
    "`dvc status`": ("dvc", "status"),
    "`dvc repro evaluate`: no stage to run": ("dvc", "repro", "evaluate"),
    "`dvc repro`: register is asked": ("dvc", "repro"),
    "`python -m flows.train`, server up": ("python", "-m", "flows.train"),
}
ALONE = "`python -m flows.train`, no server"


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory(prefix="medstyle-") as folder:
        project = Project.copy(Path(folder))
        project.more_env = {"PREFECT_HOME": f"{folder}/.prefect"}
        project.run("dvc", "repro")
        seconds: dict[str, list[float]] = {name: [] for name in (*COMMANDS, ALONE)}
        seconds[ALONE] = [timed(project, COMMANDS["`python -m flows.train`, server up"]) for _ in range(repeats)]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        api = f"http://127.0.0.1:{port}/api"
        project.run("prefect", "server", "start", "--port", str(port), "--no-ui", "--background")
        project.more_env["PREFECT_API_URL"] = api
        try:
            wait_for(lambda: healthy(api))
            for _ in range(repeats):
                for name, command in COMMANDS.items():
                    seconds[name].append(timed(project, command))
        finally:
            project.run("prefect", "server", "stop")
    print("| nothing to do | median s | least | most |")
    print("|---|---|---|---|")
    for name, values in seconds.items():
        print(f"| {name} | {statistics.median(values):.1f} | {min(values):.1f} | {max(values):.1f} |")


def timed(project: Project, command: tuple[str, ...]) -> float:
    """Run a command that must succeed; return its wall time in s."""
    start = time.monotonic()
    project.run(*command)
    return time.monotonic() - start


def healthy(api: str) -> bool:
    """Return whether the server answers."""
    try:
        return requests.get(f"{api}/health", timeout=5).ok
    except requests.ConnectionError:
        return False


if __name__ == "__main__":
    main()
