"""What `pip check` does not see: pins that agree, servers that can start.

The schedule is tested in tests/flows.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
LOCK = [Requirement(line) for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
PINS = {re.sub(r"[-_.]+", "-", pin.name).lower(): str(pin.specifier).removeprefix("==") for pin in LOCK}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WANTED = [
    Requirement(text)
    for group in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for text in group
]


def test_the_lock_pins_one_plain_version_of_each():
    assert len(PINS) == len(LOCK)
    for pin in LOCK:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin}: no hash, no address, no local version"


@pytest.mark.parametrize("wanted", WANTED, ids=lambda wanted: wanted.name)
def test_the_lock_holds_what_the_project_asks_for(wanted):
    pinned = PINS[re.sub(r"[-_.]+", "-", wanted.name).lower()]
    assert wanted.specifier.contains(pinned, prereleases=True)


@pytest.mark.parametrize("name", ["torch", "monai", "dvc", "mlflow", "prefect", "fastapi", "starlette", "sqlalchemy"])
def test_the_versions_that_break_silently_are_the_locked_ones(name):
    assert version(name).partition("+")[0] == PINS[name]


@pytest.mark.parametrize(
    "module",
    [
        "prefect.server.api.server",  # fastapi 0.151 and newer: TypeError at import
        "mlflow.pyfunc.scoring_server",
        "dvc.repo",
    ],
)
def test_servers_can_be_imported(module):
    run("-c", f"import {module}")


def test_installed_packages_agree():
    run("-m", "pip", "check")


def run(*arguments: str) -> None:
    """Run this Python in a process of its own, because imports have side effects and warn."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
