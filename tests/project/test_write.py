"""The project that `init` writes: complete, valid, ignored by git where it holds patients."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from medstyle.cli import app
from medstyle.errors import OutputError
from medstyle.project.reference import schema
from medstyle.project.status import status
from medstyle.project.write import program, template, write_project
from tests.conftest import ROOT

Data = Callable[[str], Path]


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MEDSTYLE_SECRET": "a secret of this test", "PYTHONPATH": str(ROOT)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    return subprocess.run(arguments, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def test_this_repository_is_such_a_project() -> None:
    """Its stages are those of the template; they depend on the code instead of the version."""
    own, made = yaml.safe_load((ROOT / "dvc.yaml").read_text()), yaml.safe_load(template("stages.yaml"))
    assert own["plots"] == made["plots"]
    assert made["stages"].pop("program")["cmd"] == "medstyle version > program.txt"
    del own["stages"]["acquire"]  # which makes the phantom
    for stage in own["stages"].values():
        stage["deps"] = [name for name in stage["deps"] if not name.startswith("medstyle/")]
    for stage in made["stages"].values():
        stage["deps"].remove("program.txt")
    assert own == made


def test_deployments_are_those_of_this_repository() -> None:
    own, made = (yaml.safe_load(text) for text in ((ROOT / "prefect.yaml").read_text(), template("deployments.yaml")))
    for one in own["deployments"]:
        one["entrypoint"] = re.sub(r"^flows/(\w+)\.py:", r"flows.\1.", one["entrypoint"])
    assert own == made
    import flows.promote
    import flows.train

    assert flows.train.train.name
    assert flows.promote.rollback.name


def test_git_holds_no_patient(tmp_path: Path) -> None:
    write_project(tmp_path / "p", "train: {}\n", "a test", {"a.nii": "mr_t1"})
    private = (
        "data/scans/a.nii.gz data/labels.csv models/translator/a.safetensors reports/report.html audit.jsonl mlflow.db"
    )
    for name in private.split():
        (tmp_path / "p" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "p" / name).write_text("x")
    listed = command("git", "status", "--porcelain", "--untracked-files=all", cwd=tmp_path / "p").stdout
    assert not re.search("data/|models/|report|audit|mlflow", listed)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(OutputError, match="not empty"):
        write_project(tmp_path, "", "")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_project_below_a_repository_of_git_has_its_own_dvc(tmp_path: Path) -> None:
    command("git", "init", "-q", cwd=tmp_path)
    assert write_project(tmp_path / "p", "train: {}\n", "a test") == []
    assert (tmp_path / "p/.dvc/config").is_file()
    assert not (tmp_path / "p/.git").exists()


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "recipes").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_every_params_file_fits_the_schema(path: Path) -> None:
    Draft202012Validator(schema()).validate(yaml.safe_load(path.read_text()))


def test_the_schema_finds_what_the_stages_refuse() -> None:
    validator = Draft202012Validator(schema())
    for wrong in ({"junk": 1}, {"denoise": {"junk": 1}}, {"train": {"source": 3, "target": "ct"}}):
        assert not validator.is_valid(wrong)


def test_the_version_changes_with_the_code() -> None:
    assert re.fullmatch(r"medstyle \d+\.\d+\.\d+, code [0-9a-f]{16}", program())


def test_init_says_what_it_saw_and_writes_a_project_that_dvc_knows(data: Data, tmp_path: Path) -> None:
    project = tmp_path / "p"
    said = CliRunner().invoke(app, ["init", str(project), "--data", str(data("mess")), "--minutes", "1", "--yes"])
    assert said.exit_code == 0, said.output
    for word in ("mr_t1", "paired_mr", "a picture among scans", "E_DECODE", "next: cd"):
        assert word in said.output
    Draft202012Validator(schema()).validate(yaml.safe_load((project / "params.yaml").read_text()))
    page = (project / "reports/data.html").read_text()
    assert page.count("<img") == 12
    assert "sub-0" not in page
    assert status(project).next == "dvc repro"
    assert {stage.state for stage in status(project).stages} == {"not run"}


def test_inspect_shows_pictures(data: Data, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    said = CliRunner().invoke(app, ["inspect", str(data("views")), "--pictures", str(page)])
    assert said.exit_code == 0, said.output
    assert "photo@mri: 5 images of 5 subjects" in page.read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dicom", "classes"])
def test_the_proposal_runs_to_its_gate_without_an_edit(name: str, data: Data, tmp_path: Path) -> None:
    project = tmp_path / "p"
    made = command(
        "medstyle", "init", str(project), "--data", str(data(name)), "--minutes", "0.1", "--yes", cwd=tmp_path
    )
    assert made.returncode == 0, made.stderr
    ran = command("dvc", "repro", cwd=project)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert (project / "reports/report.html").is_file()
    assert {stage.state for stage in status(project).stages} == {"done"}
    again = command("dvc", "repro", "evaluate", cwd=project)  # without the registry, which is always asked
    assert re.findall(r"Running stage '(\w+)'", again.stdout) == ["program"]
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(re.sub(r"(denoise:\n)", r"\1  seed: 1\n", text))
    assert {stage.name for stage in status(project).stages if stage.state == "stale"} >= {"denoise"}
