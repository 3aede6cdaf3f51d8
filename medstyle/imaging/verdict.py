"""Define the verdict on one file: used, skipped or refused, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


@dataclass(frozen=True)
class FileVerdict:
    """The verdict on one file.

    Attributes:
        path: as it was found; it may contain patient data.
        verdict: ``used``, ``skipped`` (nothing in it is usable) or ``refused`` (something is wrong
            with it).
        code: a :class:`~medstyle.errors.Code`, "" if there is nothing to report.
        reason: the numbers behind the code and the remedy, without patient data.
    """

    path: Path = field(repr=False)
    verdict: Literal["used", "skipped", "refused"]
    code: str = ""
    reason: str = ""
