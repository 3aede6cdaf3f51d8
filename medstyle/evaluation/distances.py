"""Measure the distance between two sets of images by the features of their slices."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SUBSETS = 100
LARGEST = 1000  # largest number of samples of a subset; more cost time and change little
LEAST = 4  # smallest number of samples: two halves of two samples each

Features = NDArray[np.float64]


def frechet(first: Features, second: Features) -> float:
    """Return the Frechet distance of Gaussians fitted to ``(n, F)`` and ``(m, F)`` (Dowson 1982).

    It is ``|mean - mean|^2 + tr(A + B - 2 (AB)^(1/2))`` for the covariances A and B, squared as
    usual. The estimate is biased upwards, the more so the fewer the samples: compare only numbers
    from equally many samples.
    """

    def root(features: Features) -> Features:  # R with R^T R = covariance
        centred = features - features.mean(axis=0)
        return np.asarray(np.linalg.qr(centred / np.sqrt(len(features) - 1), mode="r"))

    a, b = root(first), root(second)
    apart = np.square(first.mean(axis=0) - second.mean(axis=0)).sum()
    spread = np.square(a).sum() + np.square(b).sum() - 2 * np.linalg.norm(a @ b.T, "nuc")
    return float(apart + max(spread, 0.0))


def kernel_distance(first: Features, second: Features, seed: int = 0) -> tuple[float, float]:
    """Return the kernel distance (KID, Binkowski 2018) of two sets ``(n, F)`` and ``(m, F)``.

    The result is the mean and the standard deviation, over 100 pairs of subsets, of the unbiased
    squared maximum mean discrepancy with the kernel ``(x y / F + 1)^3``. Each subset has half of
    the smaller set, but at most 1000 samples. For sets of the same kind the value is around 0 and
    may be negative.
    """
    size = min(len(first) // 2, len(second) // 2, LARGEST)
    rng = np.random.default_rng(seed)
    draws = [[rng.choice(len(one), size, replace=False) for one in (first, second)] for _ in range(SUBSETS)]
    values = [squared_mmd(first[a], second[b]) for a, b in draws]
    return float(np.mean(values)), float(np.std(values))


def squared_mmd(first: Features, second: Features) -> float:
    """Return the unbiased squared maximum mean discrepancy of ``(n, F)`` and ``(m, F)``, n, m > 1.

    Pairs of a sample with itself are left out of the means within a set (Gretton 2012).
    """

    def kernel(x: Features, y: Features) -> Features:
        cubed: Features = (x @ y.T / x.shape[1] + 1) ** 3
        return cubed

    def within(x: Features) -> float:
        k = kernel(x, x)
        return float((k.sum() - np.trace(k)) / (len(x) * (len(x) - 1)))

    return within(first) + within(second) - 2 * float(kernel(first, second).mean())


def set_distances(
    sets: dict[str, Features], real: Features, seen: Features, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Return ``fd_local``, ``kid_local`` and ``kid_local_sd`` of each set to the ``real`` targets.

    ``real`` are unseen targets. The result includes ``training targets``, a subset of ``seen`` of
    the same size as ``real``: it shows the distance between real images of different subjects.
    Features are scaled by one number, so that those of ``seen`` have a mean square of 1. With fewer
    than 4 samples the result is empty.
    """
    if min(len(real), len(seen), *map(len, sets.values())) < LEAST:
        return {}
    thinned = seen[np.linspace(0, len(seen) - 1, min(len(seen), len(real))).round().astype(int)]
    unit = np.sqrt(np.square(seen).mean()) or 1.0
    found = {}
    for name, features in {**sets, "training targets": thinned}.items():
        kid, sd = kernel_distance(features / unit, real / unit, seed)
        found[name] = {"fd_local": frechet(features / unit, real / unit), "kid_local": kid, "kid_local_sd": sd}
    return found
