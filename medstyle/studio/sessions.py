"""Keep what a person has dropped: a private folder for each session, which ends by itself."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

log = logging.getLogger("medstyle.studio")
PREFIX = "medstyle-studio-"
CHUNK_S = 60.0  # the longest pause within an upload


@dataclass(frozen=True)
class Limits:
    """The limits of a session.

    Attributes:
        upload_bytes: of all files of a session, packed and unpacked.
        files: their number.
        idle_s: a session without a request for so long ends.
        sessions: at the same time.
        jobs: of a session, waiting or running.
    """

    upload_bytes: int = 2 << 30
    files: int = 20_000
    idle_s: float = 1800.0
    sessions: int = 64
    jobs: int = 16


@dataclass
class Session:
    """One browser: its folder, and the sets of files that were dropped in its tabs.

    Attributes:
        folder: has the mode 0700.
        used: time of the last request.
        bytes: size of what was uploaded.
        sets: names of the sets, and the number of files of each.
    """

    folder: Path
    used: float
    bytes: int = 0
    sets: dict[str, int] = field(default_factory=dict)

    def new_set(self) -> str:
        """Make a folder for files that belong together; return its name."""
        name = secrets.token_hex(8)
        (self.folder / "sets" / name).mkdir(parents=True)
        self.sets[name] = 0
        return name


class Sessions:
    """All sessions, in a folder that nobody else can read."""

    def __init__(self, limits: Limits) -> None:
        _remove_abandoned()
        self.limits = limits
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX))
        self.lock = FileLock(self.root / ".lock")
        self.lock.acquire(timeout=0)
        self.known: dict[str, Session] = {}

    def open(self) -> str:
        """Begin a session; return its name, which nobody can guess."""
        if len(self.known) >= self.limits.sessions:
            raise HTTPException(503, "too many sessions are open; close one, or come back later")
        name = secrets.token_urlsafe(32)
        folder = self.root / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        self.known[name] = Session(folder, time.monotonic())
        return name

    def find(self, name: str | None) -> Session:
        """Return a session and note that it is in use."""
        session = self.known.get(name or "")
        if session is None:
            raise HTTPException(401, "the session has ended and its files are deleted; reload the page")
        session.used = time.monotonic()
        return session

    def end(self, name: str) -> Session | None:
        """Delete a session with all its files."""
        session = self.known.pop(name, None)
        if session is not None:
            shutil.rmtree(session.folder, ignore_errors=True)
        return session

    def overdue(self) -> list[str]:
        """Return the sessions that nobody uses any more."""
        now = time.monotonic()
        return [name for name, one in self.known.items() if now - one.used > self.limits.idle_s]

    def close(self) -> None:
        """Delete everything."""
        self.lock.release()
        shutil.rmtree(self.root, ignore_errors=True)


def _remove_abandoned() -> None:
    """Delete the folders of studios that were killed: nobody holds their locks."""
    for root in sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*")):
        try:
            if root.is_symlink() or root.stat().st_uid != os.getuid():
                continue
            with FileLock(root / ".lock", timeout=0):
                shutil.rmtree(root, ignore_errors=True)
        except (Timeout, OSError):
            continue


def safe_name(text: str) -> Path:
    """Return a relative path that stays where it is put, whatever ``text`` says.

    Examples:
        >>> str(safe_name("../../etc/passwd"))
        'etc/passwd'
    """
    parts = [re.sub(r"[^A-Za-z0-9._-]+", "_", part).lstrip(".")[-80:] for part in re.split(r"[/\\]+", text)]
    return Path(*([part for part in parts if part][-6:] or ["file"]))


async def receive(request: Request, session: Session, limits: Limits, folder: Path, name: str) -> Path:
    """Stream the body of a request into a new file below ``folder``; return it.

    Raises:
        HTTPException: it is too large, does not arrive, or the disk is full.
    """
    too_large = HTTPException(413, f"more than {limits.upload_bytes >> 20} MiB in this session; send fewer files")
    if int(request.headers.get("content-length") or 0) + session.bytes > limits.upload_bytes:
        raise too_large
    if sum(session.sets.values()) >= limits.files:
        raise HTTPException(413, f"more than {limits.files} files in this session; send fewer")
    place = folder / safe_name(name)
    while place.exists() or any(above.is_file() for above in place.parents):
        place = folder / secrets.token_hex(4) / place.name  # two files of one name, from two folders
    place.parent.mkdir(parents=True, exist_ok=True)
    session.sets[folder.name] += 1
    try:
        with place.open("xb") as file:
            stream = aiter(request.stream())
            while (chunk := await asyncio.wait_for(anext(stream, None), CHUNK_S)) is not None:
                session.bytes += len(chunk)
                if session.bytes > limits.upload_bytes:
                    raise too_large
                await asyncio.to_thread(file.write, chunk) if len(chunk) > 1 << 20 else file.write(chunk)
    except (HTTPException, ClientDisconnect, TimeoutError, OSError) as error:
        session.bytes -= place.stat().st_size if place.exists() else 0
        session.sets[folder.name] -= 1
        place.unlink(missing_ok=True)
        if isinstance(error, HTTPException):
            raise
        full = isinstance(error, OSError) and not isinstance(error, TimeoutError)
        words = "the disk is full; free disk space on the server" if full else "the file did not arrive; drop it again"
        raise HTTPException(507 if full else 408, words) from None
    return place
