"""Tables: CSV files and Markdown."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from medstyle.jobs.atomic import atomic


def write_table(path: Path, rows: Iterable[Mapping[str, Any]], number: str = "{:.6g}") -> None:
    """Write ``rows`` as CSV, a column for each key of any row; ``number`` formats floats."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with atomic(path) as part, part.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: number.format(v) if isinstance(v, float) else v for k, v in row.items()} for row in rows)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table.

    Example:
        >>> print(markdown(("a", "b"), [("1", "2")]))
        | a | b |
        | --- | --- |
        | 1 | 2 |
    """
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))
