"""Do the images that come in still look like those that were trained on?"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from medstyle.networks.translator import Translator

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text


class Drift(NamedTuple):
    """Attributes: ``images`` looked at, how many lie ``beyond`` the training images' 99th percentile of the
    out-of-distribution score, how many are ``expected`` to, and the ``p`` of as many or more if nothing has changed.
    """

    images: int
    beyond: int
    expected: float
    p: float


def drift(scores: Sequence[float], limit: float, trained_on: int) -> Drift:
    """Test whether more ``scores`` exceed ``limit`` than chance allows (exact, one-sided, whatever the distribution).

    If nothing has changed, old and new images are one sample: how many of its highest scores are new is
    hypergeometric. An alarm at ``p < a`` is then false with probability ``a`` at most, on each call.

    Args:
        scores: out-of-distribution scores of recent images, one for each patient if possible.
        limit: 99th percentile of the score among ``trained_on`` training images.
    """
    from scipy.stats import hypergeom

    new, old = len(scores), max(trained_on, 1)
    beyond = int((np.asarray(scores) > limit).sum())
    rank = old - int(0.99 * (old - 1))  # the limit lies at or above the training score of this rank from the top
    p = float(hypergeom.sf(beyond - 1, old + new, new, beyond + rank - 1)) if beyond else 1.0
    return Drift(new, beyond, new * rank / (old + 1), p)


def recent(folder: Path, translator: Translator, days: float) -> Drift:
    """Look at what ``translator`` made of the inbox ``folder`` (see ``inference.inbox``) in the last ``days``."""
    since, scores = time.time() - 86400 * days, []
    for facts in sorted(folder.glob("derived/*/translation.json")):
        if facts.stat().st_mtime >= since:
            rows = json.loads(facts.read_text())
            scores += [row["ood_score"] for row in rows if row["weights_sha256"] == translator.sha256]
    config = translator.config
    limit = config.reference[config.source].volume.largest
    return drift(scores, limit, int(config.facts.get("training subjects", 0)))
