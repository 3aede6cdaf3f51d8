"""The out-of-distribution gate: is this input like the training images, and is the output an image at all?"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medstyle.networks.translator import Translator
from medstyle.transforms.descriptors import image_features

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

WARN, REFUSE = 1.5, 3.0  # times the 99th percentile of the score among the training images
OUTSIDE = 0.05  # share of the body that may leave the range of the training images; they leave 1 % by definition
FLAT = 0.01  # network units; an image without more contrast shows nothing


class Verdict(NamedTuple):
    """``score`` is the largest absolute robust z value among the features of the image."""

    score: float
    verdict: Literal["ok", "warn", "refuse"]


def judge(slices: Tensor, translator: Translator, domain: str | None = None) -> Verdict:
    """Compare prepared slices ``(D, C, H, W)`` of ``domain`` with the training reference of the translator.

    A reference may hold statistics for each domain by its name; else one set stands for all.
    """
    statistics = translator.config.reference
    reference = statistics.get(domain or translator.config.source, statistics)["volume" if len(slices) > 1 else "slice"]
    features = image_features(slices.numpy())
    z = (features - np.array(reference["centre"])) / np.array(reference["spread"])
    score = float(np.abs(z).max())
    ratio = score / max(float(reference["largest"]), 1e-6)
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
