"""On a full disk no writer leaves a file, whole or in part, and each says the same."""

from __future__ import annotations

import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from medstyle import Volume, write_picture, write_volume
from medstyle.errors import Code, DiskFull
from medstyle.imaging.video import Frame, VideoWriter
from medstyle.jobs.atomic import atomic, atomic_folder, write_json
from tests.conftest import Run

VOXELS = np.random.default_rng(0).random((20, 60, 60), dtype=np.float32) * 1000
PIXELS = np.random.default_rng(0).integers(0, 65536, (200, 200, 3), np.uint16)


def volume(path: Path, run: Run) -> None:
    write_volume(path, Volume(VOXELS, np.eye(4), "mr_t1"))


def small_volume(path: Path, run: Run) -> None:
    write_volume(path, Volume(VOXELS[:2, :20, :20], np.eye(4), "mr_t1"))


def picture(path: Path, run: Run) -> None:
    write_picture(path, np.uint8(PIXELS >> 8), "a note")


def deep_picture(path: Path, run: Run) -> None:
    write_picture(path, PIXELS, "a note")


def video(path: Path, run: Run) -> None:
    import av

    like = run.root.parent / f"{run.root.name}.avi"
    if not like.exists():
        with av.open(str(like), "w") as out:
            stream = out.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
            out.mux(stream.encode())
    with VideoWriter(path, like) as writer:
        for k in range(8):
            writer.write(Frame(np.uint8(np.roll(PIXELS, k) >> 8), Fraction(k, 25)))


def dicom(path: Path, run: Run) -> None:
    from medstyle.dicom.read import read_series
    from medstyle.dicom.scan import scan
    from medstyle.dicom.write import Derivation, ModelIdentity, write_derived

    [series] = scan([run.study / "01_mr_t1"]).series
    write_derived(read_series(series, "mr_t1"), Derivation(series, ModelIdentity("a", "1", "0" * 64), "mr_t1"), path)


def document(path: Path, run: Run) -> None:
    write_json(path, PIXELS[:50].tolist())


WRITERS: dict[str, Callable[[Path, Run], None]] = {
    **dict.fromkeys(("a.nii", "a.nii.gz", "a.nrrd", "a.mha", "a.MHD"), volume),
    **dict.fromkeys(("s.nii", "s.nrrd", "s.mha"), small_volume),
    **dict.fromkeys(("a.png", "a.jpg", "a.bmp", "a.webp", "a.tif"), picture),
    **dict.fromkeys(("d.png", "d.tif"), deep_picture),
    **dict.fromkeys(("a.mp4", "a.mkv"), video),
    "a.json": document,
    "series": dicom,
}


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}


@contextmanager
def full(kind: str, folder: Path, largest: int, total: int) -> Iterator[None]:
    """Limit the files, as a quota does, or the disk: the last page of an output has no room."""
    if kind == "limit":
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest - 1, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        return
    page = 4096
    size = max(page, (total - 1) // page * page)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        if total <= page:  # a page is the smallest disk
            (folder / "taken").write_bytes(bytes(page))
        yield
    finally:
        (folder / "taken").unlink(missing_ok=True)
        left = files(folder)
        subprocess.run(["umount", str(folder)], check=True)
    assert left == {}


@pytest.mark.parametrize("kind", ["limit", "disk"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_nothing_and_is_named(name: str, kind: str, run: Run, tmp_path: Path) -> None:
    write, whole, place = WRITERS[name], tmp_path / "whole", tmp_path / "full"
    whole.mkdir()
    place.mkdir()
    write(whole / name, run)
    sizes = files(whole).values()
    assert files(whole).keys() == {path for path in files(whole) if not path.name.startswith(".")}
    with full(kind, place, max(sizes), sum(sizes)), pytest.raises(DiskFull) as error:
        write(place / name, run)
    assert files(place) == {}
    assert error.value.code is Code.E_DISK_FULL
    assert str(place / name) in str(error.value)
    assert "free disk space" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "out") as part:
        part.write_text(str(1 / 0))
    with pytest.raises(FileNotFoundError), atomic_folder(tmp_path / "folder"):
        (tmp_path / "nowhere").read_bytes()
    assert {path: path.read_text() for path in tmp_path.iterdir()} == {tmp_path / "out": "old"}
