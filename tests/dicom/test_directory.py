import contextlib
import shutil
from pathlib import Path

import pydicom
import pytest
from typer.testing import CliRunner

from medstyle.cli import app
from medstyle.cohort.inventory import inventory
from medstyle.dicom.directory import check_directory
from medstyle.errors import Refusal

MEDIUM = Path(pydicom.__file__).parent / "data/test_files/dicomdirtests"


@pytest.fixture
def medium(tmp_path: Path) -> Path:
    shutil.copytree(MEDIUM, tmp_path / "cd")
    shutil.rmtree(tmp_path / "cd/TINY_ALPHA")
    for path in (tmp_path / "cd").glob("DICOMDIR-*"):
        path.unlink()
    return tmp_path / "cd"


def test_a_whole_medium_is_no_cause_for_alarm(medium: Path) -> None:
    check_directory(medium / "DICOMDIR")
    [file] = [file for file in inventory([medium]).files if file.path.name == "DICOMDIR"]
    assert (file.verdict, file.code) == ("skipped", "E_SOPCLASS")


def test_files_that_a_medium_lists_and_lacks_are_counted(medium: Path) -> None:
    for path in sorted((medium / "77654033/CR1").iterdir()):
        path.unlink()
    [file] = [file for file in inventory([medium]).files if file.path.name == "DICOMDIR"]
    assert file.code == "E_INCOMPLETE"
    assert "of which 1 are missing" in file.reason
    assert CliRunner().invoke(app, ["inspect", str(medium)]).exit_code == 3


def test_a_damaged_directory_is_a_verdict(medium: Path) -> None:
    data = (medium / "DICOMDIR").read_bytes()
    for end in range(200, len(data), 997):
        (medium / "DICOMDIR").write_bytes(data[:end])
        with contextlib.suppress(Refusal):
            check_directory(medium / "DICOMDIR")
