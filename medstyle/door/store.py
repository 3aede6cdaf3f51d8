"""Write what arrives to the disk, and hand a study that is quiet to the inbox, whole and once.

``arriving/<study>/<instance>.dcm`` are the studies that still arrive; both names are hashes of
UIDs, so nothing that a sender writes into a UID reaches a path. A study that is quiet goes to
``inbox/closed-<study>`` in one step.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from medstyle.dicom.instance import Identity
from medstyle.door.ledger import Ledger, hashed
from medstyle.errors import Code, DiskFull, Refusal
from medstyle.inference.inbox import CLOSED
from medstyle.jobs.atomic import disk, remove, sync

Result = Literal["stored", "known"]


class Store:
    """The studies that arrive; its methods may be called by any thread of the one process.

    Args:
        folder: of the inbox, the ledger and everything else.
        ledger: of the same folder.
        most: largest number of instances of a study.
        free_bytes: space on the disk below which nothing is taken.
    """

    def __init__(self, folder: Path, ledger: Ledger, most: int, free_bytes: int) -> None:
        self.folder, self.ledger, self.most, self.free_bytes = folder, ledger, most, free_bytes
        self.arriving, self.parts = folder / "arriving", folder / "arriving" / ".parts"
        self._lock = threading.RLock()  # an instance is not put into a study while that is closed
        for path in (self.arriving, folder / "inbox"):
            path.mkdir(parents=True, exist_ok=True)
        self._counts: dict[Path, int] = {}
        remove(self.parts)  # of a process that was killed; nobody was told that they are stored
        self.parts.mkdir()

    def has(self, study: str, instance: str) -> bool:
        """Return whether an instance has arrived, now or ever, or is a result of this door."""
        study, instance = hashed(study), hashed(instance)
        with self._lock:
            return (self.arriving / study / f"{instance}.dcm").exists() or self.ledger.is_known(instance)

    def put(self, data: bytes, identity: Identity) -> Result:
        """Store an instance, synced to the disk, unless it has arrived before.

        Raises:
            Refusal: ``E_TOO_LARGE`` the study has too many instances.
            DiskFull: there is no room.
        """
        if self.has(identity.study, identity.instance):
            return "known"
        self.check_room(len(data))
        study, name = self.arriving / hashed(identity.study), f"{hashed(identity.instance)}.dcm"
        part = self.parts / f"{threading.get_ident()}-{name}"
        try:
            with disk(study / name, part), part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with self._lock:
                if self.has(identity.study, identity.instance):  # by another association meanwhile
                    return "known"
                self._check_number(study)
                new = not study.exists()
                study.mkdir(exist_ok=True)
                part.replace(study / name)
                _sync_folder(study)
                if new:
                    _sync_folder(self.arriving)
        finally:
            part.unlink(missing_ok=True)
        return "stored"

    def check_room(self, size: int) -> None:
        """Raise :class:`DiskFull` if ``size`` bytes would leave less than must stay free."""
        if shutil.disk_usage(self.arriving).free - size < self.free_bytes:
            raise DiskFull(f"{Code.E_DISK_FULL}: {self.arriving}: less free space than `door.free_mb`; free disk space")

    def _check_number(self, study: Path) -> None:
        if study not in self._counts:
            self._counts[study] = len(self._uids(study))
        if self._counts[study] >= self.most:
            raise Refusal(Code.E_TOO_LARGE, f"a study has more than {self.most} instances: raise door.study_instances")
        self._counts[study] += 1

    def close_quiet(self, quiet_s: float) -> Iterator[tuple[str, int, bool]]:
        """Hand every study to the inbox of which nothing has arrived for ``quiet_s``.

        Yields the hashed UID of each, the number of its instances, and whether it is a study that
        was done before and has grown. Such a study is handed over whole, as far as its older
        instances are still in ``done`` or ``quarantine``; it waits while they are in the inbox.
        """
        for study in sorted(self.arriving.glob("[!.]*")):
            with self._lock:
                if time.time() - study.stat().st_mtime < quiet_s or self._is_in_inbox(study.name):
                    continue
                own = self._uids(study)
                grown = self._take_back(study) if self.ledger.count(study.name) else False
                self.ledger.add_instances(study.name, self._uids(study))
                if grown:
                    sync(study)  # what has come alone is synced already
                study.rename(self._place(study.name))
                self._counts.pop(study, None)
                _sync_folder(self.arriving)
                _sync_folder(self.folder / "inbox")
            yield study.name, len(own), grown

    def _place(self, study: str) -> Path:
        return self.folder / "inbox" / f"{CLOSED}{study}"

    def _is_in_inbox(self, study: str) -> bool:
        moving = any((self.folder / "inbox" / ".moved").glob(f"*/*/{CLOSED}{study}*"))
        return moving or self._place(study).exists()

    def _uids(self, study: Path) -> list[str]:
        return sorted(path.stem for path in study.glob("*.dcm"))

    def _take_back(self, study: Path) -> bool:
        """Link the older instances of a study beside its new ones; return whether there are any."""
        older = [
            path
            for home in ("done", "quarantine")
            for path in sorted(self.folder.glob(f"{home}/*/{CLOSED}{study.name}*/*.dcm"))
        ]
        for path in older:
            if not (study / path.name).exists():
                try:
                    os.link(path, study / path.name)
                except OSError:  # another file system
                    part = self.parts / path.name
                    shutil.copyfile(path, part)
                    part.replace(study / path.name)
        return bool(older)

    def waiting(self) -> tuple[int, int]:
        """Return how many studies arrive, and how many are in the inbox."""
        inbox = sum(1 for path in sorted((self.folder / "inbox").glob("[!.]*")))
        return sum(1 for path in sorted(self.arriving.glob("[!.]*"))), inbox


def _sync_folder(folder: Path) -> None:
    with suppress(OSError):  # some network file systems cannot
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
