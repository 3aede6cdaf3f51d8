"""Move files and folders, also to other file systems; a crash neither loses nor doubles one."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from medstyle.jobs.atomic import disk, part_of, remove, sync

MOVED = ".moved"  # beside a source: what has been copied to another file system


def move(source: Path, root: Path, relative: Path, check: Callable[[Path], None]) -> None:
    """Move ``source`` to ``root / relative``, unless ``check`` of its new place raises an error.

    To another file system a copy is made beside its place and synced. Then the source goes to
    ``.moved/relative`` beside it in one step, from which moment the copy counts: it gets its name,
    and the source is removed. :func:`finish_moves` does what a crash after that step left undone; a
    crash before it has changed nothing.

    Raises:
        OSError: it cannot be read, written or removed.
        DiskFull: there is no room for the copy.
    """
    place = root / relative
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        _rename(source, place, check)
        return
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
    part, taken = part_of(place), source.parent / MOVED / relative
    remove(part)  # left by a process that was killed
    try:
        with disk(place, part):
            if source.is_dir() and not source.is_symlink():
                shutil.copytree(source, part, symlinks=True, copy_function=_copy)
            else:
                _copy(source, part)
            sync(part)
        taken.parent.mkdir(parents=True, exist_ok=True)
        _rename(source, taken, check)
    except BaseException:
        remove(part)
        raise
    _finish(taken, source, place)


def finish_moves(folder: Path, root: Path) -> None:
    """Finish the moves from ``folder`` to below ``root`` that were interrupted."""
    for taken in sorted((folder / MOVED).glob("*/*/*")):
        _finish(taken, folder / taken.name, root / taken.relative_to(folder / MOVED))


def _rename(source: Path, place: Path, check: Callable[[Path], None]) -> None:
    source.rename(place)
    try:
        check(place)
    except BaseException:
        place.rename(source)
        raise


def _finish(taken: Path, source: Path, place: Path) -> None:
    part = part_of(place)
    if os.path.lexists(part):  # else it has its name already
        if _content(part) != _content(taken):  # something was added after it had been copied
            taken.rename(source)
            remove(part)
            return
        part.replace(place)
    remove(taken)
    with suppress(OSError):  # until a folder still holds another
        for folder in taken.parents[: len(taken.relative_to(source.parent).parts) - 1]:
            folder.rmdir()


def _copy(source: os.PathLike[str] | str, target: os.PathLike[str] | str) -> None:
    """Copy a file or a link; of a pipe or a device there is nothing to keep."""
    if Path(source).is_symlink() or Path(source).is_file():
        shutil.copy2(source, target, follow_symlinks=False)


def _content(path: Path) -> dict[Path, int]:
    """Return the sizes of the files and links by their place."""
    files = (one for one in (path, *sorted(path.rglob("*"))) if one.is_symlink() or one.is_file())
    return {one.relative_to(path): one.lstat().st_size for one in files}
