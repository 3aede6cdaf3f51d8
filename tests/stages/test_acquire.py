"""Stage acquire: all or nothing, and the same again."""

from __future__ import annotations

from pathlib import Path

import pytest

from medstyle.stages import acquire

SMALL = acquire.Params(subjects=1, matrix=32, slices=4, spacing_mm=(7.0, 7.0, 12.0), domains=("mr_t1",))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_run_replaces_the_old_output_and_repeats_its_bytes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "data" / "raw"
    lines: list[str] = []
    acquire.run(SMALL, out, lines.append)
    first = files(out)
    assert sorted(p.name for p in (out / "studies/PHANTOM-0000/01_mr_t1").iterdir()) == [
        f"{n:04d}.dcm" for n in range(1, 5)
    ]
    assert "phantom: 1/1" in capsys.readouterr().err
    assert lines == [f"1 subjects x 1 series in {out}"]
    (out / "stale").touch()
    acquire.run(SMALL, out)
    assert files(out) == first
    assert [p.name for p in out.parent.iterdir()] == ["raw"]


def test_a_failure_leaves_the_old_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "raw"
    out.mkdir()
    (out / "precious").touch()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(acquire, "write_phantom", fail)
    with pytest.raises(OSError, match="disk full"):
        acquire.run(SMALL, out)
    assert (out / "precious").exists()
