import io

import numpy as np
import pytest
from PIL import Image

from medstyle import Refusal, read_picture, write_picture


@pytest.fixture
def pixels(rng):
    return rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)


def test_png_keeps_every_value_and_carries_the_note(tmp_path, pixels):
    write_picture(tmp_path / "a.png", pixels, "AI SYNTHETIC")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), pixels)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text["Comment"] == "AI SYNTHETIC"


def test_jpeg_carries_the_note(tmp_path, pixels):
    write_picture(tmp_path / "a.jpg", pixels, "AI SYNTHETIC")
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.getexif()[0x010E] == "AI SYNTHETIC"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "I;16", "1", "LA"])
def test_every_mode_becomes_rgb(mode, pixels):
    image = (
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257)
        if mode == "I;16"
        else Image.fromarray(pixels).convert(mode)
    )
    file = io.BytesIO()
    image.save(file, "TIFF" if mode == "CMYK" else "PNG")
    file.seek(0)
    read = read_picture(file)
    assert read.shape == (9, 12, 3)
    assert read.dtype == np.uint8
    if mode == "I;16":
        np.testing.assert_array_equal(read[..., 0], pixels[..., 0])


def test_exif_orientation_is_applied(tmp_path):
    image = Image.new("RGB", (8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").shape == (8, 4, 3)


def test_bad_files_are_refused(tmp_path, pixels, monkeypatch):
    write_picture(tmp_path / "a.png", pixels)
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("cut.png", "text.png"):
        with pytest.raises(Refusal, match=f"E_DECODE: {name}"):
            read_picture(tmp_path / name)
    monkeypatch.setattr("medstyle.imaging.picture.MAX_PIXELS", 100)
    with pytest.raises(Refusal, match="E_TOO_LARGE"):
        read_picture(tmp_path / "a.png")
