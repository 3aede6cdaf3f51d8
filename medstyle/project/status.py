"""Say what has run in a project, what is stale, and the next command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Literal, NamedTuple

from medstyle.errors import MissingPackage, ParamsError, ServiceError

State = Literal["done", "stale", "not run"]


class Stage(NamedTuple):
    """A stage: its state, and what has changed since it ran."""

    name: str
    state: State
    changed: tuple[str, ...] = ()


class Status(NamedTuple):
    """The stages in their order, and the next command."""

    stages: tuple[Stage, ...]
    next: str


def status(folder: Path = Path()) -> Status:
    """Compare the files of the project in ``folder`` with what its stages saw last.

    Raises:
        ParamsError: no project is here.
        MissingPackage: DVC is not installed.
        ServiceError: DVC fails.
    """
    import yaml

    if not (folder / "dvc.yaml").is_file():
        raise ParamsError(f"{folder.resolve().name}: no dvc.yaml here, so no project; make one with `medstyle init`")
    names = list(yaml.safe_load((folder / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    lock = folder / "dvc.lock"
    ran = set((yaml.safe_load(lock.read_text(encoding="utf-8")) or {}).get("stages", {})) if lock.is_file() else set()
    changed = _changed(folder)
    stages = [
        Stage(name, "stale" if changed.get(name) else "done", changed.get(name, ()))
        if name in ran
        else Stage(name, "not run")
        for name in names
        if name != "program"
    ]
    open_ = [stage for stage in stages if stage.state != "done"]
    following = "dvc repro" if open_ else "medstyle translate IN OUT --model models/translator"
    if not (folder / ".dvc").is_dir() and not any((above / ".dvc").is_dir() for above in folder.resolve().parents):
        following = "git init && dvc init && dvc repro"
    return Status(tuple(stages), following)


def _changed(folder: Path) -> dict[str, tuple[str, ...]]:
    """Return what has changed for each stage, by `dvc status`."""
    dvc = shutil.which("dvc")
    if dvc is None:
        raise MissingPackage('status: needs DVC: pip install "medstyle[ops]"')
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    done = subprocess.run(
        [dvc, "status", "--json"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    try:
        found: dict[str, Any] = json.loads(done.stdout or "{}")
    except ValueError:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no answer"]
        raise ServiceError(f"dvc status: {said[0]}") from None
    return {name: tuple(_told(entries)) for name, entries in found.items()}


def _told(entries: list[Any]) -> list[str]:
    said = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue  # "always changed" is no change
        for kind, files in entry.items():
            for name, how in files.items():
                if kind == "changed outs" and how == "not in cache":
                    continue
                parts = ", ".join(how) if isinstance(how, dict) else str(how)
                said.append(f"{name}: {parts}")
    return said
