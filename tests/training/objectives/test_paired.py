"""Pairs teach what follows what."""

import numpy as np
import pytest
import torch

from medstyle.errors import ParamsError
from tests.data.conftest import SLICES
from tests.training.conftest import train


def test_outputs_follow_each_other_through_the_plane_if_asked(store, tmp_path):
    """Slices that are much alike, whose targets differ a little: less of that is followed."""
    for domain in ("mr_t1", "mr_t2"):
        path = tmp_path / f"store/train/{domain}.npy"
        array = np.load(path)
        np.save(path, (0.8 * array[::SLICES].repeat(SLICES, 0) + 0.15 * array).astype(np.float16))
    stack = torch.from_numpy(np.load(tmp_path / "store/train/mr_t1.npy")[:SLICES, 0].astype(np.float32))
    blocks = torch.stack([stack[z - 1 : z + 2] for z in range(1, SLICES - 1)])
    apart = {}
    for weight in (0.0, 20.0):
        settings = {"steps": 40, "batch": 4, "learning_rate": 1e-3, "architecture": {"neighbours": 3}}
        objective = {"weights": {"adversarial": 0.0, "through_plane": weight}}
        [network], _ = train(store, tmp_path / f"{weight}", objective=objective, **settings)
        with torch.no_grad():
            apart[weight] = float(network(blocks, torch.ones(len(blocks), dtype=torch.long)).diff(dim=0).abs().mean())
    assert apart[20.0] < 0.7 * apart[0.0]


def test_the_refiner_changes_nothing_of_what_came_before_it(store, tmp_path):
    """The generator stays as the first part left it, whatever the adversary says."""
    made = {}
    for weight in (0.05, 5.0):
        settings = {"steps": 12, "objective": {"weights": {"adversarial": weight}, "refine_from": 0.5}}
        [networks], curve = train(store, tmp_path / f"{weight}", "paired_refined", **settings)
        made[weight] = networks.state_dict()
        for row in curve:
            phases = {name.partition("/")[0] for name in row} & {"generator", "refiner", "discriminator"}
            assert phases in (set(), {"generator"} if row["step"] <= 6 else {"refiner", "discriminator"})
    same = {name for name, value in made[0.05].items() if torch.equal(value, made[5.0][name])}
    refiner = {name for name in made[0.05] if name.startswith("refiner.")}
    assert same == made[0.05].keys() - refiner


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"architecture": {"refiner": 0}}, "network.refiner"),
        ({"objective": {"weights": {"adversarial": 0.0}}}, "adversarial"),
    ],
)
def test_a_refiner_needs_channels_and_a_teacher(change, named, store, tmp_path):
    with pytest.raises(ParamsError, match=named):
        train(store, tmp_path, "paired_refined", **change)
