"""Write a project: params.yaml with reasons, stages, deployments, and what git must not hold."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from medstyle.errors import OutputError
from medstyle.project.propose import Chosen, Proposal
from medstyle.project.reference import STAGES, schema

WIDTH = 100  # columns of a line with its comment; longer comments stand above
SCHEMA = "params.schema.json"
TABLE = "data/labels.csv"
HEAD = f"""# yaml-language-server: $schema={SCHEMA}
# {{title}}: every value, and why it was proposed. A key that is left out keeps its default;
# `medstyle params KEY` says what a key means.
"""


def render(proposal: Proposal, folder: Path) -> str:
    """Return the text of params.yaml; ``folder`` is where it will be."""
    sections = {name: dict(proposal.sections[name]) for name in STAGES if name in proposal.sections}
    if proposal.labels:
        sections["ingest"]["labels"] = Chosen(str((folder / TABLE).resolve()), sections["ingest"]["labels"].why)
    title = f"{proposal.source} -> {proposal.target} ({proposal.job.recipe})"
    lines = [HEAD.format(title=title)]
    for name, section in sections.items():
        lines += [f"{name}:", *_lines(section, 2), ""]
    return "\n".join(lines).rstrip() + "\n"


def _lines(section: Mapping[str, Chosen], indent: int) -> Iterator[str]:
    for key, (value, why) in section.items():
        start = " " * indent + f"{key}:"
        comment = f"  # {why}" if why else ""
        if isinstance(value, dict) and value and all(isinstance(one, Chosen) for one in value.values()):
            yield start + comment
            yield from _lines(value, indent + 2)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield start + comment
            yield from (" " * (indent + 2) + f"- {_flow(one)}" for one in value)
        elif len(line := f"{start} {_flow(value)}{comment}") > WIDTH and why:
            yield " " * indent + f"# {why}"
            yield f"{start} {_flow(value)}"
        else:
            yield line


def _flow(value: Any) -> str:
    """Return a value on one line of YAML."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def template(name: str) -> str:
    """Return the text of a file that every project has."""
    return (files("medstyle.project") / "template" / name).read_text(encoding="utf-8")


def check_new(folder: Path) -> None:
    """Raise OutputError if a folder holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputError(f"{folder}: exists already and is not empty; name a new folder")


def program() -> str:
    """Return the version of the package and a hash of its code."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes())
    return f"medstyle {version('medstyle')}, code {digest.hexdigest()[:16]}"


def write_project(folder: Path, text: str, title: str, labels: Mapping[str, str] | None = None) -> list[str]:
    """Write a new project and set up git and DVC in it; return what the user should know.

    Args:
        folder: new, or empty.
        text: params.yaml.
        title: what the project is about.
        labels: file -> domain, for `ingest.labels`.

    Raises:
        OutputError: the folder holds something.
    """
    check_new(folder)
    folder.mkdir(parents=True, exist_ok=True)
    documents = {
        "params.yaml": text,
        "dvc.yaml": template("stages.yaml"),
        "prefect.yaml": template("deployments.yaml"),
        ".gitignore": template("gitignore"),
        "README.md": template("readme.md").replace("TITLE", title),
        SCHEMA: json.dumps(schema(), indent=1) + "\n",
    }
    if labels:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerows([("path", "Domain"), *sorted(labels.items())])
        documents[TABLE] = buffer.getvalue()
    for name, content in documents.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
    return list(_set_up(folder))


def _set_up(folder: Path) -> Iterator[str]:
    """Make the folder a repository of git and DVC; yield what could not be done, and the remedy."""
    git, dvc = shutil.which("git"), shutil.which("dvc")
    if git is None or dvc is None:
        lacking = "git" if git is None else "DVC"
        how = "install git" if git is None else 'pip install "medstyle[ops]"'
        yield f"{lacking} is not installed, so the project has no history: {how}, then `git init` and `dvc init` in it"
        return
    above = _run([git, "rev-parse", "--show-toplevel"], folder)
    if above.returncode != 0:
        _run([git, "init", "--quiet"], folder)
    if _run([dvc, "init", "--quiet", *([] if above.returncode else ["--subdir"])], folder).returncode != 0:
        yield "`dvc init` failed; run it in the project and read what it says"
        return
    (folder / ".dvc" / "config").write_text(template("dvc_config"), encoding="utf-8")
    _run([git, "add", "--all", "."], folder)
    if _run([git, "commit", "--quiet", "--message", "medstyle init"], folder).returncode != 0:
        yield "nothing was committed: git does not know you; `git config --global user.name` and user.email"


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
