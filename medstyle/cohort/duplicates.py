"""Find images that are identical or nearly identical."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from medstyle.imaging.picture import Pixels, from_unit, to_unit

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def near_duplicates(images: NDArray[np.float32], limit: float, chunk: int = 1024) -> Iterator[tuple[int, int]]:
    """Yield ``(i, j)``, i < j, for rows of ``images (n, k)`` that correlate by more than ``limit``.

    Each row must have length 1.
    """
    for start in range(0, len(images), chunk):
        for i, j in np.argwhere(images[start : start + chunk] @ images.T > limit):
            if start + i < j:
                yield int(start + i), int(j)


def volume_signature(stored: torch.Tensor) -> NDArray[np.float32]:
    """Return ``(D, C, H, W)`` at 8 x 16 x 16 per channel, flat, centred, of length 1."""
    small = torch.nn.functional.adaptive_avg_pool3d(stored.float().transpose(0, 1)[None], (8, 16, 16)).flatten()
    small -= small.mean()
    return np.asarray(small / small.norm().clamp(min=1e-6))


def picture_signature(pixels: Pixels) -> NDArray[np.float32]:
    """Return ``(H, W, 3)`` downsampled to 16 x 16 pixels, flat, centred, of length 1."""
    from PIL import Image

    small = Image.fromarray(from_unit(to_unit(pixels), np.uint8)).resize((16, 16), Image.Resampling.BOX)
    flat = np.asarray(small, np.float32).ravel()
    flat -= flat.mean()
    return flat / np.maximum(np.linalg.norm(flat), np.float32(1e-6))
