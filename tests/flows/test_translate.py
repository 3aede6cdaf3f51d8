"""The inbox is emptied, and what the flow leaves behind names nobody."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.flows.conftest import Prefect

pytestmark = [pytest.mark.ops, pytest.mark.filterwarnings("ignore")]


def test_each_study_of_the_inbox_has_an_artifact_and_no_line_names_a_patient(
    called: Prefect, run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from flows.translate import translate

    shutil.copytree(run.study, tmp_path / "inbox/Doe^Jane")
    (tmp_path / "inbox/Doe^John").mkdir()
    (tmp_path / "inbox/Doe^John/report.txt").write_text("Patient: John Doe")
    with caplog.at_level(logging.INFO):
        state = translate(str(tmp_path), str(run.translator), settle_s=0, return_state=True)
    assert state.result() == {"derived": 1, "quarantined": 1}
    (derived,), (quarantined,) = ((tmp_path / name).iterdir() for name in ("derived", "quarantine"))
    artifacts = called.artifacts(str(state.state_details.flow_run_id))
    assert set(artifacts) == {f"study-{derived.name}", f"study-{quarantined.name}"}
    assert "derived, 1 images or series" in artifacts[f"study-{derived.name}"]
    assert "quarantined, E_INPUT" in artifacts[f"study-{quarantined.name}"]
    assert "1 derived, 1 quarantined" in caplog.text
    assert "Doe" not in caplog.text + str(artifacts)


def test_an_empty_inbox_loads_no_model(called: Prefect, tmp_path: Path) -> None:
    from flows.translate import translate

    assert translate(str(tmp_path), "no such model") == {}
    assert (tmp_path / "inbox").is_dir()
