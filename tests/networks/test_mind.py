"""Descriptors that hear anatomy and no contrast."""

import pytest
import torch

from medstyle.networks.mind import anatomy_loss


@pytest.mark.parametrize("dims", [2, 3])
def test_anatomy_hears_places_and_no_contrast(dims):
    torch.manual_seed(0)
    x = torch.nn.functional.interpolate(torch.rand(1, 1, *(6,) * dims), scale_factor=4)
    assert float(anatomy_loss(x, x)) == 0
    assert float(anatomy_loss(-x, x)) == pytest.approx(0, abs=1e-6)
    moved = torch.roll(x, 2, -1)
    assert float(anatomy_loss(moved, x)) > 10 * float(anatomy_loss(0.7 * x + 0.1, x))
