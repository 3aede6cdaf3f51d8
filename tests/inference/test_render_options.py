"""How a picture is finished: strength, colour, size, sharpness, and what stays as it was."""

import numpy as np
import pytest
import torch

from medstyle import Refusal, UserError, translate_picture
from medstyle.imaging.picture import to_unit
from tests.inference.conftest import Plain, make_translator


def test_a_look_is_mixed_from_nothing_to_all(rng):
    from skimage.color import rgb2lab

    from medstyle.inference.render_options import RenderOptions

    translator = make_translator(("photo", "painting"))
    pixels = (rng.integers(60, 200, (40, 48, 1)) + rng.integers(-20, 20, 3)).astype(np.uint8)
    whole = translate_picture(pixels, translator).image.astype(float)
    none, half = (translate_picture(pixels, translator, options=RenderOptions(s)).image for s in (0, 0.5))
    np.testing.assert_array_equal(none, pixels)
    np.testing.assert_allclose(half, (whole + pixels) / 2, atol=0.51)
    kept = RenderOptions(keep_colour=True).apply(
        pixels, to_unit(np.clip(pixels.astype(int) + 20, 0, 255).astype(np.uint8))
    )
    np.testing.assert_allclose(rgb2lab(kept)[..., 1:], rgb2lab(pixels)[..., 1:], atol=1.5)
    assert (rgb2lab(kept)[..., 0] > rgb2lab(pixels)[..., 0] + 3).all()
    with pytest.raises(UserError, match="strength: must lie in"):
        RenderOptions(1.5)


def test_a_picture_is_painted_at_a_size_and_keeps_its_details(rng):
    """What the network changes is enlarged; what it leaves is there in every detail."""
    from medstyle.inference.render_options import RenderOptions

    fine = rng.integers(60, 160, (90, 120, 3)).astype(np.uint8)
    brighter = make_translator(("photo", "painting"), generator=Plain(lambda x: x + 0.2))
    made = translate_picture(fine, brighter, options=RenderOptions(size=32)).image
    np.testing.assert_allclose(made, fine + 0.2 * 127.5, atol=1)
    striped = make_translator(
        ("photo", "painting"), generator=Plain(lambda x: x + 0.2 * (-1) ** torch.arange(x.shape[3]))
    )
    columns = {
        size: translate_picture(np.full_like(fine, 100), striped, options=RenderOptions(size=size))
        .image.mean((0, 2))
        .astype(float)
        for size in (None, 45)
    }
    period = {size: np.abs(np.fft.rfft(values - values.mean())).argmax() for size, values in columns.items()}
    assert period[None] == 60, "stripes of a pixel"
    assert period[45] == 30, "of two pixels, where it is painted at half the size"
    with pytest.raises(UserError, match="size: must be at least 32"):
        RenderOptions(size=8)


@pytest.mark.parametrize("slope", [-1.0, 0.0, 0.5])
def test_detail_follows_the_painting(rng, slope):
    """Known answer: a painting that is linear in the picture is the same at any size, to 3 %."""
    from medstyle.inference.render_options import RenderOptions

    fine = rng.integers(0, 256, (96, 128, 3)).astype(np.uint8)
    linear = make_translator(("photo", "painting"), generator=Plain(lambda x: slope * x))
    full, enlarged = (
        translate_picture(fine, linear, options=RenderOptions(size=size)).image.astype(float) for size in (None, 48)
    )
    assert np.abs(enlarged - full).mean() < 0.03 * 255
    assert (full.std() > 1) == (slope != 0)


LOOKS = [
    {},
    {"strength": 0.7},
    {"keep_colour": True},
    {"temporal_smoothing": 0.8},
    {"mask": np.full((2, 2), 0.5, np.float32)},
]


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: next(iter(look), "whole"))
def test_sixteen_bits_stay_sixteen_and_opacity_stays(look, rng):
    """Eight bits and their multiples in sixteen become the same but for rounding.

    Finer levels are made finely.
    """
    from medstyle.inference.render_options import RenderOptions

    translator, look = make_translator(("photo", "painting")), RenderOptions(**look)
    coarse = rng.integers(0, 256, (33, 21, 3), dtype=np.uint8)
    deep = 257 * coarse.astype(np.uint16)
    by_eight, by_sixteen = (translate_picture(one, translator, options=look).image for one in (coarse, deep))
    assert (by_eight.dtype, by_sixteen.dtype) == (np.uint8, np.uint16)
    np.testing.assert_allclose(by_sixteen / 257, by_eight, atol=0.51)  # both are rounded once, at the end
    ramp = np.linspace(0, 65535, 40 * 48).astype(np.uint16).reshape(40, 48, 1).repeat(3, 2)
    assert len(np.unique(translate_picture(ramp, translator, options=look).image[..., 1])) > 256
    opacity = rng.integers(0, 65536, (33, 21, 1), dtype=np.uint16)
    veiled = translate_picture(np.dstack([deep, opacity]), translator, options=look).image
    np.testing.assert_array_equal(veiled[..., 3:], opacity)
    laid = np.rint(deep * (opacity / 65535) + 65535 - opacity).astype(np.uint16)
    np.testing.assert_allclose(veiled[..., :3], translate_picture(laid, translator, options=look).image, atol=257)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_picture_is_sharpened_without_new_colours_and_enlarged_without_new_detail(rng, dtype):
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2lab

    from medstyle.inference.render_options import RenderOptions

    white = np.iinfo(dtype).max
    smooth = gaussian_filter(rng.random((40, 48, 1)) * [1, 0.8, 0.6], (3, 3, 0))
    smooth = (white * (0.3 + 0.4 * (smooth - smooth.min()) / np.ptp(smooth))).astype(dtype)
    sharp = [RenderOptions(sharpen=amount).apply(smooth, to_unit(smooth)) for amount in (0, 0.5, 1)]
    np.testing.assert_array_equal(sharp[0], smooth)
    lab = [rgb2lab(one) for one in sharp]
    contrast = [np.abs(np.diff(one[..., 0], axis=0)).mean() for one in lab]
    assert contrast[0] < contrast[1] < contrast[2]
    np.testing.assert_allclose(*(one[..., 0].mean() for one in (lab[0], lab[2])), atol=0.2)
    np.testing.assert_allclose(lab[2][..., 1:], lab[0][..., 1:], atol=1 if dtype == np.uint8 else 0.01)
    veiled = np.dstack([smooth, smooth[..., 0]])
    for factor in (2, 3):
        large = RenderOptions(upscale=factor).apply(veiled, to_unit(smooth))
        assert (large.shape, large.dtype) == ((40 * factor, 48 * factor, 4), dtype)
        back = large.reshape(40, factor, 48, factor, 4).mean((1, 3))
        np.testing.assert_allclose(back, veiled, atol=0.01 * white)
    with pytest.raises(Refusal, match="E_TOO_LARGE"):
        RenderOptions(upscale=4).apply(
            np.zeros((1 << 13, 1 << 10, 3), dtype), np.zeros((1 << 13, 1 << 10, 3), np.float32)
        )
    for wrong in ({"sharpen": 1.1}, {"upscale": 5}, {"upscale": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}: must"):
            RenderOptions(**wrong)
