"""Locate the tiles of Siemens mosaics (slices in one image) by the private header (CSA, SV10)."""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

import numpy as np

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

_NAMES = frozenset((b"NumberOfImagesInMosaic", b"SliceNormalVector", b"SpacingBetweenSlices"))
_START, _TAG, _ITEM = struct.Struct("<4s4xL4x"), struct.Struct("<64s12xL4x"), struct.Struct("<4xL8x")
_PARALLEL = 1e-3  # largest deviation of the cosine between the two normals from 1 or -1
_MOST = 1024  # largest number of tiles, more than any scanner writes


class Tiling(NamedTuple):
    """The layout of the tiles in the sheet, in rows from the upper left, and their positions."""

    across: int  # tiles along each side of the sheet
    positions: tuple[tuple[float, ...], ...]  # mm, LPS: centre of the first pixel of each tile


def tiling(
    csa: bytes,
    sheet: tuple[int, int],
    position: tuple[float, ...],
    orientation: tuple[float, ...],
    spacing: tuple[float, ...],
    distance: float,
) -> Tiling | None:
    """Return the places of a mosaic's tiles, or None if the headers leave a doubt.

    ImagePositionPatient gives the position of the sheet's first pixel as if the sheet, not its
    first tile, were centred on the slice. Along rows and columns, the first tile therefore begins
    half of the difference in size between sheet and tile further on.

    Args:
        csa: value of (0029,1010).
        sheet: rows and columns of the image.
        position, orientation, spacing: of the sheet, as in :class:`medstyle.dicom.header.Frame`.
        distance: SpacingBetweenSlices (0018,0088) in mm; if it is not positive, the value of the
            private header is used.
    """
    try:
        found = csa_numbers(csa)
    except (ValueError, struct.error):
        return None
    number = found.get("NumberOfImagesInMosaic", ())
    towards = found.get("SliceNormalVector", ())
    step = distance if distance > 0 else next(iter(found.get("SpacingBetweenSlices", ())), 0.0)
    if len(number) != 1 or len(towards) != 3 or not 1 < number[0] <= _MOST or not 0 < step < 1e3:
        return None
    across = math.isqrt(int(number[0]) - 1) + 1
    row, column = np.array(orientation).reshape(2, 3)
    normal = np.cross(row, column)
    cosine = float(normal @ towards)
    if sheet[0] % across or sheet[1] % across or abs(abs(cosine) - 1) > _PARALLEL:
        return None
    beyond = (1 - 1 / across) / 2  # as a share of the sheet
    first = np.array(position) + row * spacing[1] * sheet[1] * beyond + column * spacing[0] * sheet[0] * beyond
    steps = np.arange(int(number[0]))[:, None] * math.copysign(step, cosine) * normal
    return Tiling(across, tuple(map(tuple, (first + steps).tolist())))


def csa_numbers(csa: bytes) -> dict[str, tuple[float, ...]]:
    """Return the numbers that locate the tiles from a CSA header that begins with ``SV10``.

    A tag consists of a name, a count and that number of items; an item is a length and a text
    padded to four bytes. Every tag and every item consumes bytes of ``csa``, so that no count can
    make this slow.

    Raises:
        ValueError, struct.error: another format, or damaged.
    """
    magic, tags = _START.unpack_from(csa)
    if magic != b"SV10":
        raise ValueError("not SV10")
    found: dict[str, tuple[float, ...]] = {}
    position = _START.size
    for _ in range(tags):
        name, items = _TAG.unpack_from(csa, position)
        name = name.partition(b"\0")[0]
        position += _TAG.size
        texts = []
        for _ in range(items):
            (length,) = _ITEM.unpack_from(csa, position)
            position += _ITEM.size
            texts.append(csa[position : position + length].partition(b"\0")[0].strip())
            position += length + -length % 4
            if position > len(csa):
                raise ValueError("cut short")
        if name in _NAMES:  # there are more items than values; the additional ones are empty
            values = tuple(float(text) for text in texts if text)
            if not all(map(math.isfinite, values)):
                raise ValueError("not finite")
            found[name.decode()] = values
    return found
