"""What is asked of an evaluation, and what was measured on one subject."""

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
    """What is measured."""

    protocol: str = "plain"
    """Metric definition: plain or selfrdb for paired scans, synthrad2025 for a CT target, paired_pictures; without
    pairs unpaired_scans, or unpaired for pictures."""
    figures: Annotated[int, Field(ge=0)] = 6
    """Most subjects to draw."""
    temporal_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.8
    """Videos in `truth/`, of a model of pictures: share of the frame before, as of `medstyle translate
    --temporal-smoothing`."""
    uncertainty: Annotated[int, Field(ge=0)] = 6
    """Most subjects whose uncertainty is computed and compared with the error; several times the work for each."""
    clip_frames: Annotated[int, Field(ge=1)] = 60
    """Of each of these videos only so many frames are measured and shown."""
    segmenter: Annotated[int, Field(ge=0)] = 300
    """Training steps of the segmenter that looks for the structures of `truth/<subject>/labels.nii.gz` in real and
    synthetic images; 0: none."""
    seed: int = 0
    """Of the bootstrap and of the segmenter."""

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise DataError(f"evaluate.protocol: {self.protocol!r} is none of {', '.join(PROTOCOLS)}")


@dataclass(frozen=True)
class Subject:
    """One unseen subject.

    Attributes:
        key: of the subject.
        number: among the subjects, from 0: what is done for a few subjects only is done for the first ones.
        images: domain -> canonical file.
    """

    key: str
    number: int
    images: Mapping[str, Path]


class Row(NamedTuple):
    """What one method scored on one subject beside one reference."""

    subject: str
    reference: str
    method: str
    measures: Mapping[str, float]


class Figure(NamedTuple):
    """Slices to draw: one column of pictures for each title, one row for each label."""

    columns: Mapping[str, Array]
    labels: Sequence[str]


@dataclass(frozen=True)
class Measured:
    """What was measured on one subject; what does not apply is empty.

    Attributes:
        rows: scores of the model and of the baselines.
        figure: slices of a scan.
        sheet: a picture in all versions, for the contact sheet.
        layers: a few slices in all versions, for the page's viewer.
        lesions: known lesions as the output shows them.
        safety: measure -> value.
        structures: label -> measure -> value, by the segmenter.
        descriptors: kind of image -> its 21 numbers.
        deep: method -> features of its slices by the segmenter; ``real`` among them.
        outputs: method -> picture, for the distance of whole sets.
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
    """Measures one subject after the other; none depends on those before it."""

    def __call__(self, subject: Subject) -> Measured:
        """Measure a subject."""


def unit(scaled: NDArray) -> Array:
    """Bring network units to [0, 1]."""
    return ((np.clip(scaled, -1, 1) + 1) / 2).astype(np.float32)


def subjects_to_measure(
    store: SliceStore, protocol: str, source: str, target: str, contrasts: Sequence[str]
) -> list[str]:
    """Return the unseen subjects that ``protocol`` can measure: of several sessions of a person the first.

    Raises:
        UserError: there is none, or the protocol measures in a unit that the target has not.
    """
    definition = PROTOCOLS[protocol]
    if definition.unit == "HU" and DOMAINS[target].unit != "HU":
        raise DataError(f"evaluate.protocol: {protocol} measures CT numbers; {target} has none")
    needed = {source, *contrasts, *([target] if definition.paired else [])}
    complete = [key for key in store.subjects("test") if needed <= store.domains_of(key)]
    subjects = list({person_of(key): key for key in reversed(complete)}.values())[::-1]
    if not subjects:
        remedy = "raise denoise.test, or measure without pairs: evaluate.protocol: unpaired_scans"
        raise DataError(f"evaluate: no test subject has all of {', '.join(sorted(needed))}; {remedy}")
    return subjects
