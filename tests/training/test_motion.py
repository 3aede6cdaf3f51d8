"""Synthetic motion: flows are known, warps follow them, and consistent outputs have zero loss."""

import pytest
import torch

from medstyle.training.motion import NOISE, motion_loss, noisy, random_flow, visible, warp

SIZE = (40, 56)


def ramp() -> torch.Tensor:
    """An image whose values are its coordinates."""
    return torch.stack(torch.meshgrid(*(torch.arange(n, dtype=torch.float32) for n in SIZE), indexing="ij"))[None]


def test_a_warp_reads_where_the_flow_points():
    flow = random_flow([3], SIZE)
    seen = visible(flow)[0, 0]
    assert 0.5 < seen.float().mean() < 1
    torch.testing.assert_close(warp(ramp(), flow)[0][:, seen], (ramp() + flow)[0][:, seen], atol=1e-3, rtol=0)


def test_a_whole_shift_moves_pixels_unchanged():
    image = torch.rand(2, 3, *SIZE)
    flow = torch.zeros(2, 2, *SIZE)
    flow[:, 0], flow[:, 1] = 4, -7
    torch.testing.assert_close(warp(image, flow)[..., :-4, 7:], image[..., 4:, :-7], atol=1e-4, rtol=0)
    assert visible(flow)[0, 0].sum() == (SIZE[0] - 4) * (SIZE[1] - 7)


def test_flows_are_a_function_of_their_seeds_and_smooth():
    flow = random_flow([1, 2], SIZE)
    assert torch.equal(flow[1:], random_flow([2], SIZE))
    assert not torch.equal(flow[:1], flow[1:])
    assert flow.diff(dim=2).abs().max() < 0.5
    assert flow.abs().max() < 0.1 * max(SIZE)


def test_what_follows_the_motion_costs_nothing_and_what_does_not_costs():
    image, flow = torch.rand(2, 3, *SIZE), random_flow([5, 6], SIZE)
    assert motion_loss(warp(image, flow), image, flow) == 0
    assert motion_loss(warp(image, flow) + 0.25, image, flow).item() == pytest.approx(0.25, abs=1e-6)
    assert motion_loss(image, image, flow) > 0.05
    left = warp(image, flow) + (~visible(flow)).float()  # out of sight anything may appear
    assert motion_loss(left, image, flow) == 0


def test_grain_is_small_and_another_for_each_seed():
    grain = noisy(torch.zeros(2, 1, 64, 64), [1, 2])
    assert grain.std().item() == pytest.approx(NOISE, rel=0.05)
    assert not torch.equal(grain[0], grain[1])
