"""What all objectives share: weights that rise and fall, and the neighbour of a slice."""

import pytest
import torch

from medstyle.networks.networks import Architecture, Networks
from medstyle.training.objectives.base import fade, ramp
from medstyle.training.objectives.paired import PairedParams
from medstyle.training.objectives.table import OBJECTIVES


def test_schedules_at_known_points():
    late, falling = ramp(0.5, 0.2), fade(10.0, 1.0)
    assert [late(p) for p in (0.0, 0.5, 0.55, 0.6, 1.0)] == pytest.approx([0, 0, 0.1, 0.2, 0.2])
    assert [falling(p) for p in (0.0, 0.5, 0.75, 1.0)] == pytest.approx([10, 10, 5.5, 1])
    assert ramp(0.0, 0.2) == 0.2


def test_the_next_slice_is_what_a_step_through_the_stack_shows():
    networks = Networks(Architecture(widths=(4, 6), neighbours=3), ["mr_t1", "mr_t2"], 2)
    objective = OBJECTIVES["paired"](networks, PairedParams(weights={"through_plane": 1.0}), (6, 1), 2)
    stack = torch.arange(8.0)[:, None, None] + torch.zeros(8, 4, 4)  # slices of one contrast; the other is 100 more
    here, there = (torch.cat([stack[z - 1 : z + 2], 100 + stack[z - 1 : z + 2]])[None] for z in (3, 4))
    after = objective.following(here)
    assert torch.equal(networks.content(after), networks.content(there))
    assert torch.equal(after[:, [0, 1, 3, 4]], there[:, [0, 1, 3, 4]])
    assert torch.equal(after[:, [2, 5]], here[:, [2, 5]])
