"""Provide `medstyle serve`: a front end for worker processes that follows the model's alias.

The worker processes are those of ``mlflow models serve``: MLflow's scoring server, here on a socket
that only this user can open. Each processes one request at a time, so a request that is overdue or
kills its process does not affect others.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import signal
import sys
import time
import traceback
import uuid
from collections import Counter as Counts
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.proto_json_utils import dataframe_from_parsed_json
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from medstyle.errors import ServiceError, UserError
from medstyle.registry.connections import bound
from medstyle.registry.fleet import Fleet, log
from medstyle.registry.models import Served, resolve

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
BODY = (
    'send JSON: {"dataframe_split": {"columns": ["image"], "data": [["<a file in base64>"]]}}, one row for each image'
)
GRACE_S, RATE = 10.0, 10_000  # s, bytes/s: a body may be late by the first and arrive no slower than the second
FORMS = {"dataframe_split": "split", "dataframe_records": "records"}  # MLflow's name of a JSON table -> pandas' name


@dataclass(frozen=True)
class RequestLimits:
    """The limits for one request.

    Attributes:
        body_bytes: largest body; larger ones are answered with 413.
        capacity: largest number of waiting and running requests; others are answered with 503.
        seconds: time limit to receive a body (408), to wait for a process (503), and to translate
            (504).
        rows: largest number of images; more are answered with 413.
    """

    body_bytes: int = 256 << 20
    capacity: int = 16
    seconds: float = 300.0
    rows: int = 1000

    def __post_init__(self) -> None:
        if min(self.body_bytes, self.capacity, self.seconds, self.rows) <= 0:
            raise ServiceError("the limits of body, capacity, seconds and rows must be above 0")


class Front:
    """The front end, which limits, counts and records requests and passes them to the fleet."""

    def __init__(self, fleet: Fleet, reference: str, limits: RequestLimits, audit: Path | None) -> None:
        self.reference, self.limits, self.audit = reference, limits, audit
        self.held = self.arriving = 0  # requests; bytes of bodies that are not complete
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("medstyle_requests", "Requests by status.", ["status"], registry=registry)
        self.seconds = Histogram("medstyle_request_seconds", "Latency.", buckets=SECONDS, registry=registry)
        self.verdicts = Counter("medstyle_ood_verdicts", "Images by verdict.", ["verdict"], registry=registry)
        self.switches = Counter("medstyle_champion_switches", "Changes of the served version.", registry=registry)
        Gauge("medstyle_requests_held", "Requests that wait or run.", registry=registry).set_function(lambda: self.held)
        self._use(fleet)

    def _use(self, fleet: Fleet) -> None:
        self.fleet, self.since = fleet, _now()
        log.info("serving", extra={"facts": {"version": fleet.served.version, "weights": fleet.served.weights_sha256}})

    @property
    def app(self) -> Starlette:
        """The application with its endpoints."""
        routes = [
            Route("/ping", self.ping),
            Route("/health", self.ping),
            Route("/version", self.version),
            Route("/metrics", self.metrics),
            Route("/invocations", self.invocations, methods=["POST"]),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: _refusal, Exception: _refusal})

    async def ping(self, request: Request) -> Response:
        """Return 200 while a process is ready."""
        return Response("\n", 200 if any(worker.ready for worker in self.fleet.workers) else 503)

    async def version(self, request: Request) -> Response:
        """Return the version that answers, its aliases, and the time since when it is served."""
        facts = self.fleet.served._asdict()
        return JSONResponse({**facts, "since": self.since, "medstyle": version_of("medstyle")})

    async def metrics(self, request: Request) -> Response:
        """Return metrics in Prometheus' text format."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def invocations(self, request: Request) -> Response:
        """Translate.

        Return MLflow's answer, with ``X-Request-ID`` as in the log and the audit file.
        """
        start, name, status = time.perf_counter(), uuid.uuid4().hex, 500
        try:
            try:
                response = await self._hold(request, name)
            except HTTPException as error:
                response = _refusal(request, error)
            response.headers["X-Request-ID"] = name
            status = response.status_code
            return response
        finally:
            seconds = time.perf_counter() - start
            self.requests.labels(status).inc()
            self.seconds.observe(seconds)
            log.info("request", extra={"facts": {"request": name, "status": status, "seconds": round(seconds, 4)}})

    async def _hold(self, request: Request, name: str) -> Response:
        self._check_capacity()  # before the upload, which would be in vain
        body = await self._body(request)
        self._check_capacity()
        self.held += 1  # a body that is still arriving holds no place
        try:
            return await self._translate(body, name)
        finally:
            self.held -= 1

    def _check_capacity(self) -> None:
        if self.held >= self.limits.capacity:
            raise _busy(f"{self.held} requests are waiting or running")

    async def _body(self, request: Request) -> bytes:
        limits, now = self.limits, asyncio.get_running_loop().time
        too_large = HTTPException(413, f"the body is larger than {limits.body_bytes} bytes; send fewer images")
        if int(request.headers.get("Content-Length", 0)) > limits.body_bytes:
            raise too_large
        body, start = bytearray(), now()
        try:
            async with asyncio.timeout(min(limits.seconds, GRACE_S)) as late:
                async for chunk in request.stream():
                    body += chunk
                    self.arriving += len(chunk)
                    if len(body) > limits.body_bytes:
                        raise too_large
                    if self.arriving > limits.body_bytes * limits.capacity:
                        raise _busy("too many bodies are arriving")
                    late.reschedule(start + min(limits.seconds, GRACE_S + len(body) / RATE))
        except ClientDisconnect:
            raise HTTPException(400, "the body did not arrive") from None
        except TimeoutError:
            why = f"within {limits.seconds:g} s, or slower than {RATE} bytes/s; send it faster, or fewer images"
            raise HTTPException(408, f"the body did not arrive {why}", {"Connection": "close"}) from None
        finally:
            self.arriving -= len(body)
        return bytes(body)

    async def _translate(self, body: bytes, name: str) -> Response:
        model = self.fleet.model
        inputs = await asyncio.to_thread(_inputs, body, model, self.limits.rows)
        common: dict[str, Any] = {}
        outputs: list[dict[str, Any]] = [{} for _ in inputs]
        status = 500
        try:
            answer = await self._ask(body)
            if answer.status_code != 200:
                raise _cleaned(answer, model)
            (common, outputs), status = await asyncio.to_thread(_outputs, answer.content), 200
        except HTTPException as error:
            status = error.status_code
            raise
        finally:
            images = [{"input_sha256": sent, **made} for sent, made in zip(inputs, outputs, strict=True)]
            self._record({"request": name, "status": status, "rows": len(inputs), **common}, images)
        return Response(answer.content, media_type="application/json")

    async def _ask(self, body: bytes) -> httpx.Response:
        """Pass on a request.

        If it ends its process, perhaps without fault, try it a second time.
        """
        seconds = self.limits.seconds
        for _ in range(2):
            try:
                async with self.fleet.worker(seconds) as worker:
                    try:
                        async with asyncio.timeout(seconds):
                            return await worker.ask(body)
                    except TimeoutError:
                        await worker.kill()
                        raise HTTPException(504, f"the translation took longer than {seconds:g} s") from None
                    except httpx.TransportError:
                        await worker.kill()
            except TimeoutError:
                raise _busy(f"no process became free within {seconds:g} s") from None
            except UserError:
                raise _busy("a process does not start") from None
        raise HTTPException(500, "the request ended its process twice; it may need more memory than is available")

    def _record(self, facts: dict[str, Any], images: list[dict[str, Any]]) -> None:
        """Append a line about one request to the audit file: hashes, verdicts and counts only."""
        verdicts = Counts(image["ood_verdict"] for image in images if "ood_verdict" in image)
        for verdict, count in verdicts.items():
            self.verdicts.labels(verdict).inc(count)
        if self.audit is not None:
            with self.audit.open("a", encoding="utf-8") as file:
                line = {"time": _now(), **facts, "ood_verdicts": verdicts, "images": images}
                file.write(json.dumps(line) + "\n")

    async def follow(self, seconds: float) -> None:
        """Check the alias and idle processes every ``seconds`` until the server stops.

        Errors are logged.
        """
        seen = self.fleet.served.version
        while True:
            await asyncio.sleep(seconds)
            try:
                found = await asyncio.to_thread(resolve, self.reference)
                if found.version == self.fleet.served.version:
                    self.fleet.served = found  # its aliases may have changed
                elif found.version != seen:
                    await self._switch(found)
                seen = found.version
                await self.fleet.revive()
            except Exception as error:
                log.error("poll failed", extra={"facts": {"reason": _reason(error)}})

    async def _switch(self, found: Served) -> None:
        """Start ``found`` beside the served version and replace it.

        Keep the served one if that fails.
        """
        try:
            fleet = await Fleet.start(found, len(self.fleet.workers))
        except Exception as error:
            log.error("refused", extra={"facts": {"version": found.version, "reason": _reason(error)}})
            return
        before = self.fleet
        self._use(fleet)
        self.switches.inc()
        await before.drain()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UserError) else type(error).__name__


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _busy(why: str) -> HTTPException:
    return HTTPException(503, f"{why}; ask again later", {"Retry-After": "1"})


def _refusal(request: Request, error: Exception) -> Response:
    """Return an error in the form of MLflow's; details of unexpected errors are only in the log."""
    known = error if isinstance(error, HTTPException) else HTTPException(500, "unexpected error; see the log")
    content = {"error_code": HTTPStatus(known.status_code).name, "message": known.detail}
    return JSONResponse(content, known.status_code, known.headers)


def _cleaned(answer: httpx.Response, model: Model) -> HTTPException:
    """Return an error without MLflow's additions: a traceback, and the data of the request."""
    if answer.status_code != 400:
        return HTTPException(500, "the model's process failed; see the log")
    message = answer.json()["message"]
    ours = message.startswith("row ")
    return HTTPException(400, message if ours else f"params do not fit the model's: {model.get_params_schema()}")


def _inputs(body: bytes, model: Model, rows: int) -> list[str]:
    """Hash the images of a request, parsed like MLflow's server does.

    Errors are clearer than MLflow's.
    """
    too_many = HTTPException(413, f"more than {rows} rows; send at most {rows} images in a request")
    # A row needs at most four of these. They are counted first, because the parser does not let go
    # of the interpreter, and would take minutes and gigabytes for a body of brackets alone.
    if sum(map(body.count, (b"[", b"{", b","))) > 4 * rows + 64:
        raise too_many
    schema, params = model.get_input_schema(), {spec.name for spec in model.get_params_schema()}
    try:
        content = json.loads(body)
        known_params = params.issuperset(content.pop("params", {}))
        [(kind, table)] = content.items()
        if len(table["data"] if FORMS[kind] == "split" else table) > rows:
            raise too_many
        table = dataframe_from_parsed_json(table, FORMS[kind], schema)
        known_columns = set(schema.input_names()).issuperset(table.columns)
        inputs = [hashlib.sha256(image).hexdigest() for image in table["image"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, MlflowException):
        raise HTTPException(400, BODY) from None
    if not known_columns:
        raise HTTPException(400, f"the columns are {schema}")
    if not known_params:
        raise HTTPException(400, f"the params are {model.get_params_schema()}")
    return inputs


def _outputs(content: bytes) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the facts for the audit: those of an answer, and those of each of its images."""
    rows = json.loads(content)["predictions"]
    images = [
        {
            "output_sha256": hashlib.sha256(base64.b64decode(row["image"])).hexdigest(),
            "ood_score": row["ood_score"],
            "ood_verdict": row["ood_verdict"],
        }
        for row in rows
    ]
    return {fact: row[fact] for row in rows[:1] for fact in ("weights_sha256", "domain")}, images


class OncePerSecond(logging.Filter):
    """Let one warning of each cause pass per second; the next one says how many were left out."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[tuple[object, ...], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is written."""
        if record.levelno < logging.WARNING:
            return True
        facts = getattr(record, "facts", {})
        first_line = str(record.msg).partition("\n")[0]  # asyncio's further lines name objects
        cause = (record.name, first_line, str(facts), record.exc_info and record.exc_info[0])
        last, left_out = self.seen.pop(cause, (0.0, 0))
        if record.created - last < 1:
            self.seen[cause] = last, left_out + 1
            return False
        self.seen = {one: seen for one, seen in self.seen.items() if record.created - seen[0] < 60}
        self.seen[cause] = record.created, 0
        if left_out:
            record.facts = {**facts, "left_out": left_out}
        return True


class JsonLines(logging.Formatter):
    """One JSON object per record.

    Errors have type and place only, as their text may quote a request.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        facts = {"time": _now(), "level": record.levelname, "event": record.msg, **getattr(record, "facts", {})}
        if record.exc_info and record.exc_info[1]:
            kind, _, trace = record.exc_info
            facts |= {"error": kind.__name__, "trace": "".join(traceback.format_tb(trace))}
        return json.dumps(facts)


def serve(
    reference: str, host: str, port: int, workers: int, limits: RequestLimits, poll_s: float, audit: Path | None
) -> None:
    """Serve ``models:/name@alias``, or a fixed version, until SIGTERM or SIGINT.

    Running requests complete.

    Raises:
        UserError: the model, the address or the audit file cannot be used.
    """
    if audit is not None:
        try:
            audit.open("a").close()
        except OSError as error:
            raise ServiceError(f"{audit}: cannot be written ({error.strerror}); name another --audit file") from None
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    handler.addFilter(OncePerSecond())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    log.setLevel(logging.INFO)
    with suppress(asyncio.CancelledError):  # stopped before it had started
        asyncio.run(_serve(reference, host, port, workers, limits, poll_s, audit))


async def _serve(
    reference: str, host: str, port: int, workers: int, limits: RequestLimits, poll_s: float, audit: Path | None
) -> None:
    grace = int(limits.seconds) + 1
    config, socket = bound(host, port, grace)
    with socket:
        starting = asyncio.create_task(Fleet.start(resolve(reference), workers))
        for number in (signal.SIGINT, signal.SIGTERM):  # until uvicorn handles them
            asyncio.get_running_loop().add_signal_handler(number, starting.cancel)
        front = Front(await starting, reference, limits, audit)
        config.app = front.app
        following = asyncio.create_task(front.follow(poll_s))
        try:
            await uvicorn.Server(config).serve([socket])
        finally:
            following.cancel()
            await asyncio.wait([following])
            await front.fleet.end()
