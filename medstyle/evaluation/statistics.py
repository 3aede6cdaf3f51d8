"""Statistics with the subject as the unit, never the slice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def summary(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Return mean, standard deviation and the 95 % percentile-bootstrap interval of the mean over subjects."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return {"mean": float(array.mean()), "sd": 0.0, "low": float(array.mean()), "high": float(array.mean())}
    draws = np.random.default_rng(seed).integers(0, len(array), (9999, len(array)))
    low, high = np.percentile(array[draws].mean(axis=1), (2.5, 97.5))
    return {"mean": float(array.mean()), "sd": float(array.std(ddof=1)), "low": float(low), "high": float(high)}


def paired_test(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the two-sided p of the Wilcoxon signed-rank test over subjects, or None below 6 pairs."""
    from scipy.stats import wilcoxon

    if len(ours) < 6 or np.allclose(ours, theirs):
        return None
    return float(wilcoxon(ours, theirs).pvalue)
