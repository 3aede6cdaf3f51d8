"""Send results by C-STORE, and ask the archive to commit to them (PS3.4 B and J)."""

from __future__ import annotations

import socket
from collections.abc import Iterator

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.sop_class import StorageCommitmentPushModel  # type: ignore[attr-defined]

from medstyle.dicom.instance import STORAGE_COMMITMENT, Identity, commitment
from medstyle.dicom.uids import IMPLEMENTATION_UID
from medstyle.door.outbox import Object, Refused
from medstyle.door.scp import context_of
from medstyle.door.settings import Dicom

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

ASK = 1  # action type of the request for storage commitment
FULL = range(0xA700, 0xA800)  # the archive has no room now


class DicomSender:
    """The way to an archive by DICOM.

    Args:
        route: its address.
        ae_title: of the door.
        silence_s: seconds without an answer after which an association is given up.
    """

    promises = False

    def __init__(self, route: Dicom, ae_title: str, silence_s: float) -> None:
        self.route, self.ae_title, self.silence_s = route, ae_title, silence_s
        self._tls = context_of(route.tls, server=False)

    def send(self, objects: list[Object], promise: str, unsent: list[Object]) -> Iterator[Identity]:
        """Send objects in one association; see :class:`medstyle.door.outbox.Sender`."""
        self.promises = False
        ask = bool(promise) and self.route.commitment
        if not unsent and not ask:
            return
        association = self._associate({(one.sop_class, one.syntax) for _, one in unsent}, ask)
        connection = association.dul.socket and association.dul.socket.socket
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # the archive acknowledges late
        try:
            for path, identity in unsent:
                self._store(association, str(path), identity)
                yield identity
            if ask:
                self._ask(association, promise, [identity for _, identity in objects])
        finally:
            if association.is_established:
                association.release()
            if connection is not None:
                connection.close()  # pynetdicom forgets it if the archive has gone

    def _associate(self, kinds: set[tuple[str, str]], ask: bool) -> Association:
        entity = AE(self.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_UID
        entity.implementation_version_name = "MEDSTYLE_010"
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = self.silence_s
        entity.connection_timeout = self.silence_s
        for sop_class, syntax in sorted(kinds):
            entity.add_requested_context(sop_class, syntax)
        if ask:
            entity.add_requested_context(StorageCommitmentPushModel)
        route = self.route
        tls = None if self._tls is None else (self._tls, route.host)
        association = entity.associate(route.host, route.port, ae_title=route.ae_title, tls_args=tls)
        if not association.is_established:
            raise ConnectionError("the archive refuses the association" if association.is_rejected else "no connection")
        return association

    def _store(self, association: Association, path: str, identity: Identity) -> None:
        try:
            status = association.send_c_store(path)
        except ValueError:
            raise Refused("the archive does not take this kind of object") from None
        except RuntimeError:
            raise ConnectionError("the association has ended") from None
        code = status.get("Status")
        if code is None:
            raise ConnectionError("no answer")
        if code in FULL:
            raise ConnectionError("the archive has no room")
        if code and not 0xB000 <= code < 0xC000:  # a warning says that it is stored
            raise Refused(f"the archive answers {code:#06x}")

    def _ask(self, association: Association, promise: str, instances: list[Identity]) -> None:
        """Ask for storage commitment, if the archive offers it."""
        offered = any(one.abstract_syntax == StorageCommitmentPushModel for one in association.accepted_contexts)
        if offered and association.is_established:
            asked = commitment(promise, instances)
            status, _ = association.send_n_action(asked, ASK, StorageCommitmentPushModel, STORAGE_COMMITMENT)
            self.promises = status.get("Status") == 0
