"""Show the progress of a long loop: a bar on a terminal, an occasional line in a log."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, TypeVar

T = TypeVar("T")
LINE_EVERY_S = 10.0


def track(items: Iterable[T], description: str, total: int | None = None, *, patience_s: float = 0.0) -> Iterator[T]:
    """Yield ``items`` and report progress on stderr.

    ``total`` is optional if ``items`` has a length.

    A loop that ends within ``patience_s`` seconds reports nothing.
    """
    count = total if total is not None else len(items) if isinstance(items, Sized) else None
    start = last = time.monotonic()
    rest, early = iter(items), 0
    while patience_s and time.monotonic() - start < patience_s:
        try:
            item = next(rest)
        except StopIteration:
            return
        yield item
        early += 1
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import track as bar

        yield from bar(rest, description, count, completed=early, console=Console(stderr=True))
        return
    for done, item in enumerate(rest, early + 1):
        yield item
        now = time.monotonic()
        if done == count or now - last >= LINE_EVERY_S:
            last = now
            print(
                f"{description}: {done}{f'/{count}' if count else ''} after {now - start:.0f} s",
                file=sys.stderr,
                flush=True,
            )


RATE_OVER_S = 20.0  # length of the interval over which the rate is measured, in seconds


class StepProgress:
    """The progress of a long run of steps: a bar on a terminal, a line every ten seconds in a log.

    Args:
        description: beginning of each line.
        steps: total number of steps.
        items: number of items that a step processes, and their name for the rate: ``(8,
            "images")``.
    """

    def __init__(self, description: str, steps: int, items: tuple[int, str]) -> None:
        self.description, self.steps, self.items = description, steps, items
        self.moments: deque[tuple[float, int]] = deque()
        self.said, self.note, self.bar = time.monotonic(), "", self._bar()

    def _bar(self) -> Any:
        if not sys.stderr.isatty():
            return None
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        columns = (
            TextColumn(self.description, table_column=Column(no_wrap=True)),
            BarColumn(None, table_column=Column(ratio=1)),
            TextColumn("{task.completed}/{task.total}", table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[note]}", table_column=Column(ratio=3, no_wrap=True, overflow="ellipsis")),
        )
        bar = Progress(*columns, console=Console(stderr=True), expand=True)
        bar.add_task(self.description, total=self.steps, note="")
        return bar

    def __enter__(self) -> StepProgress:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def resumed(self, step: int) -> None:
        """Report that an earlier run took the steps before ``step``."""
        print(f"resumed at step {step}", file=sys.stderr, flush=True)

    def show(self, step: int, values: Mapping[str, float]) -> None:
        """Report that ``step`` steps are done, with ``values``.

        If these are empty, with the last ones.
        """
        now = time.monotonic()
        self.moments.append((now, step))
        while now - self.moments[0][0] > RATE_OVER_S and len(self.moments) > 2:
            self.moments.popleft()
        self.note = ", ".join(f"{name} {value:.3g}" for name, value in values.items()) or self.note
        line = ", ".join(filter(None, (*self._pace(step), self.note)))
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=step, note=line)
        elif now - self.said >= LINE_EVERY_S or step == self.steps:
            self.said = now
            print(f"{self.description}: {step}/{self.steps} steps, {line}", file=sys.stderr, flush=True)

    def _pace(self, step: int) -> tuple[str, ...]:
        (first, begun), (last, done) = self.moments[0], self.moments[-1]
        if done == begun:
            return ()
        per_second = (done - begun) / max(last - first, 1e-9)
        minutes, seconds = divmod(round((self.steps - step) / per_second), 60)
        count, name = self.items
        return f"{per_second * count:.3g} {name}/s", f"{minutes}:{seconds:02d} left"
