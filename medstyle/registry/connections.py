"""Bound the connections of `medstyle serve`: their number, and how long one may say nothing."""

from __future__ import annotations

import asyncio
import resource
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from medstyle.errors import ServiceError

# Half of the descriptors; the rest is for processes, files, and what one turn of the loop accepts.
CONNECTIONS = min(1000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
BACKLOG = max(1, CONNECTIONS // 4)  # asyncio accepts as many at once, before any can be closed
HEADER_S = 10.0
LATE = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def bound(host: str, port: int, grace_s: int) -> tuple[uvicorn.Config, socket.socket]:
    """Return the settings of a server whose connections are bounded, and its socket.

    Args:
        host, port: where to listen.
        grace_s: how long requests may go on when the server is told to stop.

    Raises:
        ServiceError: the address cannot be used.
    """
    config = uvicorn.Config("", host, port, http=Connection, backlog=BACKLOG, log_config=None, access_log=False)
    config.timeout_graceful_shutdown = grace_s
    try:
        return config, config.bind_socket()
    except SystemExit:
        raise ServiceError(f"{host}:{port} cannot be used; choose another --port") from None


class Connection(H11Protocol):
    """A connection that others can count on to end.

    Beyond the limit, a new one takes the place of the oldest whose request has not arrived: first
    of those without a header, then of those without the whole body. So `/ping` is answered while
    somebody opens connections and says nothing.
    """

    connections: set[Connection]  # type: ignore[assignment]

    def connection_made(self, transport: Any) -> None:
        """Take a place, or make one."""
        super().connection_made(transport)
        self.since = self.loop.time()
        self._watch(self)
        others = [one for one in self.connections if one is not self and not one.transport.is_closing()]
        if len(others) >= CONNECTIONS:
            oldest = min(others, key=lambda one: (one.stage, one.since))
            (oldest if oldest.stage < 2 else self).transport.close()

    @property
    def stage(self) -> int:
        """0 while a request is awaited, 1 while its body arrives, 2 while it is answered."""
        if self.cycle is None or self.cycle.response_complete:
            return 0
        return 1 if self.cycle.more_body else 2

    def _watch(self, before: object) -> None:
        """Close the connection if it has awaited the same request since the last look.

        ``before`` is the request that it had answered then; itself, if it awaited none.
        """
        if self.transport.is_closing():
            return
        if self.stage == 0 and self.cycle is before:
            self.transport.write(LATE)
            self.transport.close()
        else:
            asyncio.get_running_loop().call_later(HEADER_S, self._watch, self if self.stage else self.cycle)
