"""The watch for drift says what it found: as a value, an artifact, a warning and an event."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from medstyle import Translator
from tests.conftest import Run
from tests.flows.conftest import Prefect, wait_for

pytestmark = [pytest.mark.ops, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("unlike", [False, True])
def test_drift_is_an_artifact_a_warning_and_an_event_and_no_drift_is_an_artifact_alone(
    unlike: bool, called: Prefect, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.monitor import monitor

    translator = Translator.load(run.translator)
    score = translator.config.reference["mr_t1"].volume.largest * (2 if unlike else 0.5)
    for number in range(20):
        place = tmp_path / f"derived/{number}/translation.json"
        place.parent.mkdir(parents=True)
        place.write_text(json.dumps([{"ood_score": score, "weights_sha256": translator.sha256}]))
    with caplog.at_level(logging.WARNING):
        state = monitor(str(tmp_path), str(run.translator), false_alarms=0.05, return_state=True)
    assert state.result() is unlike
    artifact = called.artifacts(str(state.state_details.flow_run_id))["drift"]
    assert artifact.startswith("**Drift**" if unlike else "**No drift**")
    assert f"{20 if unlike else 0} of 20 images of the last 30 days" in artifact
    assert ("drift: 20 of 20" in caplog.text) is unlike
    events = wait_for(lambda: called.events("medstyle.drift")) if unlike else called.events("medstyle.drift")
    assert [event["payload"]["images"] for event in events] == [20] * unlike
