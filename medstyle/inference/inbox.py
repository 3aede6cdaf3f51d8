"""Translate the studies in a watched folder exactly once each, even if the process crashes.

``FOLDER/inbox/*`` are the incoming studies: each is a folder or a file, of scans, or of pictures
and videos for a model of those. A study moves to ``done/<key>`` once ``derived/<key>`` is complete,
or to ``quarantine/<key>`` with the reason. Keys are computed from the bytes of the study and the
model and reveal nothing about the patient. ``ledger.db`` (SQLite) has one row per key.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from medstyle.dicom.scan import find_files
from medstyle.errors import Code, DataError, UserError
from medstyle.imaging.modality import DOMAINS
from medstyle.inference.files import Request, translate_path
from medstyle.jobs.workers import Workers, each
from medstyle.networks.translator import Translator

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

TABLE = """CREATE TABLE IF NOT EXISTS studies
(key TEXT PRIMARY KEY, weights TEXT, status TEXT, code TEXT, series INTEGER, warned INTEGER, finished TEXT)"""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a study, without anything that identifies the patient.

    Attributes:
        key: 16 hexadecimal digits.
        status: ``repeated`` is a study that this model has translated before; it is filed, but not
            translated again.
        code: why the study is in quarantine, "" otherwise; ``quarantine/<key>/reason.json`` has the
            message.
        series: number of derived images or series.
        warned: how many of them have an out-of-distribution warning.
    """

    key: str
    status: Literal["derived", "repeated", "quarantined"]
    code: str = ""
    series: int = 0
    warned: int = 0


def process(
    folder: Path, translator: Translator, *, settle_s: float = 60.0, target: str | None = None, workers: Workers = 1
) -> Iterator[Outcome]:
    """Translate every study in ``folder/inbox`` that has not changed for ``settle_s``.

    Every step can be repeated: an output appears under its final name in one step, then its row is
    added to the ledger, and the source is moved last. The next call completes whatever a crash has
    left unfinished.

    Args:
        folder: contains ``inbox``; the other folders are created.
        translator: the translator to use.
        settle_s: seconds for which no file of a study may have changed.
        target: target domain; default: the one that the translator was trained for.
        workers: number of studies that are translated in parallel, or a cluster: see
            :func:`medstyle.jobs.workers.each`.

    Raises:
        UserError: ``folder/inbox`` does not exist, or another process works in ``folder``.
        OSError: the disk is full or not writable; the study is not at fault and stays where it is.
    """
    inbox = folder / "inbox"
    if not inbox.is_dir():
        raise DataError(f"{inbox}: no such folder; create it and put one folder per study into it")
    with _alone(folder), closing(sqlite3.connect(folder / "ledger.db")) as ledger:
        ledger.execute(TABLE)
        studies = [study for study in sorted(inbox.iterdir()) if not study.name.startswith(".")]
        keys = {study: _key(study, translator, target) for study in studies if _settled(study, settle_s)}
        new = {key: study for study, key in reversed(keys.items()) if _known(ledger, key) is None}
        todo = [(key, new[key]) for key in dict.fromkeys(keys.values()) if key in new]
        work = partial(_derive, folder=folder, translator=translator, target=target)
        with closing(each(work, todo, "inbox", workers)) as outcomes:
            for study, key in keys.items():
                outcome = _known(ledger, key) or _entered(ledger, next(outcomes), translator)
                _file(study, folder / ("quarantine" if outcome.status == "quarantined" else "done") / key)
                yield outcome


def _entered(ledger: sqlite3.Connection, outcome: Outcome, translator: Translator) -> Outcome:
    row = (outcome.key, translator.sha256, outcome.status, outcome.code, outcome.series, outcome.warned)
    with ledger:
        ledger.execute(
            "INSERT INTO studies VALUES (?, ?, ?, ?, ?, ?, ?)", (*row, datetime.now(UTC).isoformat(timespec="seconds"))
        )
    return outcome


def _known(ledger: sqlite3.Connection, key: str) -> Outcome | None:
    """Return the outcome of an identical earlier study."""
    row = ledger.execute("SELECT status, code, series, warned FROM studies WHERE key = ?", (key,)).fetchone()
    return None if row is None else Outcome(key, "repeated" if row[0] == "derived" else row[0], *row[1:])


def _derive(work: tuple[str, Path], folder: Path, translator: Translator, target: str | None) -> Outcome:
    key, study = work
    derived, quarantine = folder / "derived" / key, folder / "quarantine" / key
    scratch = derived.with_name(f".part-{key}")
    facts = derived / "translation.json"
    if not derived.is_dir():  # else another process finished it, but stopped before it was recorded
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            # nothing but its place tells what a picture is of, and its place is the inbox
            pictures = DOMAINS[translator.config.source].picture
            source = translator.config.source if pictures else None
            rows = translate_path(study, scratch, translator, Request(target, source))
        except OSError:
            raise
        except Exception as error:  # one study must not block the others; the text may name the patient
            shutil.rmtree(scratch, ignore_errors=True)
            code = getattr(error, "code", Code.E_INPUT) if isinstance(error, UserError) else Code.E_FAULT
            quarantine.mkdir(parents=True, exist_ok=True)
            reason = {"code": code, "type": type(error).__name__, "reason": str(error)}
            (quarantine / "reason.json").write_text(json.dumps(reason, indent=1) + "\n")
            return Outcome(key, "quarantined", code)
        for row in rows:
            row["out"] = Path(row["out"]).relative_to(scratch).as_posix()
        (scratch / facts.name).write_text(json.dumps(rows, indent=1) + "\n")
        scratch.replace(derived)
    rows = json.loads(facts.read_text())
    return Outcome(key, "derived", "", len(rows), sum(row["ood_verdict"] != "ok" for row in rows))


def _key(study: Path, translator: Translator, target: str | None) -> str:
    """Hash the request: the bytes of the files in any order, the weights and the target."""
    digests = []
    for path in filter(Path.is_file, find_files([study])):  # a FIFO would never end
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    parts = [translator.sha256, target or translator.config.target, *sorted(digests)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _settled(study: Path, settle_s: float) -> bool:
    """Return whether nothing has changed for ``settle_s``; a study may still be arriving."""
    changed = max(path.lstat().st_ctime for path in (study, *find_files([study])))
    return time.time() - changed >= settle_s


def _file(study: Path, folder: Path) -> None:
    """Move ``study`` into ``folder``, under another name if its own is taken."""
    folder.mkdir(parents=True, exist_ok=True)
    place, number = folder / study.name, 1
    while place.exists():
        number += 1
        place = folder / f"{study.name}-{number}"
    study.rename(place)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise DataError(f"{folder}: another process works in it; wait for it to end") from None
    try:
        yield
    finally:
        lock.release()
