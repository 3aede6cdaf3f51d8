"""What all objectives share: weights that rise and fall, and the neighbour of a slice."""

import pytest
import torch

from medstyle.data.batch import Batch
from medstyle.networks.networks import Architecture, Networks
from medstyle.training.objectives.base import fade, ramp
from medstyle.training.objectives.paired import Paired, PairedParams
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


def test_the_discriminator_learns_on_after_a_term_that_failed():
    objective = Paired(Networks(Architecture(widths=(4, 6)), ["mr_t1", "mr_t2"]), PairedParams(), (1, 1), 2)
    x, index = torch.zeros(1, 1, 32, 32), torch.zeros(1, dtype=torch.long)
    batch = Batch(x, x, index, index + 1, index == 0, [0], 0, 0.0, x)
    with pytest.raises(KeyError):
        objective.adversarial(batch, {})
    assert all(weight.requires_grad for weight in objective.discriminator.parameters())


def test_telling_how_real_images_seem_changes_nothing():
    torch.manual_seed(0)
    objective = Paired(Networks(Architecture(widths=(4, 6)), ["mr_t1", "mr_t2"]), PairedParams(), (1, 1), 2)
    x, index = torch.randn(2, 1, 32, 32), torch.zeros(2, dtype=torch.long)
    batch = Batch(x, -x, index, index + 1, index == 0, [0, 1], 0, 0.0, -x)
    before = {name: value.clone() for name, value in objective.discriminator.state_dict().items()}
    told = objective.judged(batch, x)
    assert all(0 < value < 1 for value in told.values())
    # what it takes for real and what not decides the share: a target as output is right once of two
    assert objective.judged(batch, batch.target)["validation/share_right"] == pytest.approx(0.5)
    assert all(torch.equal(value, before[name]) for name, value in objective.discriminator.state_dict().items())
    assert objective.discriminator.training


@pytest.mark.parametrize("form", ["nonsaturating", "relativistic"])
def test_a_discriminator_that_learned_tells_unseen_images_apart(form):
    torch.manual_seed(0)
    params = PairedParams(adversarial=form, discriminator_width=8)
    objective = Paired(Networks(Architecture(widths=(4, 6)), ["mr_t1", "mr_t2"]), params, (1, 1), 2)
    optimiser = torch.optim.Adam(objective.discriminator.parameters(), 2e-3)

    def drawn():
        x, index = torch.randn(4, 1, 32, 32), torch.zeros(4, dtype=torch.long)
        y = torch.sin(3 * x)
        return Batch(x, y, index, index + 1, index == 0, [0] * 4, 0, 0.0, y), torch.randn_like(x)

    batch, output = drawn()
    assert objective.judged(batch, output)["validation/share_right"] < 0.8
    for _ in range(30):
        seen, made = drawn()
        losses = objective._discriminate(seen, {"fake": made}, frozenset())
        optimiser.zero_grad()
        losses["adversarial"].backward()
        optimiser.step()
    assert objective.judged(batch, output)["validation/share_right"] > 0.9
