"""Deliver derived studies to archives, however often it takes; nothing is lost or sent for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from medstyle.dicom.instance import Identity, identify
from medstyle.dicom.uids import uid_of
from medstyle.door.ledger import Delivery, Ledger, hashed, later
from medstyle.door.settings import Params
from medstyle.door.watch import Watch
from medstyle.errors import UserError
from medstyle.inference.inbox import CLOSED

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

ASKS = 3  # for storage commitment; C-STORE's own answer counts if the archive never says a word
Object = tuple[Path, Identity]


class Refused(Exception):
    """The archive has answered, and does not take an object."""


class Sender(Protocol):
    """A way to an archive."""

    def send(self, objects: list[Object], promise: str, unsent: list[Object]) -> Iterator[Identity]:
        """Send ``unsent`` and yield what the archive has taken.

        Then ask it to commit to ``objects`` as transaction ``promise``, unless that is empty.

        Raises:
            Refused: the archive does not take an object.
            OSError: the archive cannot be reached.
        """

    promises: bool  # whether the last call has asked for storage commitment


class Outbox:
    """The deliveries to one route.

    Args:
        folder: of the inbox.
        route: its name.
        sender: the way to the archive.
        ledger: of ``folder``.
        params: pauses and limits.
        watch: counts and logs.
    """

    def __init__(self, folder: Path, route: str, sender: Sender, ledger: Ledger, params: Params, watch: Watch) -> None:
        self.folder, self.route, self.sender = folder, route, sender
        self.ledger, self.params, self.watch = ledger, params, watch
        self._foreign: dict[str, float] = {}

    def work(self, stop: threading.Event) -> None:
        """Deliver until told to stop."""
        while not stop.is_set():
            self.deliver(stop.is_set)
            stop.wait(1.0)

    def deliver(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Do what is due now."""
        for key in self.ledger.derived(self.route):
            if self._came_by_the_door(key):
                try:
                    objects = self._objects(key)
                except UserError:  # the attempt will say so
                    objects = []
                self.ledger.begin(self.route, key, [hashed(identity.instance) for _, identity in objects])
        for delivery in self.ledger.due(self.route, time.time()):
            if stopped():
                return
            self._attempt(delivery)

    def _came_by_the_door(self, key: str) -> bool:
        """Return whether the source of a study is in ``done``, by a name that the door gives."""
        done = self.folder / "done" / key
        try:
            changed = done.stat().st_mtime
        except OSError:  # it is not filed yet
            return False
        if self._foreign.get(key) == changed:
            return False
        if any(done.glob(f"{CLOSED}*")):
            return True
        self._foreign[key] = changed
        return False

    def _objects(self, key: str) -> list[Object]:
        """Return what was derived, with its identifiers."""
        return [(path, identify(path)) for path in sorted((self.folder / "derived" / key).rglob("*.dcm"))]

    def _attempt(self, delivery: Delivery) -> None:
        try:
            objects = self._objects(delivery.key)
            if self._sent(delivery, objects):
                told(self.watch, delivery, len(objects))
        except Refused as refusal:
            self._failed(delivery, str(refusal), True)
        except (UserError, OSError) as error:  # of the archive, the network or the disk
            self._failed(delivery, type(error).__name__, False)
        except Exception as error:  # a library's; the other studies go on
            self._failed(delivery, type(error).__name__, True)

    def _sent(self, delivery: Delivery, objects: list[Object]) -> bool:
        """Send what the archive lacks; return whether the delivery is done."""
        if not objects:
            raise Refused("nothing is left in derived")
        names = {hashed(identity.instance): (path, identity) for path, identity in objects}
        missing = self.ledger.unsent(self.route, names)
        unsent = [one for name, one in names.items() if name in missing]
        promise = ""
        if delivery.asked < ASKS:
            promise = uid_of("commitment", self.route, delivery.key, delivery.asked, time.time_ns())
            delivery = delivery._replace(state="waiting", asked=delivery.asked + 1, promise=promise)
            self.ledger.settle(delivery)  # before the archive can answer
        taken: list[str] = []
        try:
            for identity in self.sender.send(objects, promise, unsent):
                taken.append(hashed(identity.instance))
        finally:
            self.ledger.mark(self.route, taken)
            self.watch.sent.labels(self.route).inc(len(taken))
        if promise and self.sender.promises:
            self.ledger.await_promise(promise, time.time() + self.params.commitment_s)
            return False
        self.ledger.settle(delivery._replace(state="done", failures=0, promise=""))
        return True

    def _failed(self, delivery: Delivery, why: str, refused: bool) -> None:
        after = later(delivery, self.params.retry_s, refused, self.params.refusals)
        self.ledger.settle(after)
        self.watch.failures.labels(self.route).inc()
        facts = {"key": delivery.key, "route": self.route, "why": why, "failures": after.failures}
        self.watch.say("given up" if after.state == "refused" else "delivery failed", **facts)
        if after.state == "refused":
            self.watch.audit("study sent", "serious failure", key=delivery.key, route=self.route)


def promise_kept(ledger: Ledger, watch: Watch, transaction: str, kept: set[str], lost: set[str]) -> bool:
    """Note an archive's report of storage commitment; return whether it was awaited.

    What the archive has not kept is sent again.
    """
    delivery = ledger.promised(transaction) if transaction else None
    if delivery is None:
        return False
    if lost:
        ledger.mark(delivery.route, map(hashed, lost), sent=False)
        ledger.settle(later(delivery._replace(promise=""), 1.0, True, ASKS + 1))
    else:
        ledger.settle(delivery._replace(state="done", failures=0, promise=""))
        told(watch, delivery, len(kept))
    watch.say("commitment", key=delivery.key, route=delivery.route, kept=len(kept), lost=len(lost))
    return True


def told(watch: Watch, delivery: Delivery, instances: int) -> None:
    """Say that a study is where it should be."""
    watch.audit("study sent", key=delivery.key, route=delivery.route, instances=instances)
    watch.say("sent", key=delivery.key, route=delivery.route, instances=instances)
