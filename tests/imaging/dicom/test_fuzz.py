"""Damaged files: a verdict each, no exception, bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medstyle.errors import Refusal
from medstyle.imaging.dicom.header import Limits
from medstyle.imaging.dicom.read import read_image, read_series
from medstyle.imaging.dicom.scan import scan
from tests.imaging.dicom.conftest import write_mosaic

LIMITS = Limits(frame_pixels=1 << 16, object_bytes=1 << 22, inflated_bytes=1 << 22, frames=64)


def seeds(folder: Path, write_series: Callable[..., Path]) -> list[bytes]:
    """Return small valid files in many encodings, a mosaic, and pydicom's enhanced and odd ones."""
    stored = np.random.default_rng(0).integers(0, 4096, (1, 40, 33)).astype(np.uint16)
    natives = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
    files = []
    for number, syntax in enumerate((*natives, RLELossless, JPEG2000Lossless, JPEGLSLossless)):
        write_series(folder, stored, bits=12, syntax=syntax if syntax in natives else ExplicitVRLittleEndian)
        path = folder / "000.dcm"
        if syntax not in natives:
            dataset = pydicom.dcmread(path)
            dataset.compress(syntax)
            dataset.save_as(path)
        files.append(path.read_bytes())
        path.rename(folder / f"seed{number}")
    files.append(write_mosaic(folder / "mosaic", np.tile(stored, (7, 1, 1)), np.diag([1.0, 1, 3, 1])).read_bytes())
    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    names = ("MR_small.dcm", "CT_small.dcm", "MR_small_RLE.dcm", "nested_priv_SQ.dcm", "no_meta.dcm", "UN_sequence.dcm")
    return files + [(shipped / name).read_bytes() for name in names if (shipped / name).is_file()]


def damage(rng: np.random.Generator, files: list[bytes]) -> bytes:
    """Flip bytes, cut, splice two files, repeat a part, or overwrite a length with a huge one."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(int(rng.integers(1, 4))):
        where = (
            int(rng.integers(max(len(data), 1))) if rng.random() < 0.5 else int(rng.integers(min(len(data), 1200) or 1))
        )
        match int(rng.integers(5)):
            case 0:
                for position in rng.integers(0, min(len(data), 1500) or 1, int(rng.integers(1, 30))):
                    if data:
                        data[position] = int(rng.integers(256))
            case 1:
                del data[where:]
            case 2:
                other = files[rng.integers(len(files))]
                data[where:] = other[int(rng.integers(len(other))) :]
            case 3:
                data[where:where] = data[where : where + int(rng.integers(400))]
            case 4:
                data[where : where + 4] = [b"\xff\xff\xff\xff", b"\xfe\xff\xff\x7f", bytes(4)][rng.integers(3)]
    return bytes(data)


def fuzz(cases: int, seed: int, folder: Path, write_series: Callable[..., Path]) -> Counter[str]:
    rng = np.random.default_rng(seed)
    files = seeds(folder / "seeds", write_series)
    path = folder / "case"
    seen: Counter[str] = Counter()
    for case in range(cases):
        path.write_bytes(damage(rng, files))
        start = time.process_time()
        found = scan([path], LIMITS)
        (file,) = found.files
        assert file.verdict == "used" or (file.code and file.reason), case
        seen[file.code] += 1
        for series in found.series:
            if series.usable and series.kind in ("image", "volume"):
                try:
                    volume = (read_image if series.kind == "image" else read_series)(
                        series, "mr_t1", allow={"E_DOMAIN"}
                    )
                    assert np.isfinite(volume.voxels).all()
                except Refusal as refusal:
                    seen[refusal.code] += 1
        assert time.process_time() - start < 5, case
    return seen


def test_damaged_files(write_series: Callable[..., Path], tmp_path: Path) -> None:
    tracemalloc.start()
    seen = fuzz(150, 0, tmp_path, write_series)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert {"", "E_DECODE", "E_TRUNCATED"} <= set(seen)


def test_a_length_in_the_file_meta_information_asks_for_no_memory(
    write_series: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_series(tmp_path, np.zeros((1, 8, 8), np.uint16), syntax=DeflatedExplicitVRLittleEndian) / "000.dcm"
    data = path.read_bytes()
    version = data.index(b"\x02\0\x01\0OB\0\0") + 8
    path.write_bytes(data[:version] + b"\xff\xff\xff\xfe" + data[version + 4 :])
    tracemalloc.start()
    (file,) = scan([path]).files
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.verdict in ("used", "refused")
    assert peak < 10e6


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_ten_thousand_damaged_files(seed: int, write_series: Callable[..., Path], tmp_path: Path) -> None:
    fuzz(1000, seed, tmp_path, write_series)
