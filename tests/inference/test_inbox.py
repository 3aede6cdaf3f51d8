import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import psutil
import pytest

from medstyle import read_picture, write_picture
from medstyle.errors import UserError
from medstyle.imaging.video import read_frames
from medstyle.inference.inbox import process
from medstyle.networks.translator import Translator
from tests.conftest import ROOT
from tests.inference.conftest import make_translator


@pytest.fixture
def station(run, tmp_path):
    """Three studies and what is none, as a router would leave them."""
    inbox = tmp_path / "station/inbox"
    studies = run.root / "data/raw/studies"
    for number in range(3):
        shutil.copytree(studies / f"PHANTOM-000{number}", inbox / f"Doe^Jane {number}")
    (inbox / "Doe^John").mkdir()
    (inbox / "Doe^John/report.txt").write_text("Patient: John Doe")
    return tmp_path / "station"


@pytest.fixture(scope="module")
def translator(run):
    return Translator.load(run.translator)


def everything(station):
    """Return the bytes of every derived file by its path, and the rows of the ledger."""
    derived = {p.relative_to(station): p.read_bytes() for p in sorted((station / "derived").rglob("*")) if p.is_file()}
    with closing(sqlite3.connect(station / "ledger.db")) as ledger:
        return derived, sorted(ledger.execute("SELECT key, status, code FROM studies"))


def test_every_study_is_derived_once_or_in_quarantine(station, translator):
    outcomes = list(process(station, translator, settle_s=0))
    assert sorted(o.status for o in outcomes) == ["derived"] * 3 + ["quarantined"]
    assert list((station / "inbox").iterdir()) == []
    for outcome in outcomes:
        if outcome.status == "derived":
            rows = json.loads((station / "derived" / outcome.key / "translation.json").read_text())
            assert outcome.series == len(rows) == 1
            assert len(list((station / "derived" / outcome.key / rows[0]["out"]).glob("*.dcm"))) == 8
            assert len(list((station / "done" / outcome.key).iterdir())) == 1
        else:
            assert outcome.code == "E_INPUT"
            assert (station / "quarantine" / outcome.key / "Doe^John/report.txt").is_file()
            reason = json.loads((station / "quarantine" / outcome.key / "reason.json").read_text())
            assert "no usable image" in reason["reason"]
    assert "Doe" not in repr(outcomes)
    assert b"Doe" not in (station / "ledger.db").read_bytes()
    derived, rows = everything(station)
    assert len(rows) == 4
    assert not [path for path in derived if ".part-" in str(path)]
    # the same study again, under another name: filed, not translated
    shutil.copytree(next((station / "done").glob("*/*0")), station / "inbox/again")
    stamps = {path: path.stat().st_mtime_ns for path in (station / "derived").rglob("*")}
    (again,) = process(station, translator, settle_s=0)
    assert again.status == "repeated"
    assert len(list((station / "done" / again.key).iterdir())) == 2
    assert {path: path.stat().st_mtime_ns for path in (station / "derived").rglob("*")} == stamps
    assert everything(station)[1] == rows


def test_what_is_no_file_stops_nothing(station, translator):
    [study] = list((station / "inbox").glob("*0"))[:1]
    os.mkfifo(study / "pipe")
    os.mkfifo(study / "pipe.png")
    (study / "link.dcm").symlink_to("nowhere")
    os.mkfifo(station / "inbox/alone")
    (station / "inbox/dangling").symlink_to("nowhere")
    outcomes = list(process(station, translator, settle_s=0))
    assert sum(outcome.status == "derived" for outcome in outcomes) >= 1
    assert not [path for path in (station / "inbox").iterdir() if path.is_dir() and path.name == study.name]


def film(path):
    import av

    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(3):
            pixels = np.full((48, 64, 3), (60 * k, 128, 200 - 40 * k), np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())


def test_pictures_and_clips_are_translated_by_a_model_of_them(tmp_path, rng):
    """Whatever they are called, in folders or alone, once each.

    What cannot be read waits with its reason.
    """
    from medstyle import translate_picture

    inbox, translator = tmp_path / "station/inbox", make_translator(("photo", "painting"))
    (inbox / "holiday/day 1").mkdir(parents=True)
    deep = rng.integers(0, 65536, (33, 21, 3), dtype=np.uint16)
    write_picture(inbox / "holiday/day 1/a.png", deep)
    write_picture(inbox / "holiday/b.jpg", rng.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    film(inbox / "holiday/c.avi")
    shutil.copytree(inbox / "holiday", inbox / "the same again")
    shutil.copy(inbox / "holiday/b.jpg", inbox / "alone.jpg")
    (inbox / "cut.png").write_bytes((inbox / "holiday/day 1/a.png").read_bytes()[:900])
    station = tmp_path / "station"
    outcomes = list(process(station, translator, settle_s=0))
    assert sorted(o.status for o in outcomes) == ["derived", "derived", "quarantined", "repeated"]
    assert list(inbox.iterdir()) == []
    [cut] = [o for o in outcomes if o.status == "quarantined"]
    assert (cut.code, "cut" in (station / "quarantine" / cut.key / "reason.json").read_text()) == ("E_DECODE", True)
    [whole] = [station / "derived" / o.key for o in outcomes if o.series == 3 and o.status == "derived"]
    files = {path.relative_to(whole).as_posix() for path in whole.rglob("*") if path.is_file()}
    assert files == {"translation.json", "day 1/a.png", "b.jpg", "c.mkv"}
    np.testing.assert_array_equal(read_picture(whole / "day 1/a.png"), translate_picture(deep, translator).image)
    assert len(list(read_frames(whole / "c.mkv"))) == 3
    [(_, again)] = [(o, station / "done" / o.key) for o in outcomes if o.status == "repeated"]
    assert {path.name for path in again.iterdir()} == {"holiday", "the same again"}


def test_a_study_that_still_arrives_is_left_alone(station, translator):
    assert list(process(station, translator, settle_s=60)) == []
    assert len(list((station / "inbox").iterdir())) == 4


def forget(station, key):
    with closing(sqlite3.connect(station / "ledger.db")) as ledger, ledger:
        ledger.execute("DELETE FROM studies WHERE key = ?", (key,))


# what a crash can leave, after which step
CRASHES = {
    "in the middle of writing": lambda station, key: (station / f"derived/.part-{key}/half").mkdir(parents=True),
    "before the ledger": forget,
    "before the source was moved": lambda station, key: None,
}


@pytest.mark.parametrize("name", CRASHES)
def test_what_a_crash_leaves_is_finished(station, translator, name):
    outcomes = {o.key: o for o in process(station, translator, settle_s=0)}
    whole = everything(station)
    key = next(k for k, o in outcomes.items() if o.status == "derived")
    (source,) = (station / "done" / key).iterdir()
    source.rename(station / "inbox" / source.name)
    if name == "in the middle of writing":
        shutil.rmtree(station / "derived" / key)
        forget(station, key)
    CRASHES[name](station, key)
    (outcome,) = process(station, translator, settle_s=0)
    assert outcome.status == ("repeated" if name == "before the source was moved" else "derived")
    derived, rows = everything(station)
    assert rows == whole[1]
    assert derived.keys() == whole[0].keys()
    assert [p.name for p in (station / "done" / key).iterdir()] == [source.name]


def test_two_at_once_and_no_inbox_are_told(station, translator, tmp_path):
    first = process(station, translator, settle_s=0)
    next(first)
    with pytest.raises(UserError, match="another process works in it"):
        next(process(station, translator, settle_s=0))
    first.close()
    assert len(list(process(station, translator, settle_s=0))) == 3
    with pytest.raises(UserError, match="no such folder"):
        next(process(tmp_path / "nowhere", translator))


def test_a_full_disk_is_no_fault_of_the_study(station, translator):
    (station / "derived").mkdir()
    (station / "derived").chmod(0o500)
    if os.access(station / "derived", os.W_OK):
        pytest.skip("root may write anywhere")
    with pytest.raises(OSError, match="denied"):
        list(process(station, translator, settle_s=0))
    (station / "derived").chmod(0o700)
    assert len(list(process(station, translator, settle_s=0))) == 4


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_or_done_twice(station, run, translator, tmp_path, rng):
    straight = shutil.copytree(station, tmp_path / "straight")
    list(process(straight, translator, settle_s=0))
    code = (
        "import sys; from pathlib import Path; from medstyle.inference.inbox import process; "
        "from medstyle.networks.translator import Translator; "
        f"t = Translator.load({str(run.translator)!r}); print('ready', flush=True); "
        f"list(process(Path({str(station)!r}), t, settle_s=0))"
    )
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        child.stdout.readline()
        time.sleep(rng.uniform(0, 1.2))
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    list(process(station, translator, settle_s=0))
    (derived, rows), (expected, expected_rows) = everything(station), everything(straight)
    assert rows == expected_rows
    assert derived.keys() == expected.keys()
    assert {p.name for p in (station / "done").glob("*/*")} == {f"Doe^Jane {n}" for n in range(3)}
    assert list((station / "inbox").iterdir()) == []


WORKERS = """
import sys
from pathlib import Path
from medstyle.inference.inbox import process
from medstyle.networks.translator import Translator
if __name__ == "__main__":
    list(process(Path(sys.argv[1]), Translator.load(sys.argv[2]), settle_s=0, workers=2))
"""


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_and_repeats_nothing(station, run, translator, tmp_path):
    for number in (3, 4, 3):  # one of them twice
        name = f"Doe^Jane {len(list((station / 'inbox').iterdir()))}"
        shutil.copytree(run.root / f"data/raw/studies/PHANTOM-000{number}", station / "inbox" / name)
    straight = shutil.copytree(station, tmp_path / "straight")
    list(process(straight, translator, settle_s=0))
    (tmp_path / "script.py").write_text(WORKERS)
    command = [sys.executable, str(tmp_path / "script.py"), str(station), str(run.translator)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (tmp_path / "log").open("w") as log:
        child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
    while not (station / "derived").is_dir() or not list((station / "derived").iterdir()):
        assert child.poll() is None, (tmp_path / "log").read_text()
        time.sleep(0.005)
    children = psutil.Process(child.pid).children(recursive=True)
    workers = [process for process in children if "spawn_main" in " ".join(process.cmdline())]
    workers[0].kill()
    assert len(list((station / "done").glob("*/*"))) < 5, "it was in the middle"
    assert child.wait(300) == 0, (tmp_path / "log").read_text()
    (derived, rows), (expected, expected_rows) = everything(station), everything(straight)
    assert rows == expected_rows
    assert derived.keys() == expected.keys()
    assert list((station / "inbox").iterdir()) == []
    assert "Doe" not in (tmp_path / "log").read_text()
