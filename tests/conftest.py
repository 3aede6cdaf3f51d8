"""Fixtures that several folders share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
# A whole run in half a minute, nearly all of it start-up of programs. Training lasts long enough to be killed in the middle.
SMALL = {
    "acquire": {"subjects": 5, "matrix": 32, "slices": 8, "spacing_mm": [7.2, 7.2, 16.0]},
    "denoise": {"size": [32, 32]},
    "train": {
        "training": {"steps": 120, "batch": 2, "threads": 1, "checkpoint_s": 0.2, "validate_every": 40, "device": "cpu"},
        "objective": {"discriminator_width": 8, "discriminator_layers": 2},
        "network": {"widths": [4, 8], "bottleneck_blocks": 1},
    },
    "evaluate": {"figures": 1},
}


class Project:
    """A copy of this checkout with small params and a cache of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file() and name != "dvc.lock":
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.set_params(SMALL)
        for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "copy"]):
            self.run("git", "-c", "user.name=test", "-c", "user.email=test@localhost", *command)

    @property
    def env(self) -> dict[str, str]:
        """Return an environment in which `medstyle`, `dvc` and `prefect` are this environment's and run the copy."""
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_", "MEDSTYLE_"))}
        return {
            **inherited,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.folder),
            "DVC_NO_ANALYTICS": "1",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
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
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, f"{' '.join(command)}\n{output}"
        return output

    def set_params(self, changes: dict[str, dict]) -> None:
        """Merge ``changes`` into the copy's params.yaml, two levels deep."""
        path = self.folder / "params.yaml"
        document = yaml.safe_load(path.read_text())
        for section, values in changes.items():
            for key, value in values.items():
                old = document[section].get(key)
                document[section][key] = {**old, **value} if isinstance(old, dict) else value
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    @property
    def weights(self) -> bytes:
        """Return the bytes of the trained weights."""
        return (self.folder / "models/translator/weights.safetensors").read_bytes()


@pytest.fixture(scope="session")
def copy_project(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Project]:
    """Return a function that makes a new small copy of the project."""
    return lambda: Project(tmp_path_factory.mktemp("project"))
