"""Whole files and folders: what is written appears under its name when it is complete, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def part_of(path: Path, own: bool = False) -> Path:
    """Return where ``path`` is written before it is complete: beside it, with its suffix.

    ``own`` names the process, where several may write the same path at once.
    """
    return path.with_name(f".part-{os.getpid()}-{path.name}" if own else f".part-{path.name}")


@contextmanager
def atomic(path: Path, *, own: bool = False) -> Iterator[Path]:
    """Yield a path beside ``path`` to write a file or a folder to; at the end it takes the place of ``path``.

    After an error nothing is left and ``path`` is as it was. A file is on the disk before it gets its name, so that
    a power cut leaves no empty one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path, own)
    _remove(part)  # of a process that was killed
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
    """Yield a new folder that takes the place of ``path`` at the end; see :func:`atomic`."""
    with atomic(path, own=own) as part:
        part.mkdir()
        yield part


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, document: object) -> None:
    """Write ``document`` as JSON, whole."""
    write_text(path, json.dumps(document, indent=1) + "\n")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
