"""Create the raw data: studies of the digital brain phantom, or heads from label maps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from medstyle.jobs.atomic import atomic
from medstyle.jobs.progress import track
from medstyle.phantom.simulated import write_heads
from medstyle.phantom.studies import PhantomParams, write_phantom

Params = PhantomParams


def run(params: Params, out: Path, log: Callable[[str], None] | None = None) -> None:
    """Write the studies and their truth to the new folder ``out``, atomically.

    An older ``out`` is replaced when the new one is complete.
    """
    with atomic(out) as part:
        if params.labels:
            write_heads(part, params, progress=track)
        else:
            write_phantom(part, params, progress=track)
    if log:
        log(f"{params.subjects} subjects x {len(params.domains)} series in {out}")
