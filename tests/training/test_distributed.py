"""Several processes are one."""

import socket

import pytest
import torch
from safetensors.torch import load_file

from medstyle.training.objectives.table import OBJECTIVES
from tests.training.conftest import train
from tests.training.processes import fork
from tests.training.test_loop import program


def together(folder, kind, name, **settings):
    """Train in two processes that were told of each other as torchrun tells them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [{**world, "RANK": f"{rank}", "LOCAL_RANK": f"{rank}"} for rank in (0, 1)]
    both = [fork(folder, kind, name, rank, **settings) for rank in ranks]
    for process, _ in both:
        process.join()
    assert [process.exitcode for process, _ in both] == [0, 0]


def by_torchrun(folder, kind, name, **settings):
    program(folder, kind, name, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", **settings)


# A constant that is added there is taken away, with the low-pass of the refiner and by the palette
# of exemplar: its gradient is rounding alone. With a palette a gain is idle, too: rounding grows.
IDLE = {("paired_refined", "refiner.network.head.conv.bias"), ("exemplar", "generator.head.conv.bias")}
SHORT = {"exemplar": 2}  # steps


@pytest.mark.parametrize(
    ("start", "kinds", "steps"),
    [
        (together, ["unpaired_contrastive"], 5),
        pytest.param(together, list(OBJECTIVES), 17, marks=pytest.mark.slow),  # R1 comes every 16 steps
        pytest.param(by_torchrun, ["paired"], 5, marks=pytest.mark.slow),
    ],
    ids=["one objective", "every objective", "by torchrun"],
)
def test_two_processes_are_one(start, kinds, steps, store, tmp_path):
    """A batch divided among two processes gives the weights of one process, up to the order of
    sums."""
    for kind in kinds:
        settings = {"steps": SHORT.get(kind, steps), "batch": 4}
        if not OBJECTIVES[kind].paired and kind != "exemplar":  # of pictures, which have no common space
            settings["objective"] = {"weights": {"cross_subject": 1.0}}
        start(tmp_path, kind, kind, **settings, processes=2)
        two = load_file(tmp_path / f"{kind}.safetensors")
        [one], _ = train(store, tmp_path / "one" / kind, kind, **settings)
        for name, value in one.state_dict().items():
            if (kind, name) in IDLE:
                continue
            torch.testing.assert_close(two[name], value, atol=2e-5, rtol=1e-3, msg=f"{kind}: {name}")
