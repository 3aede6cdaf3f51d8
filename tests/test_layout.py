"""The tests lie as the package does, so that the test of a module is found by its name."""

from pathlib import Path

import pytest

from tests.conftest import GROUPS, LONGEST, ROOT

TESTS = ROOT / "tests"
ROOMS = sorted(path for path in TESTS.rglob("*/") if list(path.glob("test_*.py")))
# what is no single module's: a room as a whole, or beside another program
WHOLE = {
    "dicom/test_corpus.py": "files that others have made wrong",
    "dicom/test_faults.py": "series that were once read wrongly without a word",
    "dicom/test_fuzz.py": "files that chance has made wrong",
    "dicom/test_orthanc.py": "an archive",
    "imaging/test_faults.py": "files that were once read wrongly without a word",
    "imaging/test_fuzz.py": "files that chance has made wrong",
    "registry/test_slicer.py": "3D Slicer's module, which is no part of the package",
    "registry/test_postgresql.py": "a server with passwords on PostgreSQL",
}
ELSEWHERE = {"benchmarks": ROOT / "benchmarks/peers", "flows": ROOT / "flows"}


def modules(room: Path) -> set[str]:
    """Return the modules and packages that the tests of a folder may be named after."""
    place = ELSEWHERE.get(room.name, ROOT / "medstyle" / room.relative_to(TESTS))
    names = {path.stem for path in place.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    return names | ({"peers"} if room.name == "benchmarks" else set())


@pytest.mark.parametrize("room", ROOMS, ids=lambda path: str(path.relative_to(TESTS)))
def test_each_file_of_a_room_is_named_after_the_module_that_it_tests(room):
    if room == TESTS:
        return  # the project as a whole
    named = {path.stem.removeprefix("test_") for path in room.glob("test_*.py")}
    allowed = {Path(name).stem.removeprefix("test_") for name in WHOLE if Path(name).parent.name == room.name}
    assert named - modules(room) - allowed == set()


@pytest.mark.parametrize("name", [*WHOLE, *(Path(name).relative_to("tests") for name in (*GROUPS, *LONGEST))], ids=str)
def test_what_is_listed_exists(name):
    assert (TESTS / name).exists()
