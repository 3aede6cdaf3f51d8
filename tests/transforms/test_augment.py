import pytest
import torch

from medstyle.errors import UserError
from medstyle.transforms.augment import Augmentation, augment

OFF = {"rotation_deg": 0, "scale": 0, "shift": 0, "flip": False, "gamma": 0}
SEEDS = [1, 2, 3]
YES = torch.ones(3, dtype=torch.bool)
# changes of the source's values alone
VALUES = {"gamma": 0.3, "curve": 0.5, "bias": 0.3, "noise": 0.1, "blur": 0.9}
GEOMETRY = {"rotation_deg": 10.0, "scale": 0.2, "shift": 0.1, "elastic": 0.05, "flip": True}


def images(channels=1, *depth):
    torch.manual_seed(0)
    return (
        torch.nn.functional.avg_pool2d(torch.rand(3, channels, *depth, 68, 60).flatten(1, -3), 5, 1).reshape(
            3, channels, *depth, 64, 56
        )
        * 2
        - 1
    )


def test_all_images_move_together():
    x = images()
    one, other = augment([x, x], Augmentation(gamma=0.0), SEEDS, YES)
    torch.testing.assert_close(one, other)
    assert not torch.allclose(one, x)


def test_the_same_seed_gives_the_same_change_to_each_example_alone():
    x = images()
    every = Augmentation(**{**GEOMETRY, **VALUES})
    whole = augment([x, x], every, SEEDS, YES)
    again = augment([x, x], every, SEEDS, YES)
    alone = augment([x[1:2], x[1:2]], every, SEEDS[1:2], YES[:1])
    other = augment([x, x], every, [4, 5, 6], YES)
    assert torch.equal(whole[0], again[0])
    torch.testing.assert_close(whole[0][1:2], alone[0])
    assert not torch.equal(whole[0], other[0])


def test_nothing_asked_nothing_changed():
    x = images(3)
    source, target = augment([x, x], Augmentation(**OFF), SEEDS, YES)
    assert torch.equal(source, x)
    assert torch.equal(target, x)


@pytest.mark.parametrize("name", GEOMETRY)
def test_every_movement_moves(name):
    x = images()
    source, target = augment([x, x], Augmentation(**{**OFF, name: GEOMETRY[name]}), SEEDS, YES)
    assert not torch.allclose(source, x, atol=1e-2)
    torch.testing.assert_close(source, target)


@pytest.mark.parametrize("name", VALUES)
def test_values_change_in_the_source_only_and_never_in_ct_or_air(name):
    x = images()
    x[..., :20, :] = -1
    only = Augmentation(**{**OFF, name: VALUES[name]})
    source, target = augment([x, x], only, SEEDS, torch.tensor([True, True, False]))
    assert torch.equal(target, x)
    assert not torch.allclose(source[:2], x[:2], atol=1e-2)
    assert torch.equal(source[2], x[2])
    assert (source[..., :18, :] == -1).all()


def test_the_slices_of_a_volume_move_alike():
    x = images(1, 4)
    flat, volume = x.flatten(1, 2), augment([x, x], Augmentation(gamma=0.0), SEEDS, YES)[0]
    torch.testing.assert_close(augment([flat, flat], Augmentation(gamma=0.0), SEEDS, YES)[0], volume.flatten(1, 2))


def test_beyond_the_border_is_air():
    x = torch.ones(1, 1, 32, 32)
    _, target = augment([x, x], Augmentation(**{**OFF, "shift": 0.4}), SEEDS[:1], YES[:1])
    assert (target == -1).any()


@pytest.mark.parametrize("name", [name for name in Augmentation.__dataclass_fields__ if name != "flip"])
def test_amounts_that_would_destroy_the_image_are_refused(name):
    for amount in (-0.1, 200.0):
        with pytest.raises(UserError, match=f"augmentation.{name}: must lie in"):
            Augmentation(**{name: amount})


def test_a_curve_rises_and_keeps_air_and_the_brightest_value():
    """Ranks stay, so no anatomy is made; 0 and 1 stay where they are."""
    settings = Augmentation(**OFF, curve=0.8)
    x = torch.linspace(-1, 1, 64 * 56).reshape(1, 1, 64, 56).repeat(3, 1, 1, 1)
    one, target = augment([x, x], settings, SEEDS, YES)
    assert torch.equal(target, x)
    assert (one.flatten(1).diff(dim=1) >= 0).all()
    torch.testing.assert_close(one[:, 0, 0, 0], torch.full((3,), -1.0))
    torch.testing.assert_close(one[:, 0, -1, -1], torch.ones(3))
    assert len({round(float(curve.mean()), 4) for curve in one}) == 3, "each example has its own"
    bright = augment([x + 1, x], settings, SEEDS, YES)[0]
    assert (bright.flatten(1).diff(dim=1) >= 0).all(), "and above the brightest value it goes on"
