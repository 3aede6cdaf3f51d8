"""The images of one training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Alike(NamedTuple):
    """Another person at the same place of the body, by the atlas.

    ``image`` as the batch's target; ``seen (N, 1, ...)`` above 0 where the scan reaches; size of a voxel, z first.
    """

    image: Tensor
    seen: Tensor
    voxel_mm: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """One step's images in network units; ``N`` examples.

    Attributes:
        source: ``(N, C_in, ...)``, what the generator sees: contrasts (the source first), each with its neighbours.
        target: ``(N, C, ...)`` an image of the target domain.
        source_index, target_index: ``(N,)`` style indices.
        paired: ``(N,)`` bool: the target shows the same place of the same subject.
        seeds: one for each example, for whatever a loss samples.
        step: number of the step.
        progress: share of the steps that are done, in [0, 1).
        alike: what the target's scan shows where the source is; only for ``population``.
    """

    source: Tensor
    target: Tensor
    source_index: Tensor
    target_index: Tensor
    paired: Tensor
    seeds: Sequence[int]
    step: int
    progress: float
    alike: Alike | None = None
