"""Show how far a long loop is: a bar on a terminal, a plain line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")
LINE_EVERY_S = 10.0


def track(items: Iterable[T], description: str, total: int | None = None, *, patience_s: float = 0.0) -> Iterator[T]:
    """Yield ``items`` and report on stderr; ``total`` may be left out where ``items`` has a length.

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
