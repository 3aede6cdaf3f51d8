import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest

from medstyle import read_picture, write_picture, write_volume
from medstyle.errors import UserError
from medstyle.imaging.video import read_frames
from medstyle.inference.inbox import process
from medstyle.networks.translator import Translator
from tests.conftest import ROOT
from tests.inference.conftest import Plain, head, make_translator


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


@pytest.fixture
def elsewhere(tmp_path):
    """Return a folder on another file system."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no other file system")
    with tempfile.TemporaryDirectory(dir=shared) as folder:
        yield Path(folder)


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


def test_what_cannot_be_read_waits_with_its_reason(station, translator):
    """One file that the kernel refuses to read, whoever asks."""
    (station / "inbox/Doe^Jane 0/x.dcm").symlink_to("/proc/self/mem")
    outcomes = list(process(station, translator, settle_s=0))
    assert sorted(o.status for o in outcomes) == ["derived", "derived", "quarantined", "waiting"]
    [waits] = [o for o in outcomes if o.status == "waiting"]
    assert (waits.key, waits.code) == ("", "E_UNREADABLE")
    [(name, told)] = json.loads((station / "waiting.json").read_text()).items()
    assert (name, told["code"]) == ("Doe^Jane 0", "E_UNREADABLE")
    assert "Input/output error" in told["reason"]
    assert [path.name for path in (station / "inbox").iterdir()] == [name]
    assert "Doe" not in repr(outcomes)
    (station / "inbox/Doe^Jane 0/x.dcm").unlink()
    assert [o.status for o in process(station, translator, settle_s=0)] == ["derived"]
    assert not (station / "waiting.json").exists()


AS_NOBODY = """
import os, sys
from pathlib import Path
from medstyle.inference.inbox import process
from medstyle.networks.translator import Translator
translator = Translator.load(sys.argv[2])
list(process(Path(sys.argv[3]), translator, settle_s=0))  # imports what another user may not be able to
os.setgid(65534); os.setuid(65534)
for outcome in process(Path(sys.argv[1]), translator, settle_s=0):
    print(outcome.status, outcome.code)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may become somebody else")
def test_who_may_not_read_or_move_a_study_leaves_it(station, run, tmp_path):
    shutil.copytree(station, tmp_path / "1")
    shutil.copytree(station, tmp_path / "2")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # pytest's own folders are closed to others
        place = shutil.copytree(station, Path(folder) / "station")
        Path(folder).chmod(0o711)
        for path in (place, *place.rglob("*")):
            os.chown(path, 65534, 65534)
        os.chown(place / "inbox/Doe^Jane 0", 0, 0)  # may be read, but not be moved elsewhere
        [closed, *_] = sorted((place / "inbox/Doe^Jane 1").iterdir())
        os.chown(closed, 0, 0)
        closed.chmod(0o700)  # may not be entered
        command = [sys.executable, "-c", AS_NOBODY, str(place), str(run.translator)]
        first = [*command, str(tmp_path / "1")]
        done = subprocess.run(first, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        expected = ["derived ", "derived E_UNREADABLE", "quarantined E_INPUT", "waiting E_UNREADABLE"]
        assert sorted(done.stdout.splitlines()) == expected
        assert json.loads((place / "waiting.json").read_text()).keys() == {"Doe^Jane 0", "Doe^Jane 1"}
        assert len(list((place / "derived").iterdir())) == 2
        for path in (place, *place.rglob("*")):
            os.chown(path, 65534, 65534)
        second = [*command, str(tmp_path / "2")]
        done = subprocess.run(second, cwd=ROOT, capture_output=True, text=True, check=False)
        assert sorted(done.stdout.splitlines()) == ["derived ", "repeated "], done.stderr
        assert list((place / "inbox").iterdir()) == []


def test_a_study_whose_place_is_taken_stays_and_the_others_go_on(station, translator, tmp_path):
    straight = shutil.copytree(station, tmp_path / "straight")
    list(process(straight, translator, settle_s=0))
    [key] = [path.parent.name for path in (straight / "done").glob("*/Doe^Jane 1")]
    (station / "done").mkdir()
    (station / "done" / key).write_text("not a folder")
    outcomes = list(process(station, translator, settle_s=0))
    assert sorted((o.status, str(o.code)) for o in outcomes) == [
        ("derived", ""),
        ("derived", ""),
        ("derived", "E_UNREADABLE"),
        ("quarantined", "E_INPUT"),
    ]
    assert [path.name for path in (station / "inbox").iterdir()] == ["Doe^Jane 1"]
    assert "Doe^Jane 1" in json.loads((station / "waiting.json").read_text())
    (station / "done" / key).unlink()
    assert [(o.key, o.status, o.code) for o in process(station, translator, settle_s=0)] == [(key, "repeated", "")]
    assert everything(station)[0].keys() == everything(straight)[0].keys()


def test_done_may_be_on_another_file_system(station, translator, elsewhere):
    (station / "done").symlink_to(elsewhere)
    (station / "inbox/Doe^Jane 0/notes").symlink_to("nowhere")
    study = station / "inbox/Doe^Jane 0"
    before = {path.relative_to(study): path.read_bytes() for path in study.rglob("*.dcm")}
    outcomes = list(process(station, translator, settle_s=0))
    assert sorted((o.status, str(o.code)) for o in outcomes) == [("derived", "")] * 3 + [("quarantined", "E_INPUT")]
    assert list((station / "inbox").iterdir()) == []
    [place] = elsewhere.glob("*/Doe^Jane 0")
    assert {path.relative_to(place): path.read_bytes() for path in place.rglob("*.dcm")} == before
    assert (place / "notes").is_symlink()
    assert sorted(path.name for path in elsewhere.glob("*/*")) == [f"Doe^Jane {n}" for n in range(3)]


def arriving(function):
    """Return a translator that calls ``function`` once while it translates."""
    pending = [function]

    def render(x):
        if pending:
            pending.pop()()
        return x

    return make_translator(generator=Plain(render))


@pytest.mark.parametrize("what", ["the rest of the slices", "other bytes"])
def test_what_arrives_while_a_study_is_translated_makes_it_wait_and_be_done_whole(run, tmp_path, what):
    inbox, studies = tmp_path / "station/inbox", run.root / "data/raw/studies"
    study = shutil.copytree(studies / "PHANTOM-0000/01_mr_t1", inbox / "Doe^Jane")
    late = sorted(study.iterdir(), key=lambda path: pydicom.dcmread(path).ImagePositionPatient[2])[5:]
    (tmp_path / "late").mkdir()
    if what == "the rest of the slices":
        for path in late:
            path.rename(tmp_path / "late" / path.name)

    def arrive():
        for path in late:
            if what == "other bytes":
                other = pydicom.dcmread(path)
                other.PixelData = other.PixelData[::-1]
                other.save_as(path)
            else:
                (tmp_path / "late" / path.name).rename(path)

    station, translator = tmp_path / "station", arriving(arrive)
    [outcome] = process(station, translator, settle_s=0)
    assert (outcome.status, outcome.code) == ("waiting", "E_CHANGED")
    assert list(station.glob("derived/*")) == list(station.glob("done/*/*")) == []
    straight = shutil.copytree(station, tmp_path / "straight")
    [outcome] = process(station, translator, settle_s=0)
    [expected] = process(straight, make_translator(generator=Plain(lambda x: x)), settle_s=0)
    assert outcome == expected
    assert outcome.status == "derived"
    assert len(list((station / "derived" / outcome.key).rglob("*.dcm"))) == 8
    assert len(list((station / "done" / outcome.key).rglob("*.dcm"))) == 8
    assert list(inbox.iterdir()) == []


def test_what_arrives_before_a_study_is_filed_is_never_filed_untranslated(station, translator):
    """It is translated already, or not yet: the outcome of another study is looked at."""
    [extra, *_] = sorted((station / "inbox/Doe^Jane 2/01_mr_t1").glob("*.dcm"))
    extra.rename(station / extra.name)
    running = process(station, translator, settle_s=0)
    next(running)
    time.sleep(1)  # enough for it to be translated, in most runs
    (station / extra.name).rename(extra)
    [late] = [o for o in running if o.code == "E_CHANGED"]
    assert [path.name for path in (station / "inbox").iterdir()] == ["Doe^Jane 2"]
    [whole] = process(station, translator, settle_s=0)
    assert whole.status == "derived"
    assert whole.key != late.key
    [filed] = (station / "done" / whole.key).iterdir()
    assert (filed / "01_mr_t1" / extra.name).is_file()


def heads(station, **shapes):
    """Put a study of one volume for each name into the inbox."""
    for name, shape in shapes.items():
        (station / "inbox" / name).mkdir(parents=True)
        write_volume(station / "inbox" / name / "mr_t1.nii", head(shape=shape, seed=len(name)))


DEADLY = """
import os, signal, sys
from pathlib import Path
from medstyle.inference.inbox import process
from tests.inference.conftest import Plain, make_translator

def render(x):
    if x.shape[-2] > 60:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is used up
    return x

for outcome in process(Path(sys.argv[1]), make_translator(generator=Plain(render)), settle_s=0):
    print(outcome.status, outcome.code, flush=True)
"""


def test_a_study_that_kills_the_process_is_quarantined_after_two_deaths(tmp_path):
    station = tmp_path / "station"
    heads(station, a_deadly=(10, 96, 80), b=(10, 48, 40), c_longer=(10, 48, 40))

    def run_pass():
        command = [sys.executable, "-c", DEADLY, str(station)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout.split("\n")[:-1]

    assert run_pass() == (-signal.SIGKILL, [])
    [attempts] = (station / "attempts").iterdir()
    assert attempts.read_text() == "1"
    assert run_pass()[0] == -signal.SIGKILL
    assert attempts.read_text() == "2"
    assert len(list((station / "derived").glob("[!.]*"))) == 2  # the others came first this time
    code, lines = run_pass()
    assert (code, lines[-1]) == (0, "quarantined E_KILLED")
    assert len(list((station / "done").iterdir())) == len(list((station / "derived").iterdir())) == 2
    assert list((station / "attempts").iterdir()) == list((station / "inbox").iterdir()) == []
    reason = json.loads((station / "quarantine" / attempts.name / "reason.json").read_text())
    assert "memory" in reason["reason"]
    (station / "quarantine" / attempts.name / "a_deadly").rename(station / "inbox/a_deadly")
    assert run_pass()[0] == -signal.SIGKILL  # tried again, as the remedy says
    assert attempts.read_text() == "1"


@contextmanager
def full(kind, station):
    """Leave room for the output of a small study, but not for that of a large one."""
    if kind == "limit":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    else:
        ballast = station / "ballast"
        ballast.write_bytes(bytes(shutil.disk_usage(station).free - 200_000))
        yield
        ballast.unlink()


@pytest.mark.parametrize("kind", ["limit", "disk"])
def test_a_full_disk_is_no_fault_of_the_study(tmp_path, kind):
    station, translator = tmp_path / "station", make_translator(generator=Plain(lambda x: x))
    station.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2M", "none", str(station)]
    if kind == "disk" and subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        heads(station, a_large=(10, 96, 80), small=(10, 48, 40))
        with full(kind, station):
            outcomes = list(process(station, translator, settle_s=0))
            assert [(o.status, o.code) for o in outcomes] == [("waiting", "E_DISK_FULL"), ("derived", "")]
            assert [path.name for path in (station / "derived").iterdir()] == [outcomes[1].key]
            assert not list((station / "attempts").iterdir())
            assert not list(station.glob("quarantine/*"))
            told = json.loads((station / "waiting.json").read_text())
            assert "the disk is full" in told["a_large"]["reason"]
        assert [o.status for o in process(station, translator, settle_s=0)] == ["derived"]
        assert not [path for path in station.rglob("*") if ".part" in path.name]
        assert list((station / "inbox").iterdir()) == []
    finally:
        if kind == "disk":
            subprocess.run(["umount", str(station)], check=True)


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
        shutil.rmtree(station / "attempts", ignore_errors=True)  # it was no fault of the study
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
