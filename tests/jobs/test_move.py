"""A move to another file system is whole or not at all, whenever the process is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from medstyle.errors import DiskFull
from medstyle.jobs.move import finish_moves, move
from tests.conftest import ROOT
from tests.jobs.test_atomic import full

PLACE = Path("done/key/study")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """Return a folder on another file system than that of the tests."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == Path(tempfile.gettempdir()).stat().st_dev:
        pytest.skip("there is no other file system")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    for number in range(300):
        path = tmp_path / f"inbox/study/series/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number % 256]) * 5000)
    os.mkfifo(tmp_path / "inbox/study/pipe")
    return tmp_path / "inbox/study"


def content(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unchanged(path: Path) -> None:
    """Accept the study."""


MOVE = """
import sys
from pathlib import Path
from medstyle.jobs.move import finish_moves, move
inbox, root = Path(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
finish_moves(inbox, root)
if (inbox / "study").exists():
    move(inbox / "study", root, Path("done/key/study"), lambda path: None)
"""


def test_killed_at_random_moments_one_whole_copy_is_left(study: Path, elsewhere: Path) -> None:
    before, rng = content(study), np.random.default_rng(0)
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", MOVE, str(study.parent), str(elsewhere)], cwd=ROOT, stdout=subprocess.PIPE
        ) as child:
            assert child.stdout is not None
            child.stdout.readline()
            time.sleep(rng.uniform(0, 0.08))
            child.kill()
        found = [place for place in (study, elsewhere / PLACE) if place.exists()]
        taken = study.parent / ".moved" / PLACE
        assert any(content(place) == before for place in [*found, taken] if place.exists())
        if not found:
            finish_moves(study.parent, elsewhere)
            assert content(elsewhere / PLACE) == before
    finish_moves(study.parent, elsewhere)
    if study.exists():
        move(study, elsewhere, PLACE, unchanged)
    assert content(elsewhere / PLACE) == before
    assert content(study.parent) == {}
    assert content(elsewhere).keys() == {PLACE / path for path in before}


@pytest.mark.parametrize("other", [False, True])
def test_what_changed_meanwhile_comes_back(study: Path, tmp_path: Path, elsewhere: Path, other: bool) -> None:
    before = content(study)

    def grown(path: Path) -> None:
        (path / "late").write_text("a slice")
        raise ValueError("changed")

    root = elsewhere if other else tmp_path
    with pytest.raises(ValueError, match="changed"):
        move(study, root, PLACE, grown)
    assert content(study) == {**before, Path("late"): b"a slice"}
    assert content(root / "done") == {}
    move(study, root, PLACE, unchanged)
    assert content(root / PLACE) == {**before, Path("late"): b"a slice"}


def test_what_is_added_between_the_copy_and_a_crash_comes_back(study: Path, elsewhere: Path) -> None:
    code = MOVE.replace("lambda path: None", "grow").replace("import sys", GROW)
    command = [sys.executable, "-c", code, str(study.parent), str(elsewhere)]
    assert subprocess.run(command, cwd=ROOT, check=False, capture_output=True).returncode == -9
    assert not study.exists()
    finish_moves(study.parent, elsewhere)
    assert (study / "late").is_file()
    assert content(elsewhere) == {}


GROW = """
import os, signal, sys
def grow(path):
    (path / "late").write_text("a slice")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_without_room_for_the_copy_everything_stays(study: Path, elsewhere: Path) -> None:
    (study / "large").write_bytes(bytes(100_000))
    before = content(study)
    with full("limit", elsewhere, 50_000, 0), pytest.raises(DiskFull):
        move(study, elsewhere, PLACE, unchanged)
    assert content(study) == before
    assert content(elsewhere) == {}
