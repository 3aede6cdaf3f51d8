"""Create the raw data: by default, studies of the digital brain phantom."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medstyle.jobs.atomic import atomic
from medstyle.jobs.progress import track
from medstyle.phantom.studies import PhantomParams, write_phantom

Params = PhantomParams


def run(params: Params, out: Path, log: Callable[[str], None] | None = None) -> None:
    """Write the phantom's studies and truth to the new folder ``out``, atomically.

    An older ``out`` is replaced when the new one is complete.
    """
    with atomic(out) as part:
        write_phantom(part, params, progress=track)
    if log:
        log(f"{params.subjects} subjects x {len(params.domains)} series in {out}")
