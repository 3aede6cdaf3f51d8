"""Provide small real data for every test: phantom studies, a translator, a whole project."""

from __future__ import annotations

import os

# before anything counts the cores: the tests run beside each other
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")

import contextlib
import logging
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # data beside the project; tests that need it are skipped where it is absent

TINY = {
    "acquire": {"subjects": 5, "matrix": 48, "slices": 8, "spacing_mm": [4.8, 4.8, 12.0], "lesions": 4},
    "ingest": {
        "source": "data/raw",
        "rules": [
            {"domain": "mr_t1", "when": {"Modality": "MR", "SeriesDescription": "*T1*"}},
            {"domain": "mr_t2", "when": {"Modality": "MR", "SeriesDescription": "*T2*"}},
        ],
    },
    "denoise": {"size": [48, 40], "validation": 0.2, "test": 0.2},
    "train": {
        "source": "mr_t1",
        "target": "mr_t2",
        # long enough to be killed in the middle
        "training": {
            **{"steps": 40, "batch": 2, "threads": 1, "device": "cpu", "validate_every": 10, "log_every": 5},
            "checkpoint_s": 0.0,
        },
        "objective": {"discriminator_width": 8},
        "network": {"widths": [4, 8, 8], "bottleneck_blocks": 2},
    },
    "evaluate": {"segmenter": 20},
    "register": {},
}


class Run(NamedTuple):
    """A finished tiny run: the project folder and the parts that tests need."""

    root: Path

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def translator(self) -> Path:
        return self.root / "models/translator"

    @property
    def study(self) -> Path:
        return self.root / "data/raw/studies/PHANTOM-0000"


def write_params(folder: Path, changes: dict | None = None) -> Path:
    """Write TINY, with sections replaced by ``changes``, as ``folder/params.yaml``."""
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**TINY, **(changes or {})}))
    return path


# What takes longest begins first, so that all processes end together. Tests of one group share a
# server or a run.
GROUPS = {"tests/flows": "flows", "tests/test_pipeline.py": "flows", "tests/door": "door"}
LONGEST = (
    "tests/flows",
    "tests/test_pipeline.py",
    "tests/test_canary.py",
    "tests/inference/test_translate.py",
    "tests/registry",
    "tests/training",
    "tests/stages",
    "tests/test_recipes.py",
    "tests/test_client.py",
    "tests/networks",
    "tests/transforms",
    "tests/phantom",
    "tests/evaluation",
    "tests/inference",
)


def _first(nodeid: str, names: Iterable[str]) -> str | None:
    return next((name for name in names if nodeid.startswith((f"{name}/", f"{name}::"))), None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the longest first; within them, and behind them, the order stays."""
    order = {name: number for number, name in enumerate((*LONGEST, None))}
    items.sort(key=lambda item: order[_first(item.nodeid, LONGEST)])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file, and those of a group, in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return GROUPS.get(_first(nodeid, GROUPS) or "", nodeid.partition("::")[0])

    config.option.loadscopereorder = False
    return Scheduling(config, log)


Once = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Once]:
    """Return a function that has a folder made by the first process that asks for it.

    All share it, nobody may write.

    What a test has changed in such a folder fails the last test of the process that made it.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    mine: dict[Path, dict[str, int]] = {}

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        made = base / name
        with FileLock(base / f"{name}.lock"):
            if not (base / f"{name}.made").exists():
                shutil.rmtree(made, ignore_errors=True)  # of a process that failed half-way
                made.mkdir()
                make(made)
                (base / f"{name}.made").touch()
                mine[made] = stamps(made)
        return made

    yield folder
    for made, before in mine.items():
        after = stamps(made)  # MLflow adds files of its own to what it serves
        assert {name: after.get(name) for name in before} == before, f"a test has changed the shared {made.name}"


def stamps(folder: Path) -> dict[str, int]:
    """Return when each file of ``folder`` was last written."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


@pytest.fixture(scope="session")
def run(once: Once) -> Run:
    """Return the run that was made once. Do not change it."""
    return Run(once("run", _make_run))


def _make_run(root: Path) -> None:
    """Run acquire, ingest, denoise, train and evaluate, through the stages' own functions."""
    from medstyle import params
    from medstyle.stages import acquire, denoise, evaluate, ingest, train

    file = write_params(root)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        data = Path("data")
        acquire.run(params.load(acquire.Params, "acquire", file), data / "raw")
        ingest.run(params.load(ingest.Params, "ingest", file), data / "scans", Path("reports/ingest.json"))
        denoise.run(params.load(denoise.Params, "denoise", file), data / "scans", data / "slices")
        model = Path("models/translator")
        train.run(params.load(train.Params, "train", file), data / "slices", model, Path("reports/training.csv"))
        settings = params.load(evaluate.Params, "evaluate", file)
        evaluate.run(settings, data / "scans", data / "slices", model, data / "raw/truth", Path("reports"))


class Project:
    """A checkout with a repository, DVC cache and registry of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.more_env: dict[str, str] = {}

    @classmethod
    def copy(cls, folder: Path) -> Project:
        """Copy this checkout, with uncommitted changes and small params."""
        project = cls(folder)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        write_params(folder)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "copy"]):
            project.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", *command)
        return project

    @property
    def env(self) -> dict[str, str]:
        """Return an environment in which `medstyle`, `dvc` and `prefect` are this environment's and
        run the copy."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "MEDSTYLE_"))}
        return {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
            "DO_NOT_TRACK": "1",
            **self.more_env,
        }

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command as the leader of its own process group, stdout and stderr in one pipe."""
        return subprocess.Popen(
            command, cwd=self.folder, env=self.env, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *command: str) -> str:
        """Run a command that must succeed and return what it printed."""
        process = self.start(*command)
        try:
            output, _ = process.communicate(timeout=300)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        assert process.returncode == 0, f"{' '.join(command)}\n{output}"
        return output

    @property
    def weights(self) -> bytes:
        """Return the bytes of the trained weights."""
        return (self.folder / "models/translator/weights.safetensors").read_bytes()


@pytest.fixture(scope="session")
def copy_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    """Return a function that makes a new copy of the project with small params."""
    return lambda: Project.copy(tmp_path_factory.mktemp("project"))


@pytest.fixture(scope="session")
def finished(once: Once) -> Project:
    """Return a copy of the project in which the whole run has been made once.

    Do not change it, use ``copied``.
    """
    return Project(once("finished", _make_finished))


def _make_finished(folder: Path) -> None:
    """Run the pipeline from nothing, kill it in training, and run it again.

    What that printed is in `printed`.
    """
    project = Project.copy(folder)
    project.run("dvc", "repro", "denoise")
    process = project.start("dvc", "repro", "train")
    while process.poll() is None and not list((folder / ".medstyle/train").glob("*/step-*.pt")):
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = (folder / "models/translator").exists()
    folder.with_name("printed").write_text(f"a model before the kill: {left}\n" + project.run("dvc", "repro"))


@pytest.fixture
def copied(finished: Project, tmp_path: Path) -> Project:
    """Return a copy of the finished project, to be changed.

    Its registry is empty, since paths in one are absolute.
    """
    left_out = shutil.ignore_patterns("mlflow.db*", "mlruns")
    shutil.copytree(finished.folder, tmp_path / "project", ignore=left_out)
    return Project(tmp_path / "project")


@pytest.fixture
def registry_folder(once: Once, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Change to a folder that holds the database of an empty registry: MLflow needs a second to
    make its tables."""
    import mlflow

    def migrate(folder: Path) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()

    shutil.copy(once("registry", migrate) / "mlflow.db", tmp_path)
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("UPDATE experiments SET artifact_location = ?", (str(tmp_path / "mlruns/0"),))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    mlflow.set_tracking_uri(None)
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture
def medstyle(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Call the command line in this process: another one would import for seconds before it does
    anything."""
    from medstyle.cli import main

    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    handlers, level = logging.root.handlers[:], logging.root.level

    def call(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["medstyle", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return subprocess.CompletedProcess(sys.argv, end.value.code, *capfd.readouterr())

    yield call
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(0)


def affine(spacing: tuple[float, float, float], degrees: tuple[float, float, float], origin=(-40.0, 30.0, 10.0)):
    """Make an oblique LPS affine."""
    from scipy.spatial.transform import Rotation

    result = np.eye(4)
    result[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix() * spacing
    result[:3, 3] = origin
    return result
