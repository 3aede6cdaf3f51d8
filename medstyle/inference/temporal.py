"""Smooth the frames of a video shot over time, so that the output flickers no more than the input.

Two things change from frame to frame without cause: the statistics by which the network normalises,
and what it renders from grain and compression noise. The statistics are averaged over time; the
output is blended with the previous frame, warped along the optical flow of the input (Ruder 2016,
Lai 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from medstyle.errors import MissingPackage, ParamsError
from medstyle.imaging.picture import Pixels, from_unit, to_unit
from medstyle.inference.shared_norm import Statistics
from medstyle.networks.translator import Translator

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

Rendered = NDArray[np.float32]  # a picture (H, W, 3) in [0, 1]

MEMORY = 0.9  # share of the statistics that comes from previous frames
CUT = 0.4  # share of pixels that must match the previous frame; below it, a new shot begins
FLOW_PX = 1 << 18  # pixels on which the flow is computed; larger frames are downsampled
LIKE = 0.06  # difference of grey levels in [0, 1] at which the trust in a pixel is halved


class Shot:
    """The state of a shot: it follows the frames of a video in order and starts anew at each cut.

    Args:
        translator: translator whose statistics are averaged over time.
        amount: share of a pixel that comes from the previous frame where the match is certain, in
            [0, 1). 0: every frame is rendered independently.
    """

    def __init__(self, translator: Translator, amount: float) -> None:
        if not 0 <= amount < 1:
            raise ParamsError(f"temporal smoothing: must lie in [0, 1), got {amount:g}")
        self.amount = amount
        self.statistics = Statistics(translator.members)
        self.before: tuple[NDArray[np.uint8], NDArray[np.float32]] | None = None  # grey input, output

    def state(self) -> dict[str, Any]:
        """Return the state from which another shot can continue."""
        before = self.before and [torch.from_numpy(one) for one in self.before]
        return {"before": before, "held": self.statistics.held}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        if state["before"]:
            grey, image = (one.numpy() for one in state["before"])
            self.before = grey, image
        self.statistics.held = state["held"]

    @contextmanager
    def frame(self, pixels: Pixels) -> Iterator[Callable[[Rendered], Rendered]]:
        """Render the next frame ``(H, W, 3)`` in this context.

        Yields a function that blends its output.
        """
        if self.amount == 0:
            yield lambda rendered: rendered
            return
        grey = _grey(pixels)
        found = self._found(grey)
        if found is None:
            self.statistics.held.clear()

        def blend(rendered: Rendered) -> Rendered:
            image = rendered
            if found is not None:
                shifted, trust = found
                image = image + self.amount * trust * (shifted - image)
            self.before = grey, image
            return np.clip(image, 0, 1)

        with self.statistics.share(MEMORY):
            yield blend

    def _found(self, grey: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
        """Return the previous output, warped to this frame, and the trust in each pixel.

        None at a cut.
        """
        if self.before is None or self.before[0].shape != grey.shape:
            return None
        cv2 = flow_library()
        old, output = self.before
        back, forth = flow(grey, old), flow(old, grey)
        trust = agreement(back, forth) * np.exp(-np.square((moved(old, back) / 255 - grey / 255) / LIKE) * np.log(2))
        if float((trust > 0.5).mean()) < CUT:
            return None
        size = output.shape[1::-1]
        scale = np.array(size, np.float32) / np.array(grey.shape[::-1], np.float32)
        large = cv2.resize(back, size, interpolation=cv2.INTER_LINEAR) * scale
        trust = cv2.resize(trust.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)[..., None]
        return moved(output, large), trust


def flow_library() -> Any:
    """Return OpenCV; raise :class:`UserError` if it is not installed."""
    try:
        import cv2
    except ImportError:
        raise MissingPackage("temporal smoothing of videos needs OpenCV: pip install medstyle[video]") from None
    return cv2


def _grey(pixels: Pixels) -> NDArray[np.uint8]:
    cv2 = flow_library()
    grey = cv2.cvtColor(from_unit(to_unit(pixels), np.uint8), cv2.COLOR_RGB2GRAY)
    scale = (FLOW_PX / grey.size) ** 0.5
    return np.asarray(cv2.resize(grey, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else grey)


def flow(now: NDArray[np.uint8], before: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return displacements (x, y) from ``now`` to ``before``, ``(H, W, 2)`` (DIS, Kroeger 2016)."""
    cv2 = flow_library()
    found: NDArray[np.float32] = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(now, before, None)
    return found


def moved(image: NDArray, displacement: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return ``image(p + displacement(p))``."""
    cv2 = flow_library()
    rows, columns = np.indices(displacement.shape[:2], np.float32)
    x, y = columns + displacement[..., 0], rows + displacement[..., 1]
    result: NDArray[np.float32] = cv2.remap(
        image.astype(np.float32), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return result


def agreement(back: NDArray[np.float32], forth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return 1 where opposite flows ``(H, W, 2)`` agree inside the frame, else 0 (Ruder 2016).

    A pixel is taken as occluded if ``|back + forth|^2 > 0.01 (|back|^2 + |forth|^2) + 0.5``.
    """
    height, width = back.shape[:2]
    there = moved(forth, back)
    apart = np.square(back + there).sum(-1)
    allowed = 0.01 * (np.square(back).sum(-1) + np.square(there).sum(-1)) + 0.5
    rows, columns = np.indices((height, width))
    x, y = columns + back[..., 0], rows + back[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return ((apart <= allowed) & inside).astype(np.float32)
