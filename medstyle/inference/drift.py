"""Test whether incoming images still resemble the training images."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medstyle.networks.translator import Translator

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


class Drift(NamedTuple):
    """The result of a drift test.

    Attributes:
        images: number of images that were tested.
        beyond: how many exceed the 99th percentile of the training images' out-of-distribution
            score.
        expected: how many are expected to.
        p: probability of ``beyond`` or more if nothing has changed.
    """

    images: int
    beyond: int
    expected: float
    p: float


def drift(scores: Sequence[float], limit: float, trained_on: int) -> Drift:
    """Test whether more ``scores`` exceed ``limit`` than chance allows (exact and one-sided).

    The test holds for any distribution of the scores. If nothing has changed, old and new images
    are one sample, and the number of its highest scores that are new is hypergeometric. An alarm at
    ``p < a`` is then false with a probability of at most ``a``, at each call.

    Args:
        scores: out-of-distribution scores of recent images, if possible one per patient.
        limit: 99th percentile of the score among the training images.
        trained_on: number of training images.
    """
    from scipy.stats import hypergeom

    new, old = len(scores), max(trained_on, 1)
    beyond = int((np.asarray(scores) > limit).sum())
    rank = old - int(0.99 * (old - 1))  # the limit is at or above the training score of this rank from the top
    p = float(hypergeom.sf(beyond - 1, old + new, new, beyond + rank - 1)) if beyond else 1.0
    return Drift(new, beyond, new * rank / (old + 1), p)


def scores_of(folder: Path, translator: Translator) -> list[tuple[float, float]]:
    """Return (Unix time, out-of-distribution score) of each image of an inbox, the oldest first.

    Only images that ``translator`` has translated count (``inference.inbox``).
    """
    found = []
    for facts in sorted(folder.glob("derived/*/translation.json")):
        rows = json.loads(facts.read_text())
        when = facts.stat().st_mtime
        found += [(when, float(row["ood_score"])) for row in rows if row["weights_sha256"] == translator.sha256]
    return sorted(found)


def limit_of(translator: Translator) -> float:
    """Return the 99th percentile of the score among the training images."""
    config = translator.config
    return float(config.reference[config.source].volume.largest)


def recent(folder: Path, translator: Translator, days: float) -> Drift:
    """Test what ``translator`` made of an inbox in the last ``days`` (``inference.inbox``)."""
    since = time.time() - 86400 * days
    scores = [score for when, score in scores_of(folder, translator) if when >= since]
    return drift(scores, limit_of(translator), int(translator.config.facts.get("training subjects", 0)))
