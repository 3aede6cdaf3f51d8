"""Define the settings of an evaluation and the measurements of one subject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medstyle.data.store import SliceStore
from medstyle.errors import DataError
from medstyle.evaluation.protocols import PROTOCOLS
from medstyle.evaluation.safety import Lesion
from medstyle.imaging.modality import DOMAINS
from medstyle.params import params
from medstyle.pseudonyms import person_of

Array = NDArray[np.float32]
Measure = Callable[..., dict[str, float]]
Means = dict[str, dict[str, float]]  # measure -> mean, sd, low, high


@params
class EvaluateParams:
    """The settings of an evaluation."""

    protocol: str = "plain"
    """Definition of the metrics: plain or selfrdb for paired scans, synthrad2025 for a CT target,
    paired_pictures for paired pictures; without pairs, unpaired_scans for scans and unpaired for
    pictures."""
    figures: Annotated[int, Field(ge=0)] = 6
    """Largest number of subjects to draw."""
    temporal_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """For the videos in `truth/` of a picture model: share of the previous frame, as in `medstyle
    translate --temporal-smoothing`."""
    uncertainty: Annotated[int, Field(ge=0)] = 6
    """Largest number of subjects whose uncertainty is computed and compared with the error; each
    costs several times the work."""
    intervals: Annotated[int, Field(ge=0)] = 100
    """Largest number of validation subjects that calibrate intervals of numbers, and of unseen ones
    on which intervals are measured; each costs several times the work. Below 9 there are none."""
    clip_frames: Annotated[int, Field(ge=1)] = 60
    """Number of frames of each of these videos that are measured and shown."""
    segmenter: Annotated[int, Field(ge=0)] = 300
    """Training steps of the segmenter that finds the structures of `truth/<subject>/labels.nii.gz`
    in real and synthetic images; 0 switches it off."""
    seed: int = 0
    """Seed of the bootstrap and of the segmenter."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise DataError(f"evaluate.protocol: {self.protocol!r} is none of {', '.join(PROTOCOLS)}")


@dataclass(frozen=True)
class Subject:
    """One unseen subject.

    Attributes:
        key: key of the subject.
        number: its position among the subjects, from 0; costly measurements are made for the first
            ones only.
        images: domain -> canonical file.
    """

    key: str
    number: int
    images: Mapping[str, Path]


class Row(NamedTuple):
    """The scores of one method on one subject, compared with one reference."""

    subject: str
    reference: str
    method: str
    measures: Mapping[str, float]


class Figure(NamedTuple):
    """Slices to draw: one column of images per title, one row per label."""

    columns: Mapping[str, Array]
    labels: Sequence[str]


@dataclass(frozen=True)
class Measured:
    """The measurements of one subject; those that do not apply are empty.

    Attributes:
        rows: scores of the model and of the baselines.
        figure: slices of a scan.
        sheet: all versions of a picture, for the contact sheet.
        layers: all versions of a few slices, for the viewer of the page.
        lesions: known lesions and their contrast in the output.
        safety: measure -> value.
        structures: label -> measure -> value, by the segmenter.
        descriptors: kind of image -> its 21 descriptors.
        deep: method -> features of its slices by the segmenter; includes ``real``.
        outputs: method -> picture, for the distance between whole sets.
    """

    rows: Sequence[Row]
    figure: Figure | None = None
    sheet: Mapping[str, Array] = field(default_factory=dict)
    layers: Mapping[str, Array] = field(default_factory=dict)
    lesions: Sequence[Lesion] = ()
    safety: Mapping[str, float] = field(default_factory=dict)
    structures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    descriptors: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    deep: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    outputs: Mapping[str, Array] = field(default_factory=dict)


class Measurer(Protocol):
    """Measures subjects one by one; the result does not depend on earlier subjects."""

    def __call__(self, subject: Subject) -> Measured:
        """Measure a subject."""


def unit(scaled: NDArray) -> Array:
    """Map network units to [0, 1]."""
    return ((np.clip(scaled, -1, 1) + 1) / 2).astype(np.float32)


def subjects_to_measure(
    store: SliceStore, protocol: str, source: str, targets: Sequence[str], contrasts: Sequence[str]
) -> dict[str, str]:
    """Return the unseen subjects that ``protocol`` can measure, and the target of each.

    Of several sessions of a person, the first is used. With pairs, a subject is measured against
    the first of ``targets`` that it has (:func:`targets_of`).

    Raises:
        UserError: there is no such subject, or the target does not have the unit of the protocol.
    """
    definition, target = PROTOCOLS[protocol], targets[0]
    if definition.unit == "HU" and DOMAINS[target].unit != "HU":
        raise DataError(f"evaluate.protocol: {protocol} measures CT numbers; {target} has none")
    found: dict[str, str] = {}
    for one in targets if definition.paired else (target,):
        people = set(map(person_of, found))
        complete = store.complete("test", {source, *contrasts, *([one] if definition.paired else [])})
        found |= {key: one for key in complete if person_of(key) not in people}
    if not found:
        needed = {source, *contrasts, *([target] if definition.paired else [])}
        remedy = "raise denoise.test, or measure without pairs: evaluate.protocol: unpaired_scans"
        raise DataError(f"evaluate: no test subject has all of {', '.join(sorted(needed))}; {remedy}")
    return found


def targets_of(source: str, target: str, domains: Sequence[str]) -> list[str]:
    """Return the target, then the learned domains of its contrast at other sites or by other
    protocols (``mr_flair@north``)."""
    contrast = target.partition("@")[0]
    return [target, *(one for one in domains if one.partition("@")[0] == contrast and one not in (source, target))]
