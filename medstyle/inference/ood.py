"""Check whether inputs resemble the training images and their domain, and outputs are images."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume
from medstyle.networks.recogniser import look
from medstyle.networks.translator import Translator

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

WARN, REFUSE = 1.5, 3.0  # limits, as multiples of the 99th percentile of the score among the training images
OUTSIDE = 0.05  # share of the body that may be outside the range of the training images; by definition, 1 % of them is
FLAT = 0.01  # network units; an image with less contrast shows nothing


class Verdict(NamedTuple):
    """A score and its verdict; ``score`` is the largest absolute robust z value of the features.

    ``reason`` is why the verdict is not that of the score: what the scan looks like instead.
    """

    score: float
    verdict: Literal["ok", "warn", "refuse"]
    reason: str = ""


def assess(slices: Tensor, translator: Translator, domain: str | None = None) -> Verdict:
    """Compare slices ``(D, C, H, W)`` with the training images of ``domain`` or of the source."""
    config = translator.config
    reference = config.reference.get(domain or config.source) or config.reference[config.source]
    statistics = reference.volume if len(slices) > 1 else reference.slice
    score = statistics.score(slices.numpy())
    ratio = score / max(statistics.largest, 1e-6)
    return Verdict(round(score, 4), "refuse" if ratio > REFUSE else "warn" if ratio > WARN else "ok")


def contradiction(volume: Volume) -> str:
    """Say how a scan clearly looks unlike its domain or its orientation; "" if it does not.

    Only heads are judged; see :func:`medstyle.networks.recogniser.look`.
    """
    seen = look(volume)
    if seen.contradicts(volume.domain):
        names = (DOMAINS[name].label for name in (seen.contrast, volume.domain))
        return f"looks like {next(names)} (probability {seen.probability:.3f}), not like {next(names)}"
    if seen.turned:
        return f"shows a head that lies {seen.orientation} (probability {seen.probability_of_orientation:.3f})"
    return ""


def oddities(output: Tensor, body: NDArray[np.bool_] | None = None) -> tuple[str, ...]:
    """Describe faults of an output ``(D, C, H, W)`` in ``body`` ``(D, H, W)``, for any input."""
    outside, count, low, high = 0, 0, np.inf, -np.inf
    for z, one in enumerate(output.numpy()):
        values = one if body is None else one[:, body[z]]
        if values.size:
            outside += int((np.abs(values) > 1.05).sum())
            count += values.size
            low, high = min(low, float(values.min())), max(high, float(values.max()))
    found = []
    if outside > OUTSIDE * count:
        found.append(f"{outside / count:.0%} of the output is outside the range of the training images")
    if high - low < FLAT:
        found.append("the output is constant")
    return tuple(found)
