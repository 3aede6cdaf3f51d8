"""Define air, and compute the bounding box of a body."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Values = TypeVar("Values")  # an array or a tensor
Extent = tuple[int, int, int, int]  # first and last row, first and last column of a body

AIR = -1.0  # network units
MARGIN = 8  # pixels of air that the generator sees around a body, in training and in inference
BOX = 16  # sides of the box around a body are multiples of this, so that many boxes have the same size


def is_body(values: Values) -> Values:
    """Return where values in network units are above air, with a tolerance for half precision.

    NaN counts as body.
    """
    body: Values = ~(values <= AIR + 1e-3)  # type: ignore[operator,assignment]
    return body


def extent_of(body: NDArray[np.bool_]) -> Extent | None:
    """Return the extent of a body ``(..., H, W)`` over all its slices; None if there is none."""
    planes = body.reshape(-1, *body.shape[-2:])
    rows, columns = (np.flatnonzero(planes.any(axis=(0, axis))) for axis in (2, 1))
    if not len(rows):
        return None
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


def union(extents: Iterable[Extent | None]) -> Extent | None:
    """Return the extent that contains all of ``extents``; None if all are empty."""
    some = [extent for extent in extents if extent is not None]
    if not some:
        return None
    top, bottom, left, right = zip(*some, strict=True)
    return min(top), max(bottom), min(left), max(right)


def box_around(extent: Extent | None, size: Sequence[int], multiple: int) -> tuple[slice, slice]:
    """Return the rows and columns of a slice that a generator sees, in training and in inference.

    Its output depends on the share of air that it sees, through the statistics of its
    normalisation.

    Args:
        extent: extent of the body; None for whole slices.
        size: size of the slice, ``(H, W)``.
        multiple: multiple of the generator; sides are multiples of it if the slice is large enough.
    """
    if extent is None:
        return slice(0, size[0]), slice(0, size[1])
    top, bottom, left, right = extent
    sides = []
    multiple = math.lcm(multiple, BOX)
    for low, high, length in ((top, bottom, size[0]), (left, right, size[1])):
        side = min(length, -(-(high - low + 1 + 2 * MARGIN) // multiple) * multiple)
        start = min(max(0, low - MARGIN), length - side)
        sides.append(slice(start, start + side))
    return sides[0], sides[1]
