"""Provide `medstyle listen`: the parts of the door, their threads, and their end."""

from __future__ import annotations

import functools
import json
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import FrameType

from medstyle.door.health import serve_health
from medstyle.door.ledger import Ledger
from medstyle.door.outbox import Outbox, Sender, promise_kept
from medstyle.door.scp import Receiver
from medstyle.door.scu import DicomSender
from medstyle.door.settings import Dicom, Params
from medstyle.door.store import Store
from medstyle.door.watch import Watch
from medstyle.door.web import Poller, WebSender
from medstyle.errors import outline
from medstyle.inference.inbox import alone

AGAIN_S = 2.0  # between two starts of the translator
TICK_S = 0.5


class Translating:
    """Keeps the translator's process alive.

    Args:
        command: that starts it.
        watch: counts its starts, and prints what it says.
    """

    def __init__(self, command: list[str], watch: Watch) -> None:
        self.command, self.watch = command, watch
        self.process: subprocess.Popen[str] | None = None

    def work(self, stop: threading.Event) -> None:
        """Start it, and start it anew when it ends, until told to stop."""
        while not stop.is_set():
            self.watch.restarts.inc()
            self.process = subprocess.Popen(
                self.command,
                stdout=subprocess.PIPE,
                stdin=subprocess.PIPE,  # its end tells the process that the door has ended
                text=True,
                start_new_session=True,  # an interrupt from the terminal must only reach the door
            )
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self._tell(line)
            code = self.process.wait()
            self.watch.say("translator ended", code=code)
            stop.wait(AGAIN_S)

    def _tell(self, line: str) -> None:
        facts = json.loads(line)
        self.watch.say(f"translator: {facts.pop('event')}", **facts)
        if "key" in facts:
            failed = facts["status"] == "quarantined"
            self.watch.audit("study translated", "minor failure" if failed else "success", **facts)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def end(self, seconds: float) -> None:
        """Let the process complete the study in work; kill it if that takes too long."""
        process = self.process
        if process is None or process.stdin is None:
            return
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()


def listen(folder: Path, params: Params, model: str, audit: Path | None = None) -> None:
    """Take studies, translate them and send the results until SIGTERM or SIGINT.

    Args:
        folder: of the inbox, its ledger and its results; made if there is none.
        params: what is taken and where results go.
        model: translator folder or registered model, whose alias is followed.
        audit: file of the audit; None: no audit.

    Raises:
        UserError: an address, a file or the folder cannot be used.
    """
    warnings.simplefilter("ignore")  # the warnings of libraries quote values
    folder.mkdir(parents=True, exist_ok=True)
    watch, stop = Watch(audit), threading.Event()
    with ExitStack() as stack:
        held = f"{folder}: another door writes into it; stop that first"
        stack.enter_context(alone(folder / ".door.lock", held))
        ledger = stack.enter_context(closing(Ledger(folder)))
        store = Store(folder, ledger, params.study_instances, params.free_mb << 20)
        promise = functools.partial(promise_kept, ledger, watch)
        outboxes = [Outbox(folder, one.name, _sender(one, params), ledger, params, watch) for one in params.routes]
        limit = params.instance_mb << 20
        pollers = [Poller(poll, store, watch, params.silence_s, limit) for poll in params.polls]
        options = [str(int(params.uncertainty)), str(int(params.report))]
        translating = Translating([sys.executable, "-m", "medstyle.door.worker", str(folder), model, *options], watch)
        threads: dict[str, threading.Thread] = {}
        works = {f"to {one.route}": one.work for one in outboxes}
        works |= {f"poll {number}": one.work for number, one in enumerate(pollers)}
        works |= {"close": functools.partial(_close, store, params.quiet_s, watch), "translator": translating.work}
        receiver = Receiver(params, store, watch, promise)
        if receiver.allowed or not pollers:  # one that only asks has no port
            server = receiver.start()
            stack.callback(server.shutdown)
        health = serve_health(params, watch, functools.partial(_state, threads, translating, store, ledger, watch))
        stack.callback(health.shutdown)
        for name, function in works.items():
            threads[name] = threading.Thread(target=_guarded, args=(function, stop, watch), name=name, daemon=True)
            threads[name].start()
        watch.audit("start")
        port = server.server_address[1] if receiver.allowed else None
        watch.say("listening", ae_title=params.ae_title, port=port, metrics_port=health.server_address[1])
        _until_signalled(stop)
        translating.end(params.silence_s)
        for thread in threads.values():
            thread.join(params.silence_s)
        watch.audit("stop")


def _sender(route: object, params: Params) -> Sender:
    if isinstance(route, Dicom):
        return DicomSender(route, params.ae_title, params.silence_s)
    return WebSender(route, params.silence_s)  # type: ignore[arg-type]


def _guarded(function: Callable[[threading.Event], None], stop: threading.Event, watch: Watch) -> None:
    """Run a part of the door; begin it anew after an error that nobody expected."""
    while not stop.is_set():
        try:
            function(stop)
        except Exception as error:
            watch.say("fault", why=type(error).__name__)
            print(outline(error), end="", file=sys.stderr, flush=True)
            stop.wait(TICK_S)


def _close(store: Store, quiet_s: float, watch: Watch, stop: threading.Event) -> None:
    while not stop.is_set():
        for study, count, grown in store.close_quiet(quiet_s):
            watch.studies.labels("grown" if grown else "new").inc()
            watch.audit("study received", study=study, instances=count)
            watch.say("received", study=study, instances=count, grown=grown)
        stop.wait(min(TICK_S, quiet_s / 2))


def _state(
    threads: dict[str, threading.Thread], translating: Translating, store: Store, ledger: Ledger, watch: Watch
) -> dict[str, bool]:
    """Return which parts work, and bring the gauges up to date."""
    for (route, state), count in ledger.states().items():
        watch.deliveries.labels(route, state).set(count)
    for place, count in zip(("arriving", "inbox"), store.waiting(), strict=True):
        watch.waiting.labels(place).set(count)
    return {**{name: thread.is_alive() for name, thread in threads.items()}, "translating": translating.alive}


def _until_signalled(stop: threading.Event) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    while not stop.is_set():
        time.sleep(0.1)
