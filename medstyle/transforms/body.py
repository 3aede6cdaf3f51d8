"""What air is, and the box around a body."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MARGIN = 8  # pixels of air that the generator sees around a body, in training and in use


BOX = 16  # sides of the box around a body are multiples of this, or few of them would be alike


def box_around(extent: Sequence[int], size: Sequence[int], multiple: int) -> tuple[slice, slice]:
    """Return the rows and columns that a generator sees of a slice, in training and in use.

    What it paints depends on the share of air that it sees, through the statistics of its normalisation.

    Args:
        extent: first and last row, first and last column of the body; whole slices where it is empty.
        size: of the slice, ``(H, W)``.
        multiple: of the generator: sides are multiples of it, as far as the slice is large enough.
    """
    top, bottom, left, right = extent
    if bottom < top:
        return slice(0, size[0]), slice(0, size[1])
    sides = []
    multiple = math.lcm(multiple, BOX)
    for low, high, length in ((top, bottom, size[0]), (left, right, size[1])):
        side = min(length, -(-(high - low + 1 + 2 * MARGIN) // multiple) * multiple)
        start = min(max(0, low - MARGIN), length - side)
        sides.append(slice(start, start + side))
    return sides[0], sides[1]


def extent_of(body: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the first and last row, first and last column of the body ``(..., H, W)``; an empty one ends before 0."""
    planes = body.reshape(-1, *body.shape[-2:])
    rows, columns = (np.flatnonzero(planes.any(axis=(0, axis))) for axis in (2, 1))
    if not len(rows):
        return body.shape[-2], -1, body.shape[-1], -1
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])
