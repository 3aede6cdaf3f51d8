import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image

from medstyle import Refusal, read_picture, write_picture
from medstyle.imaging.picture import over_white

NOTE = "AI SYNTHETIC"


@pytest.fixture(params=["8 bits", "16 bits"])
def pixels(request, rng):
    dtype = np.uint8 if request.param == "8 bits" else np.uint16
    return rng.integers(0, np.iinfo(dtype).max, (9, 12, 3), dtype, endpoint=True)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_png(path, values, *chunks):
    """Write ``(H, W, n)`` uint16 as the standard says, with none of the packages that read it."""
    height, width, bands = values.shape
    header = struct.pack(">2I5B", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    body = [chunk(b"IHDR", header), *chunks, chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(body))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff"])
def test_every_value_is_kept_and_the_note_carried(tmp_path, pixels, rng, suffix):
    opacity = rng.permutation(pixels.reshape(-1))[: 9 * 12].reshape(9, 12, 1)
    for shown in (pixels, np.dstack([pixels, opacity])):
        path = tmp_path / f"a{shown.shape[2]}{suffix}"
        write_picture(path, shown, NOTE)
        read = read_picture(path, alpha=True)
        assert read.dtype == pixels.dtype
        np.testing.assert_array_equal(read, shown)
        with Image.open(path) as image:
            note = image.text["Comment"] if suffix == ".png" else image.tag_v2[270]
        assert note == NOTE
        assert [one.name for one in tmp_path.glob(".part*")] == []


def test_others_read_the_deep_files_alike(tmp_path, rng):
    values = rng.integers(0, 65536, (7, 9, 3), dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        write_picture(tmp_path / name, values, NOTE)
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / name)), values)


@pytest.mark.parametrize("suffix", [".jpg", ".webp", ".bmp"])
def test_what_a_format_cannot_hold_is_rounded_or_laid_over_white(tmp_path, suffix):
    smooth = np.linspace(0, 65535, 40 * 50).astype(np.uint16).reshape(40, 50, 1).repeat(4, 2)
    smooth[..., 3] = 40000
    write_picture(tmp_path / f"a{suffix}", smooth, NOTE)
    read = read_picture(tmp_path / f"a{suffix}")
    assert read.dtype == np.uint8
    np.testing.assert_allclose(read, over_white(smooth) / 257, atol=3)
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert ("A" in image.getbands()) == (suffix == ".webp")
        assert suffix == ".bmp" or image.getexif()[270] == NOTE


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode, rng):
    image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).convert(mode.rstrip("A") or mode)
    expected = np.asarray(image.convert("RGB"))
    path = tmp_path / ("a.tif" if mode in ("CMYK", "YCbCr") else "a.png")
    if mode == "PA":
        image.info["transparency"] = 0
        expected = np.where(np.asarray(image)[..., None] == 0, 255, expected)
    elif mode.endswith("A"):
        image.putalpha(255)
    image.save(path)
    read = read_picture(path)
    assert read.dtype == np.uint8
    np.testing.assert_allclose(read, expected, atol=2 if mode == "YCbCr" else 0)
    assert read_picture(path, alpha=True).shape == (9, 12, 4 if mode.endswith("A") else 3)


@pytest.mark.parametrize("bands", [1, 2, 3, 4])
def test_sixteen_bits_of_a_png_are_kept(tmp_path, rng, bands):
    values = rng.integers(0, 65536, (7, 9, bands), dtype=np.uint16)
    deep_png(tmp_path / "a.png", values)
    read = read_picture(tmp_path / "a.png", alpha=True)
    colours = 3 if bands > 2 else 1
    np.testing.assert_array_equal(read[..., :3], np.broadcast_to(values[..., :colours], (7, 9, 3)))
    np.testing.assert_array_equal(read[..., 3:], values[..., colours:])


LAYOUTS = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "lzw": {"compression": "lzw", "predictor": True},
    "tiles": {"tile": (16, 16)},
    "planes": {"planarconfig": "separate"},
    "grey": {},
    "white is zero": {"photometric": "miniswhite"},
    "multiplied": {"extrasamples": ["assocalpha"]},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sixteen_bits_of_a_tiff_are_kept(tmp_path, rng, layout):
    values = expected = rng.integers(0, 65536, (7, 9, 3), dtype=np.uint16)
    if layout == "planes":
        values = np.moveaxis(values, -1, 0)
    elif layout in ("grey", "white is zero"):
        values, expected = values[..., 0], values[..., :1].repeat(3, 2)
        expected = ~expected if layout == "white is zero" else expected
    elif layout == "multiplied":
        opacity = rng.integers(30000, 65536, (7, 9, 1), dtype=np.uint16)
        values = np.dstack([np.rint(values * (opacity / 65535)).astype(np.uint16), opacity])
        expected = np.dstack([expected, opacity])
    settings = {"photometric": "minisblack" if values.ndim == 2 else "rgb", **LAYOUTS[layout]}
    tifffile.imwrite(tmp_path / "a.tif", values, metadata=None, **settings)
    read = read_picture(tmp_path / "a.tif", alpha=True).astype(int)
    np.testing.assert_allclose(read, expected, atol=2 if layout == "multiplied" else 0)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(tmp_path, rng, orientation, deep):
    """The values of 16 bits turn as Pillow turns those of 8."""
    values = rng.integers(0, 256, (4, 8, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "maker"
    Image.fromarray(values).save(tmp_path / "a.png", exif=exif)
    expected = read_picture(tmp_path / "a.png")
    assert expected.shape == ((8, 4, 3) if orientation > 4 else (4, 8, 3))
    assert (expected == values).all() if orientation == 1 else not np.array_equal(expected, values)
    if deep:
        deep_png(tmp_path / "b.png", 257 * values.astype(np.uint16), chunk(b"eXIf", exif.tobytes()[6:]))
        np.testing.assert_array_equal(read_picture(tmp_path / "b.png"), 257 * expected.astype(int))
        tags = [(274, 3, 1, orientation, True)]
        tifffile.imwrite(tmp_path / "b.tif", values.astype(np.uint16), photometric="rgb", extratags=tags, metadata=None)
        np.testing.assert_array_equal(read_picture(tmp_path / "b.tif"), expected)
    write_picture(tmp_path / "c.jpg", expected)
    with Image.open(tmp_path / "c.jpg") as image:
        assert dict(image.getexif()) == {}


def srgb_of_adobe(values):
    """Convert by the definitions: gamma 563/256 and the primaries of Adobe RGB (1998), then IEC
    61966-2-1."""
    linear = values ** (563 / 256) @ np.array([[1.39836, -0.39836, 0], [0, 1, 0], [0, -0.04293, 1.04293]]).T
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.abs(linear) ** (1 / 2.4) - 0.055)


def test_colours_come_to_srgb_by_the_files_own_profile(tmp_path, pixels):
    white = np.iinfo(pixels.dtype).max
    profile = imagecodecs.cms_profile("adobergb")
    inside = (white * (0.45 + 0.2 * (pixels / white))).astype(pixels.dtype)  # colours that both spaces have
    if white == 255:
        Image.fromarray(inside).save(tmp_path / "a.png", icc_profile=profile)
    else:
        deep_png(tmp_path / "a.png", inside, chunk(b"iCCP", b"adobe\0\0" + zlib.compress(profile)))
    read = read_picture(tmp_path / "a.png")
    assert read.dtype == pixels.dtype
    np.testing.assert_allclose(read / white, srgb_of_adobe(inside / white), atol=0.004)
    assert np.abs(read / white - inside / white).max() > 0.01


def test_a_broken_profile_is_passed_over(tmp_path, pixels):
    shown = (pixels >> (8 * (pixels.itemsize - 1))).astype(np.uint8)
    for profile in (b"junk" * 99, imagecodecs.cms_profile("gray", whitepoint=[0.3457, 0.3585, 1.0], gamma=2.2)):
        Image.fromarray(shown).save(tmp_path / "a.png", icc_profile=profile)
        np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), shown)


def test_bad_files_are_refused(tmp_path, pixels, monkeypatch, capfd):
    for suffix in ("png", "tif", "jpg", "webp"):
        write_picture(tmp_path / f"a.{suffix}", pixels.repeat(20, 0).repeat(20, 1))
        data = (tmp_path / f"a.{suffix}").read_bytes()
        (tmp_path / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
        (tmp_path / f"text.{suffix}").write_text("no picture")
        for name in (f"cut.{suffix}", f"text.{suffix}"):
            with pytest.raises(Refusal, match=f"E_DECODE: {name}"):
                read_picture(tmp_path / name)
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(Refusal, match=r"E_BITS: picture: .*8 or 16 bits"):
        read_picture(tmp_path / "float.tif", "picture")
    deep_png(tmp_path / "bomb.png", np.zeros((1, 1, 3), np.uint16))
    bomb = bytearray((tmp_path / "bomb.png").read_bytes())
    bomb[16:33] = struct.pack(">2I", 1 << 20, 1 << 20) + bomb[24:29] + bytes(4)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    with pytest.raises(Refusal, match="E_TOO_LARGE"):
        read_picture(tmp_path / "bomb.png")
    monkeypatch.setattr("medstyle.imaging.picture.MAX_PIXELS", 100)
    with pytest.raises(Refusal, match="E_TOO_LARGE"):
        read_picture(tmp_path / "a.png")
    assert "cut" not in capfd.readouterr().err, "nothing that the decoders say names the file"


def test_a_write_that_fails_leaves_what_was_there(tmp_path, pixels):
    write_picture(tmp_path / "a.png", pixels)
    before = (tmp_path / "a.png").read_bytes()
    with pytest.raises((TypeError, ValueError)):
        write_picture(tmp_path / "a.png", pixels.repeat(2, 2))
    assert (tmp_path / "a.png").read_bytes() == before
