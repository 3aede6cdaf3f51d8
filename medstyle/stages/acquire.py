"""Create the raw data: by default, studies of the digital brain phantom."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from medstyle.jobs.progress import track
from medstyle.phantom.studies import PhantomParams, write_phantom

Params = PhantomParams


def run(params: Params, out: Path, log: Callable[[str], None] | None = None) -> None:
    """Write the phantom's studies and truth to the new folder ``out``, atomically.

    An older ``out`` is replaced when the new one is complete.
    """
    scratch = out.with_name(f".part-{out.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    write_phantom(scratch, params, progress=track)
    shutil.rmtree(out, ignore_errors=True)
    scratch.replace(out)
    if log:
        log(f"{params.subjects} subjects x {len(params.domains)} series in {out}")
