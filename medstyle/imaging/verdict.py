"""What became of one file: used, skipped or refused, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text


@dataclass(frozen=True)
class FileVerdict:
    """What became of one file.

    Attributes:
        path: as it was found; it may hold patient data.
        verdict: ``used``, ``skipped`` (nothing that could be used) or ``refused`` (something is wrong with it).
        code: a :class:`~medstyle.errors.Code`, "" where nothing is to be said.
        reason: the numbers behind the code and the remedy, without patient data.
    """

    path: Path = field(repr=False)
    verdict: Literal["used", "skipped", "refused"]
    code: str = ""
    reason: str = ""
