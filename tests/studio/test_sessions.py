"""What is dropped goes nowhere else, has limits, and does not stay."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medstyle.studio.sessions import Limits, Sessions, safe_name


@pytest.fixture
def sessions(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    made = Sessions(Limits(idle_s=0.05))
    yield made
    made.close()


@given(st.text(max_size=300))
def test_no_name_leads_out_of_its_folder(name):
    place = Path("/private/set") / safe_name(name)
    assert place.resolve().is_relative_to("/private/set")
    assert place != Path("/private/set")
    assert not any(part.startswith(".") for part in safe_name(name).parts)


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("study/a/IM001.dcm", "study/a/IM001.dcm"),
        ("../../../etc/passwd", "etc/passwd"),
        ("C:\\scans\\t1.nii.gz", "C_/scans/t1.nii.gz"),
        (".ssh/id", "ssh/id"),
        ("", "file"),
        ("a\0b\n.png", "a_b_.png"),
    ],
)
def test_names_keep_what_rules_and_readers_need(name, kept):
    assert str(safe_name(name)) == kept


def test_a_long_name_keeps_its_suffix():
    assert safe_name("x" * 500 + ".nii.gz").name.endswith(".nii.gz")


def test_a_session_is_private_and_is_removed(sessions):
    name = sessions.open()
    folder = sessions.find(name).folder
    (folder / "scan").write_text("of a patient")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sessions.root.stat().st_mode & 0o777 == 0o700
    assert not sessions.overdue()
    time.sleep(0.1)
    assert sessions.overdue() == [name]
    sessions.end(name)
    assert not folder.exists()
    with pytest.raises(Exception, match="session has ended"):
        sessions.find(name)


def test_what_a_killed_studio_left_is_removed_but_not_what_a_running_one_has(sessions, tmp_path):
    left = tmp_path / "medstyle-studio-killed"
    (left / "session").mkdir(parents=True)
    other = Sessions(Limits())
    assert not left.exists()
    assert sessions.root.exists()
    other.close()
    assert not other.root.exists()
