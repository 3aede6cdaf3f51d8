"""What needs no training takes over what it says, and nothing else."""

import numpy as np
import pytest

from medstyle.evaluation.baselines import BASELINES, PICTURE_METHODS, histogram_matching, neural_style
from medstyle.evaluation.protocols import PictureSet, picture_style_distance
from medstyle.networks.texture import Texture


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_the_shape(name, rng):
    source, targets = rng.random((100, 3)).astype(np.float32), rng.random((50, 3)).astype(np.float32)
    assert BASELINES[name](source, targets).shape == source.shape


def test_histogram_matching_is_monotone_and_takes_the_distribution(rng):
    source = rng.random((2000, 1)).astype(np.float32)
    targets = (0.2 + 0.5 * rng.random((3000, 1)) ** 2).astype(np.float32)
    out = histogram_matching(source, targets)
    order = np.argsort(source[:, 0])
    assert (np.diff(out[order, 0]) >= 0).all()
    np.testing.assert_allclose(np.quantile(out, [0.1, 0.5, 0.9]), np.quantile(targets, [0.1, 0.5, 0.9]), atol=0.02)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["moments", "whitening_colouring"])
def test_feature_statistics_are_taken_over(name, channels, rng):
    source = (0.4 + 0.1 * rng.random((4000, channels))).astype(np.float32)
    mix = np.array([[0.2, 0.1, 0.0], [0.0, 0.15, 0.1], [0.05, 0.0, 0.2]])[:channels, :channels]
    targets = (0.5 + 0.6 * (rng.random((5000, channels)) - 0.5) @ mix).astype(np.float32)
    made = BASELINES[name](source, targets)
    np.testing.assert_allclose(made.mean(0), targets.mean(0), atol=0.01)
    np.testing.assert_allclose(made.std(0), targets.std(0), atol=0.01)
    if name == "whitening_colouring":
        np.testing.assert_allclose(np.cov(made.T), np.cov(targets.T), atol=1e-3)


@pytest.mark.parametrize("features", [None, Texture(3)], ids=["default", "random filters"])
def test_neural_style_takes_texture_and_keeps_edges(rng, features):
    """Stripes in the style of noise: the noise's texture comes, the step in the middle stays."""
    photo = np.full((64, 64, 3), 60, np.uint8)
    photo[:, 32:] = 190
    style = rng.integers(0, 256, (64, 64, 1)).repeat(3, 2).astype(np.uint8)
    targets = PictureSet(style[None].astype(np.float32) / 255)
    made = {
        "moments": PICTURE_METHODS["moments"](photo, style),
        "neural_style": neural_style(photo, style, features=features),
    }
    apart = {name: picture_style_distance(image.astype(np.float32) / 255, targets) for name, image in made.items()}
    assert apart["neural_style"] < 0.9 * apart["moments"]
    columns = made["neural_style"].mean((0, 2))
    assert columns[32:].mean() > columns[:32].mean() + 20
