"""Check the installation and the machine: what is there, what is missing, and its remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from medstyle.pseudonyms import NO_SECRET, own_secret

FREE_GB = 20  # of disk: a store of 100 head scans takes about 5 GB, its raw data and models as much again
TIMEOUT_S = 3.0
EXTRAS = {
    "ops": "stages, registry, server and flows",
    "phantom": "the brain phantom of `make demo`",
    "video": "videos",
    "swin": "MONAI's SwinUNETR",
    "s3": "a DVC remote on S3",
    "cluster": "several processes or machines",
    "server": "MLflow's server with passwords",
}
NEEDED = ("", "ops")  # without the other extras, only what they serve is missing


class Check(NamedTuple):
    """One fact: ``fine``, ``note`` (something optional is absent) or ``wrong``, and the remedy."""

    what: str
    state: Literal["fine", "note", "wrong"]
    found: str
    remedy: str = ""


def checks(folder: Path) -> list[Check]:
    """Check this machine for a project in ``folder``."""
    return [*_versions(), *_packages(), _device(), _disk(folder), _secret(), *_tools(folder), *_servers()]


def _versions() -> Iterator[Check]:
    version = importlib.metadata.version("medstyle")
    yield Check("medstyle", "fine", f"{version} on Python {platform.python_version()}, {platform.system()}")


def _packages() -> Iterator[Check]:
    """Compare the installed versions with what the package asks for, extra by extra."""
    from packaging.requirements import Requirement

    groups: dict[str, list[Requirement]] = defaultdict(list)
    for text in importlib.metadata.requires("medstyle") or ():
        requirement = Requirement(text)
        marker = str(requirement.marker or "")
        extra = marker.rsplit('extra == "', maxsplit=1)[-1].rstrip('"') if "extra ==" in marker else ""
        groups[extra].append(requirement)
    for extra in ("", *EXTRAS):
        missing, unfit = [], []
        for requirement in groups.get(extra, ()):
            try:
                version = importlib.metadata.version(requirement.name)
            except importlib.metadata.PackageNotFoundError:
                missing.append(requirement.name)
                continue
            if not requirement.specifier.contains(version, prereleases=True):
                unfit.append(f"{requirement.name} {version}, needed {requirement.specifier}")
        what = f"packages [{extra}]" if extra else "packages"
        install = f'pip install "medstyle[{extra}]"' if extra else "pip install medstyle"
        served = EXTRAS.get(extra, "everything")
        if unfit:
            yield Check(what, "wrong", "; ".join(unfit), install)
        elif missing:
            state: Literal["note", "wrong"] = "wrong" if extra in NEEDED else "note"
            yield Check(what, state, f"missing: {', '.join(missing)} ({served})", install)
        else:
            yield Check(what, "fine", f"all {len(groups.get(extra, ()))} for {served}")


def _device() -> Check:
    import torch

    cores = os.cpu_count() or 1
    if torch.cuda.is_available():
        name, memory = torch.cuda.get_device_name(0), torch.cuda.get_device_properties(0).total_memory / 2**30
        return Check("GPU", "fine", f"{name}, {memory:.0f} GiB, torch {torch.__version__}")
    said = f"none for torch {torch.__version__}; {cores} cores are used"
    if torch.version.cuda is None and shutil.which("nvidia-smi"):
        return Check("GPU", "wrong", f"{said}, although the machine has one", "install torch with CUDA: pytorch.org")
    return Check("GPU", "note", said, "a GPU trains faster")


def _disk(folder: Path) -> Check:
    place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(place).free / 1e9
    state: Literal["fine", "wrong"] = "fine" if free >= FREE_GB else "wrong"
    remedy = "" if state == "fine" else f"free {FREE_GB} GB, or put the project on another disk"
    return Check("disk", state, f"{free:.0f} GB free", remedy)


def _secret() -> Check:
    if own_secret() is None:
        return Check("secret", "note", NO_SECRET.split(";")[0], NO_SECRET.split("; ")[-1])
    return Check("secret", "fine", "set")


def _tools(folder: Path) -> Iterator[Check]:
    git = shutil.which("git")
    if git is None:
        yield Check("git", "wrong", "not installed", "install git: DVC needs it")
    else:
        place = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        name = subprocess.run([git, "config", "user.email"], cwd=place, capture_output=True, text=True, check=False)
        known = bool(name.stdout.strip())
        remedy = "" if known else 'git config --global user.name "..." and user.email'
        yield Check("git", "fine" if known else "note", "knows who you are" if known else "does not know you", remedy)
    there = shutil.which("dvc") is not None
    remedy = "" if there else 'pip install "medstyle[ops]", and activate the environment'
    yield Check("dvc", "fine" if there else "wrong", "on the path" if there else "no command `dvc`", remedy)


def _servers() -> Iterator[Check]:
    """Ask the servers that the environment names; without them, all stays on this machine."""
    import urllib3

    for name, path, without in (
        ("MLFLOW_TRACKING_URI", "/health", "models are registered in mlflow.db here"),
        ("PREFECT_API_URL", "/health", "flows run without a server; schedules need one"),
    ):
        address = os.environ.get(name, "")
        if not address.startswith("http"):
            yield Check(name, "note", f"not set: {without}" if not address else f"{address}: no server")
            continue
        try:
            status = urllib3.request("GET", address.rstrip("/") + path, timeout=TIMEOUT_S, retries=False).status
        except urllib3.exceptions.HTTPError as error:
            yield Check(name, "wrong", f"no answer ({type(error).__name__})", f"start the server, or unset {name}")
        else:
            fine = status < 500
            yield Check(name, "fine" if fine else "wrong", f"answers with {status}", "" if fine else "see its log")
