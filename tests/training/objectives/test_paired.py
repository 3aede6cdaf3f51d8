"""Pairs teach what follows what."""

import numpy as np
import torch

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
        settings = {"steps": 40, "batch": 4, "learning_rate": 3e-3, "architecture": {"neighbours": 3}}
        objective = {"weights": {"adversarial": 0.0, "through_plane": weight}}
        [network], _ = train(store, tmp_path / f"{weight}", objective=objective, **settings)
        with torch.no_grad():
            apart[weight] = float(network(blocks, torch.ones(len(blocks), dtype=torch.long)).diff(dim=0).abs().mean())
    assert apart[20.0] < 0.7 * apart[0.0]
