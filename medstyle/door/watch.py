"""Count, log and audit what the door does, without anything of a patient.

The audit has one JSON object per line. ``event`` and ``outcome`` carry the codes of DICOM's audit
messages (PS3.15 A.5), which IHE's profile ATNA uses; studies are named by hashes of their UIDs.
"""

from __future__ import annotations

import json
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector

EVENTS = {  # of the audit -> code and meaning of EventID (PS3.16 CID 400), EventActionCode (RFC 3881)
    "start": ("110100", "Application Activity", "E"),
    "stop": ("110100", "Application Activity", "E"),
    "association refused": ("110113", "Security Alert", "E"),
    "study received": ("110104", "DICOM Instances Transferred", "C"),
    "study sent": ("110104", "DICOM Instances Transferred", "R"),
    "study queried": ("110112", "Query", "E"),
    "study translated": ("110100", "Application Activity", "E"),
}
OUTCOMES = {"success": 0, "minor failure": 4, "serious failure": 8, "major failure": 12}
Outcome = Literal["success", "minor failure", "serious failure", "major failure"]


class Watch:
    """What the door shows of itself.

    Args:
        audit: file to which a line is appended for each event; None: no audit.
    """

    def __init__(self, audit: Path | None = None) -> None:
        self._audit, self._lock = audit, threading.Lock()
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._associations = Counter(
            "medstyle_door_associations", "Associations by what became of them.", ["result"], registry=registry
        )
        self._instances = Counter("medstyle_door_instances", "Instances by result.", ["result"], registry=registry)
        self._bytes = Counter("medstyle_door_received_bytes", "Bytes of instances that were stored.", registry=registry)
        self.studies = Counter("medstyle_door_studies", "Studies handed to the inbox.", ["kind"], registry=registry)
        self.sent = Counter("medstyle_door_sent", "Objects that archives have taken.", ["route"], registry=registry)
        self.failures = Counter(
            "medstyle_door_failures", "Failed attempts to deliver or to fetch.", ["route"], registry=registry
        )
        self.deliveries = Gauge(
            "medstyle_door_deliveries", "Studies by route and state.", ["route", "state"], registry=registry
        )
        self.waiting = Gauge("medstyle_door_waiting", "Studies that arrive or wait.", ["place"], registry=registry)
        self.restarts = Counter("medstyle_door_translator_starts", "Starts of the translator.", registry=registry)

    def association(self, result: str) -> None:
        """Count an association."""
        self._associations.labels(result).inc()

    def instance(self, result: str, size: int) -> None:
        """Count an instance of ``size`` bytes."""
        self._instances.labels(result).inc()
        if result == "stored":
            self._bytes.inc(size)

    def say(self, event: str, **facts: Any) -> None:
        """Print a line of JSON."""
        line = json.dumps({"time": _now(), "event": event, **facts})
        with self._lock:
            print(line, file=sys.stdout, flush=True)

    def audit(self, event: str, outcome: Outcome = "success", **facts: Any) -> None:
        """Append a line to the audit."""
        if self._audit is None:
            return
        code, meaning, action = EVENTS[event]
        about = {"code": code, "system": "DCM", "meaning": meaning, "action": action, "what": event}
        line = json.dumps({"time": _now(), "event": about, "outcome": OUTCOMES[outcome], **facts})
        with self._lock, self._audit.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
