import json

import pytest
import yaml
from typer.testing import CliRunner

from medstyle.cli import app
from medstyle.errors import ParamsError
from medstyle.project.reference import entries
from tests.conftest import ROOT


def test_every_key_has_a_meaning() -> None:
    assert [entry.path for entry in entries() if not entry.meaning and entry.kind != "section"] == []


def test_every_key_of_the_demo_is_listed() -> None:
    known = {entry.path for entry in entries()}
    for stage, values in yaml.safe_load((ROOT / "params.yaml").read_text()).items():
        assert {f"{stage}.{key}" for key in values} <= known


def test_a_key_is_found_by_its_path() -> None:
    [entry] = entries("train.training.steps")
    assert (entry.kind, entry.default) == ("whole number", "1500")
    assert "Optimiser steps" in CliRunner().invoke(app, ["params", "train.training"]).output
    with pytest.raises(ParamsError, match="no such key"):
        entries("train.junk")


def test_the_schema_is_json() -> None:
    assert json.loads(CliRunner().invoke(app, ["params", "--schema"]).output)["properties"]["train"]
