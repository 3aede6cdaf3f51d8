"""Write files and folders atomically: they appear under their name when complete, or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medstyle.errors import Code, DiskFull, UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MORE = 1 << 20  # bytes for which a disk is asked after an unexplained error


def part_of(path: Path, own: bool = False) -> Path:
    """Return the path beside ``path`` at which it is written until it is complete, with its suffix.

    ``own`` adds the process id, for paths that several processes may write at once.
    """
    return path.with_name(f".part-{os.getpid()}-{path.name}" if own else f".part-{path.name}")


@contextmanager
def atomic(path: Path, *, own: bool = False, part: Path | None = None) -> Iterator[Path]:
    """Yield a path beside ``path`` for a file or a folder; at the end it replaces ``path``.

    After an error, nothing is left and ``path`` is unchanged. What was written is synced to the
    disk before it is renamed, so that a power cut does not leave an empty file.

    Args:
        path: the final name.
        own: see :func:`part_of`.
        part: the path to yield, if that of :func:`part_of` does not suit.

    Raises:
        DiskFull: the disk is full, whatever the writer called it.
    """
    part = part or part_of(path, own)
    with disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(part)  # left by a process that was killed
        try:
            with disk(path, part):
                yield part
                settle(part, path)
        except BaseException:
            remove(part)
            raise


@contextmanager
def disk(path: Path, part: Path | None = None) -> Iterator[None]:
    """Turn the error of a full disk into :class:`DiskFull`, which names ``path``.

    Libraries give such an error other names. The disk is therefore asked for a little more at
    ``part`` after any error that has no number; it answers with its own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = error.errno if isinstance(error, OSError) else None
        if number is None and part is not None:
            number = _refusal(part)
        if number in FULL:
            raise DiskFull(f"{Code.E_DISK_FULL}: {path}: the disk is full; free disk space and repeat") from error
        raise


def _refusal(part: Path) -> int | None:
    """Return the number of the error with which the disk refuses to take more."""
    try:
        with (part / ".more" if part.is_dir() else part).open("ab") as file:
            file.write(bytes(MORE))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    return None


def settle(part: Path, path: Path) -> None:
    """Give what was written at ``part`` its name, once the disk has it."""
    sync(part)
    if part.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    part.replace(path)


def sync(path: Path) -> None:
    """Have the disk write a file, or a folder with everything in it."""
    for one in (path, *sorted(path.rglob("*"))):
        if not one.is_symlink() and (one.is_file() or one.is_dir()):
            descriptor = os.open(one, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


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


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
