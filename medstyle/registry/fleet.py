"""Manage the worker processes of `medstyle serve`."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import functools
import io
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from mlflow.models import Model
from mlflow.pyfunc.scoring_server import get_cmd

from medstyle.errors import ServiceError
from medstyle.registry.models import Served, download

START_S = 300.0  # time limit to load a model, in seconds


log = logging.getLogger("medstyle.serve")


class Worker:
    """One scoring server in its own process.

    Args:
        model: the downloaded model.
        folder: folder of the process, for a socket and temporary files.
        threads: number of threads of its computations.
    """

    def __init__(self, model: Path, folder: Path, threads: int) -> None:
        self.model, self.folder, self.threads = model, folder, threads
        self.process: asyncio.subprocess.Process | None = None
        self.loaded = False
        once = httpx.Limits(max_keepalive_connections=0)  # a kept connection may close just when it is used
        transport = httpx.AsyncHTTPTransport(uds=str(folder / "socket"), limits=once)
        self.client = httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=None)  # noqa: S113 - a volume takes long

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.returncode is None

    @property
    def ready(self) -> bool:
        """Whether the process runs and has answered since it was started."""
        return self.alive and self.loaded

    async def start(self) -> None:
        """Start the process and wait until it answers.

        Raise :class:`UserError` if it ends instead.
        """
        self.loaded = False
        shutil.rmtree(self.folder, ignore_errors=True)  # it may hold images of an interrupted request
        self.folder.mkdir(mode=0o700)
        command, environment = get_cmd(str(self.model), timeout=1 << 30)
        threads = {"OMP_NUM_THREADS": str(self.threads), "OMP_WAIT_POLICY": "passive"}
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", *shlex.split(command)),
            *("--uds", str(self.folder / "socket"), "--log-level", "warning"),
            env={**environment, "TMPDIR": str(self.folder), **threads},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr.fileno(),
            start_new_session=True,  # an interrupt from the terminal must only reach the front end
            preexec_fn=functools.partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL),  # end with the front end
        )
        with suppress(TimeoutError):
            async with asyncio.timeout(START_S):
                while self.alive:
                    with suppress(httpx.TransportError):
                        (await self.client.get("/ping")).raise_for_status()
                        self.loaded = True
                        return
                    await asyncio.sleep(0.1)
        await self.kill()
        raise ServiceError("the model's process did not start; its errors are above")

    async def ask(self, body: bytes) -> httpx.Response:
        """Send a request; raises ``httpx.TransportError`` if it kills the process."""
        return await self.client.post("/invocations", content=body, headers={"Content-Type": "application/json"})

    async def kill(self) -> None:
        """Kill the process; there is no other way to stop a translation."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


@dataclass
class Fleet:
    """The worker processes of one version, all of which have answered its input example."""

    served: Served
    workers: list[Worker]
    folder: tempfile.TemporaryDirectory[str]
    idle: asyncio.Queue[Worker] = field(default_factory=asyncio.Queue)
    model: Any = None

    @classmethod
    async def start(cls, served: Served, count: int) -> Fleet:
        """Start ``count`` processes and check each.

        Raise :class:`UserError` if one fails, after cleaning up.
        """
        folder = tempfile.TemporaryDirectory(prefix="medstyle-serve-")
        model = Path(folder.name, "model")
        threads = int(os.environ.get("OMP_NUM_THREADS") or max(1, len(os.sched_getaffinity(0)) // count))
        workers = [Worker(model, Path(folder.name, f"{number}"), threads) for number in range(count)]
        fleet = cls(served, workers, folder)
        try:
            await asyncio.to_thread(download, f"models:/{served.model}/{served.version}", model)
            await asyncio.gather(*(fleet._ready(worker) for worker in fleet.workers))
        except BaseException:
            await fleet.end()
            raise
        fleet.model = Model.load(str(model))
        return fleet

    async def _ready(self, worker: Worker) -> None:
        """Start a process and compare its answer to the input example with what is registered."""
        await worker.start()
        async with asyncio.timeout(START_S):
            answer = await worker.ask((worker.model / "serving_input_example.json").read_bytes())
        if answer.status_code != 200:
            raise ServiceError(f"the answer to the input example has status {answer.status_code}")
        [row] = answer.json()["predictions"]
        if row["weights_sha256"] != self.served.weights_sha256:
            raise ServiceError("the input example is answered by other weights than those that were registered")
        if not np.isfinite(np.load(io.BytesIO(base64.b64decode(row["image"])))).all():
            raise ServiceError("the input example is answered with an image that is not finite")
        self.idle.put_nowait(worker)

    @asynccontextmanager
    async def worker(self, seconds: float) -> AsyncIterator[Worker]:
        """Lend a running process; wait for an idle one for at most ``seconds``."""
        async with asyncio.timeout(seconds):
            worker = await self.idle.get()
        try:
            if not worker.alive:
                log.warning("a process is started again", extra={"facts": {"version": self.served.version}})
                await worker.start()
            yield worker
        finally:
            self.idle.put_nowait(worker)

    async def revive(self) -> None:
        """Restart idle processes that have died."""
        for _ in range(self.idle.qsize()):
            async with self.worker(START_S):
                pass

    async def drain(self) -> None:
        """Wait for the waiting and running requests, then end the processes."""
        try:
            for _ in self.workers:  # requests are served in the order of their arrival
                await self.idle.get()
        finally:
            await self.end()

    async def end(self) -> None:
        """End the processes immediately and remove their files."""
        for worker in self.workers:
            await worker.kill()
            await worker.client.aclose()
        self.folder.cleanup()
