"""Run the stages of dvc.yaml with live logs: ``python -m flows.train``, or `train/nightly`.

The last is a deployment. ``--force`` runs every stage, even if nothing has changed.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast
from uuid import UUID

from medstyle.jobs.tables import markdown

# Before prefect is imported, which reads these: its state stays in the project, and no analytics
# are sent.
os.environ.setdefault("PREFECT_HOME", str(Path(".prefect").resolve()))
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")

from filelock import FileLock, Timeout
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import flow_run
from prefect.tasks import Task

from medstyle.registry.models import describe

RETRIES = {"train": 2, "register": 2}  # train resumes, and the registry may be a server; other stages are deterministic
# DVC's messages of what no retry repairs: medstyle's exit code after bad input, and files that a
# person has added
FINAL = ("exited with 2", "Can't remove the following unsaved files")
DONE = re.compile(r"\w+: (\d+)/(\d+)")  # progress lines of the stages
GRACE_S = 10


@flow(name="train")
def train(force: bool = False) -> None:
    """Bring every stage up to date, one task each.

    ``force`` runs them even if nothing has changed.
    """
    with alone(Path(".dvc/tmp/medstyle.lock")):
        pull()
        names = stages()
        progress = cast(UUID, create_progress_artifact(0.0, key="progress"))
        for number, stage in enumerate(names):
            run = reproduce.with_options(retries=RETRIES.get(stage, 0))
            run(stage, force, progress, 100 * number / len(names), 100 / len(names))
    create_markdown_artifact(result(Path("reports")), key="result", description="On unseen subjects")


def _worth_retrying(task: Task, run: TaskRun, state: State) -> bool:
    return not any(said in (state.message or "") for said in FINAL)


@task(cache_policy=NO_CACHE, retries=2, retry_delay_seconds=10, retry_condition_fn=_worth_retrying)
def pull() -> None:
    """Pull the outputs that the DVC files name from the default remote, if there is one."""
    from dvc.repo import Repo

    log = get_run_logger()
    with Repo() as repo:
        remote = repo.config["core"].get("remote")
    if remote:
        # outputs that were never pushed are made here; DVC's lines list files, whose names may be
        # patient data
        _dvc("pull", "--allow-missing", heard=lambda line: None)
        log.info("pulled from the DVC remote %s", remote)
    else:
        log.info("no DVC remote is configured: nothing to pull")


@task(task_run_name="{stage}", cache_policy=NO_CACHE, retry_delay_seconds=10, retry_condition_fn=_worth_retrying)
def reproduce(stage: str, force: bool, progress: UUID, percent: float, share: float) -> None:
    """Run ``dvc repro -s STAGE``, pass on its lines, and update the artifact ``progress``.

    The stage covers a ``share`` of the progress, which starts at ``percent``.
    """
    log = get_run_logger()

    def heard(line: str) -> None:
        log.info("%s", line)
        if found := DONE.match(line):
            done, total = map(int, found.groups())
            update_progress_artifact(progress, percent + share * done / total, line)

    _dvc("repro", "-s", stage, *(["-f"] if force else []), heard=heard)
    update_progress_artifact(progress, percent + share, f"{stage}: done")


def _dvc(*arguments: str, heard: Callable[[str], object]) -> None:
    """Run DVC and pass on each line; cancelling the run ends the whole process group.

    Raises:
        RuntimeError: DVC failed; the message holds the lines that name the cause.
    """
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",  # where `medstyle` is
        "PYTHONUNBUFFERED": "1",
        "DVC_NO_ANALYTICS": "1",
        "MEDSTYLE_FLOW_RUN_ID": str(flow_run.id or ""),
    }
    errors: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "dvc", *arguments],
        env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            for line in map(str.strip, process.stdout or ()):
                if line:
                    heard(line)
                if line.startswith(("medstyle:", "ERROR")):
                    errors.append(line)
            code = process.wait()
        except BaseException:  # cancelling raises an exception; without this, training would continue as an orphan
            _end(process)
            raise
    if code:
        raise RuntimeError(f"dvc {' '.join(arguments)}: exit code {code}; {'; '.join(errors)}")


def stages() -> list[str]:
    """Return the stages of dvc.yaml in the order of their dependencies."""
    import networkx
    from dvc.repo import Repo

    with Repo() as repo:  # edges of the graph lead from a stage to its dependencies
        return [stage.name for stage in networkx.dfs_postorder_nodes(repo.index.graph) if stage.cmd]


def result(reports: Path) -> str:
    """Return table, verdict, links and an image of the evaluation in ``reports`` as Markdown."""
    picture = base64.b64encode((reports / "figures/subject-1.png").read_bytes()).decode()
    weights = json.loads((reports / "metrics.json").read_text())["weights_sha256"]
    page = (reports / "report.html").resolve().as_uri()
    parts = (
        result_table(reports / "metrics.json"),
        f"{describe(weights)} · [report]({page})",
        f"![source, synthetic and real](data:image/png;base64,{picture})",
    )
    return "\n\n".join(parts)


def result_table(metrics: Path) -> str:
    """Return the metrics of all methods as a Markdown table, mean and 95 % interval."""
    document = json.loads(metrics.read_text())
    table = document["tables"][document["reference"]]
    measures = list(next(iter(table.values())))
    rows = [
        [method, *(f"{v['mean']:.3g} ({v['low']:.3g} to {v['high']:.3g})" for v in values.values())]
        for method, values in table.items()
    ]
    return markdown(("method", *measures), rows)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Wait until no other flow holds the file ``path``, including runs that were started manually.

    The concurrency limit of a deployment does not cover those.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        get_run_logger().warning("another run holds %s; waiting for it", path)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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
    parser.add_argument("--force", action="store_true", help="run every stage, even if nothing has changed")
    train(force=parser.parse_args().force)
