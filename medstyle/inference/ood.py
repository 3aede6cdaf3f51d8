"""The out-of-distribution gate: is this input like the training images, and is the output an image at all?"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medstyle.networks.translator import Translator

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

WARN, REFUSE = 1.5, 3.0  # times the 99th percentile of the score among the training images
OUTSIDE = 0.05  # share of the body that may leave the range of the training images; they leave 1 % by definition
FLAT = 0.01  # network units; an image without more contrast shows nothing


class Verdict(NamedTuple):
    """``score`` is the largest absolute robust z value among the features of the image."""

    score: float
    verdict: Literal["ok", "warn", "refuse"]


def assess(slices: Tensor, translator: Translator, domain: str | None = None) -> Verdict:
    """Compare prepared slices ``(D, C, H, W)`` with training images of ``domain``, else of the source."""
    config = translator.config
    reference = config.reference.get(domain or config.source) or config.reference[config.source]
    statistics = reference.volume if len(slices) > 1 else reference.slice
    score = statistics.score(slices.numpy())
    ratio = score / max(statistics.largest, 1e-6)
    return Verdict(round(score, 4), "refuse" if ratio > REFUSE else "warn" if ratio > WARN else "ok")


def oddities(output: Tensor, body: NDArray[np.bool_] | None = None) -> tuple[str, ...]:
    """Say what is wrong with network output ``(D, C, H, W)`` in the ``body`` ``(D, H, W)``, whatever the input was."""
    outside, count, low, high = 0, 0, np.inf, -np.inf
    for z, one in enumerate(output.numpy()):
        values = one if body is None else one[:, body[z]]
        if values.size:
            outside += int((np.abs(values) > 1.05).sum())
            count += values.size
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    found = []
    if outside > OUTSIDE * count:
        found.append(f"{outside / count:.0%} of the output lies outside the range of the training images")
    if high - low < FLAT:
        found.append("the output is constant")
    return tuple(found)
