"""Read the size of an image from its compressed bytes, before a codec believes it."""

from __future__ import annotations

from typing import NamedTuple

_JPEG, _JPEG2000 = b"\xff\xd8", b"\xff\x4f\xff\x51"  # start of image; start of codestream and its size marker
_START_OF_FRAME = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # F7: JPEG-LS; those left out: tables
_MOST_TILES = 65535  # of a JPEG 2000 codestream (ISO/IEC 15444-1, table A.11)


class FrameSize(NamedTuple):
    """Extent of an image, and its number of components (1 for grey, 3 for colours)."""

    rows: int
    columns: int
    samples: int


def frame_size(data: bytes) -> FrameSize | None:
    """Return the size that a JPEG, JPEG-LS or JPEG 2000 codestream claims.

    It is read from the frame header (ISO/IEC 10918-1, B.2.2; 14495-1, C.2.2) or from the SIZ
    segment (15444-1, A.5.1). None if there is no such header, or more tiles than the standard
    allows.
    """
    if data.startswith(_JPEG):
        return _jpeg(data)
    start = data.find(_JPEG2000)
    if start < 0 or len(data) < start + 42 or data.count(_JPEG2000) > 1:  # which of them a codec takes is not known
        return None
    values = [int.from_bytes(data[k : k + 4]) for k in range(start + 8, start + 40, 4)]
    width, height, left, top, tile_width, tile_height, tile_left, tile_top = values
    samples = int.from_bytes(data[start + 40 : start + 42])
    if not (tile_width and tile_height):
        return None
    across, down = -(-(width - tile_left) // tile_width), -(-(height - tile_top) // tile_height)
    steps = data[start + 42 : start + 42 + 3 * samples]  # of each component: bits, horizontal and vertical step
    if across * down > _MOST_TILES or len(steps) < 3 * samples or {*steps[1::3], *steps[2::3]} - {1, 2}:
        return None
    return FrameSize(height - top, width - left, samples)


def _jpeg(data: bytes) -> FrameSize | None:
    position = 2
    while position + 10 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker in _START_OF_FRAME:
            rows, columns = (int.from_bytes(data[k : k + 2]) for k in (position + 5, position + 7))
            return FrameSize(rows, columns, data[position + 9])
        # fill bytes have no length (ISO/IEC 10918-1, B.1.1.2)
        position += 1 if marker == 0xFF else 2 + int.from_bytes(data[position + 2 : position + 4])
    return None
