"""Damaged volume files, pictures and videos: a verdict each, bounded time and memory."""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import medstyle.cohort.inventory
import medstyle.imaging.picture
import medstyle.imaging.video
from medstyle.cohort.inventory import Item, inventory
from medstyle.errors import Refusal
from medstyle.imaging.picture import read_picture, write_picture
from medstyle.imaging.video import read_frames
from medstyle.imaging.volume import Volume, write_volume
from tests.fuzzing import damage, within_limits


def seeds(folder: Path) -> dict[str, bytes]:
    """Return small valid files: suffix -> bytes."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    voxels = rng.integers(0, 4096, (6, 9, 11)).astype(np.float32)
    for suffix in (".nii", ".nii.gz", ".mha", ".nrrd"):
        write_volume(folder / f"a{suffix}", Volume(voxels, np.diag([1.0, 1.5, 2.0, 1.0]), "mr_t1"))
    pixels = rng.integers(0, 255, (19, 23, 3), np.uint8)
    for suffix in (".png", ".jpg", ".webp", ".bmp"):
        write_picture(folder / f"a{suffix}", pixels, "a note")
    write_picture(folder / "a.tif", pixels.astype(np.uint16) << 8)
    pages = {"save_all": True, "append_images": [Image.new("L", (5, 5))]}
    Image.fromarray(pixels).save(folder / "a.tiff", compression="tiff_lzw", **pages)
    for suffix in (".mp4", ".avi", ".mkv"):
        with av.open(str(folder / f"a{suffix}"), "w") as out:
            stream = out.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 32, 16, "yuv420p"
            for k in range(5):
                frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (16, 32, 3), np.uint8), format="rgb24")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
    return {path.name[1:]: path.read_bytes() for path in sorted(folder.iterdir())}


def read(item: Item) -> None:
    if item.source == "picture":
        assert read_picture(item.path).shape[2] == 3
    elif item.source == "video":
        assert all(frame.pixels.dtype == np.uint8 for frame in islice(read_frames(item.path), 50))
    else:
        assert np.isfinite(item.load("mr_t1", allow=("E_DOMAIN",)).voxels).all()


def fuzz(cases: int, seed: int, folder: Path) -> Counter[str]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (medstyle.cohort.inventory, medstyle.imaging.picture, medstyle.imaging.video):
            patch.setattr(module, "MAX_PIXELS", 1 << 20)
        return _fuzz(cases, seed, folder)


def _fuzz(cases: int, seed: int, folder: Path) -> Counter[str]:
    rng = np.random.default_rng(seed)
    files = seeds(folder / "seeds")
    names, contents = list(files), list(files.values())
    seen: Counter[str] = Counter()
    for case in range(cases):
        which = int(rng.integers(len(names)))
        path = folder / f"case{names[which]}"
        path.write_bytes(damage(rng, [contents[which]] * 9 + contents))
        (folder / "number").write_text(f"{case} ({names[which]})")
        start = time.process_time()
        found = inventory([path])
        assert found.files[0].verdict == "used" or (found.files[0].code and found.files[0].reason), case
        for item in found.volumes:
            try:
                read(item)
                seen["read"] += 1
            except Refusal as refusal:
                seen[refusal.code] += 1
                seen["memory"] += "more memory" in refusal.reason
        assert time.process_time() - start < 5, case
        assert not seen["memory"], case
        path.unlink()
    return seen


def test_every_seed_is_read(tmp_path: Path) -> None:
    for suffix, content in seeds(tmp_path / "seeds").items():
        (tmp_path / f"a{suffix}").write_bytes(content)
        [item] = inventory([tmp_path / f"a{suffix}"]).volumes
        read(item)


def test_damaged_files_have_a_verdict(tmp_path: Path) -> None:
    seen = fuzz(250, 0, tmp_path)
    assert {"read", "E_DECODE", "E_TRUNCATED"} <= set(seen)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_five_thousand_damaged_files(seed: int, tmp_path: Path) -> None:
    within_limits(fuzz, 1000, seed, tmp_path, reserved=4 << 30)
