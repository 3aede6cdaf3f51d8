import copy
import json
import os
import shutil

import pytest

from medstyle import Translator, UserError

pytestmark = pytest.mark.filterwarnings(  # MLflow's own
    "ignore::DeprecationWarning", "ignore::pandas.errors.Pandas4Warning", "ignore::UserWarning"
)

METRICS = {
    "protocol": "plain", "reference": "truth", "headline": ["psnr", "mae"],
    "measures": {"psnr": "higher", "ssim": "higher", "mae": "lower"}, "lesions": {},
    "tables": {"truth": {
        "model": {"psnr": {"mean": 25.0}, "ssim": {"mean": 0.9}, "mae": {"mean": 0.03}},
        "identity": {"psnr": {"mean": 15.0}, "ssim": {"mean": 0.4}, "mae": {"mean": 0.1}},
    }},
}  # fmt: skip


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """An empty registry in SQLite, reached as in a fresh clone."""
    import mlflow

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    from medstyle.registry import models

    yield models
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


def verdict(models, metrics, version="1", **limits):
    return models.gate(metrics, version, **{"floors": {}, "regression": 0.01, "survival": 0.5, **limits})


def changed(value, *path):
    metrics = copy.deepcopy(METRICS)
    place = metrics
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return metrics


def another(folder, out, seed):
    """A translator with other weights."""
    import torch

    torch.manual_seed(seed)
    translator = Translator.load(folder)
    for parameter in translator.members[0].parameters():
        parameter.add_(torch.randn_like(parameter) * 1e-3)
    shutil.copytree(folder, out)
    translator.save(out)
    return out


def test_a_version_from_registration_to_rollback(registry, run, tmp_path):
    report = tmp_path / "report.html"
    report.write_text("page")
    first, new = registry.register(run.translator, METRICS, [report])
    assert (first, new) == ("1", True)
    assert registry.register(run.translator, METRICS, [report]) == ("1", False), "the same weights are the same version"
    assert "new champion" in registry.conclude(first, verdict(registry, METRICS))
    assert "is the champion" in registry.conclude(first, verdict(registry, METRICS)), "idempotent"

    worse = changed(24.0, "tables", "truth", "model", "psnr", "mean")
    second, _ = registry.register(another(run.translator, tmp_path / "b", 1), worse, [report])
    reasons = verdict(registry, worse, second)
    assert any("worse than the champion" in reason for reason in reasons)
    assert "gate failed" in registry.conclude(second, reasons)
    with pytest.raises(UserError, match="did not pass the gate"):
        registry.promote(second)
    with pytest.raises(UserError, match="there is no previous"):
        registry.rollback()
    assert "new champion, after 1" in registry.promote(second, "to see it served")

    rows = {row["version"]: row for row in registry.versions()}
    assert rows["1"]["aliases"] == "previous"
    assert rows["2"]["aliases"] == "candidate champion"
    assert "version 1 is champion again" in registry.rollback()
    assert {row["version"]: row["aliases"] for row in registry.versions()}["1"] == "champion"

    fetched = Translator.load(registry.fetch("models:/medstyle@champion"))
    assert fetched.sha256 == Translator.load(run.translator).sha256
    with pytest.raises(UserError, match="no such registered model"):
        registry.fetch("models:/medstyle@nobody")
    with pytest.raises(UserError, match="no version 7"):
        registry.promote("7")

    import mlflow

    info = mlflow.MlflowClient().get_model_version("medstyle", "1")
    assert info.tags["weights_sha256"] == fetched.sha256
    assert "not a medical device" in info.description
    assert {"git.sha", "git.dirty", "dvc.subgraph_sha256"} <= set(info.tags)
    model = mlflow.models.get_model_info("models:/medstyle/1")
    assert [column.name for column in model.signature.inputs.inputs] == ["image", "reference"]
    assert model.saved_input_example_info is not None


REASONS = {
    "passes": (METRICS, {}, None),
    "floor": (METRICS, {"floors": {"psnr": 30.0}}, "misses the floor"),
    "floor of a measure that is better low": (METRICS, {"floors": {"mae": 0.01}}, "misses the floor"),
    "baseline": (changed(0.2, "tables", "truth", "model", "mae", "mean"), {}, "not better than identity"),
    "lesions": (changed({"survived": 0.4}, "lesions"), {}, "40% of lesions survive"),
}


@pytest.mark.parametrize("name", REASONS)
def test_the_gate(registry, name):
    metrics, limits, reason = REASONS[name]
    reasons = verdict(registry, metrics, **limits)
    assert reasons == [] if reason is None else any(reason in given for given in reasons)


def test_an_unknown_floor_is_named(registry):
    with pytest.raises(UserError, match=r"register\.floors: 'fid'"):
        verdict(registry, METRICS, floors={"fid": 1.0})


def test_lineage_is_a_function_of_training_and_its_ancestors(registry, tmp_path):
    import yaml

    def lock(register_md5, train_md5="b"):
        stages = {
            "denoise": {"deps": [], "outs": [{"path": "data/slices", "md5": "a"}]},
            "train": {"deps": [{"path": "data/slices", "md5": "a"}], "outs": [{"path": "m", "md5": train_md5}]},
            "register": {"deps": [{"path": "m", "md5": register_md5}]},
        }
        (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
        return registry.lineage(tmp_path / "dvc.lock")

    first = lock("x")
    assert first["dvc.data/slices"] == "a"
    assert first["dvc.subgraph_sha256"] == lock("y")["dvc.subgraph_sha256"]
    assert first["dvc.subgraph_sha256"] != lock("x", "c")["dvc.subgraph_sha256"]
    assert registry.lineage(tmp_path / "absent")["dvc.subgraph_sha256"] == "none"


def test_curves_and_pictures_reach_the_run(registry, run, tmp_path):
    import mlflow
    import numpy as np

    from medstyle import params
    from medstyle.registry.tracking import training_run
    from medstyle.stages.train import Params

    shutil.copytree(run.root / "models", tmp_path / "models")
    with training_run(params.load(Params, "train", run.params)) as log:
        for step in range(30):
            log(step, {"generator/l1": 1.0 / (step + 1)})
        log(30, {"validation/sample": np.zeros((8, 8), np.uint8)})
    [found] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "generator/l1")
    assert [point.step for point in history] == list(range(30))
    assert found.data.params["training.steps"] == "12"
    assert len(found.data.tags["medstyle.weights_sha256"]) == 64
    assert list((tmp_path / "mlruns").rglob("*.png"))


def test_registered_metrics_are_those_of_the_reference(registry, run, tmp_path):
    metrics = json.loads((run.root / "reports/metrics.json").read_text())
    (tmp_path / "r.html").write_text("")
    version, _ = registry.register(run.translator, metrics, [tmp_path / "r.html"])
    row = registry.versions()[0]
    assert row["version"] == version
    assert float(row["psnr"]) == pytest.approx(metrics["tables"]["truth"]["model"]["psnr"]["mean"], abs=1e-4)
