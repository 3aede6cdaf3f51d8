"""Damaged files: a verdict each, no exception, bounded time and memory."""

from __future__ import annotations

import time
import tracemalloc
from collections import Counter
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

from medstyle.dicom.elements import words
from medstyle.dicom.header import Limits
from medstyle.dicom.read import read_colour, read_image, read_series
from medstyle.dicom.scan import Series, scan
from medstyle.errors import Refusal
from tests.dicom.conftest import enhanced, save, write_mosaic, write_series
from tests.fuzzing import damage, within_limits

LIMITS = Limits(frame_pixels=1 << 16, object_bytes=1 << 22, inflated_bytes=1 << 22, frames=64)


def seeds(folder: Path) -> list[bytes]:
    """Return small valid files in many encodings, a mosaic, enhanced ones, and odd ones that
    pydicom ships."""
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
    for times in (1, 2):  # the second is 4-D
        frames = [{"z": 4 * (k // times), "slope": 1 + k, "type": "T1", "t": k % times} for k in range(4)]
        files.append(
            save(enhanced(frames, stored[:, :4, :5].repeat(4, axis=0)), folder / f"enhanced{times}").read_bytes()
        )
    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    names = words(
        "MR_small CT_small MR_small_RLE nested_priv_SQ no_meta UN_sequence SC_rgb_small_odd SC_rgb_small_odd_jpeg"
    )
    return files + [(shipped / f"{name}.dcm").read_bytes() for name in names]


def fuzz(cases: int, seed: int, folder: Path) -> Counter[str]:
    rng = np.random.default_rng(seed)
    files = seeds(folder / "seeds")
    path = folder / "case"
    seen: Counter[str] = Counter()
    for case in range(cases):
        path.write_bytes(damage(rng, files))
        (folder / "number").write_text(str(case))
        start = time.process_time()
        found = scan([path], LIMITS)
        (file,) = found.files
        assert file.verdict == "used" or (file.code and file.reason), case
        seen[file.code] += 1
        refusals = [file.reason]
        for series in found.series:
            try:
                seen[f"read {read(series)}"] += 1
            except Refusal as refusal:
                seen[refusal.code] += 1
                refusals.append(refusal.reason)
        assert "MemoryError" not in "".join(refusals), case
        assert time.process_time() - start < 5, case
    return seen


def read(series: Series) -> str:
    """Read what can be read of a series; returns what it is."""
    if "COLOUR" in series.flags and series.kind != "refused":
        assert all(frame.dtype == np.uint8 for frame in read_colour(series, allow={"E_BURNED_IN"}))
        return "colour"
    kind = series.kind
    if kind == "4d":
        series = series.volume(0)
    if series.usable and series.kind in ("image", "volume"):
        function = read_image if series.kind == "image" else read_series
        assert np.isfinite(function(series, "mr_t1", allow={"E_DOMAIN"}).voxels).all()
        return kind
    return "nothing"


def test_every_seed_is_read(tmp_path: Path) -> None:
    kinds = Counter()
    for number, data in enumerate(seeds(tmp_path)):
        (tmp_path / f"{number}.dcm").write_bytes(data)
        kinds.update(read(series) for series in scan([tmp_path / f"{number}.dcm"], LIMITS).series)
    assert {"image", "volume", "4d", "colour"} <= kinds.keys()
    assert not kinds["nothing"]


def test_damaged_files_have_a_verdict_and_need_little_memory(tmp_path: Path) -> None:
    tracemalloc.start()
    seen = fuzz(150, 0, tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert {"", "E_DECODE", "E_TRUNCATED"} <= set(seen)


def test_a_length_in_the_file_meta_information_asks_for_no_memory(tmp_path: Path) -> None:
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
def test_ten_thousand_damaged_files(seed: int, tmp_path: Path) -> None:
    within_limits(fuzz, 1000, seed, tmp_path)
