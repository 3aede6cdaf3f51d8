"""Keys tell nothing without the secret, wherever it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from medstyle.errors import UserError
from medstyle.pseudonyms import own_secret, subject_key


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MEDSTYLE_SECRET", "MEDSTYLE_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)


def test_subject_keys_follow_from_the_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    public = subject_key("12345")
    assert own_secret() is None
    assert public == subject_key(" 12345 ")
    assert public.startswith("sub-")
    assert len(public) == 16
    assert "12345" not in public
    monkeypatch.setenv("MEDSTYLE_SECRET", "hospital")
    assert subject_key("12345") != public
    assert subject_key("12345") == subject_key("12345") != subject_key("12346")


def test_a_file_holds_the_secret_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSTYLE_SECRET", "hospital")
    key = subject_key("12345")
    monkeypatch.delenv("MEDSTYLE_SECRET")
    (tmp_path / "secret").write_text("hospital\n")
    monkeypatch.setenv("MEDSTYLE_SECRET_FILE", str(tmp_path / "secret"))
    assert subject_key("12345") == key


@pytest.mark.parametrize("case", ["absent", "empty", "in a repository"])
def test_a_file_that_holds_no_secret_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "secret"
    if case != "absent":
        file.write_text("hospital" if case == "in a repository" else " \n")
    if case == "in a repository":
        (tmp_path / ".git").mkdir()
    monkeypatch.setenv("MEDSTYLE_SECRET_FILE", str(file))
    with pytest.raises(UserError, match="MEDSTYLE_SECRET_FILE"):
        subject_key("12345")
