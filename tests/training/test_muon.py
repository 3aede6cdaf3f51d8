"""Muon: the nearest orthogonal matrix, steps of one size, and who is stepped by what."""

import pytest
import torch
from torch import nn

from medstyle.networks.networks import Architecture, Networks
from medstyle.training.muon import INNER, Muon, optimisers_of, orthogonal
from medstyle.training.objectives.table import OBJECTIVES
from tests.training.conftest import train


@pytest.mark.parametrize("shape", [(20, 90), (90, 20), (33, 33)])
def test_the_directions_stay_and_their_sizes_become_alike(shape):
    torch.manual_seed(0)
    rank = min(shape)
    left, right = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64))[0] for n in shape)
    sizes = torch.logspace(0, -2, rank, dtype=torch.float64)
    found = orthogonal((left * sizes @ right.T).float()).double()
    inner = left.T @ found @ right  # diagonal if the directions are those of the matrix
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.25
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-3
    assert torch.allclose(left @ inner @ right.T, found, atol=1e-3)


def test_a_step_has_the_size_of_one_of_adamw_whatever_the_scale_of_the_gradient():
    torch.manual_seed(0)
    gradient = torch.randn(32, 16, 3, 3)
    for scale in (1e-6, 1.0, 1e6):
        weight = nn.Parameter(torch.zeros_like(gradient))
        weight.grad = scale * gradient
        Muon([weight], lr=0.01).step()
        assert float(weight.detach().square().mean().sqrt()) == pytest.approx(0.002, rel=0.25)
        assert float((weight.detach() * gradient).sum()) < 0


def test_no_gradient_and_a_gradient_of_zeros_move_nothing():
    weight, idle = nn.Parameter(torch.ones(16, 16, 3, 3)), nn.Parameter(torch.ones(16, 16, 3, 3))
    weight.grad = torch.zeros_like(weight)
    Muon([weight, idle], lr=0.01, weight_decay=0.0).step()
    assert torch.equal(weight, torch.ones_like(weight))
    assert torch.equal(idle, torch.ones_like(idle))


@pytest.mark.parametrize("dimensions", [2, 3])
def test_each_weight_has_one_optimiser_and_inner_convolutions_have_muon(dimensions):
    networks = Networks(Architecture(widths=(8, 16, 32), dimensions=dimensions, neighbours=1), ["mr_t1", "mr_t2"])
    adamw, muon = ([w for group in one.param_groups for w in group["params"]] for one in optimisers_of(networks, True))
    assert {id(w) for w in networks.parameters()} == {id(w) for w in (*adamw, *muon)}
    assert len(adamw) + len(muon) == len(list(networks.parameters()))
    assert muon
    assert all(w.ndim == dimensions + 2 and min(w.shape[:2]) >= INNER for w in muon)
    assert not any(w.ndim == dimensions + 2 and min(w.shape[:2]) >= INNER for w in adamw)
    [only] = optimisers_of(networks, False)
    assert len(only.param_groups[0]["params"]) == len(list(networks.parameters()))


@pytest.mark.parametrize("kind", ["paired", "unpaired_contrastive"])
def test_paired_objectives_take_muon_and_others_adamw(kind, store, tmp_path):
    def weights(optimiser):
        [networks], _ = train(store, tmp_path / optimiser, kind, steps=2, optimiser=optimiser)
        return torch.cat([w.flatten() for w in networks.parameters()])

    found = {name: weights(name) for name in ("auto", "muon", "adamw")}
    assert not torch.equal(found["muon"], found["adamw"])
    assert torch.equal(found["auto"], found["muon" if OBJECTIVES[kind].paired else "adamw"])
