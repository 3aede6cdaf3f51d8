"""Compare the directory of a DICOM medium with its files (PS3.3 F; PS3.10, 8)."""

from __future__ import annotations

from pathlib import Path

from pydicom import dcmread

from medstyle.dicom.elements import quiet
from medstyle.errors import Code, Refusal, reading
from medstyle.imaging.bounded import BoundedFile

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def check_directory(path: Path) -> None:
    """Refuse a DICOMDIR that lists files which are not beside it.

    No path that it lists is opened, because a directory may name any file (CVE-2026-32711).

    Raises:
        Refusal: ``E_INCOMPLETE`` files are missing, ``E_DECODE`` the directory cannot be read.
    """
    with quiet(), reading(), BoundedFile(path) as file:
        records = dcmread(file, force=True).get("DirectoryRecordSequence") or []
        names = [record.get("ReferencedFileID") for record in records]
    listed = [[name] if isinstance(name, str) else list(map(str, name)) for name in names if name]
    present = {file.relative_to(path.parent).as_posix().upper() for file in sorted(path.parent.rglob("*"))}
    missing = sum("/".join(parts).upper() not in present for parts in listed)
    if missing:
        reason = f"lists {len(listed)} files, of which {missing} are missing; copy the whole medium"
        raise Refusal(Code.E_INCOMPLETE, reason)
