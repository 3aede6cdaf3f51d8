"""What was measured on one subject."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import UserError
from medstyle.evaluation.protocols import PROTOCOLS
from medstyle.params import params

Array = NDArray[np.float32]


Measure = Callable[..., dict[str, float]]


def _unit(scaled: NDArray) -> Array:
    """Network units to [0, 1]."""
    return ((np.clip(scaled, -1, 1) + 1) / 2).astype(np.float32)


@params
class Params:
    """What is measured."""

    protocol: str = "plain"
    """Metric definition: plain or selfrdb for paired scans, synthrad2025 for a CT target, paired_pictures; without
    pairs unpaired_scans, or unpaired for pictures."""
    figures: int = 6
    """Most subjects to draw."""
    steady: float = 0.8
    """Videos in `truth/`, of a model of pictures: share of the frame before, as of `medstyle translate --steady`."""
    uncertainty: int = 6
    """Most subjects whose uncertainty is computed and compared with the error; several times the work for each."""
    clip_frames: int = 60
    """Of each of these videos only so many frames are measured and shown."""
    segmenter: int = 300
    """Training steps of the segmenter that looks for the structures of `truth/<subject>/labels.nii.gz` in real and
    synthetic images; 0: none."""
    seed: int = 0
    """Of the bootstrap and of the segmenter."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise UserError(f"evaluate.protocol: {self.protocol!r} is none of {', '.join(PROTOCOLS)}")
