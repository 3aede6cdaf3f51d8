"""Compute statistics whose unit is the subject, never the slice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def summary(values: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Return mean, standard deviation and the 95 % percentile-bootstrap interval of the mean."""
    array = np.asarray(values, np.float64)
    if len(array) < 2:
        return {"mean": float(array.mean()), "sd": 0.0, "low": float(array.mean()), "high": float(array.mean())}
    low, high = np.percentile(_bootstrap_means(array, seed), (2.5, 97.5))
    return {"mean": float(array.mean()), "sd": float(array.std(ddof=1)), "low": float(low), "high": float(high)}


def lower_bound(values: Sequence[float], seed: int = 0) -> float:
    """Return the lower bound of the one-sided 95 % percentile-bootstrap interval of the mean."""
    return float(np.percentile(_bootstrap_means(np.asarray(values, np.float64), seed), 5))


def _bootstrap_means(array: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    return array[np.random.default_rng(seed).integers(0, len(array), (9999, len(array)))].mean(axis=1)


def compare(first: Sequence[float], second: Sequence[float], seed: int = 0) -> dict[str, float | None]:
    """Compare two methods on the same subjects: means, mean difference, interval, Wilcoxon's p."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    apart = summary((b - a).tolist(), seed)
    difference = {"difference": apart["mean"], "low": apart["low"], "high": apart["high"]}
    return {"first": float(a.mean()), "second": float(b.mean()), **difference, "p": paired_test(first, second)}


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Adjust the p values of one family to control the family-wise error rate (Holm 1979)."""
    adjusted, highest = {}, 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        highest = min(1.0, max(highest, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return adjusted


def effect(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the matched-pairs rank-biserial correlation (Kerby 2014), from -1 to 1.

    It is the rank sum of the subjects on which ``ours`` is larger minus that of the others, divided
    by the total: 1 means that it is larger on every subject.
    """
    from scipy.stats import rankdata

    difference = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    difference = difference[difference != 0]
    if not len(difference):
        return 0.0
    ranks = rankdata(np.abs(difference))
    return float((ranks * np.sign(difference)).sum() / ranks.sum())


def paired_test(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return the two-sided p of the Wilcoxon signed-rank test, or None below 6 pairs."""
    from scipy.stats import wilcoxon

    if len(ours) < 6 or np.allclose(ours, theirs):
        return None
    return float(wilcoxon(ours, theirs).pvalue)


def told_apart(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the accuracy of a classifier between two kinds of images: 0.5 to 1.

    The classifier is a logistic regression on standardised features, with every subject left out
    once: the accuracy of a site classifier, or a two-sample test (Lopez-Paz 2017). It may fall
    below 0.5 if the two kinds do not differ.

    Args:
        first, second: ``(subjects, features)``; a row of both is the same subject.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    count = len(first)
    kinds, subjects = np.repeat((0, 1), count), np.tile(np.arange(count), 2)
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    rows = np.concatenate([first, second])
    return float(cross_val_score(model, rows, kinds, groups=subjects, cv=LeaveOneGroupOut()).mean())


def differences_kept(before: NDArray[np.float64], after: NDArray[np.float64]) -> float:
    """Return Spearman's correlation of the distances between subjects before and after translation.

    Both are ``(subjects, features)``. 1 means that the order of the distances is unchanged.
    """
    from scipy.spatial.distance import pdist
    from scipy.stats import spearmanr

    return float(spearmanr(pdist(before), pdist(after)).statistic)
