import io
import zipfile
from pathlib import Path

import pytest

from medstyle.errors import Refusal
from medstyle.jobs.unzip import unzip


def packed(method: int = zipfile.ZIP_DEFLATED, size: int = 1000, files: int = 3) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for number in range(files):
            archive.writestr(f"../{number}", bytes(size))
    buffer.seek(0)
    return buffer


def test_members_lie_where_the_caller_says(tmp_path: Path) -> None:
    assert unzip(packed(), lambda number, name: tmp_path / f"{number}.x", 3, 3000) == (3, 3000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.x", "1.x", "2.x"]


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (packed(zipfile.ZIP_LZMA), "E_DECODE"), (packed(zipfile.ZIP_BZIP2), "E_DECODE"),
        (packed(files=4), "E_TOO_LARGE"), (packed(size=1001), "E_TOO_LARGE"), (io.BytesIO(b"PK\3\4junk"), "E_DECODE"),
        (io.BytesIO(packed(size=900).getvalue().replace(b"c`", b"\xff\xff", 1)), "E_DECODE"),
    ],
)  # fmt: skip
def test_what_is_too_large_or_damaged_is_refused(source: io.BytesIO, code: str, tmp_path: Path) -> None:
    with pytest.raises(Refusal) as raised:
        unzip(source, lambda number, name: tmp_path / f"{number}.x", 3, 3000)
    assert raised.value.code == code
