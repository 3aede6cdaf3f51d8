"""What the README says is true."""

import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)


def test_the_commands_exist():
    from medstyle.cli import app

    known = {command.name or command.callback.__name__ for command in app.registered_commands}
    code = "\n".join([*(text for _, text in BLOCKS), *re.findall(r"`([^`\n]+)`", README)])
    used = set(re.findall(r"^medstyle ([a-z]+)", code, re.MULTILINE))
    assert {"inspect", "translate", "serve"} <= used <= known
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"demo", "test"} <= set(re.findall(r"^make ([a-z]+)", code, re.MULTILINE)) <= targets


def test_it_fits_on_two_screens():
    assert len(README.splitlines()) <= 95


def test_the_python_example_runs(run, tmp_path):
    example = next(text for kind, text in BLOCKS if kind == "python" and "translate_volume" in text)
    for name in ("data", "models"):
        shutil.copytree(run.root / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{example}"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ok mr_t2")
    assert (tmp_path / "synthetic_t2.nii.gz").is_file()
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


RECIPES = [ROOT / "params.yaml", *(ROOT / "recipes").glob("*.yaml")]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_every_shipped_params_file_is_valid(path):
    import importlib

    import yaml

    from medstyle.params import load

    stages = ("acquire", "ingest", "denoise", "train", "evaluate", "register")
    assert set(yaml.safe_load(path.read_text())) == set(stages)
    for stage in stages:
        load(importlib.import_module(f"medstyle.stages.{stage}").Params, stage, path)
