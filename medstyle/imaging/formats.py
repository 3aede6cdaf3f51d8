"""The kinds of files beside DICOM, by suffix: what is read, and what is written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["volume", "picture", "video"]


@dataclass(frozen=True)
class Format:
    """Files of one kind.

    Attributes:
        reads: suffixes that are read, in lower case.
        writes: suffixes that are written.
    """

    reads: tuple[str, ...]
    writes: tuple[str, ...]

    def suffix(self, path: Path) -> str | None:
        """Return the suffix of ``path`` as it stands there, if it is among those that are read: the longest one."""
        name = path.name.lower()
        matching = [suffix for suffix in self.reads if name.endswith(suffix)]
        return path.name[-len(max(matching, key=len)) :] if matching else None


VOLUMES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")
PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")

FORMATS: dict[Kind, Format] = {
    "volume": Format(VOLUMES, VOLUMES),
    "picture": Format((*PICTURES, ".bmp"), PICTURES),
    "video": Format(
        (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"), (".mp4", ".m4v", ".mov", ".mkv", ".webm")
    ),
}


def kind_of(path: Path) -> Kind | None:
    """Return the kind of a file by its suffix, a key of :data:`FORMATS`; None for what may be DICOM."""
    return next((kind for kind, one in FORMATS.items() if one.suffix(path) is not None), None)
