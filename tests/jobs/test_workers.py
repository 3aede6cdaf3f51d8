"""The same work in threads, processes and on a cluster, whatever dies."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

SCRIPT = """
import os, signal, sys
from functools import partial
from pathlib import Path
from medstyle.errors import Refusal
from medstyle.jobs.workers import each

def square(item, folder, bad):
    assert any(type(finder).__module__ == "medstyle.jobs.startup" for finder in sys.meta_path), "it imports less"
    mark = folder / f"seen-{item}"
    if item == 5 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if item == bad:
        raise Refusal("E_GAP", "Doe^Jane is not to be logged")
    (folder / f"{item}.txt").write_text(str(item * item))
    return item * item

if __name__ == "__main__":
    folder, bad = Path(sys.argv[1]), int(sys.argv[2])
    try:
        print(list(each(partial(square, folder=folder, bad=bad), list(range(20)), "square", 2)))
    except Refusal as refusal:
        print("refused", refusal.code)
"""


def script(folder: Path, bad: int) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.run(
        [sys.executable, "script.py", str(folder), str(bad)], cwd=folder, env=ENVIRONMENT,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_and_repeats_nothing(tmp_path):
    done = script(tmp_path, -1)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "seen-5").exists(), "a worker was killed"
    assert done.stdout.strip() == str([i * i for i in range(20)])
    assert {int(path.stem): path.read_text() for path in tmp_path.glob("*.txt")} == {i: str(i * i) for i in range(20)}


@pytest.mark.slow
def test_an_error_comes_back_and_is_in_no_log(tmp_path):
    done = script(tmp_path, 7)
    assert done.stdout.strip() == "refused E_GAP"
    assert "Doe" not in done.stderr


def contents(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


SCHEDULER = """
from distributed import LocalCluster
if __name__ == "__main__":
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options, preload=["medstyle.jobs.startup"]) as cluster:
        print(cluster.scheduler_address, flush=True)
        input()
"""


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Start a scheduler with two workers of its own; gives its address."""
    (folder / "scheduler.py").write_text(SCHEDULER)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "scheduler.py"], cwd=folder, env=ENVIRONMENT, **pipes) as process:
        yield process.stdout.readline().strip()
        process.communicate("\n", timeout=60)


def run_stage(name: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "medstyle.cli", name]
    env = {**ENVIRONMENT, **more}
    return subprocess.run(command, cwd=folder, env=env, text=True, capture_output=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["processes", "scheduler"])
def test_stages_make_the_same_bits_elsewhere(run, tmp_path, kind):
    with nullcontext(2) if kind == "processes" else cluster(tmp_path) as workers:
        document = yaml.safe_load(run.params.read_text())
        document["ingest"] |= {"workers": workers, "source": str(run.root / "data/raw")}
        document["denoise"]["workers"] = workers
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
        for stage, out in (("ingest", "data/scans"), ("denoise", "data/slices")):
            done = run_stage(stage, tmp_path)
            assert done.returncode == 0, done.stderr
            assert contents(tmp_path / out) == contents(run.root / out)


@pytest.mark.slow
def test_a_scheduler_that_does_not_answer_is_named(run, tmp_path):
    document = yaml.safe_load(run.params.read_text())
    document["ingest"] |= {"workers": "tcp://127.0.0.1:9", "source": str(run.root / "data/raw")}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
    # Dask asks again for 30 s by itself
    done = run_stage("ingest", tmp_path, DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT="2s")
    assert done.returncode == 2
    assert "ingest: no Dask scheduler answers at tcp://127.0.0.1:9" in done.stderr
