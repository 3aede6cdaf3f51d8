import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pandas
import pytest

from medstyle.errors import UserError
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.gate import read_methods
from medstyle.networks.translator import Translator
from medstyle.params import parse
from medstyle.stages.register import Params
from medstyle.stages.register import run as register

pytestmark = pytest.mark.filterwarnings(  # MLflow's own
    "ignore::DeprecationWarning", "ignore::pandas.errors.Pandas4Warning", "ignore::UserWarning"
)


@pytest.fixture
def project(run, registry_folder):
    """A copy of the tiny run with an empty registry, and its metrics to change."""
    for name in ("models", "reports"):
        shutil.copytree(run.root / name, registry_folder / name)
    shutil.copy(run.params, registry_folder)
    return registry_folder


def nothing(model):
    raise AssertionError("no champion had to be measured")


def conclude(project, model="models/translator", measure=nothing, **settings):
    lines = []
    params = Params(**{"within_2sd": 0.0, "created": 1e6, "edge_displacement_mm": 1e6, **settings})
    register(params, project / model, Path("reports"), Path("params.yaml"), measure, lines.append)
    return lines


def another(project, seed):
    """Save a translator with slightly other weights; returns its name."""
    import torch

    torch.manual_seed(seed)
    translator = Translator.load(project / "models/translator")
    for parameter in translator.members[0].parameters():
        parameter.add_(torch.randn_like(parameter) * 1e-3)
    shutil.copytree(project / "models/translator", project / f"models/{seed}")
    translator.save(project / f"models/{seed}")
    return f"models/{seed}"


def evaluated_by_dvc(project, data="today's"):
    """Write the lock that DVC would have written for the reports at hand."""
    md5 = hashlib.md5((project / "reports/subjects.csv").read_bytes()).hexdigest()
    entry = {
        "deps": [{"path": "data", "md5": data}],
        "params": {},
        "outs": [{"path": "reports/subjects.csv", "md5": md5}],
    }
    (project / "dvc.lock").write_text(json.dumps({"stages": {"train": {"outs": []}, "evaluate": entry}}))


def good(project):
    """Make the tiny model look like one that passes."""
    path = project / "reports/metrics.json"
    metrics = json.loads(path.read_text())
    for name, value in {"psnr": 30.0, "ssim": 0.95, "mae": 0.01}.items():
        metrics["tables"][metrics["reference"]]["model"][name]["mean"] = value
    metrics["lesions"] = {"count": 3, "survived": 1.0}
    path.write_text(json.dumps(metrics))


def test_a_model_that_passes_becomes_champion_once(project):
    good(project)
    first = conclude(project)
    assert first == ["medstyle version 1: registered", "medstyle version 1 is the new champion"]
    again = conclude(project)
    assert again == ["medstyle version 1: these weights are registered already", "medstyle version 1 is the champion"]


def test_a_model_that_fails_is_a_candidate_with_its_reasons(project):
    good(project)
    [_, verdict] = conclude(project, floors={"psnr": 50.0})
    assert verdict == "medstyle version 1: gate failed: psnr: 30; needed: at least 50"
    import mlflow

    version = mlflow.MlflowClient().get_model_version_by_alias("medstyle", "candidate")
    assert version.tags["gate"] == "failed"
    assert version.tags["gate.reasons"] == "psnr: 30; needed: at least 50"
    page = mlflow.artifacts.load_text(f"runs:/{version.run_id}/gate.md")
    assert "| psnr | 30 | at least 50 | **failed** |" in page
    assert "| passed |" in page


def test_a_champion_measured_alike_is_compared_by_what_is_registered(project):
    good(project)
    evaluated_by_dvc(project)
    conclude(project)
    assert conclude(project, another(project, 1))[-1].endswith("version 2 is the new champion, after 1"), "equal values"
    table = pandas.read_csv("reports/subjects.csv")
    table.loc[table.method == "model", "psnr"] -= 1
    table.to_csv("reports/subjects.csv", index=False)
    evaluated_by_dvc(project)
    [_, verdict] = conclude(project, another(project, 2))
    assert "gate failed: psnr beside champion 2: gain -1 on 1 subjects" in verdict


def test_a_champion_measured_otherwise_is_measured_anew(project):
    good(project)
    conclude(project)  # no lock: nothing says how it was measured
    asked = []

    def measure(model):
        asked.append(Translator.load(model).sha256)
        return {subject: {name: 2 * v for name, v in row.items()} for subject, row in measured.items()}

    measured = read_methods(Path("reports/subjects.csv"))["model"]
    champion = Translator.load("models/translator").sha256
    [_, verdict] = conclude(project, another(project, 1), measure)
    assert asked == [champion]
    assert "psnr beside champion 1: gain -" in verdict
    assert "mae beside" not in verdict, "twice the champion's error would be a loss for it"
    evaluated_by_dvc(project, "tomorrow's")
    for _ in range(2):  # the next night the same is asked again
        [_, verdict] = conclude(project, another(project, 2), measure)
        assert "psnr beside champion 1: gain -" in verdict
        shutil.rmtree(project / "models/2")
    assert asked == 2 * [champion], "measured once with the new data, and remembered"
    (project / "dvc.lock").unlink()
    [_, verdict] = conclude(project, another(project, 2), lambda model: {})
    assert "other subjects only" in verdict

    def broken(model):
        raise UserError("the slices are gone")

    [_, verdict] = conclude(project, another(project, 3), broken)
    assert "champion 1: it cannot be measured on these subjects (the slices are gone)" in verdict


def documents(number):
    """Return the page and the comparison that the run of a version keeps."""
    import mlflow

    run_id = mlflow.MlflowClient().get_model_version("medstyle", number).run_id
    page, table = (f"runs:/{run_id}/{name}" for name in ("gate.md", "comparison.json"))
    return mlflow.artifacts.load_text(page), mlflow.artifacts.load_dict(table)


def test_the_champion_is_measured_as_the_version_was(run, project):
    """The reports are those of the champion's weights: measured anew, nothing lies between the
    two."""
    from medstyle.cli import _measure

    (project / "data").symlink_to(run.root / "data")
    good(project)
    conclude(project)
    conclude(project, another(project, 1), lambda model: _measure(Path("params.yaml"), model))
    _, table = documents("2")
    for row in table.values():
        assert row["champion 1"]["mean"] == row["model"]["mean"]
        assert row["champion 1"]["gain"] == 0


def test_the_champion_stands_in_the_table_of_the_baselines(project):
    good(project)
    conclude(project)
    _, alone = documents("1")
    assert set(alone["psnr"]) == {"model", *BASELINES}, "the first version has no champion beside it"
    measured = read_methods(Path("reports/subjects.csv"))["model"]
    half = {subject: {name: value / 2 for name, value in row.items()} for subject, row in measured.items()}
    conclude(project, another(project, 1), lambda model: half)
    page, table = documents("2")
    [values] = measured.values()
    for name, sign in {"psnr": 1, "ssim": 1, "mae": -1}.items():
        assert set(table[name]) == {"model", *BASELINES, "champion 1"}
        assert table[name]["champion 1"]["gain"] == pytest.approx(sign * values[name] / 2)
        assert table[name]["champion 1"]["better"] == (sign > 0)
        assert table[name]["identity"] == alone[name]["identity"]
    assert "| psnr | champion 1 |" in page
    conclude(project, another(project, 2), lambda model: {"somebody else": values})
    assert "champion 1" not in documents("3")[1]["psnr"], "other subjects cannot stand in one table"


@pytest.mark.parametrize("edited", [False, True])
def test_uncommitted_changes_can_be_refused(project, edited):
    good(project)
    for command in (["init", "-q"], ["add", "params.yaml"], ["commit", "-qm", "x"]):
        subprocess.run(["git", "-c", "user.name=t", "-c", "user.email=t@localhost", *command], check=True)
    if edited:
        (project / "params.yaml").write_text("{}")
    [_, verdict] = conclude(project, clean=True)
    assert ("new champion" in verdict) is not edited
    if edited:
        assert "working copy: uncommitted changes" in verdict
        assert "new champion" in conclude(project)[-1], "allowed unless asked"


def test_without_an_evaluation_nothing_is_registered(project):
    (project / "reports/report.html").unlink()
    with pytest.raises(UserError, match=r"report\.html: missing; run `medstyle evaluate` first"):
        conclude(project)
    with pytest.raises(UserError, match="register"):
        parse(Params, {"floor": {}}, "register")
