"""Unpack a zip of strangers: counted while it unpacks, at places that the caller chooses."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from medstyle.errors import Code, Refusal, reading

CHUNK = 1 << 20


def unzip(source: Path | BinaryIO, place: Callable[[int, str], Path], files: int, size: int) -> tuple[int, int]:
    """Write every member to ``place(number, name)``; return how many there were, and their bytes.

    Only stored and deflated members are read, because the other methods unpack any amount at once.

    Args:
        source: the zip.
        place: from the number and the name of a member, which may be hostile, to its new file.
        files: largest number of members.
        size: largest number of bytes of all members together.

    Raises:
        Refusal: ``E_TOO_LARGE``, or ``E_DECODE`` for a zip that is damaged or encrypted.
    """
    taken = 0
    with reading("the zip, which may be damaged or encrypted"), zipfile.ZipFile(source) as archive:
        members = [info for info in archive.infolist() if not info.is_dir()]
        if len(members) > files:
            raise Refusal(Code.E_TOO_LARGE, f"the zip holds {len(members)} files; the limit is {files}")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in members):
            raise Refusal(Code.E_DECODE, "the zip is compressed by another method than deflate; zip it again")
        for number, info in enumerate(members):
            with archive.open(info) as member, place(number, info.filename).open("wb") as file:
                while chunk := member.read(CHUNK):
                    taken += len(chunk)
                    if taken > size:
                        raise Refusal(Code.E_TOO_LARGE, f"the zip unpacks to more than {size} bytes")
                    file.write(chunk)
    return len(members), taken
