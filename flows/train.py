"""Run the stages of dvc.yaml with live logs: ``python -m flows.train [--force]``, or the deployment `train/nightly`."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# Before prefect is imported, which reads them: state stays in the project, nothing is reported to anyone.
os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task

RETRIES = {"train": 2, "register": 2}  # train goes on where it stopped, the registry may be a server; the rest is pure
USER_ERROR = "exited with 2"  # DVC's words for `medstyle`'s exit code after bad input, which no retry mends
GRACE_S = 10


@flow(name="train")
def train(force: bool = False) -> None:
    """Bring every stage up to date, one task each; ``force`` runs them even where nothing has changed."""
    with _alone():
        for stage in stages():
            reproduce.with_options(retries=RETRIES.get(stage, 0))(stage, force)
    create_markdown_artifact(result_table(Path("reports/metrics.json")), key="result", description="On unseen subjects")


def _worth_retrying(task: Task, run: TaskRun, state: State) -> bool:
    return USER_ERROR not in (state.message or "")


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_delay_seconds=10, retry_condition_fn=_worth_retrying)
def reproduce(stage: str, force: bool) -> None:
    """Run ``dvc repro -s STAGE`` and pass its lines on; a cancelled run takes the whole process group with it."""
    log = get_run_logger()
    command = [sys.executable, "-m", "dvc", "repro", "-s", stage, *(["-f"] if force else [])]
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # where `medstyle` is
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "MEDSTYLE_FLOW_RUN_ID": str(flow_run.id or ""),
    }
    errors: list[str] = []
    process = subprocess.Popen(
        command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        for line in process.stdout or ():
            if line.strip():
                log.info("%s", line.rstrip())
            if line.startswith(("medstyle:", "ERROR")):
                errors.append(line.strip())
        code = process.wait()
    except BaseException:  # a cancel arrives as an exception; without this, training would go on as an orphan
        _end(process)
        raise
    if code:
        raise RuntimeError(f"dvc repro -s {stage}: exit code {code}; {'; '.join(errors)}")


def stages() -> list[str]:
    """Return the stages of dvc.yaml, each after those that it depends on."""
    import networkx
    from dvc.repo import Repo

    with Repo() as repo:  # edges of the graph lead from a stage to what it needs
        return [stage.name for stage in networkx.dfs_postorder_nodes(repo.index.graph) if stage.cmd]


def result_table(metrics: Path) -> str:
    """Return the metrics of the model and its baselines as a Markdown table, mean and 95 % interval."""
    document = json.loads(metrics.read_text())
    table = document["tables"][document["reference"]]
    measures = list(next(iter(table.values())))
    rows = [
        [method, *(f"{v['mean']:.3g} ({v['low']:.3g} to {v['high']:.3g})" for v in values.values())]
        for method, values in table.items()
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in (["method", *measures], ["---"] * (len(measures) + 1), *rows))


@contextmanager
def _alone() -> Iterator[None]:
    """Wait until no other flow works in this checkout: the deployment's limit does not cover runs started by hand."""
    path = Path(".dvc/tmp/medstyle.lock")
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            get_run_logger().warning("another run works in this checkout; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _end(process: subprocess.Popen[str]) -> None:
    for kind in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, kind)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            continue
        return


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.train", description=__doc__)
    parser.add_argument("--force", action="store_true", help="run every stage, changed or not")
    train(force=parser.parse_args().force)
