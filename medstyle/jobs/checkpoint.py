"""Save and load resumable states: scratch files that are never an output.

The name of the folder depends on everything that determines the run, so a changed parameter, data
set or code version starts afresh. A file appears under its name only when it is complete. The last
two files are kept, and the older one is used if the newer one is damaged.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from medstyle.errors import DiskFull, OutputError
from medstyle.jobs.atomic import FULL

KEEP = 2


def run_key(*parts: object) -> str:
    """Hash what determines a run; equal parts give equal keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def save_state(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write the state after ``step`` steps.

    The file is complete and synced before it gets its name.

    Raises:
        UserError: it cannot be written, for example on a full disk; earlier states are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / "writing"
    try:
        with scratch.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:  # torch's writer turns a short write into a RuntimeError
        scratch.unlink(missing_ok=True)  # frees the space that the incomplete file takes
        full = isinstance(error, RuntimeError) or error.errno in FULL
        cause = error.strerror if isinstance(error, OSError) else "the disk is full"
        raise (DiskFull if full else OutputError)(
            f"{folder}: the state after step {step} cannot be written ({cause}); free disk space and run the same "
            "command again: it resumes from the previous state"
        ) from None
    scratch.replace(folder / f"step-{step:09d}.pt")
    for old in _states(folder)[KEEP:]:
        old.unlink(missing_ok=True)


def load_state(folder: Path) -> dict[str, Any] | None:
    """Return the newest readable state, or None.

    Only tensors and plain values are read, so no code can run.
    """
    for path in _states(folder):
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # a damaged archive raises many types of errors
            path.unlink(missing_ok=True)
            continue
        return state
    return None


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.pt"), reverse=True)
