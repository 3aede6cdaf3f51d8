"""Keep installed models in a folder of the user, and list what is there or in an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from medstyle.catalogue.keys import Trust
from medstyle.catalogue.package import MANIFEST, Manifest, Package, checked
from medstyle.errors import ModelError
from medstyle.jobs.atomic import atomic_folder, write_json

INDEX = "index.json"


def place() -> Path:
    """Return the store: ``MEDSTYLE_MODELS``, or the user's folder for data (XDG)."""
    if own := os.environ.get("MEDSTYLE_MODELS"):
        return Path(own)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "medstyle" / "models"


def install(where: Path, name: str | None = None, trust: str | None = None) -> tuple[Manifest, bool]:
    """Install a package; return its manifest, and whether it is new.

    Nothing is written before the signature was checked, and the model appears under its name when
    every file has been: whatever is wrong, no half of it remains.

    Args:
        where: a package, or an index of packages, or a folder with an index.
        name: which package of an index, with or without its version.
        trust: fingerprint of a key that is trusted from now on.

    Raises:
        ModelError: the package is damaged, was changed, is signed by a stranger, or another of the
            same name and version is installed.
    """
    package = Package(_package_of(where, name))
    manifest, store = package.manifest, place()
    _check_signer(package, Trust(store / "trusted.json"), trust)
    folder = store / manifest.key
    store.mkdir(parents=True, exist_ok=True)
    with FileLock(store / ".lock"):
        if folder.exists():
            if (folder / MANIFEST).read_bytes() == package.documents[MANIFEST]:
                return manifest, False
            raise ModelError(f"{manifest.key}: another model of this name and version is installed; remove {folder}")
        with atomic_folder(folder) as scratch:
            package.unpack(scratch / "translator")
            for document, data in package.documents.items():
                (scratch / document).write_bytes(data)
    return manifest, True


def _check_signer(package: Package, known: Trust, trust: str | None) -> None:
    if trust is not None and trust == package.signer:
        known.add(trust)
    if package.signer not in known.known():
        raise ModelError(
            f"{package.path}: signed by {package.signer}, which you do not trust; "
            f"if the publisher names the same fingerprint, add --trust {package.signer}"
        )


def _package_of(where: Path, name: str | None) -> Path:
    """Return the place of the package that is meant."""
    index = where / INDEX if where.is_dir() and not (where / MANIFEST).exists() else where
    if index.suffix != ".json":
        if name is not None:
            raise ModelError(f"{where}: is one package; leave out {name}")
        return index
    fitting = [one for one in read_index(index) if name in (None, one["name"], f"{one['name']}@{one['version']}")]
    if name is not None and "@" not in name:
        fitting = fitting[-1:]  # the newest
    if len(fitting) != 1:
        known = ", ".join(f"{one['name']}@{one['version']}" for one in read_index(index)) or "none"
        raise ModelError(f"{index}: name one of its packages: {known}")
    path = index.parent / str(fitting[0]["file"])
    if not path.resolve().is_relative_to(index.parent.resolve()):
        raise ModelError(f"{index}: a package outside its folder")
    return path


def read_index(index: Path) -> list[dict[str, Any]]:
    """Return the packages of an index, as their manifests say, oldest first.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        rows = json.loads(index.read_text(encoding="utf-8"))["packages"]
        return [{**row, "name": str(row["name"]), "version": str(row["version"]), "file": row["file"]} for row in rows]
    except FileNotFoundError:
        raise ModelError(f"{index}: no package and no index of packages") from None
    except (ValueError, KeyError, TypeError, OSError):
        raise ModelError(f"{index}: no index of packages; fetch it again") from None


def add_to_index(index: Path, package: Path, manifest: Manifest) -> None:
    """Add a package to the index beside it, or replace it there."""
    with FileLock(index.with_name(f".{index.name}.lock")):
        rows = read_index(index) if index.exists() else []
        rows = [row for row in rows if (row["name"], row["version"]) != (manifest.name, manifest.version)]
        write_json(index, {"packages": [*rows, {**described(manifest), "file": package.name}]})


def described(manifest: Manifest) -> dict[str, Any]:
    """Return what a list shows of a package."""
    names = ("name", "version", "task", "inputs", "licence", "gate", "figures", "weights_sha256")
    return {name: getattr(manifest, name) for name in names}


def installed() -> Iterator[Manifest]:
    """Yield the installed models by name and version."""
    for path in sorted(place().glob(f"[!.]*@*/{MANIFEST}")):
        yield checked(path.read_bytes())


def installed_folder(reference: str) -> Path | None:
    """Return the translator folder of ``name@version``, or the last installed of ``name``.

    None if there is none, or if something of that name is in the working directory.
    """
    if Path(reference).exists():
        return None
    fitting = [
        path.parent
        for path in sorted(place().glob(f"[!.]*@*/{MANIFEST}"))
        if reference in (path.parent.name, path.parent.name.partition("@")[0])
    ]
    return max(fitting, key=lambda folder: folder.stat().st_mtime) / "translator" if fitting else None
