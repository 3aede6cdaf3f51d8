"""Turn the deviation of a translator into intervals that hold, by split-conformal prediction.

The subject is the exchangeable unit: the voxels of one are no independent samples. Each calibration
subject gives one score, and a new subject's score is bounded by a rank among them, whatever their
distribution (Papadopoulos 2002; Lei 2018, JASA 113:1094, sections 2.2 and 5.2). Scores of voxels
are condensed within each subject first, as hierarchical data demand (Dunn 2023, JASA 118:2491);
scores of a number, such as a volume, are those of Cheung 2024 (arXiv 2404.15274, section 2): bounds
on a metric are calibrated on the metric itself, not derived from bounds on voxels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medstyle.params import params

LEVEL = 0.9
FLOOR = 3.0  # with less than 2, intervals are wider than one width for all (docs/benchmarks.md)
SURE = 9  # decimals to which products of levels and counts are exact


def rank(count: int, level: float = LEVEL) -> int:
    """Return which of ``count`` rising scores bounds a new one with probability ``level``, from 1.

    It is ``ceil((count + 1) level)``; if it exceeds ``count``, no score does.
    """
    return math.ceil(round((count + 1) * level, SURE))


def least(level: float = LEVEL) -> int:
    """Return the smallest number of calibration subjects for which an interval exists."""
    return math.ceil(round(level / (1 - level), SURE))


def bound(scores: Sequence[float] | NDArray, level: float = LEVEL) -> float | None:
    """Return the bound that a new exchangeable score keeps with probability ``level`` or more.

    Args:
        scores: ``(n,)``, one per calibration subject.
        level: probability, in (0, 1).

    Returns:
        One of the scores; None if there are too few for the level.
    """
    place = rank(len(scores), level)
    return float(np.sort(np.asarray(scores, np.float64))[place - 1]) if place <= len(scores) else None


def within(ratio: NDArray, level: float = LEVEL) -> float:
    """Return the smallest of a subject's ratios ``(n,)`` that a share ``level`` of them keeps."""
    return float(np.quantile(np.asarray(ratio, np.float64), level, method="inverted_cdf"))


def scale(sigma: NDArray[np.float32], body: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return what an interval is proportional to: the deviation plus 3 times its mean in the body.

    Few views give a deviation that is near 0 by chance at many voxels, whose errors would demand a
    large factor for all. The mean is of the subject's own map, so subjects stay exchangeable.

    Args:
        sigma: deviations in any unit and of any shape.
        body: of the same shape; not empty.
    """
    return sigma + np.float32(FLOOR * sigma[body].mean())


def too_few(count: int, level: float = LEVEL) -> str:
    """Return why ``count`` calibration subjects give no interval; "" if they do."""
    if count >= least(level):
        return ""
    return f"too few subjects for a {100 * level:g} % interval: {count} of at least {least(level)}"


@params
class Interval:
    """The calibration of a translator: for ``level`` of the subjects, it covers as many voxels.

    Attributes:
        subjects: number of calibration subjects.
        factor: half width of the interval in multiples of :func:`scale`; None if there are too few
            subjects.
        constant: half width of the interval of one width for all voxels, in network units, for
            comparison.
        level: share of subjects, and of the voxels of each.
    """

    subjects: int = 0
    factor: float | None = None
    constant: float | None = None
    level: Annotated[float, Field(gt=0, lt=1)] = LEVEL

    @property
    def missing(self) -> str:
        """Why there is no interval; "" if there is one."""
        return "" if self.factor is not None else too_few(self.subjects, self.level)

    def __str__(self) -> str:
        """Say what the interval promises, or why there is none."""
        share = f"{100 * self.level:g} %"
        promise = f"{share} of the voxels for {share} of the subjects, from {self.subjects} validation subjects"
        return self.missing or promise
