"""Measure how often intervals hold on unseen subjects, and how wide they are.

A number that people act on, such as a volume, has an interval of its own: its errors on the
validation subjects are calibrated themselves, relative to how far the number moves with the
output's deviation (Cheung 2024, arXiv 2404.15274). Bounds of voxels say nothing about their sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.evaluation.measured import Array
from medstyle.inference.calibrate import Errors, scores_of
from medstyle.networks.conformal import FLOOR, LEVEL, Interval, bound, too_few

Mask = NDArray[np.bool_]


class Number(NamedTuple):
    """A number of one subject, in any unit.

    Attributes:
        estimate: from the output.
        spread: how far it moves with the output's deviation; above 0.
        truth: from the real target.
    """

    estimate: float
    spread: float
    truth: float

    @property
    def error(self) -> float:
        """Absolute difference of estimate and truth."""
        return abs(self.estimate - self.truth)


class Region(NamedTuple):
    """A region as found in an output, and in the same moved by its deviation, ``(D, H, W)`` each.

    Attributes:
        found: in the output.
        low, high: in the output less and plus its deviation.
        truth: the true region.
    """

    found: Mask
    low: Mask
    high: Mask
    truth: Mask


def numbers_of(region: Region, values: Array, sigma: Array, real: Array, voxel_ml: float) -> dict[str, Number]:
    """Return the volume in ml and, unless the region is empty, the mean value of a region.

    The spread of the volume is half the voxels that enter or leave the region between less and plus
    one deviation, and one more, because no volume is known better than that. The spread of the mean
    is the mean deviation, as if the errors of all voxels were the same.

    Args:
        region: found and true.
        values, sigma, real: output, its deviation and the real target, ``(D, H, W)``, in one unit.
        voxel_ml: volume of a voxel.
    """
    half = (int((region.low ^ region.high).sum()) + 1) / 2
    numbers = {"volume": Number(*(voxel_ml * float(n) for n in (region.found.sum(), half, region.truth.sum())))}
    if region.found.any() and region.truth.any():
        means = (values[region.found].mean(), max(sigma[region.found].mean(), 1e-9), real[region.truth].mean())
        numbers["mean"] = Number(*map(float, means))
    return numbers


def half_width(calibration: Sequence[Number], spread: float, level: float = LEVEL) -> float | None:
    """Return the half width of the interval of a new subject's number; None if there are too few.

    To each spread, ``FLOOR`` times the mean spread is added, because some are near 0 by chance. The
    mean includes the new subject: all are treated alike, so they stay exchangeable.

    Args:
        calibration: the number of each calibration subject.
        spread: how far that of the new subject moves with the output's deviation.
        level: probability that the interval holds.
    """
    spreads = np.array([*(one.spread for one in calibration), spread])
    scales = spreads + FLOOR * spreads.mean()
    factor = bound(np.array([one.error for one in calibration]) / scales[:-1], level)
    return None if factor is None else factor * float(scales[-1])


def number_row(calibration: Sequence[Number], unseen: Sequence[Number], level: float = LEVEL) -> dict[str, float]:
    """Calibrate the interval of a number and measure it; empty if there are too few subjects.

    Returns:
        Shares ``covered`` of the unseen subjects and mean ``width``, and the same with
        ``constant_`` in front for an interval of one width for all subjects.
    """
    constant = bound([one.error for one in calibration], level)
    halves = [half for one in unseen if (half := half_width(calibration, one.spread, level)) is not None]
    if constant is None or not halves:
        return {}
    return {
        "calibration": float(len(calibration)),
        "unseen": float(len(unseen)),
        "covered": float(np.mean([one.error <= half for one, half in zip(unseen, halves, strict=True)])),
        "width": float(2 * np.mean(halves)),
        "constant_covered": float(np.mean([one.error <= constant for one in unseen])),
        "constant_width": 2 * constant,
    }


def voxel_row(interval: Interval, unseen: Iterable[Errors]) -> dict[str, float]:
    """Measure the interval of the voxels; empty if the translator has none.

    A subject is covered if the share ``interval.level`` of its voxels is; ``voxels`` is the mean
    share. Widths are in [0, 1] units of the target.
    """
    if interval.factor is None or interval.constant is None:
        return {}
    rows = []
    for one in unseen:
        score, plain = scores_of(one, interval.level)
        inside = float((one.error <= interval.factor * one.scale).mean())
        width = float(interval.factor * one.scale.mean())  # two halves in units of length 2
        rows.append((score <= interval.factor, width, plain <= interval.constant, inside))
    covered, width, constant_covered, voxels = np.mean(rows, axis=0).tolist()
    return {
        "calibration": float(interval.subjects),
        "unseen": float(len(rows)),
        "covered": covered,
        "width": width,
        "constant_covered": constant_covered,
        "constant_width": interval.constant,
        "voxels": voxels,
    }


def intervals(
    interval: Interval,
    errors: Iterable[Errors],
    calibration: Sequence[Mapping[str, Number]],
    unseen: Sequence[Mapping[str, Number]],
) -> dict[str, Any]:
    """Return the section ``intervals`` of ``metrics.json``.

    Args:
        interval: of the translator.
        errors: of the voxels of unseen subjects.
        calibration, unseen: name -> number, for each validation and each unseen subject.
    """
    names = dict.fromkeys(name for one in unseen for name in one)
    rows = {"voxels": voxel_row(interval, errors)}
    for name in names:
        known, new = ([one[name] for one in of if name in one] for of in (calibration, unseen))
        rows[name] = number_row(known, new)
    return {
        "level": interval.level,
        "missing": too_few(len(calibration)) or interval.missing,
        "table": {name: row for name, row in rows.items() if row},
    }
