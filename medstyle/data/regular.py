"""Resample irregular scans to a regular grid on explicit request: fill gaps, straighten tilt."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from medstyle.dicom.read import read_series
from medstyle.dicom.scan import POSITION_TOLERANCE_MM, SPACING_TOLERANCE, Series
from medstyle.errors import Code, Refusal
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def read_with_gaps(series: Series, domain: str, *, allow: Collection[str] = ()) -> tuple[Volume, int]:
    """Read a series refused with ``E_GAP`` on the grid of its smallest spacing.

    Slices between two measured ones are interpolated linearly along the stack; the count is the
    number of interpolated slices. The positions must lie on one straight line, and the measured
    slices must make up at least half of the new ones; otherwise the series is not one scan.

    Raises:
        Refusal: ``E_GAP`` if that is not the case; the refusals of :func:`read_series`.
    """
    if series.code != Code.E_GAP:
        return read_series(series, domain, allow=allow), 0
    if "BURNED_IN_UNKNOWN" in series.flags and Code.E_BURNED_IN not in allow:
        raise Refusal(Code.E_BURNED_IN, "the pixels may show patient data; inspect them, then allow the code")
    first = series.frames[0]
    positions = np.array([frame.position for frame in series.frames])
    whole = positions[-1] - positions[0]
    length = float(np.linalg.norm(whole))
    along = (positions - positions[0]) @ (whole / length)  # mm
    off = float(np.abs(positions - positions[0] - np.outer(along / length, whole)).max())
    step = float(np.diff(along).min())
    if off > max(POSITION_TOLERANCE_MM, SPACING_TOLERANCE * step):
        raise Refusal(Code.E_GAP, f"slice positions leave a straight line by {off:.3f} mm; split the series")
    depth = round(length / step) + 1
    if depth > 2 * len(positions):
        raise Refusal(
            Code.E_GAP, f"{depth} slices would be made from only {len(positions)}; split the series at its gaps"
        )
    row_mm, column_mm = first.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = (np.array(first.orientation).reshape(2, 3).T * (column_mm, row_mm)).T
    affine[:3, 2], affine[:3, 3] = whole / (depth - 1), positions[0]
    measured = read_series(replace(series, kind="volume", code="", affine=affine), domain, allow=allow).voxels
    wanted = np.linspace(0, length, depth)
    above = np.clip(np.searchsorted(along, wanted), 1, len(along) - 1)
    weight = (wanted - along[above - 1]) / (along[above] - along[above - 1])
    weight = np.clip(weight, 0, 1).astype(np.float32)[:, None, None]
    voxels = measured[above - 1] * (1 - weight) + measured[above] * weight
    made_up = int((np.abs(wanted[:, None] - along).min(axis=1) > POSITION_TOLERANCE_MM).sum())
    return Volume(voxels.astype(np.float32), affine, domain), made_up


def straighten(volume: Volume) -> Volume:
    """Resample a sheared volume (gantry tilt) so that its slice axis is the normal of its planes.

    Each slice is shifted within its plane by bilinear interpolation, on a canvas that contains all
    of them; the outside is air. The planes themselves do not move.
    """
    columns, rows = volume.affine[:3, 0], volume.affine[:3, 1]
    normal = np.cross(columns, rows)
    normal /= np.linalg.norm(normal)
    step = volume.affine[:3, 2]
    per_slice, *_ = np.linalg.lstsq(np.column_stack([columns, rows]), step - normal * (step @ normal), rcond=None)
    depth, height, width = volume.voxels.shape
    shifts = np.arange(depth)[:, None] * per_slice  # (D, 2): columns, rows, in pixels
    low, high = np.floor(shifts.min(axis=0)).astype(int), np.ceil(shifts.max(axis=0)).astype(int)
    air = DOMAINS[volume.domain].air
    voxels = np.full((depth, height + high[1] - low[1], width + high[0] - low[0]), air, np.float32)
    for k, shift in enumerate(shifts - low):
        _shift_into(voxels[k], volume.voxels[k], shift, air)
    affine = volume.affine.copy()
    affine[:3, 2] = normal * (step @ normal)
    affine[:3, 3] += columns * low[0] + rows * low[1]
    return Volume(voxels, affine, volume.domain)


def _shift_into(out: NDArray[np.float32], pixels: NDArray[np.float32], shift: NDArray[np.float64], air: float) -> None:
    """Write ``pixels`` ``(H, W)`` to ``out``, moved by ``shift`` (columns, rows), on air."""
    (x, y), (fx, fy) = np.floor(shift).astype(int), shift - np.floor(shift)
    padded = np.pad(pixels, 1, constant_values=air)
    across = padded[:, 1:] * (1 - fx) + padded[:, :-1] * fx
    moved = across[1:] * (1 - fy) + across[:-1] * fy
    area = out[y : y + moved.shape[0], x : x + moved.shape[1]]
    area[:] = moved[: area.shape[0], : area.shape[1]]
