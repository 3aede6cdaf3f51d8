"""Remember what has arrived and what has been sent, in the tables beside those of the inbox.

``ledger.db`` is the inbox's: its table ``studies`` says what is derived. The door adds
``instances`` (what has been handed to the inbox), ``outbox`` (one row for each object and route)
and ``deliveries`` (one for each study and route). Identifiers are hashed.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TABLES = """
CREATE TABLE IF NOT EXISTS instances (uid TEXT PRIMARY KEY, study TEXT) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instances_of_study ON instances (study);
CREATE TABLE IF NOT EXISTS outbox (route TEXT, uid TEXT, key TEXT, sent INTEGER, PRIMARY KEY (route, uid));
CREATE INDEX IF NOT EXISTS outbox_of_key ON outbox (key);
CREATE INDEX IF NOT EXISTS outbox_of_uid ON outbox (uid);
CREATE TABLE IF NOT EXISTS deliveries (route TEXT, key TEXT, state TEXT, failures INTEGER, refusals INTEGER,
 due REAL, asked INTEGER, promise TEXT, PRIMARY KEY (route, key));
CREATE INDEX IF NOT EXISTS deliveries_by_promise ON deliveries (promise);
"""
WAIT_S = 60.0  # for the lock of another process
LONGEST_S = 3600.0  # between two attempts


class Delivery(NamedTuple):
    """The state of a study's way to a route.

    Attributes:
        state: ``waiting``; ``promised`` while storage commitment is awaited; ``done``; ``refused``,
            which a person has to look at.
        failures: attempts that failed since the last success.
        refusals: those of them in which the archive itself refused an object.
        asked: how often storage commitment was asked for.
    """

    route: str
    key: str
    state: str = "waiting"
    failures: int = 0
    refusals: int = 0
    due: float = 0.0
    asked: int = 0
    promise: str = ""


def hashed(uid: str) -> str:
    """Return the name of an identifier in file names, tables, logs and audit."""
    return hashlib.sha256(uid.encode("utf-8", "surrogateescape")).hexdigest()[:32]


class Ledger:
    """The door's tables; every method is one transaction, and may be called by any thread."""

    def __init__(self, folder: Path) -> None:
        self._lock = threading.RLock()
        self._database = sqlite3.connect(folder / "ledger.db", timeout=WAIT_S, check_same_thread=False)
        with self._lock, self._database:
            self._database.executescript(TABLES)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._database:
            yield self._database

    def is_known(self, uid: str) -> bool:
        """Return whether an instance (hashed) was handed to the inbox, or is the door's own."""
        query = "SELECT 1 FROM instances WHERE uid = :uid UNION ALL SELECT 1 FROM outbox WHERE uid = :uid LIMIT 1"
        with self._lock:
            return self._database.execute(query, {"uid": uid}).fetchone() is not None

    def count(self, study: str) -> int:
        """Return how many instances of a study (hashed) were handed to the inbox."""
        with self._lock:
            query = "SELECT COUNT(*) FROM instances WHERE study = ?"
            return int(self._database.execute(query, (study,)).fetchone()[0])

    def add_instances(self, study: str, uids: Iterable[str]) -> None:
        """Note instances that are about to be handed to the inbox."""
        with self._transaction() as database:
            rows = [(uid, study) for uid in uids]
            database.executemany("INSERT OR IGNORE INTO instances VALUES (?, ?)", rows)

    def derived(self, route: str) -> list[str]:
        """Return the keys of derived studies whose delivery to ``route`` has not begun."""
        query = (
            "SELECT key FROM studies WHERE status = 'derived' AND NOT EXISTS "
            "(SELECT 1 FROM deliveries d WHERE d.route = ? AND d.key = studies.key) ORDER BY finished, key"
        )
        with self._lock:
            try:
                return [key for (key,) in self._database.execute(query, (route,))]
            except sqlite3.OperationalError as error:
                if "no such table" in str(error):  # the inbox has not begun yet
                    return []
                raise

    def begin(self, route: str, key: str, uids: Iterable[str]) -> None:
        """Put the objects of a study into the outbox; what was sent for another stays sent."""
        with self._transaction() as database:
            rows = [(route, uid, key) for uid in uids]
            database.executemany("INSERT OR IGNORE INTO outbox VALUES (?, ?, ?, 0)", rows)
            new = Delivery(route, key)
            database.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", new)

    def due(self, route: str, now: float) -> list[Delivery]:
        """Return the deliveries to ``route`` that something is to be done about, oldest first."""
        query = (
            "SELECT * FROM deliveries WHERE route = ? AND state IN ('waiting', 'promised') AND due <= ? ORDER BY due"
        )
        with self._lock:
            return [Delivery(*row) for row in self._database.execute(query, (route, now))]

    def unsent(self, route: str, uids: Iterable[str]) -> set[str]:
        """Return those of ``uids`` that ``route`` has not taken."""
        with self._lock:
            query = "SELECT sent FROM outbox WHERE route = ? AND uid = ?"
            rows = {uid: self._database.execute(query, (route, uid)).fetchone() for uid in uids}
        return {uid for uid, row in rows.items() if row is None or not row[0]}

    def mark(self, route: str, uids: Iterable[str], sent: bool = True) -> None:
        """Note which objects the route has taken, or has lost."""
        with self._transaction() as database:
            rows = [(int(sent), route, uid) for uid in uids]
            database.executemany("UPDATE outbox SET sent = ? WHERE route = ? AND uid = ?", rows)

    def settle(self, delivery: Delivery) -> None:
        """Replace the row of a delivery."""
        with self._transaction() as database:
            database.execute("INSERT OR REPLACE INTO deliveries VALUES (?, ?, ?, ?, ?, ?, ?, ?)", delivery)

    def await_promise(self, promise: str, due: float) -> None:
        """Let a delivery wait for an archive's report until ``due``, unless it has arrived."""
        with self._transaction() as database:
            query = "UPDATE deliveries SET state = 'promised', due = ? WHERE promise = ? AND state = 'waiting'"
            database.execute(query, (due, promise))

    def promised(self, promise: str) -> Delivery | None:
        """Return the delivery for which this transaction of storage commitment was asked last."""
        with self._lock:
            query = "SELECT * FROM deliveries WHERE promise = ? AND state IN ('waiting', 'promised')"
            row = self._database.execute(query, (promise,)).fetchone()
        return None if row is None else Delivery(*row)

    def states(self) -> dict[tuple[str, str], int]:
        """Return how many deliveries each route has in each state."""
        with self._lock:
            query = "SELECT route, state, COUNT(*) FROM deliveries GROUP BY route, state"
            return {(route, state): count for route, state, count in self._database.execute(query)}

    def retry(self, route: str | None = None) -> int:
        """Let refused deliveries be tried again; return how many."""
        with self._transaction() as database:
            where = "state = 'refused' AND (?1 IS NULL OR route = ?1)"
            query = f"UPDATE deliveries SET state = 'waiting', failures = 0, refusals = 0, due = 0 WHERE {where}"  # noqa: S608
            return database.execute(query, (route,)).rowcount


def later(delivery: Delivery, first_s: float, refused: bool, give_up: int) -> Delivery:
    """Return a delivery after a failed attempt: due later, or given up."""
    failures, refusals = delivery.failures + 1, delivery.refusals + refused
    pause = min(first_s * 2.0 ** min(failures - 1, 20), LONGEST_S)
    state = "refused" if refusals >= give_up else "waiting"
    return delivery._replace(state=state, failures=failures, refusals=refusals, due=time.time() + pause)
