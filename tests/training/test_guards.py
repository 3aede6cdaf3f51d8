import numpy as np
import pytest
import torch

from medstyle.errors import UserError
from medstyle.training.guards import Guard
from tests.data.conftest import SLICES, make_store
from tests.training.conftest import train


def spoil_first(domain, images, value):
    if domain == "mr_t1":
        images = images.copy()
        images[:SLICES] = value
    return images


def swap_first(domain, images):
    """The first subject's T1 is what the others call T2, and the other way round."""
    images = images.copy() + {"mr_t1": 0.5, "mr_t2": -0.5}.get(domain, 0)
    if domain in ("mr_t1", "mr_t2"):
        images[:SLICES] = -images[:SLICES]
    return images.clip(-0.99, 1)


def shuffle_subjects(domain, images):
    return np.roll(images, 2 * SLICES, axis=0) if domain == "mr_t2" else images


# spoiled data -> what the message must say
FAULTS = {
    "NaN in the data": (
        lambda d, x: spoil_first(d, x, np.nan),
        "mr_t1 of subject train-0, at slice 3: holds values that are not finite",
    ),
    "flat images": (lambda d, x: spoil_first(d, x, 0.2), r"mr_t1 of subject train-0 .*flat image; remove or repair it"),
    "swapped domains": (swap_first, "subject train-0: its mr_t1 looks like the mr_t2 of the others"),
    "broken pairs": (shuffle_subjects, r"show different anatomy \([3-5] of 5 .*denoise.alignment"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_bad_data_stops_before_the_first_step(fault, tmp_path):
    change, message = FAULTS[fault]
    steps = []
    with pytest.raises(UserError, match=message):
        train(make_store(tmp_path / "store", change), tmp_path / "a", show=lambda step, values: steps.append(step))
    assert steps == []


def test_good_data_passes(tmp_path):
    train(make_store(tmp_path / "store"), tmp_path / "a", steps=1)


def test_nan_that_only_training_meets_stops_it(tmp_path):
    """The middle slices are fine, all others hold NaN."""

    def change(domain, images):
        images = images.copy()
        images[[i for i in range(len(images)) if i % SLICES != SLICES // 2]] = np.nan
        return images

    with pytest.raises(UserError, match=r"mr_t[12] of subject train-\d, at slice \d: holds values that are not finite"):
        train(make_store(tmp_path / "store", change), tmp_path / "a", steps=40)


def test_pairs_that_teach_nothing_stop_on_unseen_subjects():
    guard = Guard()
    rows = [{"step": 100.0 * i, "validation/of_copy": 1.2} for i in range(1, 6)]
    guard.curve(rows[:2], True, 0.2)  # too early
    with pytest.raises(UserError, match="further from the target than the untouched source"):
        guard.curve(rows, True, 0.5)
    guard.curve(rows, False, 0.5)  # without pairs it says nothing
    guard.curve([*rows, {"step": 600.0, "validation/of_copy": 0.9}], True, 0.6)


def test_a_discriminator_that_wins_stops_what_it_alone_teaches(capsys):
    guard = Guard()
    rows = [{"step": float(i), "discriminator/share_right": 1.0} for i in range(40)]
    guard.curve(rows[:39], False, 0.5)
    with pytest.raises(UserError, match=r"tells every image apart.*raise weights\.r1"):
        guard.curve(rows, False, 0.5)
    guard.curve(rows, True, 0.5)  # pairs teach without it
    assert "tells every image apart" in capsys.readouterr().err


@pytest.mark.slow
def test_a_discriminator_that_wins_stops_it(tmp_path):
    """Trained at a high rate against a generator that may not move, it tells all apart."""
    settings = {"learning_rate": 0.0, "discriminator_learning_rate": 2e-2, "steps": 400, "log_every": 1}
    objective = {"weights": {"r1": 0.0}, "discriminator_width": 8}
    store = make_store(tmp_path / "store")
    with pytest.raises(UserError, match=r"tells every image apart.*raise weights\.r1"):
        train(store, tmp_path / "a", "unpaired_contrastive", objective=objective, checkpoint_s=1e9, **settings)


def test_a_discriminator_at_chance_is_reported_once_and_a_lucky_batch_does_not_hide_it(capsys):
    guard = Guard()
    rows = [{"step": float(i), "discriminator/share_right": (0.42, 0.67, 0.5)[i % 3]} for i in range(50)]
    guard.curve(rows[:39], False, 0.4)
    assert capsys.readouterr().err == ""
    guard.curve(rows, False, 0.5)
    guard.curve(rows, False, 0.6)
    assert capsys.readouterr().err.count("the discriminator is at chance") == 1
    awake = Guard()
    awake.curve(
        [{"step": float(i), "discriminator/share_right": (0.6, 0.9, 0.7)[i % 3]} for i in range(50)], False, 0.5
    )
    assert capsys.readouterr().err == ""


def test_outputs_that_are_no_images_stop_it():
    torch.manual_seed(0)
    seen, real, guard = torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8), Guard()
    assert guard.outputs(real, real, seen, 500)["guard/contrast"] == pytest.approx(1)
    with pytest.raises(UserError, match="constant"):
        guard.outputs(torch.zeros(4, 1, 8, 8), real, seen, 500)
    with pytest.raises(UserError, match="mode collapse"):
        guard.outputs(real[:1].expand(4, -1, -1, -1), real, seen, 500)
    with pytest.raises(UserError, match="contrast of the outputs is 50 times"):
        guard.outputs(50 * real, real, seen, 500)
    guard.outputs(torch.zeros(4, 1, 8, 8), real, seen, 5)  # the first steps may


def test_one_bad_gradient_is_skipped():
    guard = Guard()
    assert guard.finite("x", torch.tensor(1.0))
    assert not guard.finite("x", torch.tensor(float("nan")))
    assert guard.finite("x", torch.tensor(1.0))
    assert guard.bad == {"x": 0}


def test_one_player_that_is_broken_stops_it_whatever_the_others_do():
    guard = Guard()
    for _ in range(2):
        assert guard.finite("critic", torch.tensor(1.0))
        assert not guard.finite("generator", torch.tensor(float("nan")))
    assert guard.finite("critic", torch.tensor(1.0))
    with pytest.raises(UserError, match="gradient of the generator is not finite three times in a row"):
        guard.finite("generator", torch.tensor(float("nan")))


@pytest.mark.parametrize("kind", ["unpaired_contrastive", "multi_domain"])
def test_swapped_domains_are_found_without_pairs(kind, tmp_path):
    with pytest.raises(UserError, match="subject train-0: its mr_t1 looks like the mr_t2 of the others"):
        train(make_store(tmp_path / "store", swap_first), tmp_path / "a", kind)


def test_a_style_that_changes_nothing_stops_it():
    guard = Guard()
    rows = [{"step": 200.0 + 25 * i, "guard/styles_apart": 1e-4} for i in range(1, 12)]
    guard.curve(rows, False, 0.05)  # styles begin with the same output
    with pytest.raises(UserError, match="every style gives the same image"):
        guard.curve(rows, False, 0.2)
    guard.curve([*rows, {"step": 600.0, "guard/styles_apart": 0.1}], False, 0.2)


def test_a_short_run_notices_a_discriminator_that_has_won():
    guard = Guard(points=40)
    rows = [{"step": 25.0 * i, "discriminator/share_right": 1.0} for i in range(10)]
    guard.curve(rows[:9], False, 0.5)
    with pytest.raises(UserError, match="tells every image apart"):
        guard.curve(rows, False, 0.5)
