"""Show whether the door works, and its metrics in Prometheus' text format."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST, ThreadingWSGIServer

from medstyle.door.settings import Params
from medstyle.door.watch import Watch
from medstyle.errors import ServiceError


class _Silent(WSGIRequestHandler):
    timeout = 10.0  # seconds for which a connection may say nothing

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def serve_health(params: Params, watch: Watch, state: Callable[[], dict[str, bool]]) -> WSGIServer:
    """Answer `/health` and `/metrics` in a thread; return the server.

    ``/health`` is 200 while every part works, and else 503; it names them.

    Raises:
        ServiceError: the address cannot be used.
    """

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path, parts = environ.get("PATH_INFO", ""), state()
        if path == "/metrics":
            start("200 OK", [("Content-Type", CONTENT_TYPE_LATEST)])
            return [generate_latest(watch.registry)]
        known = HTTPStatus.NOT_FOUND if path not in ("/health", "/ping") else HTTPStatus.OK
        status = known if known is HTTPStatus.NOT_FOUND or all(parts.values()) else HTTPStatus.SERVICE_UNAVAILABLE
        start(f"{status.value} {status.phrase}", [("Content-Type", "application/json")])
        return [json.dumps(parts).encode() if known is HTTPStatus.OK else b"{}"]

    try:
        server = make_server(params.host, params.metrics_port, answer, ThreadingWSGIServer, handler_class=_Silent)
    except OSError as error:
        where = f"{params.host}:{params.metrics_port}"
        raise ServiceError(f"{where} cannot be used ({error.strerror}); choose another door.metrics_port") from None
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
