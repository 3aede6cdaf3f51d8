"""Find a translator folder and identify its weights, without loading them."""

from __future__ import annotations

import hashlib
from pathlib import Path

READY = Path(__file__).parents[1] / "ready"  # models that come with the package


def ready_folder(name: Path | str) -> Path:
    """Return the folder of a model that comes with the package (``anybrain``), or ``name`` itself.

    A folder of that name in the working directory has precedence.
    """
    own, bare = READY / name, Path(name).name == str(name)
    return own if bare and not Path(name).exists() and (own / "translator.json").is_file() else Path(name)


def weight_files(folder: Path) -> list[Path]:
    """List the weight files in a translator folder: one file per member of an ensemble."""
    return sorted(folder.glob("weights*.safetensors"), key=lambda path: (len(path.name), path.name))


def weights_sha256(folder: Path) -> str:
    """Return the hash that identifies the model; it depends on the weights only."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in weight_files(folder))).hexdigest()
