"""Move the alias `champion`, forwards or back: ``python -m flows.promote 4``.

Without a version it rolls back. The deployments are `promote/on-demand` and `rollback/on-demand`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

# Before prefect is imported, which reads these: its state stays in the project, and no analytics
# are sent.
os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact

from medstyle.registry import models


@flow(name="promote")
def promote(version: int, because: str | None = None) -> str:
    """Make ``version`` champion.

    A version that failed the gate needs a reason, which is recorded.
    """
    return _told(models.promote(str(version), because))


@flow(name="rollback")
def rollback() -> str:
    """Make the previous champion champion again."""
    return _told(models.rollback())


def _told(sentence: str) -> str:
    get_run_logger().info("%s", sentence)
    create_markdown_artifact(sentence, key="champion")
    return sentence


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.promote", description=__doc__)
    parser.add_argument("version", type=int, nargs="?", help="default: roll back")
    parser.add_argument("--because", help="reason to override a failed gate")
    given = parser.parse_args()
    promote(given.version, given.because) if given.version else rollback()
