"""The kinds of files beside DICOM, by suffix: what is read, and what is written."""

from __future__ import annotations

from contextlib import suppress
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
        """Return the longest suffix of ``path`` that is read, as written there; None if none is."""
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


# common kinds of files that are not read, and what to convert them to
UNREAD = {
    **dict.fromkeys(("gif", "avif", "jp2", "j2k", "heic", "heif", "svg", "psd", "dng", "cr2", "nef"), "PNG or TIFF"),
    **dict.fromkeys(("wmv", "flv", "mts", "m2ts", "3gp"), "MP4"),
    **dict.fromkeys(("nhdr", "hdr", "img", "mgz", "mgh", "mnc", "par", "rec"), "NIfTI (.nii.gz)"),
}


def why_unread(path: Path) -> str | None:
    """Return what to convert a file of a known but unsupported kind to, None for others."""
    suffix = path.suffix.lower().removeprefix(".")
    return f"{suffix.upper()} is not read; convert it to {UNREAD[suffix]}" if suffix in UNREAD else None


def kind_of(path: Path) -> Kind | None:
    """Return the kind of a file by its suffix, a key of :data:`FORMATS`; None if it may be DICOM.

    A file with the prefix of DICOM (PS3.10 7.1) is DICOM, whatever its suffix.
    """
    kind = next((kind for kind, one in FORMATS.items() if one.suffix(path) is not None), None)
    if kind is not None:  # others are opened by the reader of DICOM anyway
        with suppress(OSError), path.open("rb") as file:
            if file.read(132)[128:] == b"DICM":
                return None
    return kind
