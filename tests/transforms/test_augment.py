import torch

from medstyle.training.loop import seeded
from medstyle.transforms.augment import Augmentation, augment


def images(channels=1):
    torch.manual_seed(0)
    return torch.nn.functional.avg_pool2d(torch.rand(3, channels, 68, 60), 5, 1) * 2 - 1


def test_source_and_target_move_together():
    x = images()
    source, target = augment(x, x, Augmentation(gamma=0.0), seeded(0, 1, "a"))
    torch.testing.assert_close(source, target)
    assert not torch.allclose(source, x)


def test_the_same_state_gives_the_same_change():
    x = images()
    first = augment(x, x, Augmentation(), seeded(0, 1, "a"))
    again = augment(x, x, Augmentation(), seeded(0, 1, "a"))
    other = augment(x, x, Augmentation(), seeded(0, 2, "a"))
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])


def test_nothing_asked_nothing_changed():
    x = images(3)
    off = Augmentation(rotation_deg=0, scale=0, shift=0, flip=False, gamma=0)
    source, target = augment(x, x, off, seeded(0, 1, "a"))
    torch.testing.assert_close(source, x, atol=1e-4, rtol=0)
    torch.testing.assert_close(target, x, atol=1e-4, rtol=0)


def test_contrast_changes_the_source_only():
    x = images()
    only = Augmentation(rotation_deg=0, scale=0, shift=0, flip=False, gamma=0.3)
    source, target = augment(x, x, only, seeded(0, 1, "a"))
    torch.testing.assert_close(target, x, atol=1e-4, rtol=0)
    assert not torch.allclose(source, x, atol=1e-2)


def test_beyond_the_border_is_air():
    x = torch.ones(1, 1, 32, 32)
    far = Augmentation(rotation_deg=0, scale=0, shift=0.4, flip=False, gamma=0)
    _, target = augment(x, x, far, seeded(0, 5, "a"))
    assert (target == -1).any()
