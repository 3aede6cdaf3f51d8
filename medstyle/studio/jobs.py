"""Run jobs in processes that can be stopped, so that the server stays responsive."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import json
import logging
import os
import secrets
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from starlette.exceptions import HTTPException

from medstyle.studio.sessions import Session

log = logging.getLogger("medstyle.studio")
LINE = 64 << 20  # bytes of an answer of a worker
KEPT = 50  # jobs of a session that have ended and left no file
BEAT_S = 15.0  # a line is sent at least so often while a job runs
State = Literal["waiting", "running", "done", "failed", "cancelled"]
DIED = "the job ended its process; it may need more memory than is available"


class Job:
    """A job and what has become of it."""

    def __init__(self, session: Session, kind: str, arguments: dict[str, Any]) -> None:
        self.name, self.session, self.kind, self.arguments = secrets.token_hex(8), session, kind, arguments
        self.state: State = "waiting"
        self.progress, self.said, self.error = 0.0, "", ""
        self.result: dict[str, Any] = {}
        self.files: dict[str, dict[str, str]] = {}
        self._changed = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")

    @property
    def folder(self) -> Path:
        """What the job makes lies here."""
        return self.session.folder / "jobs" / self.name

    def tell(self, state: State, **facts: Any) -> None:
        """Note a change, and wake those that follow the job."""
        self.state = state
        for name, value in facts.items():
            setattr(self, name, value)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def to_json(self) -> dict[str, Any]:
        """Return what the page shows."""
        names = ("name", "kind", "state", "progress", "said", "error", "result")
        return {name: getattr(self, name) for name in names}

    async def follow(self) -> AsyncIterator[str]:
        """Yield server-sent events until the job has ended."""
        while True:
            changed = self._changed
            yield f"data: {json.dumps(self.to_json())}\n\n"
            if self.ended:
                return
            while not changed.is_set():
                try:
                    await asyncio.wait_for(changed.wait(), BEAT_S)
                except TimeoutError:
                    yield ": still there\n\n"


class Lane:
    """A worker process, started anew after its end, with the jobs that wait for it."""

    def __init__(self, model: str, seconds: float | None = None) -> None:
        self.model, self.seconds = model, seconds
        self.waiting: asyncio.Queue[Job] = asyncio.Queue()
        self.running: Job | None = None
        self.process: Process | None = None

    async def work(self) -> None:
        """Do the jobs, until cancelled."""
        try:
            while True:
                await self._start()  # before there is a job, because it loads libraries for seconds
                job = await self.waiting.get()
                if job.ended:
                    continue
                self.running = job
                job.tell("running")
                await self._do(job)
                self.running = None
        finally:
            await self._kill()

    async def _start(self) -> None:
        if self.process is not None and self.process.returncode is None:
            return
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "medstyle.studio.worker", self.model),
            stdin=PIPE,
            stdout=PIPE,
            limit=LINE,
            start_new_session=True,  # an interrupt from the terminal must only reach the server
            preexec_fn=functools.partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL),  # end with the server
        )

    async def _do(self, job: Job) -> None:
        try:
            async with asyncio.timeout(self.seconds):
                await self._ask(job)
        except TimeoutError:
            await self._kill()
            job.tell("failed", error=f"it took longer than {self.seconds:g} s; send fewer or smaller files")
        except (OSError, ValueError):
            await self._kill()
        if not job.ended:
            await self._kill()
            job.tell("failed", error=DIED)
        if job.state == "failed":
            log.warning("a job failed", extra={"facts": {"kind": job.kind}})

    async def _ask(self, job: Job) -> None:
        await self._start()
        assert self.process
        assert self.process.stdin
        assert self.process.stdout
        job.folder.mkdir(parents=True, exist_ok=True)
        ask = {"kind": job.kind, "folder": str(job.session.folder), "out": str(job.folder), "arguments": job.arguments}
        self.process.stdin.write(json.dumps(ask).encode() + b"\n")
        await self.process.stdin.drain()
        while line := await self.process.stdout.readline():
            answer = json.loads(line)
            if "result" in answer:
                job.tell("done", progress=1.0, result=answer["result"], files=answer["files"])
                return
            if "error" in answer:
                job.tell("failed", error=answer["error"])
                return
            if not job.ended:
                job.tell("running", **answer)

    async def cancel(self, job: Job) -> None:
        """Stop a job: one that runs ends with its process."""
        if job.ended:
            return
        job.tell("cancelled")
        if self.running is job:
            await self._kill()

    async def _kill(self) -> None:
        process, self.process = self.process, None
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


class Jobs:
    """All jobs, in two lanes: what takes a moment does not wait for what takes long."""

    def __init__(self, model: str, most: int) -> None:
        self.looks, self.makes, self.most = Lane(model, 300.0), Lane(model), most
        self.known: dict[str, Job] = {}

    async def work(self) -> None:
        """Work in both lanes, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.looks.work())
            group.create_task(self.makes.work())

    def _lane(self, job: Job) -> Lane:
        return self.makes if job.kind in ("translate", "style") else self.looks

    def add(self, session: Session, kind: str, arguments: dict[str, Any]) -> Job:
        """Let a job wait for its turn."""
        if sum(not job.ended for job in self.known.values() if job.session is session) >= self.most:
            raise HTTPException(503, f"{self.most} jobs are waiting; let one end, or cancel it")
        self._forget(session)
        job = Job(session, kind, arguments)
        self.known[job.name] = job
        self._lane(job).waiting.put_nowait(job)
        return job

    def _forget(self, session: Session) -> None:
        """Forget what was answered long ago: an open page asks for the ledger every few seconds."""
        old = [job for job in self.known.values() if job.session is session and job.ended and not job.files]
        for job in old[:-KEPT]:
            del self.known[job.name]
            shutil.rmtree(job.folder, ignore_errors=True)

    def find(self, session: Session, name: str) -> Job:
        """Return a job of a session; nobody sees another's."""
        job = self.known.get(name)
        if job is None or job.session is not session:
            raise HTTPException(404, "no such job; it may belong to a session that has ended")
        return job

    async def cancel(self, job: Job) -> None:
        """Stop a job."""
        await self._lane(job).cancel(job)

    async def end(self, session: Session) -> None:
        """Stop and forget the jobs of a session."""
        for job in [job for job in self.known.values() if job.session is session]:
            await self.cancel(job)
            del self.known[job.name]
