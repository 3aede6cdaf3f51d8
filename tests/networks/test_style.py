import pytest
import torch

from medstyle import UserError
from medstyle.networks import imagenet
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.style import LATENT, STYLES, StatisticsEncoder, Style, StyleEncoder

DOMAINS = torch.tensor([0, 1])


def ask(style, kind):
    z = torch.randn(2, LATENT) if kind == "latent" else None
    reference = torch.randn(2, 1, 32, 32) if kind == "reference" else None
    return style(DOMAINS, z, reference)


@pytest.mark.parametrize("kind", STYLES)
def test_every_source_gives_a_code_per_domain(kind):
    torch.manual_seed(0)
    style = Style(STYLES, 3, 5)
    assert ask(style, kind).shape == (2, 5)
    z, reference = torch.randn(1, LATENT).expand(2, -1), torch.randn(1, 1, 32, 32).expand(2, -1, -1, -1)
    one, other = style(DOMAINS, z if kind == "latent" else None, reference if kind == "reference" else None)
    assert not torch.allclose(one, other), "each domain has its own"


@pytest.mark.parametrize("trained", STYLES)
@pytest.mark.parametrize("asked", STYLES)
def test_what_was_not_trained_is_refused(trained, asked):
    style = Style((trained,), 2, 5)
    if asked == trained:
        ask(style, asked)
    else:
        with pytest.raises(UserError, match=f"trained with style from {trained}, not from {asked}"):
            ask(style, asked)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_reference_carries_no_places(dims):
    """The same thing elsewhere in the reference gives the same code: anatomy does not leak through
    style."""
    torch.manual_seed(0)
    encoder = StyleEncoder(2, 5, 1, dims)
    image = torch.zeros(2, 1, *(96,) * 2 if dims == 2 else (96, 64, 64))
    image[:, :, 32:48, 24:40] = torch.rand(2, 1, 16, 16, *image.shape[4:])
    image[..., :24] = image[..., 40:] = 0
    moved = torch.roll(image, (16, 8 - 8), (2, 3))
    torch.testing.assert_close(encoder(image, DOMAINS), encoder(moved, DOMAINS), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(encoder(image, DOMAINS), encoder(2 * image, DOMAINS))


@pytest.mark.skipif(not imagenet.available(), reason="needs medstyle[art]")
def test_statistics_tell_textures_apart_and_not_their_places():
    """Two pictures of one texture are closer to each other than to another of the same colours."""
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    grain = torch.rand(2, 3, 64, 64, generator=rng)
    stripes = grain.flatten(2).sort(2).values.view(2, 3, 64, 64)[:1]  # the same values as a ramp
    codes = StatisticsEncoder(2, 5)(2 * torch.cat([grain, stripes]) - 1, torch.tensor([1, 1, 1]))
    one, other, apart = codes
    assert (one - other).norm() < 0.3 * (one - apart).norm()


@pytest.mark.skipif(not imagenet.available(), reason="needs medstyle[art]")
def test_frozen_features_are_no_part_of_a_model():
    """They are read out of their package, and only what was trained is saved."""
    architecture = Architecture(widths=(4, 6), style=("reference",), style_features="imagenet")
    networks = Networks(architecture, ["photo", "painting"])
    networks.style(torch.tensor([1]), None, torch.zeros(1, 3, 32, 32))
    assert sum(weight.numel() for weight in networks.style.state_dict().values()) < 100_000


@pytest.mark.parametrize("wish", [{"palette": 8}, {"style_features": "imagenet"}])
def test_what_references_alone_have_is_refused_with_other_styles(wish):
    with pytest.raises(UserError, match="reference"):
        Architecture(style=("domain", "reference"), **wish)
