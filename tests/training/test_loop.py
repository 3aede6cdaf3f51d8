import json

import numpy as np
import pytest
import torch

from medstyle.errors import UserError
from medstyle.imaging.store import SliceStore
from medstyle.networks.translator import Architecture
from medstyle.training.checkpoint import load_state, run_key, save_state
from medstyle.training.loop import Guard, Sampler, Training, fit, pick_device, schedule, seeded
from medstyle.training.objectives import RECIPES, Objective
from medstyle.transforms.augment import Augmentation

STEPS = 8


def make_store(folder, rng, change=lambda x: x):
    """A store of smooth random slices whose target is a fixed map of the source."""
    base = rng.normal(size=(2, 12, 1, 24, 24)).repeat(2, 3)[:, :, :, :24] * 0.4
    rows = {}
    for split, part in (("train", base[0]), ("validation", base[1])):
        source = np.clip(part, -1, 1)
        (folder / split).mkdir()
        np.save(folder / split / "mr_t1.npy", change(source).astype(np.float16))
        np.save(folder / split / "mr_t2.npy", (-source).astype(np.float16))
        listed = [[f"{split}-{i // 4}", i % 4, 0.5, 1.0] for i in range(12)]
        rows[split] = {"mr_t1": listed, "mr_t2": listed}
    (folder / "index.json").write_text(json.dumps({"rows": rows, "subjects": {}}))
    return SliceStore.open(folder)


def train(store, scratch, kind="paired", show=lambda step, values: None, **settings):
    training = Training(
        **{"steps": STEPS, "batch": 2, "threads": 1, "device": "cpu", "checkpoint_s": 0.0, "log_every": 2, **settings}
    )
    networks, curve = fit(
        store, "mr_t1", "mr_t2", settings=training, objective=Objective(kind=kind, discriminator_width=4),
        architecture=Architecture(widths=(4, 6, 8), bottleneck_blocks=2), augmentation=Augmentation(),
        scratch=scratch, log=lambda step, values: None, show=show,
    )  # fmt: skip
    return networks.state_dict(), curve


class Killed(Exception):
    pass


@pytest.mark.parametrize("kind", RECIPES)
def test_an_interrupted_run_ends_in_the_same_bits(kind, tmp_path, rng):
    store = make_store(tmp_path, rng)
    straight, curve = train(store, tmp_path / "a", kind)
    resumed = []

    for stop in (3, 6):

        def show(step, values, stop=stop):
            resumed.extend([step] if "resumed" in values else [])
            if step == stop and "resumed" not in values:
                raise Killed

        with pytest.raises(Killed):
            train(store, tmp_path / "b", kind, show)
    again, curve_again = train(store, tmp_path / "b", kind)
    assert resumed == [2]  # the step of the kill was not saved yet; the one before was
    assert all(torch.equal(straight[name], again[name]) for name in straight)
    assert curve == curve_again


def test_training_learns(tmp_path, rng):
    store = make_store(tmp_path, rng)
    _, curve = train(store, tmp_path / "a", steps=60, learning_rate=3e-3)
    losses = [row["generator/l1"] for row in curve if "generator/l1" in row]
    assert losses[-1] < 0.5 * losses[0]


def test_nan_in_the_data_stops_with_its_cause(tmp_path, rng):
    store = make_store(tmp_path, rng, lambda x: np.where(x > 0.5, np.nan, x))
    with pytest.raises(UserError, match="not finite three times in a row"):
        train(store, tmp_path / "a")


def test_domains_without_common_slices_stop_with_their_cause(tmp_path, rng):
    store = make_store(tmp_path, rng)
    store.index["rows"]["train"]["mr_t2"] = [["other", i, 0.5, 1.0] for i in range(12)]
    with pytest.raises(UserError, match="no training subject has both"):
        train(store, tmp_path / "a")


def test_guards():
    guard = Guard()
    with pytest.raises(UserError, match="constant"):
        guard.output(torch.zeros(2, 1, 8, 8), 50)
    for step in range(39):
        guard.critic(1.0, step)
    with pytest.raises(UserError, match="tells every image apart"):
        guard.critic(1.0, 39)
    assert guard.finite("x", torch.tensor(1.0))
    assert not guard.finite("x", torch.tensor(float("nan")))


def test_a_missing_gpu_is_an_error_not_a_slow_run():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="no GPU"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


def test_every_row_once_per_epoch_wherever_the_run_begins():
    sampler = Sampler(np.arange(10)[:, None], 3, seed=1, purpose="x")
    seen = np.concatenate([sampler(step) for step in range(10)]).ravel()
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert not np.array_equal(seen[:10], seen[10:20])
    np.testing.assert_array_equal(Sampler(np.arange(10)[:, None], 3, 1, "x")(7).ravel(), seen[21:24])


def test_randomness_and_schedule_are_functions_of_the_step():
    assert torch.equal(torch.rand(3, generator=seeded(1, 5, "a")), torch.rand(3, generator=seeded(1, 5, "a")))
    draws = {float(torch.rand(1, generator=seeded(s, t, p))) for s in (0, 1) for t in (0, 1) for p in "ab"}
    assert len(draws) == 8
    assert schedule(0) == 0
    assert schedule(1) == pytest.approx(0)
    assert max(schedule(t / 100) for t in range(100)) <= 1


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path):
    for step in (1, 2, 3):
        save_state(tmp_path, step, {"step": step, "x": torch.arange(1000)})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000000002.pt", "step-000000003.pt"]
    newest = tmp_path / "step-000000003.pt"
    newest.write_bytes(newest.read_bytes()[:500])
    assert load_state(tmp_path)["step"] == 2
    assert load_state(tmp_path / "none") is None


def test_anything_changed_is_another_run():
    assert run_key({"a": 1}, "data") == run_key({"a": 1}, "data")
    assert len({run_key({"a": 1}, "x"), run_key({"a": 2}, "x"), run_key({"a": 1}, "y")}) == 3


def test_images_too_small_for_the_discriminator_are_named(tmp_path, rng):
    store = make_store(tmp_path, rng)
    with pytest.raises(UserError, match="lower discriminator_layers"):
        fit(
            store, "mr_t1", "mr_t2", settings=Training(steps=2, threads=1, device="cpu"),
            objective=Objective(discriminator_layers=4), architecture=Architecture(widths=(4, 6)),
            augmentation=Augmentation(), scratch=tmp_path / "a", log=lambda s, v: None, show=lambda s, v: None,
        )  # fmt: skip
