"""Provide `medstyle studio`: the page, uploads, jobs, and their end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from medstyle.registry.connections import bound
from medstyle.studio.guard import LOOPBACK, Guard, cookie
from medstyle.studio.jobs import Job, Jobs
from medstyle.studio.sessions import Limits, Session, Sessions, receive

WEB = Path(__file__).parent / "web"
SWEEP_S = 5.0
KINDS = ("inspect", "view", "translate", "difference", "style", *("models", "model", "training", "promote"),
         "rollback", "ledger", "retry", "data", "drift")  # fmt: skip
SETS = ("set", "exemplars", "real")  # arguments that name a set of files


class Studio:
    """The application.

    Args:
        model: translator folder or registered model that is offered first.
        port: of the server.
        limits: of a session.
        token: what a browser must know; None on a loopback address.
    """

    def __init__(self, model: str, port: int, limits: Limits, token: str | None = None) -> None:
        self.limits, self.port, self.token = limits, port, token
        self.cookie = f"medstyle_session_{port}"
        self.sessions, self.jobs = Sessions(limits), Jobs(model, limits.jobs)

    @property
    def app(self) -> Starlette:
        """The application with its endpoints."""
        routes = [
            Route("/", self.page),
            Route("/api/session", self.end, methods=["DELETE"]),
            Route("/api/session", self.alive, methods=["POST"]),
            Route("/api/sets", self.new_set, methods=["POST"]),
            Route("/api/sets/{name}", self.upload, methods=["PUT"]),
            Route("/api/jobs/{kind}", self.add, methods=["POST"]),
            Route("/api/jobs/{name}", self.cancel, methods=["DELETE"]),
            Route("/api/jobs/{name}/events", self.events),
            Route("/api/jobs/{name}/files/{file}", self.file),
            Mount("/web", StaticFiles(directory=WEB)),
        ]
        return Starlette(
            routes=routes,
            lifespan=self.lifespan,
            middleware=[
                Middleware(Guard, port=self.port, token=self.token),
                Middleware(GZipMiddleware, minimum_size=4096),
            ],
            exception_handlers={HTTPException: _refusal, Exception: _refusal},
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Work on jobs and end idle sessions while the server runs."""
        tasks = [asyncio.create_task(self.jobs.work()), asyncio.create_task(self._sweep())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            self.sessions.close()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(min(SWEEP_S, self.limits.idle_s / 4))
            for name in self.sessions.overdue():
                await self._end(name)

    async def _end(self, name: str) -> None:
        session = self.sessions.known.get(name)
        if session is not None:
            await self.jobs.end(session)
            self.sessions.end(name)

    def _session(self, request: Request) -> Session:
        return self.sessions.find(request.cookies.get(self.cookie))

    async def page(self, request: Request) -> Response:
        """Return the page, and begin a session if the browser has none."""
        answer = FileResponse(WEB / "index.html")
        try:
            self._session(request)
        except HTTPException:
            answer.headers.append("Set-Cookie", cookie(self.cookie, self.sessions.open(), request))
        return answer

    async def alive(self, request: Request) -> Response:
        """Keep the session: the page asks for it while it is open."""
        session = self._session(request)
        return JSONResponse({"bytes": session.bytes, "limit": self.limits.upload_bytes})

    async def end(self, request: Request) -> Response:
        """End the session: its files are deleted, its jobs are stopped."""
        self._session(request)
        await self._end(request.cookies[self.cookie])
        return Response(status_code=204)

    async def new_set(self, request: Request) -> Response:
        """Make a place for files that belong together."""
        return JSONResponse({"set": self._session(request).new_set()})

    async def upload(self, request: Request) -> Response:
        """Store a file; its name is in the header ``X-Name``, percent-encoded."""
        session, name = self._session(request), request.path_params["name"]
        if name not in session.sets:
            raise HTTPException(404, "no such set of files; drop them again")
        folder = session.folder / "sets" / name
        await receive(request, session, self.limits, folder, unquote(request.headers.get("x-name", "file")))
        return Response(status_code=204)

    async def add(self, request: Request) -> Response:
        """Let a job of this session wait for its turn."""
        session, kind = self._session(request), request.path_params["kind"]
        try:
            arguments: dict[str, Any] = dict(await request.json())
        except (ValueError, TypeError):
            raise HTTPException(400, "send a JSON object of arguments") from None
        if kind not in KINDS or any(arguments.get(one) not in (*session.sets, None) for one in SETS):
            raise HTTPException(404, "no such job, or no such files; drop them again")
        return JSONResponse(self.jobs.add(session, kind, arguments).to_json())

    def _job(self, request: Request) -> Job:
        return self.jobs.find(self._session(request), request.path_params["name"])

    async def cancel(self, request: Request) -> Response:
        """Stop a job."""
        await self.jobs.cancel(self._job(request))
        return Response(status_code=204)

    async def events(self, request: Request) -> Response:
        """Follow a job by server-sent events."""
        return StreamingResponse(self._job(request).follow(), media_type="text/event-stream")

    async def file(self, request: Request) -> Response:
        """Return a file that a job made, by its name in the job's result."""
        job = self._job(request)
        found = job.files.get(request.path_params["file"])
        if found is None or not Path(found["path"]).is_relative_to(job.session.folder):
            raise HTTPException(404, "no such file; run the job again")
        saved = found["saved"] if "save" in request.query_params else None
        return FileResponse(found["path"], media_type=found["media"], filename=saved)


def _refusal(request: Request, error: Exception) -> Response:
    """Return an error in words; those of unexpected errors are only in the log."""
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    return JSONResponse({"error": f"unexpected {type(error).__name__}; see what the studio printed"}, 500)


def studio(model: str, host: str, port: int, limits: Limits) -> None:
    """Serve the studio until SIGTERM or SIGINT; print the link that opens it.

    Raises:
        ServiceError: the address cannot be used.
    """
    logging.basicConfig(level=logging.WARNING, format="medstyle: %(message)s", stream=sys.stderr)
    token = None if host in LOOPBACK else secrets.token_urlsafe(32)
    config, socket = bound(host, port, grace_s=1)
    config.server_header = False
    with socket:
        port = socket.getsockname()[1]
        config.app = Studio(model, port, limits, token).app
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/" + (f"?token={token}" if token else ""), flush=True)
        uvicorn.Server(config).run([socket])
