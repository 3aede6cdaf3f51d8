import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from medstyle import params
from medstyle.errors import UserError
from medstyle.inference.calibrate import calibrate
from medstyle.networks.conformal import Interval
from medstyle.networks.translator import Translator
from medstyle.stages.train import Params
from medstyle.stages.train import run as train
from tests.conftest import TINY
from tests.data.conftest import make_store


def test_a_training_leaves_a_translator_and_its_curves_and_nothing_else(run):
    assert {p.name for p in run.translator.iterdir()} == {"weights.safetensors", "translator.json", "MODEL_CARD.md"}
    rows = list(csv.DictReader((run.root / "reports/training.csv").read_text().splitlines()))
    assert float(rows[-1]["step"]) == TINY["train"]["training"]["steps"]
    assert {"generator/l1", "discriminator/share_right", "validation/l1"} <= set(rows[0])
    config = json.loads((run.translator / "translator.json").read_text())
    assert config["source"] == "mr_t1"
    low, high = config["fingerprints"]["mr_t2"]["values"]
    assert low < high
    assert not list((run.root / ".medstyle").rglob("*.pt")), "scratch of a finished run is removed"


def test_the_same_again_is_the_same_bytes_and_curves_are_logged(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = params.load(Params, "train", run.params)
    logged = []
    train(settings, run.root / "data/slices", Path("out"), Path("curve.csv"), lambda step, v: logged.append((step, v)))
    for name in ("weights.safetensors", "translator.json"):
        assert (tmp_path / "out" / name).read_bytes() == (run.translator / name).read_bytes()
    pictures = [v for _, values in logged for v in values.values() if isinstance(v, np.ndarray)]
    assert pictures
    assert pictures[0].dtype == np.uint8


def _changed_store(folder):
    path = folder / "train/mr_t1.npy"
    np.save(path, np.load(path)[::-1])


CHANGES = {
    "nothing": lambda place: {},
    "a param": lambda place: {"training": {"seed": 1}},
    "the data": lambda place: _changed_store(place / "slices") or {},
    "the frozen features": lambda place: (place / "features/weights.safetensors").write_bytes(b"other") and {},
    "a library": lambda place: {},
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_interrupted_run_goes_on_only_if_nothing_changed(name, run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run.root / "data/slices", tmp_path / "slices")
    shutil.copytree(run.translator, tmp_path / "features")
    base = {**TINY["train"], "objective": {**TINY["train"]["objective"], "features": "features"}}
    base["training"] = {**base["training"], "steps": 12, "validate_every": 6, "log_every": 1}

    def start(changes, stop=None):
        merged = {key: {**base.get(key, {}), **value} for key, value in changes.items()}
        settings = params.parse(Params, {**base, **merged}, "train")

        def log(step, values):
            if step == stop:
                raise KeyboardInterrupt

        train(settings, tmp_path / "slices", Path("out"), Path("curve.csv"), log)

    with pytest.raises(KeyboardInterrupt):
        start({}, stop=7)
    capsys.readouterr()
    changes = CHANGES[name](tmp_path)
    if name == "a library":
        monkeypatch.setattr("medstyle.stages.train.version", lambda package: "0")
    start(changes)
    said = capsys.readouterr().err
    assert ("resumed at step" in said) == (name == "nothing")
    assert ("starting afresh" in said) == (name != "nothing")


def test_a_domain_that_the_store_lacks_is_named(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = params.parse(Params, {"source": "mr_t1", "target": "ct"}, "train")
    with pytest.raises(UserError, match="no train slices of ct; it has mr_t1, mr_t2"):
        train(settings, run.root / "data/slices", Path("out"), Path("curve.csv"))


def test_unknown_domains_and_mixed_channels_are_named(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"train\.target: unknown domain"):
        Params("mr_t1", "mr_t9")
    monkeypatch.chdir(tmp_path)
    slices = shutil.copytree(run.root / "data/slices", tmp_path / "slices")
    with pytest.raises(UserError, match="grey and colour"):
        train(params.parse(Params, {"source": "mr_t1", "target": "photo"}, "train"), slices, Path("o"), Path("c.csv"))


@pytest.mark.parametrize("kind", ["paired", "unpaired_contrastive"])
def test_a_paired_training_calibrates_its_intervals(kind, tmp_path):
    """Without pairs the error is unknown, so there is no interval."""
    store = make_store(tmp_path / "slices", domains=("mr_t1", "mr_t2"), validation=9)
    section = {**TINY["train"], "objective": {"kind": kind, "discriminator_width": 8}}
    section["training"] = {**section["training"], "steps": 2}
    folders = tmp_path / "slices", tmp_path / "model", tmp_path / "curve.csv"
    train(params.parse(Params, section, "train"), *folders, states=tmp_path / "states")
    translator = Translator.load(tmp_path / "model")
    assert translator.config.interval == (calibrate(translator, store) if kind == "paired" else Interval())
    assert (translator.config.interval.missing == "") == (kind == "paired")
    assert f"intervals: {translator.config.interval}" in (tmp_path / "model/MODEL_CARD.md").read_text()
