"""Images are made worse by known amounts, in ways that belong to their kind."""

import numpy as np
import pytest

from medstyle.errors import UserError
from medstyle.imaging.volume import Volume
from medstyle.transforms.degrade import Degradation
from tests.conftest import affine


def amounts(seed: int) -> float:
    return np.random.default_rng(seed).uniform(0.5, 1)


def test_light_noise_and_blur_are_as_strong_as_asked():
    grey = np.full((200, 200, 3), 200, np.uint8)
    dark = Degradation("photo@poor", "photo", dark=0.5).picture(grey, np.random.default_rng(1))
    assert dark.mean() == pytest.approx(200 * (1 - 0.5 * amounts(1)), abs=1)
    noisy = Degradation("photo@poor", "photo", noise=0.1).picture(grey, np.random.default_rng(2))
    assert noisy.std() == pytest.approx(255 * 0.1 * amounts(2), rel=0.1)
    edge = grey.copy()
    edge[:, 100:] = 0
    blurred = Degradation("photo@poor", "photo", blur=4.0).picture(edge, np.random.default_rng(3))
    assert -np.diff(blurred[100, :, 0].astype(int)).min() == pytest.approx(
        200 / (4 * amounts(3) * np.sqrt(2 * np.pi)), rel=0.1
    )


def test_compression_leaves_a_picture_of_its_size():
    pixels = np.random.default_rng(0).integers(0, 255, (33, 47, 3)).astype(np.uint8)
    worse = Degradation("photo@poor", "photo", jpeg=30).picture(pixels, np.random.default_rng(0))
    assert worse.shape == pixels.shape
    assert 5 < np.abs(worse.astype(int) - pixels).mean() < 100


def test_the_noise_of_mr_is_rician_and_that_of_ct_is_not():
    """In air the magnitude of two noisy channels has a mean of sqrt(pi / 2) deviations.

    CT has 0 there.
    """
    values = np.zeros((4, 100, 100), np.float32)
    values[:, 20:80, 20:80] = 1000
    worse = Degradation("mr_t1@low", "mr_t1", noise=0.1).scan(
        Volume(values, affine((1, 1, 1), (0, 0, 0)), "mr_t1"), np.random.default_rng(4)
    )
    sigma = 100 * amounts(4)
    assert worse.domain == "mr_t1@low"
    assert worse.voxels[values == 0].mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.02)
    assert worse.voxels[values > 0].std() == pytest.approx(sigma, rel=0.05)
    ct = Degradation("ct@low", "ct", noise=0.1).scan(
        Volume(values, affine((1, 1, 1), (0, 0, 0)), "ct"), np.random.default_rng(4)
    )
    assert abs(ct.voxels[values == 0].mean()) < 0.02 * sigma * 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"domain": "photo", "of": "photo"},
        {"domain": "painting@poor", "of": "photo"},
        {"domain": "photo@poor", "of": "nothing"},
        {"domain": "mr_t1@low", "of": "mr_t1", "jpeg": 50},
        {"domain": "photo@poor", "of": "photo", "dark": 1.0},
        {"domain": "photo@poor", "of": "photo", "noise": -1},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(UserError, match="degraded"):
        Degradation(**wrong)
