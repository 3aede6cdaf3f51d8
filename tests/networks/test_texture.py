"""Texture features: the same filters everywhere, independent of locations, sensitive to texture."""

import pytest
import torch

from medstyle.networks.texture import Texture, correlations, style_distance


def stripes(axis: int, shift: int = 0, size: int = 96) -> torch.Tensor:
    line = torch.sin((torch.arange(size) + shift) * 2 * torch.pi / 8)
    image = line.view(-1, 1) if axis == 0 else line.view(1, -1)
    return image.expand(size, size)[None, None].repeat(1, 3, 1, 1)


def distance(a: torch.Tensor, b: torch.Tensor, seed: int = 0) -> float:
    texture = Texture(3, seed)
    return float(style_distance(correlations(texture(a)), correlations(texture(b)))[0])


def test_an_image_has_its_own_style_wherever_its_parts_are():
    image = stripes(0)
    assert distance(image, image) < 1e-3
    assert distance(image, stripes(0, shift=3)) < 0.3
    assert distance(image, stripes(1)) > 0.9


@pytest.mark.parametrize(
    "change", [lambda x: x * 0.5, lambda x: x + 0.5, lambda x: x * torch.tensor([1, 0.2, 1]).view(3, 1, 1)]
)
def test_contrast_brightness_and_colour_are_style(change):
    assert distance(stripes(0), change(stripes(0))) > 0.2


def test_the_bank_is_a_function_of_its_seed_and_is_not_saved():
    assert torch.equal(Texture(3, 4).bank, Texture(3, 4).bank)
    assert not torch.equal(Texture(3, 4).bank, Texture(3, 5).bank)
    assert not Texture(3).state_dict()


def test_images_of_two_sizes_can_be_compared():
    assert distance(stripes(0, size=96), stripes(0, size=200)) < 0.1
    assert distance(stripes(0, size=24), stripes(0, size=200)) < 0.2
