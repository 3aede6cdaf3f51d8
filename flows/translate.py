"""Translate the studies in an inbox: ``python -m flows.translate FOLDER``, or `translate/inbox`.

The last is a deployment.
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

from medstyle.inference.inbox import Outcome, process
from medstyle.networks.translator import Translator
from medstyle.registry.models import model_folder


@flow(name="translate")
def translate(
    folder: str = "data/station",
    model: str = "models:/medstyle@champion",
    target: str | None = None,
    settle_s: float = 60,
    workers: int | str = 1,
) -> dict[str, int]:
    """Process ``folder/inbox`` into ``derived`` and ``quarantine``.

    One artifact per study, named by its key.

    ``workers`` is the number of parallel processes, or the address of a Dask scheduler.
    """
    log = get_run_logger()
    counts: dict[str, int] = {}
    inbox = Path(folder) / "inbox"
    inbox.mkdir(parents=True, exist_ok=True)
    if not any(inbox.iterdir()):  # the usual case, every few minutes: do not load a model
        log.info("nothing waits in the inbox")
        return counts
    translator = Translator.load(model_folder(model))
    for outcome in process(Path(folder), translator, settle_s=settle_s, target=target, workers=workers):
        counts[outcome.status] = counts.get(outcome.status, 0) + 1
        log.info("%s: %s", outcome.key or "a study", describe(outcome))
        if outcome.status == "waiting":  # it has no result yet, and perhaps no key
            continue
        create_markdown_artifact(
            f"**{describe(outcome)}**\n\nmodel {translator.sha256[:16]}, {model}",
            key=f"study-{outcome.key}",
            description=outcome.status,
        )
    log.info("%s", ", ".join(f"{n} {status}" for status, n in counts.items()) or "nothing has settled yet")
    return counts


def describe(outcome: Outcome) -> str:
    """Describe the outcome of a study in one line."""
    if outcome.status == "quarantined":
        return f"quarantined, {outcome.code}; see quarantine/{outcome.key}/reason.json"
    if outcome.status == "waiting":
        return f"waits in the inbox, {outcome.code}; see waiting.json"
    stays = f"; its source stays in the inbox, {outcome.code}; see waiting.json" if outcome.code else ""
    warned = f", {outcome.warned} with an out-of-distribution warning" if outcome.warned else ""
    return f"{outcome.status}, {outcome.series} images or series{warned}{stays}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.translate", description=__doc__)
    parser.add_argument("folder", help="folder whose subfolder `inbox` contains the studies")
    parser.add_argument("--model", default="models:/medstyle@champion")
    parser.add_argument("--settle", type=float, default=60, help="seconds for which a study must not have changed")
    given = parser.parse_args()
    translate(given.folder, given.model, settle_s=given.settle)
