"""Define the images of one training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class MatchedSubject(NamedTuple):
    """Another subject's image of the same body location, found through the common space.

    Attributes:
        image: laid out like the batch's target.
        seen: ``(N, 1, ...)``, above 0 where the scan covers the location.
        voxel_mm: size of a voxel, z first.
    """

    image: Tensor
    seen: Tensor
    voxel_mm: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """The images of one step in network units, for ``N`` examples.

    Attributes:
        source: ``(N, C_in, ...)``, the input of the generator: the source first, then the other
            contrasts, each with its neighbouring slices.
        target: ``(N, C, ...)``, an image of the target domain.
        source_index, target_index: ``(N,)`` style indices.
        paired: ``(N,)`` bool, True where the target shows the same slice of the same subject.
        seeds: one seed per example, for losses that sample.
        step: number of the step.
        progress: share of the steps that are done, in [0, 1).
        whole: the images of the target domain of which ``target`` is a window; without windows they
            are the same.
        matched: what the target's scan shows at the location of the source; only with
            ``cross_subject``.
    """

    source: Tensor
    target: Tensor
    source_index: Tensor
    target_index: Tensor
    paired: Tensor
    seeds: Sequence[int]
    step: int
    progress: float
    whole: Tensor
    matched: MatchedSubject | None = None
