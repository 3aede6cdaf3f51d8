"""Sets of pictures are judged by features that no training has seen."""

import numpy as np
import pytest

from medstyle.evaluation.measured import Measured, Row
from medstyle.evaluation.pictures import Pictures
from medstyle.evaluation.protocols import PROTOCOLS
from tests.inference.conftest import make_translator

SIZE, COUNT = 64, 12


def stripes(rng, width):
    """Draw slanted stripes of a random phase, ``(3, H, W)`` in [0, 1]."""
    y, x = np.mgrid[:SIZE, :SIZE]
    grey = 0.5 + 0.5 * np.sin((x + 0.5 * y) * 2 * np.pi / width + rng.uniform(0, 6))
    return np.clip(grey * rng.uniform(0.7, 1, (3, 1, 1)) + rng.normal(0, 0.02, (3, SIZE, SIZE)), 0, 1)


class Store:
    """What `Pictures` asks of a slice store: arrays of the target by split."""

    def __init__(self, rng):
        self.arrays = {split: np.stack([2 * stripes(rng, 8) - 1 for _ in range(COUNT)]) for split in ("train", "test")}

    def array(self, domain, split):
        return self.arrays[split].astype(np.float16)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_set_in_the_style_of_the_targets_is_nearer_than_one_in_another(seed):
    rng = np.random.default_rng(seed)
    translator = make_translator(("photo", "painting"))
    measurer = Pictures(translator, Store(rng), PROTOCOLS["unpaired"].measure)
    measured = [
        Measured(
            [Row(f"sub-{k}", "unseen targets", "model", {})],
            outputs={
                "model": stripes(rng, 8).transpose(1, 2, 0),
                "identity": stripes(rng, 20).transpose(1, 2, 0),
            },
        )
        for k in range(COUNT)
    ]
    found = measurer.distances(measured, 0)
    assert found["slices"] == COUNT
    kid = {name: row["kid_local"] for name, row in found["table"].items()}
    assert max(kid["model"], kid["training targets"]) < 0.2 * kid["identity"]
    assert measurer.distances(measured[:3], 0) == {}, "three pictures are no set"
