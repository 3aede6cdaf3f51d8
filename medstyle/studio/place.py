"""Say where a job works, what it tells, and what may be downloaded."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEDIA = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".mp4": "video/mp4",
         ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm", ".mkv": "video/x-matroska",
         ".zip": "application/zip", ".gz": "application/gzip"}  # fmt: skip
REMEDIES = {  # of the command line -> of the page
    "override with --force": "tick “Translate anyway”",
    "set the domain with --from": "tick “Treat the image as the model's source”",
}


@dataclass
class Place:
    """Where a job works, and what it tells.

    Attributes:
        session: folder of the session.
        out: new folder of the job.
        model: the model that the studio was started with.
        say: sends progress.
        files: what may be downloaded: name -> path, media type and name of the saved file.
    """

    session: Path
    out: Path
    model: str
    say: Callable[[dict[str, Any]], None]
    files: dict[str, dict[str, str]] = field(default_factory=dict)

    def offer(self, name: str, path: Path, saved: str = "") -> str:
        """Let the page have a file under a name; return the name."""
        media = MEDIA.get(path.suffix.lower(), "application/octet-stream")
        self.files[name] = {"path": str(path), "media": media, "saved": saved or name}
        return name

    def dropped(self, name: str) -> Path:
        """Return the folder of a set of files."""
        return self.session / "sets" / name

    def cleaned(self, text: str) -> str:
        """Return an error without the folders of the server, and with the page's remedies."""
        for folder in (self.out, self.session / "sets", self.session):
            text = re.sub(re.escape(str(folder)) + r"(/[0-9a-f]{16}(?=[/:]))?/?", "", text)
        for remedy, ours in REMEDIES.items():
            text = text.replace(remedy, ours)
        return text.strip().removeprefix(":").strip()
