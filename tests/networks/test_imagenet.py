"""The packaged network sees what pictures show, and its features can judge and teach."""

import numpy as np
import pytest
import torch

from medstyle.networks.imagenet import ImageNet

CATS, CUPS = range(281, 286), (504, 967, 968)  # ImageNet's numbers of cats; of mug, espresso, cup


@pytest.fixture(scope="module")
def network():
    return ImageNet()


def packaged(name):
    """Return the middle square of a picture of scikit-image, ``(1, 3, 224, 224)`` in [-1, 1]."""
    from skimage import data

    pixels = torch.from_numpy(getattr(data, name)()).permute(2, 0, 1)[None].float() / 127.5 - 1
    side = min(pixels.shape[2:])
    top, left = ((n - side) // 2 for n in pixels.shape[2:])
    square = pixels[..., top : top + side, left : left + side]
    return torch.nn.functional.interpolate(square, (224, 224), mode="bilinear", antialias=True)


@pytest.mark.parametrize(("name", "classes"), [("chelsea", CATS), ("coffee", CUPS)])
def test_it_knows_a_cat_and_a_cup(network, name, classes):
    with torch.no_grad():
        probabilities = network.classify(packaged(name))[0]
    assert float(probabilities[list(classes)].sum()) > 0.8


def test_features_have_five_sizes_and_pass_gradients_to_the_picture_alone(network):
    x = torch.rand(2, 3, 96, 64, requires_grad=True)
    maps = network.train()(x)
    assert [tuple(level.shape[2:]) for level in maps] == [(48, 32), (24, 16), (12, 8), (6, 4), (3, 2)]
    sum(level.mean() for level in maps).backward()
    assert float(x.grad.abs().sum()) > 0
    assert all(weight.grad is None for weight in network.parameters())
    assert len(network(torch.zeros(1, 1, 24, 20))) == 3
    assert torch.equal(network(x[:, :1])[0], network(x[:, :1].repeat(1, 3, 1, 1))[0])


def test_a_blurred_picture_is_further_than_a_shifted_one(network):
    """Unlike pixels, features hardly notice a shift by a pixel, but do notice blur."""
    from scipy.ndimage import gaussian_filter

    sharp = packaged("chelsea")
    blurred = torch.from_numpy(gaussian_filter(sharp.numpy(), (0, 0, 3, 3)).astype(np.float32))
    with torch.no_grad():
        near, far = ((network.embed(x) - network.embed(sharp)).norm() for x in (sharp.roll(1, 3), blurred))
    assert near < 0.7 * far
