import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from medstyle.errors import UserError
from medstyle.params import parse
from medstyle.training.loop import make_deterministic, pick_device
from medstyle.training.objectives import base
from medstyle.training.objectives.table import OBJECTIVES
from medstyle.training.plan import Plan
from medstyle.training.players import schedule
from tests.conftest import ROOT
from tests.data.conftest import make_store
from tests.inference.conftest import make_translator
from tests.training.conftest import NEEDS, train
from tests.training.processes import fork

VOLUMES = ("paired", "unpaired_contrastive")
DIMENSIONS = [
    # volumes take longer and are trained as slices are: here by one objective with pairs and one
    # without
    pytest.param(kind, dims, marks=pytest.mark.slow if dims == 3 and kind not in VOLUMES else ())
    for kind, objective in OBJECTIVES.items()
    for dims in objective.dimensions
]


def weights(members):
    return [member.state_dict() for member in members]


def same(one, other):
    return all(torch.equal(a[name], b[name]) for a, b in zip(one, other, strict=True) for name in a)


class Killed(Exception):
    pass


@pytest.mark.parametrize(("kind", "dims"), DIMENSIONS)
def test_an_interrupted_run_ends_in_the_same_bits(kind, dims, store, tmp_path):
    settings = {"architecture": {"dimensions": dims}, "snapshots": 1, "steps": 6, "validate_every": 2}
    if OBJECTIVES[kind].error_decides:
        settings["keep"] = "best"
    weights_of = {"temporal": 1.0} if dims == 2 else {}
    if not OBJECTIVES[kind].paired:
        weights_of["cross_subject"] = 1.0
    settings["objective"] = {"weights": weights_of}
    straight, curve = train(store, tmp_path / "a", kind, **settings)
    resumed = []

    for stop in (2, 5):

        def show(step, values, stop=stop):
            resumed.extend([step] if "resumed" in values else [])
            if step == stop and "resumed" not in values:
                raise Killed

        with pytest.raises(Killed):
            train(store, tmp_path / "b", kind, show, **settings)
    again, curve_again = train(store, tmp_path / "b", kind, **settings)
    assert resumed == [1]  # the step of the kill was not saved yet; the one before was
    assert len(straight) == 2
    assert same(weights(straight), weights(again))
    assert curve == curve_again


def program(folder, kind, name, *launcher, **settings):
    """Train in a process of its own, to the end; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    file = str(ROOT / "tests/training/processes.py")
    arguments = [sys.executable, *launcher, file, str(folder), kind, name, json.dumps(settings)]
    return subprocess.run(arguments, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_sigkill_at_random_moments_changes_no_bit(kind, store, tmp_path):
    process, _ = fork(tmp_path, kind, "straight", steps=30)
    process.join()
    lots = random.Random(kind)
    for _ in range(4):
        process, lines = fork(tmp_path, kind, "killed", steps=30)
        for _ in range(lots.randint(1, 6)):
            lines.recv()
        time.sleep(lots.random() * 0.05)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "killed in the middle"
    process, lines = fork(tmp_path, kind, "killed", steps=30)
    assert int(lines.recv().split()[1]) > 1, "it went on, it did not begin again"
    process.join()
    straight, killed = ((tmp_path / f"{name}.safetensors").read_bytes() for name in ("straight", "killed"))
    assert straight == killed


def test_training_learns(store, tmp_path):
    _, curve = train(store, tmp_path / "a", steps=60, learning_rate=3e-3)
    losses = [row["generator/l1"] for row in curve if "generator/l1" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_several_contrasts_and_neighbours_enter_together(store, tmp_path):
    """The target is a map of FLAIR alone: only a network that sees FLAIR can learn it."""
    array = np.load(tmp_path / "store/train/mr_flair.npy")
    rng = np.random.default_rng(1)
    np.save(tmp_path / "store/train/mr_t1.npy", rng.permutation(array))  # T1 tells nothing any more
    np.save(tmp_path / "store/train/mr_t2.npy", -array)
    settings = {"steps": 50, "learning_rate": 3e-3, "batch": 4, "objective": {"weights": {"adversarial": 0.0}}}
    errors = {}
    for contrasts in ((), ("mr_flair",)):
        for neighbours in (1, 3):
            [network], curve = train(
                store, tmp_path / f"{contrasts}{neighbours}", contrasts=contrasts,
                architecture={"neighbours": neighbours}, **settings,
            )  # fmt: skip
            assert network.generator.encoder[0][0].conv.in_channels == (1 + len(contrasts)) * neighbours
            errors[bool(contrasts), neighbours] = [row["generator/l1"] for row in curve if "generator/l1" in row][-1]
    assert errors[True, 1] < 0.6 * errors[False, 1]
    assert errors[True, 3] < 0.8 * errors[False, 3]


def test_contrasts_need_a_paired_objective(store, tmp_path):
    with pytest.raises(UserError, match="supports none; use a paired objective"):
        train(store, tmp_path / "a", "unpaired_cycle", contrasts=("mr_flair",))


def test_early_stop_and_the_best_weights(store, tmp_path, capsys):
    """A generator that stands still is never better than at first: training gives up, and says
    so."""
    _, curve = train(store, tmp_path / "a", steps=40, learning_rate=0.0, validate_every=2, patience=3)
    assert curve[-1]["step"] == 2 + 3 * 2
    assert "stopped early at step 8" in capsys.readouterr().err
    settings = {"steps": 30, "learning_rate": 3e-3, "validate_every": 29, "ema": 0.0}  # measured after 29 and 30
    kept = {}
    for keep in ("best", "last"):
        kept[keep], curve = train(store, tmp_path / keep, keep=keep, **settings)
    before, after = [row["validation/l1"] for row in curve if "validation/l1" in row]
    assert same(weights(kept["best"]), weights(kept["last"])) == (after < before)


def test_snapshots_are_members_of_their_own(store, tmp_path):
    members, _ = train(store, tmp_path / "a", steps=12, snapshots=3)
    assert len(members) == 4
    assert all(not same(weights([a]), weights([b])) for i, a in enumerate(members) for b in members[:i])


def test_what_has_no_meaning_is_refused(store, tmp_path):
    with pytest.raises(UserError, match="not divisible among 3"):
        train(store, tmp_path / "a", batch=4, processes=3)
    with pytest.raises(UserError, match="no term 'cycle'; it has l1"):
        train(store, tmp_path / "a", objective={"weights": {"cycle": 1.0}})
    with pytest.raises(UserError, match="no other term teaches the style"):
        train(store, tmp_path / "a", "unpaired_cycle", objective={"weights": {"adversarial": 0.0}})
    with pytest.raises(UserError, match="needs the features of `medstyle`"):
        train(store, tmp_path / "a", "unpaired_contrastive", architecture={"generator": "unet"})
    with pytest.raises(UserError, match="set it to true"):
        train(store, tmp_path / "a", "harmonization", architecture={"residual": False})
    with pytest.raises(UserError, match="exemplar supports only 2"):
        train(store, tmp_path / "a", "exemplar", architecture={"dimensions": 3})
    with pytest.raises(UserError, match=r"weights\.temporal: is for two dimensions"):
        train(store, tmp_path / "a", objective={"weights": {"temporal": 1.0}}, architecture={"dimensions": 3})
    with pytest.raises(UserError, match="paired has no term 'cross_subject'"):
        train(store, tmp_path / "a", objective={"weights": {"cross_subject": 1.0}})
    store.index.common_space.clear()
    with pytest.raises(UserError, match=r"no common space for mr_t1; set denoise\.common_space to true"):
        train(store, tmp_path / "a", "unpaired_cycle", objective={"weights": {"cross_subject": 1.0}})
    with pytest.raises(UserError, match="lower discriminator_layers"):
        train(store, tmp_path / "a", objective={"discriminator_layers": 4})
    with pytest.raises(UserError, match=r"training\.processes: params ask for 2, 1 are running"):
        train(store, tmp_path / "a", processes=2)
    with pytest.raises(UserError, match="no error on pairs determines the best weights"):
        train(store, tmp_path / "a", "unpaired_cycle", keep="best")
    with pytest.raises(UserError, match="no term is active for the generator at step 0"):
        train(store, tmp_path / "a", objective={"weights": {"l1": 0, "structure": 0}, "adversarial_start": 0.5})


BAD_SETTINGS = {
    "training.ema": 0.999,
    "training.learning_rate": -1e-3,
    "training.clip": 0,
    "training.steps": 0,
    "training.threads": 0,
    "objective.weights.l1": -1.0,
    "objective.discriminator_layers": -1,
    "objective.adversarial_start": 2,
    "objective.detail": -1,
    "network.style_size": 0,
    "network.widths": [4],
}


@pytest.mark.parametrize("name", BAD_SETTINGS)
def test_settings_out_of_range_are_named(name):
    plan: dict = {"source": "mr_t1", "target": "mr_t2"}
    *sections, key = name.split(".")
    inside = plan
    for section in sections:
        inside = inside.setdefault(section, {})
    inside[key] = BAD_SETTINGS[name]
    with pytest.raises(UserError, match=rf"^train\.{re.escape(name)}: "):
        parse(Plan, plan, "train")


def test_a_setting_of_another_kind_of_objective_is_unknown():
    plan = {"source": "mr_t1", "target": "mr_t2", "objective": {"kind": "unpaired_cycle", "detail": 2.0}}
    with pytest.raises(UserError, match=r"^train\.objective\.detail: unknown key"):
        parse(Plan, plan, "train")


@pytest.mark.parametrize(("old", "new"), base.RENAMED.items())
def test_former_names_of_weights_are_refused_with_the_new_one(old, new):
    plan = {"source": "mr_t1", "target": "mr_t2", "objective": {"kind": "harmonization", "weights": {old: 1.0}}}
    with pytest.raises(UserError, match=rf"weights\.{old}: has been renamed to {new}"):
        parse(Plan, plan, "train")


@pytest.mark.parametrize("generator", ["unet", "dynunet"])
def test_other_generators_train(generator, store, tmp_path):
    settings = {"steps": 40, "learning_rate": 3e-3, "architecture": {"generator": generator}}
    _, curve = train(store, tmp_path / "a", **settings)
    losses = [row["generator/l1"] for row in curve if "generator/l1" in row]
    assert losses[-1] < 0.9 * losses[0]


def test_perceptual_term_of_own_features(store, tmp_path, run):
    """An image is its own neighbour and contrast where the features were trained with several."""
    make_translator(neighbours=3, contrasts=["mr_flair"]).save(tmp_path / "several")
    for features in ("imagenet", str(run.translator), str(tmp_path / "several")):
        objective = {"weights": {"perceptual": 1.0}, "features": features}
        _, curve = train(store, tmp_path / Path(features).name, objective=objective)
        assert curve[0]["generator/perceptual"] > 0
    with pytest.raises(UserError, match="is for images of 2 dimensions and 1 channels"):
        train(store, tmp_path / "d", objective=objective, architecture={"dimensions": 3})
    with pytest.raises(UserError, match="not a translator folder, and MONAI cannot load"):
        train(store, tmp_path / "b", objective={**objective, "features": "no-such-network"})


def test_a_missing_gpu_is_an_error_not_a_slow_run():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="no GPU"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


def test_determinism_follows_the_device_that_computes_and_not_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    try:
        make_deterministic(1, torch.device("cpu"))
        assert torch.are_deterministic_algorithms_enabled()
        make_deterministic(1, torch.device("cuda"))
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.parametrize("compiled", [False, True])
def test_every_objective_trains_on_a_gpu(kind, compiled, store, tmp_path):
    settings = {"device": "cuda", "steps": 40, "compile": compiled, "checkpoint_s": 1e9}
    _, curve = train(store, tmp_path / "a", kind, **settings)
    assert all(math.isfinite(value) for row in curve for value in row.values())


def test_the_rate_is_a_function_of_the_step():
    assert schedule(0) == 0
    assert schedule(1) == pytest.approx(0)
    assert max(schedule(t / 100) for t in range(100)) <= 1


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data(tmp_path):
    """Ten times the slices, the same peak: the store is mapped and read row by row."""
    peaks = []
    for subjects in (20, 200):
        make_store(tmp_path / str(subjects) / "store", subjects=subjects, size=64)
        output = program(tmp_path / str(subjects), "paired", "x", steps=40)
        peaks.append(int(re.search(r"VmHWM:\s+(\d+)", output).group(1)))
    assert peaks[1] < 1.2 * peaks[0]


def test_augmentation_off_is_possible(store, tmp_path):
    plain = {"rotation_deg": 0, "scale": 0, "shift": 0, "flip": False, "gamma": 0}
    train(store, tmp_path / "a", augmentation=plain, steps=2)
    assert Path(tmp_path / "a").is_dir()
