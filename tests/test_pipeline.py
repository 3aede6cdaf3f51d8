"""dvc.yaml, params.yaml and the code agree, and a run is reproducible bit for bit."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import json
from pathlib import Path

import grimp
import pytest
import yaml

from medstyle.params import load

ROOT = Path(__file__).parents[1]
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SKIPPED = [stage for stage, stanza in STAGES.items() if not stanza.get("always_changed")]


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("medstyle", cache_dir=None)


@pytest.mark.parametrize("stage", SKIPPED)  # a stage that always runs need not know its code
def test_the_code_a_stage_depends_on_is_its_import_graph(graph, stage):
    root = f"medstyle.stages.{stage}"
    stems = [ROOT / module.replace(".", "/") for module in {root} | graph.find_upstream_modules(root)]
    needed = [
        file for stem in stems for file in stem.parent.glob(f"{stem.name}.*")
    ]  # a template lies beside its module
    listed = {dep for dep in STAGES[stage]["deps"] if dep.startswith("medstyle/")}
    assert listed == {file.relative_to(ROOT).as_posix() for file in needed}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "medstyle").glob("*/**/__init__.py")), ids=lambda path: path.parent.name
)
def test_packages_hold_no_code_so_that_no_stage_depends_on_them(path):
    (only,) = ast.parse(path.read_text()).body
    assert isinstance(only, ast.Expr)
    assert isinstance(only.value, ast.Constant)


def test_a_stage_has_one_name_in_four_places():
    def modules(folder: str, prefix: str = "") -> set[str]:
        return {path.stem.removeprefix(prefix) for path in (ROOT / folder).glob(f"{prefix}*.py")} - {"__init__"}

    sections = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert set(STAGES) == set(sections) == modules("medstyle/stages") == modules("tests/stages", "test_")


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_runs_its_own_command_with_its_own_params(stage):
    assert STAGES[stage]["cmd"] == f"medstyle {stage}"
    assert STAGES[stage]["params"] == [stage]
    load(importlib.import_module(f"medstyle.stages.{stage}").Params, stage, ROOT / "params.yaml")


def test_another_clean_run_makes_the_same_bits_even_if_it_is_killed_in_training(finished, run):
    printed = finished.folder.with_name("printed").read_text()
    assert "a model before the kill: False" in printed
    assert "resumed at step" in printed
    assert not list((finished.folder / ".medstyle/train").iterdir()), "a finished run leaves no state behind"
    for place in ("data", "models"):
        assert contents(finished.folder / place) == contents(run.root / place)
    assert (finished.folder / "reports/subjects.csv").read_bytes() == (run.root / "reports/subjects.csv").read_bytes()


def test_the_registry_remembers_each_subject_under_the_evaluation(finished):
    from medstyle.evaluation.gate import read_methods
    from medstyle.registry.models import evaluation

    [kept] = (finished.folder / "mlruns").rglob("subjects/*.json")
    assert json.loads(kept.read_text()) == read_methods(finished.folder / "reports/subjects.csv")["model"]
    with contextlib.chdir(finished.folder):
        assert kept.stem == evaluation(Path("reports/subjects.csv"))


def test_the_gate_keeps_what_each_baseline_scored(finished):
    from medstyle.evaluation.baselines import BASELINES

    [kept] = (finished.folder / "mlruns").rglob("comparison.json")
    table = json.loads((finished.folder / "reports/metrics.json").read_text())["tables"]["truth"]
    for measure, methods in json.loads(kept.read_text()).items():
        assert set(methods) == {"model", *BASELINES}
        for method, row in methods.items():
            assert row["mean"] == pytest.approx(table[method][measure]["mean"], abs=1e-5)


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".gitignore")  # DVC's
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
