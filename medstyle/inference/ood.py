"""The out-of-distribution gate: is this input like the images the model was trained on?"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

from medstyle.networks.features import image_features
from medstyle.networks.translator import Translator

WARN, REFUSE = 1.5, 3.0  # times the 99th percentile of the score among the training images


class Verdict(NamedTuple):
    """``score`` is the root mean square of robust z values; 1 is an average training subject."""

    score: float
    verdict: Literal["ok", "warn", "refuse"]


def judge(slices: Tensor, translator: Translator) -> Verdict:
    """Compare prepared slices ``(D, C, H, W)`` with the training reference of the translator."""
    reference = translator.config.reference["volume" if len(slices) > 1 else "slice"]
    features = image_features(slices.numpy())
    z = (features - np.array(reference["centre"])) / np.array(reference["spread"])
    score = float(np.sqrt((z**2).mean()))
    ratio = score / max(float(reference["largest"]), 1e-6)
    return Verdict(round(score, 4), "refuse" if ratio > REFUSE else "warn" if ratio > WARN else "ok")
