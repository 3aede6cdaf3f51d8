"""The size in a codestream is what its codec would allocate."""

from __future__ import annotations

from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from medstyle.dicom.read import read_image
from medstyle.dicom.scan import scan
from medstyle.errors import Refusal
from medstyle.imaging.codestream import FrameSize, frame_size
from tests.dicom.conftest import write_series

IMAGE = np.random.default_rng(0).integers(0, 255, (24, 37), np.uint8)
ENCODERS = {
    "jpeg": lambda image: imagecodecs.jpeg8_encode(image, level=90),
    "jpeg-ls": imagecodecs.jpegls_encode,
    "jpeg-2000": lambda image: imagecodecs.jpeg2k_encode(image, level=0, codecformat="j2k"),
    "jp2": lambda image: imagecodecs.jpeg2k_encode(image, level=0, codecformat="jp2"),
    "lossless": imagecodecs.ljpeg_encode,
}
SYNTAXES = {"jpeg-ls": JPEGLSLossless, "jpeg-2000": JPEG2000Lossless, "lossless": JPEGLosslessSV1}


def larger(data: bytes) -> bytes:
    """Claim 65,535 rows and columns."""
    if (start := data.find(b"\xff\x4f\xff\x51")) >= 0:
        size = (65535).to_bytes(4) * 2  # of the image, its offset, and of a tile
        return data[: start + 8] + size + bytes(8) + size + data[start + 32 :]
    mark = next(k for k in range(2, len(data)) if data[k] == 0xFF and data[k + 1] in (0xC0, 0xC1, 0xC3, 0xF7))
    return data[: mark + 5] + b"\xff" * 4 + data[mark + 9 :]


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_size_is_that_of_the_picture(name: str, samples: int) -> None:
    if name == "lossless" and samples == 3:
        pytest.skip("the encoder writes grey values only")
    image = IMAGE if samples == 1 else np.stack([IMAGE] * 3, axis=2)
    data = bytes(ENCODERS[name](image))
    assert frame_size(data) == FrameSize(24, 37, samples)
    assert frame_size(larger(data)) == FrameSize(65535, 65535, samples)
    assert all(frame_size(data[:k]) in (None, FrameSize(24, 37, samples)) for k in range(len(data)))


def test_more_tiles_than_the_standard_allows_have_no_size() -> None:
    data = bytes(ENCODERS["jpeg-2000"](IMAGE))
    tiny = larger(data)
    start = tiny.find(b"\xff\x51") + 22  # of the size of a tile
    assert frame_size(tiny[:start] + (1).to_bytes(4) * 2 + tiny[start + 8 :]) is None


@pytest.mark.parametrize("name", SYNTAXES)
def test_a_frame_that_lies_about_its_size_is_not_decoded(name: str, tmp_path: Path) -> None:
    path = write_series(tmp_path, IMAGE[None].astype(np.uint16), bits=8) / "000.dcm"
    for honest in (True, False):
        dataset = pydicom.dcmread(path)
        data = bytes(ENCODERS[name](IMAGE))
        dataset.BitsAllocated = 8
        dataset.PixelData = encapsulate([data if honest else larger(data)])
        dataset["PixelData"].is_undefined_length = True
        dataset.file_meta.TransferSyntaxUID = SYNTAXES[name]
        dataset.save_as(tmp_path / "compressed")
        [series] = scan([tmp_path / "compressed"]).series
        if honest:
            np.testing.assert_array_equal(read_image(series, "mr_t1").voxels[0], IMAGE)
        else:
            with pytest.raises(Refusal, match="65535 x 65535"):
                read_image(series, "mr_t1")
