"""The images of one training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class MatchedSubject(NamedTuple):
    """Another subject at the same place of the body, by the common space.

    Attributes:
        image: as the batch's target.
        seen: ``(N, 1, ...)``, above 0 where the scan reaches.
        voxel_mm: size of a voxel, z first.
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
        matched: what the target's scan shows where the source is; only for ``cross_subject``.
    """

    source: Tensor
    target: Tensor
    source_index: Tensor
    target_index: Tensor
    paired: Tensor
    seeds: Sequence[int]
    step: int
    progress: float
    matched: MatchedSubject | None = None
