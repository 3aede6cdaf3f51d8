"""Progress: every item comes through, and a log gets lines rather than a bar."""

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
