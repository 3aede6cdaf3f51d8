"""Measure the temporal consistency of a styled video: warping error, flicker and their price."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.evaluation.protocols import PictureSet, picture_style_distance
from medstyle.imaging.picture import to_unit
from medstyle.imaging.video import Frame
from medstyle.inference.temporal import agreement, flow_library, moved

SHORT, LONG = 1, 16  # distances in frames at which frames are compared
LOOKED_AT = 10  # interval in frames at which the style is measured
BLOCK = 16  # side in pixels of the blocks whose mean lightness is tested for flicker

MEASURES = {
    "warping_short": "lower", "warping_long": "lower", "flicker": "lower", "style_distance": "lower",
    "structure": "higher", "like_per_frame": "higher",
}  # fmt: skip

Video = Callable[[], Iterator[Frame]]  # opens a video; all compared videos have the same frames
Picture = NDArray[Any]


def measure_clip(source: Video, methods: Mapping[str, Video], per_frame: str, targets: PictureSet) -> dict[str, Any]:
    """Measure styled versions of one clip: method -> measure -> value, in constant memory.

    ``warping_short`` and ``warping_long`` are 1000 times the mean squared difference, in [0, 1]
    units, of a frame and the one 1 or 16 frames before, warped along the optical flow of the
    *source* (Lai 2018). Occluded pixels, edges of motion, and pairs across a cut do not count.
    ``flicker`` is 1000 times the standard deviation of the mean lightness of blocks of 16 pixels
    above a quarter of the frame rate. ``style_distance`` is the distance of every tenth frame to
    ``targets``. ``structure`` is the SSIM of the lightness of output and source. ``like_per_frame``
    is the SSIM to the output of the method ``per_frame``; it shows the price of smoothing, which
    alone would lower the other numbers.

    The flow is Farneback's, which differs from the one that smooths the output.
    """
    running = {"identity": source(), **{name: video() for name, video in methods.items()}}
    sums: dict[str, dict[str, list[float]]] = {name: {m: [] for m in MEASURES} for name in running}
    lights: dict[str, list[NDArray]] = {name: [] for name in running}
    past: deque[tuple[NDArray, dict[str, NDArray]]] = deque(maxlen=LONG)
    for number, (frame, *made) in enumerate(zip(source(), *running.values(), strict=True)):
        outputs = {name: to_unit(one.pixels) for name, one in zip(running, made, strict=True)}
        grey = _grey(frame.pixels)
        for gap, name in ((SHORT, "warping_short"), (LONG, "warping_long")):
            if len(past) < gap:
                continue
            before, old = past[-gap]
            back, inside = _flow(grey, before)
            if inside.mean() < 0.3:  # there is a cut in between
                continue
            for method, image in outputs.items():
                apart = np.square(moved(old[method], back) - image).mean(-1)
                sums[method][name].append(1000 * float(apart[inside].mean()))
        for method, image in outputs.items():
            light = image.mean(-1)
            lights[method].append(_blocks(light))
            if number % LOOKED_AT == 0:
                sums[method]["style_distance"].append(picture_style_distance(image, targets))
                sums[method]["structure"].append(_ssim(light, outputs["identity"].mean(-1)))
                sums[method]["like_per_frame"].append(_ssim(light, outputs[per_frame].mean(-1)))
        past.append((grey, outputs))
    for method, series in lights.items():
        sums[method]["flicker"] = [flicker(np.stack(series))]
    return {name: {m: float(np.mean(v)) for m, v in of.items() if v} for name, of in sums.items()}


def flicker(lights: NDArray) -> float:
    """Return 1000 times the standard deviation of ``(T, ...)`` at high frequencies.

    These are the frequencies above a quarter of the frame rate.
    """
    spectrum = np.fft.rfft(lights - lights.mean(0), axis=0)
    fast = np.fft.rfftfreq(len(lights)) > 0.25
    power = 2 * np.square(np.abs(spectrum[fast])).sum(0) / len(lights) ** 2
    return 1000 * float(np.sqrt(power.mean()))


def _grey(pixels: Picture) -> NDArray[np.uint8]:
    cv2 = flow_library()
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))


def _flow(now: NDArray[np.uint8], before: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the displacement from ``now`` to ``before``, and where it is reliable (Ruder 2016)."""
    cv2 = flow_library()
    options = (None, 0.5, 5, 21, 5, 7, 1.5, 0)
    back, forth = (cv2.calcOpticalFlowFarneback(a, b, *options) for a, b in ((now, before), (before, now)))
    steep = sum(np.square(np.gradient(back[..., i], axis=axis)) for i in (0, 1) for axis in (0, 1))
    calm = steep <= 0.01 * np.square(back).sum(-1) + 0.002
    return back, (agreement(back, forth) > 0) & calm


def _blocks(light: NDArray) -> NDArray:
    height, width = (n // BLOCK * BLOCK for n in light.shape)
    whole: NDArray = light[:height, :width].reshape(height // BLOCK, BLOCK, width // BLOCK, BLOCK).mean((1, 3))
    return whole


def _ssim(a: NDArray, b: NDArray) -> float:
    from skimage.metrics import structural_similarity

    return float(structural_similarity(a, b, data_range=1.0))
