"""Watch the inbox for drift: ``python -m flows.monitor FOLDER``; deployment `monitor/daily`."""

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
from prefect.events import emit_event

from medstyle.inference.drift import recent
from medstyle.networks.translator import Translator
from medstyle.registry.models import model_folder

EVENT = "medstyle.drift"  # an automation can listen: `prefect automation create`, action run-deployment train/nightly


@flow(name="monitor")
def monitor(
    folder: str = "data/station",
    model: str = "models:/medstyle@champion",
    days: float = 30,
    false_alarms: float = 0.01,
) -> bool:
    """Compare the last ``days`` with the training images.

    An alarm is an event, an artifact and a warning.
    """
    found = recent(Path(folder), Translator.load(model_folder(model)), days)
    drifted = found.p < false_alarms
    text = (
        f"{found.beyond} of {found.images} images of the last {days:g} days deviate more than 99 % of the training "
        f"images; {found.expected:.1f} are expected (p = {found.p:.2g}; alarm below {false_alarms:g})"
    )
    log = get_run_logger()
    if drifted:
        log.warning("drift: %s", text)
        resource = {"prefect.resource.id": f"medstyle.station.{Path(folder).name}", "prefect.resource.name": model}
        emit_event(EVENT, resource, payload=found._asdict())
    else:
        log.info("%s", text)
    create_markdown_artifact(f"**{'Drift' if drifted else 'No drift'}**\n\n{text}", key="drift", description=model)
    return drifted


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.monitor", description=__doc__)
    parser.add_argument("folder", help="the folder that `flows.translate` processes")
    parser.add_argument("--model", default="models:/medstyle@champion")
    parser.add_argument("--days", type=float, default=30)
    given = parser.parse_args()
    monitor(given.folder, given.model, given.days)
