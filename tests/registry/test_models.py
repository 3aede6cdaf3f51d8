import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from medstyle import Translator, UserError
from tests.conftest import ROOT

pytestmark = pytest.mark.filterwarnings(  # MLflow's own
    "ignore::DeprecationWarning", "ignore::pandas.errors.Pandas4Warning", "ignore::UserWarning"
)

METRICS = {
    "reference": "truth",
    "tables": {"truth": {
        "model": {"psnr": {"mean": 25.0}, "ssim": {"mean": 0.9}, "mae": {"mean": 0.03}},
        "identity": {"psnr": {"mean": 15.0}, "ssim": {"mean": 0.4}, "mae": {"mean": 0.1}},
    }},
}  # fmt: skip


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
    first, new = registry.add_version(run.translator, METRICS, [report])
    assert (first, new) == ("1", True)
    assert registry.add_version(run.translator, METRICS, [report]) == ("1", False), (
        "the same weights are the same version"
    )
    assert "new champion" in registry.conclude(first, [], {}, None)
    assert "is the champion" in registry.conclude(first, [], {}, None), "idempotent"

    second, _ = registry.add_version(another(run.translator, tmp_path / "b", 1), METRICS, [report])
    why = {"gate.md": "# why"}
    assert "gate failed: psnr: 1; needed: 2" in registry.conclude(second, ["psnr: 1; needed: 2"], why, first)
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

    info = mlflow.MlflowClient().get_model_version("medstyle", "2")
    assert (info.tags["gate"], info.tags["gate.reasons"]) == ("failed", "psnr: 1; needed: 2")
    assert info.tags["gate.overruled"] == "to see it served"
    assert mlflow.artifacts.load_text(f"runs:/{info.run_id}/gate.md") == "# why"
    info = mlflow.MlflowClient().get_model_version("medstyle", "1")
    assert info.tags["weights_sha256"] == fetched.sha256
    assert "not a medical device" in info.description
    assert {"git.sha", "git.dirty", "dvc.subgraph_sha256"} <= set(info.tags)
    model = mlflow.models.get_model_info("models:/medstyle/1")
    assert [column.name for column in model.signature.inputs.inputs] == ["image", "reference"]
    assert model.saved_input_example_info is not None


@pytest.fixture
def bare(registry):
    """A registry with six versions that passed the gate and hold nothing else."""
    client = registry.connect().MlflowClient()
    client.create_registered_model("medstyle")
    run_id = client.create_run(client.get_experiment_by_name("medstyle").experiment_id).info.run_id
    for number in range(1, 7):
        client.create_model_version("medstyle", f"file:///nothing/{number}", run_id=run_id)
        client.set_model_version_tag("medstyle", str(number), "gate", "passed")
    return registry


def test_the_gate_leaves_what_a_person_decided(bare):
    bare.conclude("1", [], {}, None)
    assert "new champion" in bare.conclude("2", [], {}, "1")
    bare.rollback()
    assert "was champion before" in bare.conclude("2", [], {}, "1"), "the next nightly run must not undo a rollback"
    assert bare.rival("9") == "1"
    assert "new champion" in bare.promote("2")
    assert "changed meanwhile" in bare.conclude("3", [], {}, "1"), "it was judged beside another champion"
    assert bare.rival("9") == "2"


PROMOTE = """
import sys
from medstyle.registry.models import connect, promote
connect(); print("ready", flush=True); sys.stdin.readline()
for version in sys.argv[1:]:
    print(promote(version), flush=True)
"""


@pytest.mark.ops
def test_two_processes_promote_one_after_the_other(bare, tmp_path):
    bare.promote("1")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"text": True, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    teams = [["2", "4", "6"], ["3", "5"]]
    both = [subprocess.Popen([sys.executable, "-c", PROMOTE, *own], cwd=tmp_path, env=env, **pipes) for own in teams]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    lines = [line for process in both for line in process.communicate(timeout=120)[0].splitlines()]
    after = dict(re.findall(r"version (\d) is the new champion, after (\d)", "\n".join(lines)))
    assert sorted(after) == ["2", "3", "4", "5", "6"]
    assert len(set(after.values())) == 5, f"two came after the same champion: {after}"
    aliases = {alias: row["version"] for row in bare.versions() for alias in row["aliases"].split()}
    assert after[aliases["champion"]] == aliases["previous"]


def test_a_promotion_that_died_blocks_nobody_for_long(bare, monkeypatch):
    monkeypatch.setattr(bare, "LOCK_S", 0.3)
    bare.connect().MlflowClient().create_registered_model(bare.LOCK)
    assert "new champion" in bare.promote("1")


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


def test_an_evaluation_is_its_data_code_and_params_without_the_model(registry, tmp_path):
    import yaml

    file = Path("subjects.csv")
    file.write_text("subject\n")

    md5 = hashlib.md5(file.read_bytes()).hexdigest()

    def evaluated(model="a", data="b", protocol="plain", made=md5):
        deps = [{"path": "model", "md5": model}, {"path": "data", "md5": data}]
        entry = {"deps": deps, "params": {"protocol": protocol}, "outs": [{"path": "subjects.csv", "md5": made}]}
        stages = {"train": {"outs": [{"path": "model", "md5": model}]}, "evaluate": entry}
        (tmp_path / "dvc.lock").write_text(yaml.safe_dump({"stages": stages}))
        return registry.evaluation(file)

    assert evaluated() == evaluated(model="other") is not None
    assert len({evaluated(), evaluated(data="other"), evaluated(protocol="other")}) == 3
    assert evaluated(made="other") is None, "the lock describes another file"


def test_registered_metrics_are_those_of_the_reference(registry, run, tmp_path):
    metrics = json.loads((run.root / "reports/metrics.json").read_text())
    (tmp_path / "r.html").write_text("")
    version, _ = registry.add_version(run.translator, metrics, [tmp_path / "r.html"])
    row = registry.versions()[0]
    assert row["version"] == version
    assert float(row["psnr"]) == pytest.approx(metrics["tables"]["truth"]["model"]["psnr"]["mean"], abs=1e-4)


def test_a_run_says_what_came_out_and_of_which_data(registry, run, tmp_path, monkeypatch):
    (tmp_path / "r.html").write_text("")
    monkeypatch.setattr(registry, "lineage", lambda: {"dvc.data/slices": "0123abcd" * 4 + ".dir"})
    version, _ = registry.add_version(run.translator, METRICS, [tmp_path / "r.html"])
    client = registry.connect().MlflowClient()
    made = client.get_run(client.get_model_version(registry.NAME, version).run_id)
    note = made.data.tags["mlflow.note.content"]
    assert note.startswith("| method |")
    assert (run.translator / registry.CARD).read_text() in note
    [data] = made.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("slices", "0123abcd" * 4 + ".dir")
    kind = client.get_experiment(made.info.experiment_id).tags["mlflow.experimentKind"]
    assert kind == "custom_model_development"
