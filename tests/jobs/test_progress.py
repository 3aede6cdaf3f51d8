"""Progress: every item comes through, and a log gets lines rather than a bar."""

import contextlib
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from medstyle.jobs import progress


def test_items_pass_and_the_last_line_tells_the_count(capsys: pytest.CaptureFixture) -> None:
    assert list(progress.track(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    err = capsys.readouterr().err
    assert err.splitlines() == ["letters: 3/3 after 0 s"]


def test_a_slow_loop_reports_now_and_then(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    list(progress.track(range(6), "slow"))
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == ["2/6", "4/6", "6/6"]


@pytest.mark.parametrize(("items", "lines"), [(3, []), (6, ["4/6", "6/6"])])
def test_a_short_loop_says_nothing_where_patience_is_asked_for(
    items: int, lines: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track(range(items), "slow", patience_s=24)) == list(range(items))
    assert [line.split()[1] for line in capsys.readouterr().err.splitlines()] == lines


def test_a_log_tells_the_pace_of_the_last_seconds_and_the_time_left(monkeypatch, capsys):
    """Eight times as slow as before: what counts is the pace now."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.StepProgress("train", 200, (4, "images")) as bar:
        for step in range(1, 121):
            now[0] += 0.125 if step <= 80 else 1.0
            bar.show(step, {"l1": 0.5} if step % 10 == 0 else {})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "train: 80/200 steps, 32 images/s, 0:15 left, l1 0.5"
    assert lines[-1] == "train: 120/200 steps, 4 images/s, 1:20 left, l1 0.5"


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_terminal_shows_one_line_whatever_its_width(width, monkeypatch):
    """In a real terminal the steps are shown, and no line is wider than the terminal."""
    code = (
        "from medstyle.jobs.progress import StepProgress\n"
        "with StepProgress('train', 2400, (8, 'images')) as bar:\n"
        "    for step in (1, 1200, 2400):\n"
        "        bar.show(step, {'l1': .071, 'adversarial': .692, 'share_right': .544, 'change': .2})\n"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(width), "NO_COLOR": "1"}
    done = subprocess.run([sys.executable, "-c", code], stderr=theirs, env=environment, check=True)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while block := os.read(ours, 1 << 16):
            said += block
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in re.split(r"[\r\n]+", said.decode())]
    assert done.returncode == 0
    assert max(map(len, shown)) <= width
    assert any("2400/2400" in line for line in shown)
