"""Errors that a person can act on: one line that names the cause and the remedy, never a traceback."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator

USABLE = ("", "E_TILT_NEEDS_RESAMPLE")  # codes of an image that may be read without a person's word
MARK = "__patient_data__"  # a module with this global reads or holds what hospitals send, wherever it may be moved


class UserError(Exception):
    """Bad input or configuration. The command line prints the message and exits with code 2."""


class Refusal(UserError):
    """An input that cannot be used.

    ``code`` is stable and machine-readable (``E_GAP``, ``E_NOT_DICOM``…); the message holds the numbers and the
    remedy and never patient data.
    """

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason

    def __reduce__(self) -> tuple[type[Refusal], tuple[str, str]]:
        """Say how another process makes it again."""
        return type(self), (self.code, self.reason)


def outline(error: BaseException) -> str:
    """Return the traceback of an error that nobody expected, without its text where it may quote a header or a path.

    That is where it passed through a module that is marked as handling patient data (:data:`MARK`);
    ``MEDSTYLE_DEBUG`` in the environment shows the text.
    """
    frames = (frame for one in _chain(error) for frame, _ in traceback.walk_tb(one.__traceback__))
    near = any(MARK in frame.f_globals for frame in frames)
    if not near or os.environ.get("MEDSTYLE_DEBUG"):
        return "".join(traceback.format_exception(error))
    lines = traceback.format_list(traceback.extract_tb(error.__traceback__))
    return f"{''.join(lines)}{type(error).__name__}: its text may hold patient data; MEDSTYLE_DEBUG=1 shows it\n"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
