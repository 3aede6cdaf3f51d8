import json
import os
import shutil

import pytest

from medstyle.errors import UserError
from medstyle.params import parse
from medstyle.stages.register import Params
from medstyle.stages.register import run as register

pytestmark = pytest.mark.filterwarnings(  # MLflow's own
    "ignore::DeprecationWarning", "ignore::pandas.errors.Pandas4Warning", "ignore::UserWarning"
)


@pytest.fixture
def project(run, tmp_path, monkeypatch):
    """A copy of the tiny run with an empty registry, and its metrics to change."""
    import mlflow

    for name in ("models", "reports"):
        shutil.copytree(run.root / name, tmp_path / name)
    shutil.copy(run.params, tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def conclude(project, **settings):
    lines = []
    register(
        Params(**settings), project / "models/translator", project / "reports", project / "params.yaml", lines.append
    )
    return lines


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
    assert verdict == "medstyle version 1: gate failed: psnr 30.000 misses the floor 50"
    import mlflow

    version = mlflow.MlflowClient().get_model_version_by_alias("medstyle", "candidate")
    assert version.tags["gate"] == "failed"
    assert "misses the floor" in version.tags["gate.reasons"]


def test_without_an_evaluation_nothing_is_registered(project):
    (project / "reports/report.html").unlink()
    with pytest.raises(UserError, match=r"report\.html: absent; run `medstyle evaluate` first"):
        conclude(project)
    with pytest.raises(UserError, match="register"):
        parse(Params, {"floor": {}}, "register")
