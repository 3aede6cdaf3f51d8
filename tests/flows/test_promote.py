"""Promotion and rollback as flows."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.conftest import Prefect

pytestmark = [pytest.mark.ops, pytest.mark.filterwarnings("ignore")]  # Prefect's and MLflow's own


@pytest.fixture
def registry(registry_folder: Path) -> None:
    """A registry with two versions, of which neither has passed a gate and the first was made
    champion all the same."""
    from medstyle.registry import models

    client = models.connect().MlflowClient()
    client.create_registered_model("medstyle")
    run_id = client.create_run(client.get_experiment_by_name("medstyle").experiment_id).info.run_id
    for number in (1, 2):
        client.create_model_version("medstyle", f"file:///nothing/{number}", run_id=run_id)
        client.set_model_version_tag("medstyle", str(number), "gate", "failed")
    models.promote("1", "the first")


def champion() -> str | None:
    from medstyle.registry import models

    return next((row["version"] for row in models.versions() if "champion" in row["aliases"].split()), None)


def test_promotion_needs_the_gate_or_a_reason_and_can_be_taken_back(registry: None, called: Prefect) -> None:
    from flows.promote import promote, rollback

    refused = promote(2, return_state=True)
    assert refused.is_failed()
    assert "did not pass the gate" in refused.message
    assert champion() == "1"
    done = promote(2, because="a test", return_state=True)
    assert done.is_completed(), done
    assert "champion" in called.artifacts(str(done.state_details.flow_run_id))["champion"]
    assert champion() == "2"
    back = rollback(return_state=True)
    assert back.is_completed(), back
    assert champion() == "1"
