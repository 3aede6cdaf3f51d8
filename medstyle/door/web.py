"""Ask a DICOMweb archive for studies, fetch them, and push results (PS3.18)."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import requests
from dicomweb_client.session_utils import create_session_from_user_pass
from dicomweb_client.web import DICOMwebClient

from medstyle.dicom.elements import quiet
from medstyle.dicom.instance import Identity, answered, encoded, from_json, identify, json_value, read_instance
from medstyle.door.outbox import Object, Refused
from medstyle.door.settings import Poll, Web
from medstyle.door.store import Store
from medstyle.door.watch import Watch
from medstyle.errors import ServiceError, UserError

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

STUDY, SERIES, INSTANCE, COUNT = "0020000D", "0020000E", "00080018", "00201208"
PAGE = 200  # studies of one answer
PART_BYTES = 32 << 20  # of results in one request
logging.getLogger("dicomweb_client").setLevel(logging.CRITICAL + 1)  # its lines quote UIDs


def client(where: Poll | Web, timeout_s: float) -> DICOMwebClient:
    """Return a client of an archive.

    Raises:
        ServiceError: the address or the file of the password cannot be used.
    """
    session = None
    if where.user:
        try:
            password = Path(where.password_file).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ServiceError(f"{where.password_file}: cannot be read ({error.strerror})") from None
        session = create_session_from_user_pass(where.user, password)
    try:
        made = DICOMwebClient(where.url, session=session, timeout=timeout_s, permissive_uid=True)
    except ValueError:
        raise ServiceError(f"{where.url}: no address of DICOMweb services, such as https://archive/dicom-web") from None
    made.set_http_retry_params(retry=False)  # the door has pauses of its own
    return made


class Poller:
    """Fetches what an archive has and the store has not.

    Args:
        poll: the archive and the filter.
        store: takes what is fetched.
        watch: counts and logs.
        timeout_s: seconds without an answer after which a request is given up.
        limit: bytes of the largest instance.
    """

    def __init__(self, poll: Poll, store: Store, watch: Watch, timeout_s: float, limit: int) -> None:
        self.poll, self.store, self.watch, self.limit = poll, store, watch, limit
        self._client = client(poll, timeout_s)
        self._whole: dict[str, str] = {}  # study -> the number of instances that it had when all were here

    def work(self, stop: threading.Event) -> None:
        """Ask again and again until told to stop."""
        while not stop.is_set():
            try:
                self.fetch(stop)
            except (UserError, OSError, requests.RequestException, ValueError, KeyError) as error:
                self.watch.failures.labels("poll").inc()
                self.watch.say("poll failed", why=type(error).__name__)
            stop.wait(self.poll.every_s)

    def fetch(self, stop: threading.Event | None = None) -> int:
        """Fetch what is new; return the number of instances."""
        fetched = 0
        for row in self._studies():
            study, count = json_value(row, STUDY), json_value(row, COUNT)
            if not study or (count and self._whole.get(study) == count):
                continue
            for series, instance in self._missing(study):
                if stop is not None and stop.is_set():
                    return fetched
                fetched += self._take(study, series, instance)
            self._whole[study] = count
        return fetched

    def _studies(self) -> Iterator[dict[str, Any]]:
        offset = 0
        while True:
            page = self._client.search_for_studies(
                limit=PAGE, offset=offset, fields=["NumberOfStudyRelatedInstances"], search_filters=self.poll.filter
            )
            yield from page
            offset += len(page)
            if len(page) < PAGE:
                self.watch.audit("study queried", studies=offset)
                return

    def _missing(self, study: str) -> list[tuple[str, str]]:
        rows = self._client.search_for_instances(study_instance_uid=study)
        pairs = [(json_value(row, SERIES), json_value(row, INSTANCE)) for row in rows]
        return [(series, instance) for series, instance in pairs if not self.store.has(study, instance)]

    def _take(self, study: str, series: str, instance: str) -> int:
        """Fetch an instance as the archive has it; what cannot be read stops nothing."""
        self.store.check_room(0)
        kinds = (("application/dicom", "*"),)
        try:
            with quiet():
                data = encoded(self._client.retrieve_instance(study, series, instance, media_types=kinds))
                found = identify(data)
            if len(data) > self.limit or (found.study, found.instance) != (study, instance):
                raise ValueError("not what was asked for")
            self.watch.instance(self.store.put(data, found), len(data))
        except (requests.ConnectionError, requests.Timeout):
            raise
        except (UserError, ValueError, requests.HTTPError) as error:
            self.watch.instance("refused", 0)
            self.watch.say("instance refused", why=type(error).__name__)
            return 0
        return 1


class WebSender:
    """The way to an archive by STOW-RS.

    Args:
        route: its address.
        timeout_s: seconds without an answer after which a request is given up.
    """

    promises = False  # DICOMweb has no storage commitment

    def __init__(self, route: Web, timeout_s: float) -> None:
        self._client = client(route, timeout_s)

    def send(self, objects: list[Object], promise: str, unsent: list[Object]) -> Iterator[Identity]:
        """Push objects, read each answer; see :class:`medstyle.door.outbox.Sender`."""
        for part in _parts(unsent):
            kept, lost = self._push(part)
            names = {identity.instance: identity for _, identity in part}
            yield from (names[uid] for uid in sorted(kept & names.keys()))
            if missing := names.keys() - kept:
                told = "refuses" if missing <= lost else "says nothing of"
                raise Refused(f"the archive {told} {len(missing)} of {len(names)} objects")

    def _push(self, part: Sequence[Object]) -> tuple[set[str], set[str]]:
        with quiet():
            try:
                return answered(self._client.store_instances([read_instance(path) for path, _ in part]))
            except requests.HTTPError as error:  # 409: it has taken none, and says why
                response = error.response
                if response is None or response.status_code >= 500:
                    raise ConnectionError("the archive has a fault") from None
                try:
                    return answered(from_json(response.content))
                except (UserError, json.JSONDecodeError):
                    raise Refused(f"the archive answers {response.status_code}") from None


def _parts(objects: list[Object]) -> Iterator[list[Object]]:
    """Divide objects into requests."""
    part: list[Object] = []
    size = 0
    for one in objects:
        if part and size + one[0].stat().st_size > PART_BYTES:
            yield part
            part, size = [], 0
        part.append(one)
        size += one[0].stat().st_size
    if part:
        yield part
