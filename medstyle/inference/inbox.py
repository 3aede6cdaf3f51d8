"""Translate the studies in a watched folder exactly once each, even if the process crashes.

``FOLDER/inbox/*`` are the incoming studies: each is a folder or a file, of scans, or of pictures
and videos for a model of those. A study moves to ``done/<key>`` once ``derived/<key>`` is complete,
or to ``quarantine/<key>`` with the reason. Keys are computed from the bytes of the study and the
model and reveal nothing about the patient. ``ledger.db`` (SQLite) has one row per key, and
``waiting.json`` the reason for each study that had settled but stays in the inbox.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from filelock import FileLock, Timeout

from medstyle.dicom.scan import find_files
from medstyle.errors import Code, DataError, DiskFull, UserError
from medstyle.imaging.modality import DOMAINS
from medstyle.inference.files import About, Request, translate_path
from medstyle.jobs.atomic import atomic_folder, part_of, remove, write_json, write_text
from medstyle.jobs.move import finish_moves, move
from medstyle.jobs.workers import Workers, each
from medstyle.networks.translator import Translator

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

TABLE = """CREATE TABLE IF NOT EXISTS studies
(key TEXT PRIMARY KEY, weights TEXT, status TEXT, code TEXT, series INTEGER, warned INTEGER, finished TEXT)"""
CLOSED = "closed-"  # begins the name of a study that was put into the inbox whole, in one step
DEATHS = 2  # of the process while it works on a study; then the study is not tried again
State = dict[str, tuple[int, ...]]  # size and times of each file of a study


@dataclass(frozen=True)
class Outcome:
    """The outcome of a study, without anything that identifies the patient.

    Attributes:
        key: 16 hexadecimal digits; "" if the study cannot be read.
        status: ``repeated`` is a study that this model has translated before; it is filed, but not
            translated again. ``waiting`` is a study that will be tried again.
        code: why the study is in quarantine or still in the inbox, "" otherwise;
            ``quarantine/<key>/reason.json`` or ``waiting.json`` has the message.
        series: number of derived images or series.
        warned: how many of them have an out-of-distribution warning.
        reason: the message for ``waiting.json``, which may name the patient.
    """

    key: str
    status: Literal["derived", "repeated", "quarantined", "waiting"]
    code: str = ""
    series: int = 0
    warned: int = 0
    reason: str = field(default="", repr=False, compare=False)


class Study(NamedTuple):
    """A study in the inbox: its key is that of the bytes of its files in this state."""

    path: Path
    key: str
    state: State


class Changed(Exception):
    """The files of a study are not those that its key was computed from."""


def process(
    folder: Path,
    translator: Translator,
    *,
    settle_s: float = 60.0,
    target: str | None = None,
    workers: Workers = 1,
    uncertainty: bool = False,
    about: About | None = None,
) -> Generator[Outcome]:
    """Translate every study in ``folder/inbox`` that has not changed for ``settle_s``.

    One whose name begins with ``closed-`` is taken at once.

    Every step can be repeated: an output appears under its final name in one step, then its row is
    added to the ledger, and the source is moved last. The next call completes whatever a crash has
    left unfinished. A study that cannot be read or moved, that changes, or for which the disk has
    no room, stays in the inbox until a later call; it stops no other.

    Args:
        folder: contains ``inbox``; the other folders are created.
        translator: the translator to use.
        settle_s: seconds for which no file of a study may have changed.
        target: target domain; default: the one that the translator was trained for.
        workers: number of studies that are translated in parallel, or a cluster: see
            :func:`medstyle.jobs.workers.each`.
        uncertainty, about: of the :class:`Request` for each study.

    Raises:
        UserError: ``folder/inbox`` does not exist, or another process works in ``folder``.
        OSError: ``folder`` itself cannot be read or written.
    """
    inbox = folder / "inbox"
    if not inbox.is_dir():
        raise DataError(f"{inbox}: no such folder; create it and put one folder per study into it")
    with _alone(folder), closing(sqlite3.connect(folder / "ledger.db")) as ledger, _waiting(folder) as waiting:
        ledger.execute(TABLE)
        with suppress(OSError):  # tried again by the next call
            finish_moves(inbox, folder)
        found: list[Study] = []
        for path in sorted(inbox.iterdir()):
            outcome = None if path.name.startswith(".") else _look(path, found, settle_s, (translator, target))
            if outcome is not None:
                waiting[path] = outcome
                yield outcome
        found.sort(key=lambda study: _attempts(folder, study.key)[1])  # what has ended a process comes last
        new = {study.key: study for study in reversed(found) if _known(ledger, study.key) is None}
        todo = [new[key] for key in dict.fromkeys(study.key for study in found) if key in new]
        request = Request(target, uncertainty=uncertainty, about=about)
        work = partial(_derive, folder=folder, translator=translator, request=request)
        made: dict[str, Outcome] = {}
        with closing(each(work, todo, "inbox", workers)) as outcomes:
            for study in found:
                outcome = _known(ledger, study.key) or made.get(study.key)
                if outcome is None:
                    outcome = made[study.key] = _entered(ledger, next(outcomes), translator)
                outcome = _filed(study, outcome, folder)
                if os.path.lexists(study.path):
                    waiting[study.path] = outcome
                yield outcome


@contextmanager
def _waiting(folder: Path) -> Iterator[dict[Path, Outcome]]:
    """Write ``waiting.json`` at the end, if anything waits and the disk has room."""
    waiting: dict[Path, Outcome] = {}
    file = folder / "waiting.json"
    try:
        yield waiting
    finally:
        with suppress(OSError, DiskFull):
            file.unlink(missing_ok=True)
            if waiting:
                write_json(file, {path.name: {"code": o.code, "reason": o.reason} for path, o in waiting.items()})


def _look(path: Path, found: list[Study], settle_s: float, model: tuple[Translator, str | None]) -> Outcome | None:
    """Append a study that has settled to ``found``; return an outcome if it cannot be read."""
    try:
        state = _state(path)  # before the bytes are read
        if _settled(path, settle_s):
            found.append(Study(path, _key(path, *model), state))
    except FileNotFoundError:  # a file that got another name: it is still arriving
        pass
    except OSError as error:
        return _postponed(Outcome("", "waiting"), error)
    return None


def _postponed(outcome: Outcome, error: Exception) -> Outcome:
    """Return ``outcome`` of a study that has to stay in the inbox because of ``error``."""
    full = isinstance(error, DiskFull) or "disk is full" in str(error)  # SQLite's has no number
    known = Code.E_CHANGED if isinstance(error, Changed) else Code.E_DISK_FULL if full else Code.E_UNREADABLE
    code = outcome.code or known
    return replace(outcome, code=code, reason=f"{error}; {known.meaning}")


def _entered(ledger: sqlite3.Connection, outcome: Outcome, translator: Translator) -> Outcome:
    """Add the row of an outcome that is final."""
    if outcome.status == "waiting":
        return outcome
    row = (outcome.key, translator.sha256, outcome.status, outcome.code, outcome.series, outcome.warned)
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        with ledger:
            ledger.execute("INSERT OR REPLACE INTO studies VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, finished))
    except sqlite3.OperationalError as error:  # the output is complete; the next call finds it
        return _postponed(Outcome(outcome.key, "waiting"), error)
    return outcome


def _known(ledger: sqlite3.Connection, key: str) -> Outcome | None:
    """Return the outcome of an identical earlier study.

    One that ended the process is tried again if somebody puts it back.
    """
    query = "SELECT status, code, series, warned FROM studies WHERE key = ? AND code != ?"
    row = ledger.execute(query, (key, Code.E_KILLED)).fetchone()
    return None if row is None else Outcome(key, "repeated" if row[0] == "derived" else row[0], *row[1:])


def _attempts(folder: Path, key: str) -> tuple[Path, int]:
    """Return the file that counts the attempts that have not ended, and their number."""
    file = folder / "attempts" / key
    try:
        return file, int(file.read_text())
    except (OSError, ValueError):
        return file, 0


def _derive(study: Study, folder: Path, translator: Translator, request: Request) -> Outcome:
    """Translate a study, unless that has ended the process too often."""
    waits = Outcome(study.key, "waiting")
    attempts, count = _attempts(folder, study.key)
    try:
        if count >= DEATHS:
            remove(part_of(folder / "derived" / study.key))  # of the last attempt
            reason = f"ended the process {count} times; {Code.E_KILLED.meaning}"
            outcome = _quarantined(study, folder, Code.E_KILLED, "Killed", reason)
        else:
            write_text(attempts, str(count + 1))  # synced before the work, of which nothing may remain
            outcome = _translated(study, folder, translator, request)
    except (Changed, OSError, DiskFull) as error:
        outcome = _postponed(waits, error)
    with suppress(OSError):
        attempts.unlink(missing_ok=True)
    return outcome


def _translated(study: Study, folder: Path, translator: Translator, request: Request) -> Outcome:
    derived = folder / "derived" / study.key
    facts = derived / "translation.json"
    try:
        if not derived.is_dir():  # else another process finished it, but stopped before it was recorded
            with atomic_folder(derived) as scratch:
                # nothing but its place tells what a picture is of, and its place is the inbox
                if DOMAINS[translator.config.source].picture:
                    request = replace(request, source_domain=translator.config.source, uncertainty=False)
                _check_state(study)
                rows = translate_path(study.path, scratch, translator, request)
                for row in rows:
                    row["out"] = Path(row["out"]).relative_to(scratch).as_posix()
                write_json(scratch / facts.name, rows)
                _check_state(study)
    except (Changed, DiskFull):
        raise
    except Exception as error:  # one study must not block the others; the text may name the patient
        _check_state(study)
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, and not a decoder's
            raise
        code = getattr(error, "code", Code.E_INPUT) if isinstance(error, UserError) else Code.E_FAULT
        return _quarantined(study, folder, code, type(error).__name__, str(error))
    rows = json.loads(facts.read_text())
    return Outcome(study.key, "derived", "", len(rows), sum(row["ood_verdict"] != "ok" for row in rows))


def _quarantined(study: Study, folder: Path, code: str, kind: str, reason: str) -> Outcome:
    write_json(folder / "quarantine" / study.key / "reason.json", {"code": code, "type": kind, "reason": reason})
    return Outcome(study.key, "quarantined", code)


def _key(study: Path, translator: Translator, target: str | None) -> str:
    """Hash the request: the bytes of the files in any order, the weights and the target."""
    digests = []
    for path in find_files([study]):
        if path.is_dir():  # it is listed itself only if it cannot be entered
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        if not path.is_file():  # a FIFO would never end
            continue
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    parts = [translator.sha256, target or translator.config.target, *sorted(digests)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _state(study: Path) -> State:
    """Return size and times of each file, which every change of its bytes changes.

    The time of status of a single file is left out, because moving it changes that.
    """
    state: State = {}
    for path in find_files([study]):
        status = path.lstat()
        changed = status.st_ctime_ns if path != study else 0
        state[path.relative_to(study).as_posix()] = status.st_size, status.st_mtime_ns, changed
    return state


def _check_state(study: Study, at: Path | None = None) -> None:
    """Raise :class:`Changed` unless the study, which may have been moved, is as it was found."""
    try:
        same = _state(at or study.path) == study.state
    except FileNotFoundError:
        same = False
    if not same:
        raise Changed(f"{study.path}: its files changed")


def _settled(study: Path, settle_s: float) -> bool:
    """Return whether nothing has changed for ``settle_s``; a study may still be arriving."""
    if study.name.startswith(CLOSED):
        return True
    changed = max(path.lstat().st_ctime for path in (study, *find_files([study])))
    return time.time() - changed >= settle_s


def _filed(study: Study, outcome: Outcome, folder: Path) -> Outcome:
    """Move a study that is done with, under another name if its own is taken.

    What arrived too late for the translation brings it back: the whole is done anew.
    """
    if outcome.status == "waiting":
        return outcome
    home = Path("quarantine" if outcome.status == "quarantined" else "done") / study.key
    relative, number = home / study.path.name, 1
    try:
        while os.path.lexists(folder / relative):
            number += 1
            relative = home / f"{study.path.name}-{number}"
        _check_state(study)
        move(study.path, folder, relative, partial(_check_state, study))
    except (Changed, OSError, DiskFull) as error:
        return _postponed(outcome, error)
    return outcome


def entries(folder: Path) -> list[dict[str, str]]:
    """List every study that is known in ``folder``, what has become of it and why; writes nothing.

    The reason of a study in quarantine may name the patient: it is for the person who looks.
    """
    rows = []
    waiting = _read(folder / "waiting.json")
    for path in sorted(folder.glob("inbox/[!.]*")):
        why = waiting.get(path.name, {})
        rows.append({"key": "", "status": "waiting", "code": why.get("code", ""), "reason": why.get("reason", "")})
    rows += [{"key": path.name, "status": "running"} for path in sorted(folder.glob("attempts/*"))]
    if (folder / "ledger.db").is_file():
        with closing(sqlite3.connect(f"{(folder / 'ledger.db').resolve().as_uri()}?mode=ro", uri=True)) as ledger:
            query = "SELECT key, status, code, series, warned, finished FROM studies ORDER BY finished DESC"
            known = ledger.execute(query).fetchall()
        for key, status, code, series, warned, finished in known:
            row = {"key": key, "status": status, "code": code, "series": str(series), "warned": str(warned)}
            why = _read(folder / "quarantine" / key / "reason.json").get("reason", "")
            place = f"{'quarantine' if status == 'quarantined' else 'derived'}/{key}"
            rows.append({**row, "finished": finished, "reason": why, "place": place})
    return rows


def _read(file: Path) -> dict:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def retry(folder: Path, key: str) -> str:
    """Forget a study in quarantine and put it back into the inbox; return a sentence.

    Raises:
        UserError: there is none of this key, or another process works in ``folder``.
    """
    home = folder / "quarantine" / key
    studies = [path for path in sorted(home.iterdir()) if path.name != "reason.json"] if home.is_dir() else []
    if not (key.isalnum() and studies):
        raise DataError(f"{key}: no study of this key is in quarantine")
    with _alone(folder), closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        ledger.execute(TABLE)
        taken = [path.name for path in studies if os.path.lexists(folder / "inbox" / path.name)]
        if taken:
            raise DataError(f"{key}: the inbox holds something of the same name; move that away first")
        with ledger:
            ledger.execute("DELETE FROM studies WHERE key = ?", (key,))
        for path in studies:
            shutil.move(path, folder / "inbox" / path.name)
        remove(home)
    return f"{key}: back in the inbox; it is tried again by the next run"


def _alone(folder: Path) -> AbstractContextManager[None]:
    return alone(folder / ".lock", f"{folder}: another process works in it; wait for it to end")


@contextmanager
def alone(file: Path, held: str) -> Iterator[None]:
    """Hold the lock ``file``; raise :class:`UserError` ``held`` if another process has it."""
    lock = FileLock(file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(held) from None
    try:
        yield
    finally:
        lock.release()
