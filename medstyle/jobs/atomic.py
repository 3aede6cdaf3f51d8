"""Write files and folders atomically: they appear under their name when complete, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_of(path: Path, own: bool = False) -> Path:
    """Return the path beside ``path`` at which it is written until it is complete, with its suffix.

    ``own`` adds the process id, for paths that several processes may write at once.
    """
    return path.with_name(f".part-{os.getpid()}-{path.name}" if own else f".part-{path.name}")


@contextmanager
def atomic(path: Path, *, own: bool = False) -> Iterator[Path]:
    """Yield a path beside ``path`` for a file or a folder; at the end it replaces ``path``.

    After an error, nothing is left and ``path`` is unchanged. A file is synced to the disk before
    it is renamed, so that a power cut does not leave an empty one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path, own)
    _remove(part)  # left by a process that was killed
    try:
        yield part
        settle(part, path)
    except BaseException:
        _remove(part)
        raise


def settle(part: Path, path: Path) -> None:
    """Give what was written at ``part`` its name, once the disk has it."""
    if part.is_file():
        with part.open("rb") as file:
            os.fsync(file.fileno())
    else:
        shutil.rmtree(path, ignore_errors=True)
    part.replace(path)


@contextmanager
def atomic_folder(path: Path, *, own: bool = False) -> Iterator[Path]:
    """Yield a new folder that replaces ``path`` at the end; see :func:`atomic`."""
    with atomic(path, own=own) as part:
        part.mkdir()
        yield part


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, document: object) -> None:
    """Write ``document`` as JSON, atomically."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
