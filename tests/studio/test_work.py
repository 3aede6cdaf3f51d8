"""What the jobs of the studio do with what was dropped."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from medstyle.errors import Refusal
from medstyle.studio import work


def packed(folder: Path, size: int) -> Path:
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.dcm", bytes(size))
    return folder


def test_what_all_sets_of_a_session_unpack_to_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "UNPACKED", 10 << 20)
    work.unpack(packed(tmp_path / "sets/one", 6 << 20))
    assert (tmp_path / "sets/one/a/zeros.dcm").stat().st_size == 6 << 20
    with pytest.raises(Refusal, match="unpacks to more than"):
        work.unpack(packed(tmp_path / "sets/two", 6 << 20))
