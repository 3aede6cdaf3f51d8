"""Smoothed videos flicker less than single frames, follow motion, and restart at cuts."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medstyle.errors import UserError
from medstyle.evaluation.protocols import PictureSet
from medstyle.evaluation.video import flicker, measure_clip
from medstyle.imaging.video import Frame
from medstyle.inference.render_options import RenderOptions
from medstyle.inference.temporal import Shot, agreement, flow, moved
from medstyle.inference.translate import render_frames, rendering
from tests.inference.conftest import make_translator

SIZE = (96, 128)


def scene(seed: int, size=(140, 200)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rough = gaussian_filter(rng.random((*size, 3)), (4, 4, 0))
    return np.rint(255 * (rough - rough.min()) / np.ptp(rough)).astype(np.uint8)


def pan(seed: int, count: int, speed: int = 2) -> list[np.ndarray]:
    """Frames of a camera that moves over a scene, with grain."""
    rng, wide = np.random.default_rng(seed + 100), scene(seed)
    still = [wide[i : i + SIZE[0], i * speed : i * speed + SIZE[1]] for i in range(count)]
    return [np.clip(one + rng.normal(0, 3, one.shape), 0, 255).astype(np.uint8) for one in still]


def grey(picture: np.ndarray) -> np.ndarray:
    return picture.mean(-1).astype(np.uint8)


def test_the_flow_points_to_where_a_pixel_was():
    before, now = (grey(frame) for frame in pan(0, 2, speed=3))
    found = flow(now, before)
    inside = (slice(12, -12), slice(12, -12))
    np.testing.assert_allclose(np.median(found[inside], (0, 1)), (3, 1), atol=0.1)
    np.testing.assert_allclose(moved(before, found)[inside], now[inside], atol=25)
    assert agreement(found, flow(before, now))[inside].mean() > 0.95


def test_what_was_covered_is_not_trusted():
    before = np.zeros(SIZE, np.uint8) + grey(scene(1))[: SIZE[0], : SIZE[1]] // 2
    now = before.copy()
    patch = grey(scene(2))[:40, :40]
    before[20:60, 30:70], now[20:60, 42:82] = patch, patch
    trust = agreement(flow(now, before), flow(before, now))
    uncovered, moving = trust[25:55, 31:41], trust[25:55, 47:77]
    assert uncovered.mean() < 0.5
    assert moving.mean() > 0.8


@pytest.mark.parametrize("amount", [0.0, 0.8])
def test_the_first_frame_and_the_one_after_a_cut_are_as_by_themselves(amount):
    translator = make_translator(("photo", "painting"))
    frames = [*pan(0, 3), *pan(7, 2)]
    steady = [
        one.image
        for one in render_frames(frames, rendering(translator, options=RenderOptions(temporal_smoothing=amount)))
    ]
    alone = [
        one.image for one in render_frames(frames, rendering(translator, options=RenderOptions(temporal_smoothing=0)))
    ]
    for place in (0, 3):
        np.testing.assert_allclose(steady[place], alone[place].astype(int), atol=1)  # of rounding
    assert (np.abs(steady[2].astype(int) - alone[2]).max() > 1) == (amount > 0)


def test_a_steady_video_flickers_less_and_stays_what_it_is():
    translator = make_translator(("photo", "painting"))
    frames = pan(3, 20)

    def video(make):
        return lambda: (Frame(image, number / 25) for number, image in enumerate(make()))

    styled = {
        "alone": video(
            lambda: (
                one.image
                for one in render_frames(frames, rendering(translator, options=RenderOptions(temporal_smoothing=0)))
            )
        ),
        "smoothed": video(lambda: (one.image for one in render_frames(frames, rendering(translator)))),
    }
    targets = PictureSet(scene(5)[None].astype(np.float32) / 255)
    found = measure_clip(video(lambda: frames), styled, "alone", targets)
    assert found["smoothed"]["warping_short"] < 0.5 * found["alone"]["warping_short"]
    assert found["smoothed"]["like_per_frame"] > 0.8
    assert found["alone"]["like_per_frame"] == pytest.approx(1)
    assert found["identity"]["structure"] == pytest.approx(1)


def test_flicker_is_what_changes_fast():
    time = np.arange(64)[:, None]
    slow, fast = np.sin(2 * np.pi * time / 32), np.sin(2 * np.pi * time * 0.375)
    assert flicker(slow) < 1e-6
    assert flicker(0.1 * fast) == pytest.approx(1000 * 0.1 / np.sqrt(2), rel=0.01)
    assert flicker(0.1 * fast + slow) == pytest.approx(flicker(0.1 * fast), rel=0.01)


def test_an_amount_that_would_freeze_the_picture_is_refused():
    with pytest.raises(UserError, match="temporal smoothing"):
        Shot(make_translator(("photo", "painting")), 1.0)
