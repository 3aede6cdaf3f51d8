import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medstyle.cli import app
from medstyle.project.doctor import checks


def found(folder: Path) -> dict[str, tuple[str, str]]:
    return {check.what: (check.state, check.remedy) for check in checks(folder)}


def test_what_is_wrong_has_a_remedy(tmp_path: Path) -> None:
    every = checks(tmp_path)
    assert {check.what for check in every} >= {
        "medstyle",
        "packages",
        "packages [ops]",
        "GPU",
        "disk",
        "secret",
        "git",
        "dvc",
    }
    assert all(check.remedy for check in every if check.state == "wrong")
    assert found(tmp_path)["packages"][0] == "fine"


def test_a_server_that_does_not_answer_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    state, remedy = found(tmp_path)["MLFLOW_TRACKING_URI"]
    assert state == "wrong"
    assert "unset" in remedy
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 3


def test_a_secret_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSTYLE_SECRET", "ZZCANARY")
    assert found(tmp_path)["secret"][0] == "fine"
    said = CliRunner().invoke(app, ["doctor", "--json"]).output
    assert "ZZCANARY" not in said
    assert {"what", "state", "found", "remedy"} == json.loads(said)[0].keys()


def test_a_version_that_does_not_fit_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.metadata

    asked = importlib.metadata.requires("medstyle")
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: [*(asked or ()), "numpy<1"])
    [check] = [check for check in checks(tmp_path) if check.what == "packages"]
    assert check.state == "wrong"
    assert "needed <1" in check.found
    assert check.remedy == "pip install medstyle"
