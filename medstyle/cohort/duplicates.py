"""Images that are the same, or nearly the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from medstyle.imaging.picture import Pixels, from_unit, to_unit

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text


def near_duplicates(images: NDArray[np.float32], limit: float, chunk: int = 1024) -> Iterator[tuple[int, int]]:
    """Yield ``(i, j)``, i < j, where rows of ``images (n, k)``, each of length 1, correlate by more than ``limit``."""
    for start in range(0, len(images), chunk):
        for i, j in np.argwhere(images[start : start + chunk] @ images.T > limit):
            if start + i < j:
                yield int(start + i), int(j)


def volume_signature(stored: torch.Tensor) -> NDArray[np.float32]:
    """Return what is left of ``(D, C, H, W)`` at 8 x 16 x 16 per channel, centred and of length 1, flat."""
    small = torch.nn.functional.adaptive_avg_pool3d(stored.float().transpose(0, 1)[None], (8, 16, 16)).flatten()
    small -= small.mean()
    return np.asarray(small / small.norm().clamp(min=1e-6))


def picture_signature(pixels: Pixels) -> NDArray[np.float32]:
    """Return what is left of ``(H, W, 3)`` at 16 x 16 pixels, centred and of length 1, flat."""
    from PIL import Image

    small = Image.fromarray(from_unit(to_unit(pixels), np.uint8)).resize((16, 16), Image.Resampling.BOX)
    flat = np.asarray(small, np.float32).ravel()
    flat -= flat.mean()
    return flat / np.maximum(np.linalg.norm(flat), np.float32(1e-6))
