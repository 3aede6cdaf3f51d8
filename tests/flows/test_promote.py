"""Promotion and rollback as deployments."""

import json

import pytest

from tests.flows.conftest import Prefect

pytestmark = pytest.mark.ops


@pytest.mark.slow
def test_promotion_and_rollback_by_deployment(prefect: Prefect):
    def champion() -> str | None:
        rows = json.loads(prefect.project.run("medstyle", "models", "--json"))
        return next((row["version"] for row in rows if "champion" in row["aliases"].split()), None)

    def run(name: str, **parameters: object) -> dict:
        run_id = prefect.start_run(name, **parameters)
        return {**prefect.finish(run_id), "artifacts": prefect.artifacts(run_id)}

    prefect.project.run("dvc", "repro", "-f", "-s", "register")
    before = champion()
    [row] = json.loads(prefect.project.run("medstyle", "models", "--json"))[:1]
    assert row["gate"] == "failed", "the tiny model passes no gate"
    refused = run("promote/on-demand", version=int(row["version"]))
    assert refused["type"] == "FAILED"
    assert "did not pass the gate" in refused["message"]
    assert champion() == before
    done = run("promote/on-demand", version=int(row["version"]), because="a test")
    assert done["type"] == "COMPLETED", done
    assert "champion" in done["artifacts"]["champion"]
    assert champion() == row["version"]

    back = run("rollback/on-demand")
    assert back["type"] == ("FAILED" if before is None else "COMPLETED"), back
    assert champion() == (before or row["version"])
