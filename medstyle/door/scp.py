"""Take instances by C-STORE, and answer C-ECHO, from those who may call (PS3.4 A and B)."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import suppress
from socketserver import TCPServer
from typing import Any

import pynetdicom
from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.sop_class import StorageCommitmentPushModel, Verification  # type: ignore[attr-defined]
from pynetdicom.transport import AssociationSocket, RequestHandler, ThreadedAssociationServer

from medstyle.dicom.elements import quiet
from medstyle.dicom.instance import answered, identify
from medstyle.dicom.uids import IMPLEMENTATION_UID
from medstyle.door.settings import Dicom, Params, Tls
from medstyle.door.store import Store
from medstyle.door.watch import Watch
from medstyle.errors import DataError, DiskFull, Refusal, ServiceError

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SUCCESS, NO_RESOURCES, MISMATCH, NOT_UNDERSTOOD, FAILURE = 0x0000, 0xA700, 0xA900, 0xC000, 0x0110
OVERHEAD = 64 << 10  # bytes of an association that are not those of an instance
CHUNK = 1 << 16  # bytes read from a socket at once
Promise = Callable[[str, set[str], set[str]], bool]

logging.getLogger("pynetdicom").disabled = True  # its lines quote what callers send
for _name in [name for name in logging.root.manager.loggerDict if name.startswith("pynetdicom.")]:
    logging.getLogger(_name).disabled = True
_config.LOG_HANDLER_LEVEL = "none"
_config.STORE_SEND_CHUNKED_DATASET = True  # objects are sent as their bytes are on the disk


class Bounded(AssociationSocket):
    """A connection that can neither send without end nor say nothing for ever."""

    def __init__(self, association: Any, client_socket: Any, most: int, silence_s: float) -> None:
        client_socket.settimeout(silence_s)
        self.most, self.silence_s, self.received = most, silence_s, 0
        super().__init__(association, client_socket=client_socket)

    def recv(self, nr_bytes: int) -> bytearray:
        """Read so many bytes; OSError ends the association if they are too many or too slow."""
        self.received += nr_bytes
        data, until = bytearray(), time.monotonic() + self.silence_s
        try:
            assert self.socket is not None
            # a sender that waits for an acknowledgement of each packet would wait 40 ms
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            if self.received > self.most:  # before anything of it is read into memory
                raise OSError("more bytes than door.instance_mb allows")
            while len(data) < nr_bytes:
                if time.monotonic() > until:
                    raise TimeoutError("the data arrive too slowly")
                got = self.socket.recv(min(CHUNK, nr_bytes - len(data)))
                if not got:
                    raise ConnectionError("the other side has gone")
                data += got
        except OSError:
            self._shutdown_socket()  # now, and not after a time of silence
            raise
        return data

    def _shutdown_socket(self) -> None:
        """Close the connection even if the other side has gone already."""
        if self.socket is not None:
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)
            self.socket.close()


class Door(ThreadedAssociationServer):
    """The server of :class:`Receiver`; a thread of its own makes the handshake of TLS."""

    daemon_threads = True
    receiver: Receiver

    def get_request(self) -> Any:
        """Accept a connection, encrypted or not: the handshake is the thread's."""
        assert self.socket is not None
        return self.socket.accept()

    def shutdown(self) -> None:
        """Stop listening."""
        TCPServer.shutdown(self)
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Count a connection that ended before it said anything that can be understood."""
        self.receiver.watch.association("broken")


class Handler(RequestHandler):
    """Begins an association, if there may be one more."""

    request: Any

    server: Door

    def setup(self) -> None:
        """Encrypt the connection, if the door takes no others."""
        self.request.settimeout(self.server.receiver.params.silence_s)
        if self.server.ssl_context is not None:
            self.request = self.server.ssl_context.wrap_socket(self.request, server_side=True)

    def handle(self) -> None:
        """Serve the association, or close the connection if far too many are open."""
        receiver = self.server.receiver
        if len(self.server.active_associations) >= 2 * receiver.params.associations + 8:
            receiver.watch.association("too many")
            self.request.close()
            return
        super().handle()

    def _create_association(self) -> Any:
        association = super()._create_association()
        params = self.server.receiver.params
        most = (params.instance_mb << 20) + OVERHEAD
        while not association.dul.event_queue.empty():  # that of the socket which is replaced
            association.dul.event_queue.get()
        association.dul.socket = Bounded(association, self.request, most, params.silence_s)
        return association


class Receiver:
    """The Storage SCP.

    Args:
        params: who may call, and the limits.
        store: takes what arrives.
        watch: counts and logs.
        promise: is told what an archive says about storage commitment: the transaction, the
            instances that it keeps, and those that it does not.
    """

    def __init__(self, params: Params, store: Store, watch: Watch, promise: Promise) -> None:
        self.params, self.store, self.watch, self.promise = params, store, watch, promise
        self._begun: defaultdict[str, deque[float]] = defaultdict(deque)
        self._lock = threading.Lock()

    @property
    def allowed(self) -> list[str]:
        """Who may call: the callers, and the archives that report storage commitment."""
        routes = self.params.routes
        archives = [route.ae_title for route in routes if isinstance(route, Dicom) and route.commitment]
        return [*self.params.callers, *archives]

    def start(self) -> Door:
        """Listen in a thread; return the server.

        Raises:
            ServiceError: the address or a file of TLS cannot be used.
        """
        params = self.params
        entity = AE(params.ae_title)
        entity.implementation_class_uid = IMPLEMENTATION_UID
        entity.implementation_version_name = "MEDSTYLE_010"
        entity.require_called_aet = True
        entity.require_calling_aet = self.allowed
        if not self.allowed:  # which pynetdicom would take for everybody
            raise DataError("door.callers: nobody may call; name the AE title of each sender")
        entity.maximum_associations = params.associations
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = params.silence_s
        entity.add_supported_context(Verification)
        for context in AllStoragePresentationContexts:
            entity.add_supported_context(str(context.abstract_syntax), pynetdicom.ALL_TRANSFER_SYNTAXES)
        entity.add_supported_context(StorageCommitmentPushModel, scu_role=True, scp_role=True)
        handlers = [
            (evt.EVT_REQUESTED, self._requested),
            (evt.EVT_ACCEPTED, lambda event: self.watch.association("accepted")),
            (evt.EVT_REJECTED, self._rejected),
            (evt.EVT_ABORTED, lambda event: self.watch.association("aborted")),
            (evt.EVT_C_STORE, self._store),
            (evt.EVT_C_ECHO, self._echo),
            (evt.EVT_N_EVENT_REPORT, self._report),
        ]
        try:
            server: Door = entity.make_server(
                (params.host, params.port),
                ssl_context=context_of(params.tls, server=True),
                evt_handlers=handlers,
                server_class=Door,
                request_handler=Handler,
            )
        except OSError as error:
            where = f"{params.host}:{params.port}"
            raise ServiceError(f"{where} cannot be used ({error.strerror}); choose another door.port") from None
        server.receiver = self
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.2}, name="door", daemon=True).start()
        return server

    def _requested(self, event: evt.Event) -> None:
        """Turn away a caller that begins associations too often."""
        caller, now = str(event.assoc.requestor.primitive.calling_ae_title).strip(), time.monotonic()
        if caller not in event.assoc.ae.require_calling_aet:
            return  # is refused anyway, and must not fill the memory
        with self._lock:
            begun = self._begun[caller]
            while begun and now - begun[0] > 60:
                begun.popleft()
            if len(begun) < self.params.associations_per_minute:
                begun.append(now)
                return
        self.watch.association("too often")
        event.assoc.acse.send_reject(0x02, 0x03, 0x01)  # transient, by the presentation, temporary congestion
        event.assoc.kill()

    def _rejected(self, event: evt.Event) -> None:
        self.watch.association("rejected")
        self.watch.audit("association refused", "serious failure", peer=_address(event))

    def _echo(self, event: evt.Event) -> int:
        event.assoc.dul.socket.received = 0
        return SUCCESS

    def _store(self, event: evt.Event) -> int:
        """Answer C-STORE; success means that the instance is on the disk."""
        event.assoc.dul.socket.received = 0
        if event.assoc.requestor.ae_title.strip() not in self.params.callers:
            return 0x0124  # not authorised: an archive that may only report
        try:
            data = event.encoded_dataset()
            with quiet():
                identity = identify(data)
            if identity.instance != str(event.request.AffectedSOPInstanceUID):
                return self._refused("mismatch", MISMATCH)
            self.watch.instance(self.store.put(data, identity), len(data))
        except (DiskFull, OSError):
            return self._refused("no room", NO_RESOURCES)
        except Refusal as refusal:
            return self._refused(refusal.code, NO_RESOURCES if refusal.code == "E_TOO_LARGE" else NOT_UNDERSTOOD)
        except Exception as error:
            return self._refused(type(error).__name__, FAILURE)
        return SUCCESS

    def _refused(self, why: str, status: int) -> int:
        self.watch.instance("refused", 0)
        self.watch.say("instance refused", why=why)
        return status

    def _report(self, event: evt.Event) -> tuple[int, None]:
        """Take a report of storage commitment."""
        event.assoc.dul.socket.received = 0
        try:
            with quiet():
                report = event.event_information
                kept, lost = answered(report)
                known = self.promise(str(report.get("TransactionUID", "")), kept, lost)
        except Exception as error:
            self.watch.say("report refused", why=type(error).__name__)
            return FAILURE, None
        return (SUCCESS if known else 0x0112), None  # no such object instance


def _address(event: evt.Event) -> str:
    return str(event.assoc.requestor.address)


def context_of(tls: Tls | None, server: bool) -> ssl.SSLContext | None:
    """Return the settings of TLS 1.2 or newer; None without encryption.

    Raises:
        ServiceError: a file cannot be used.
    """
    if tls is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if tls.certificate:
            context.load_cert_chain(tls.certificate, tls.key or None)
        if tls.authority:
            context.load_verify_locations(tls.authority)
            context.verify_mode = ssl.CERT_REQUIRED
        elif not server:
            context.load_default_certs()
    except (OSError, ssl.SSLError) as error:
        raise ServiceError(f"door.tls: a file of certificates or keys cannot be used ({error.strerror})") from None
    if server and not tls.certificate:
        raise ServiceError("door.tls: a server needs certificate and key")
    return context
