"""Files that were once read wrongly, or stopped a run, must be read correctly or refused."""

from __future__ import annotations

import gzip
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import av
import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from medstyle.cohort.inventory import inventory
from medstyle.errors import Refusal
from medstyle.imaging.picture import read_picture
from medstyle.imaging.video import VideoWriter, read_frames
from medstyle.imaging.volume import Volume, read_volume, write_volume
from tests.dicom.conftest import write_series

NOISE = np.random.default_rng(0).integers(0, 1000, (24, 120, 130)).astype(np.float32)
SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")


def volume(path: Path, voxels: np.ndarray = NOISE) -> Path:
    write_volume(path, Volume(voxels, np.diag([1.0, 1.5, 2.0, 1.0]), "mr_t1"))
    return path


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize("where", [0.3, 0.6, 0.95])
def test_a_bit_that_flips_in_a_compressed_stream_is_found(where: float, suffix: str, tmp_path: Path) -> None:
    path = volume(tmp_path / f"a{suffix}")
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 4
    path.write_bytes(data)
    with pytest.raises(Refusal, match=r"E_DECODE|E_TRUNCATED"):
        read_volume(path, "mr_t1")


@pytest.mark.parametrize("lost", [4, 8, 5000])
@pytest.mark.parametrize("suffix", [".nii.gz", ".mha"])
def test_a_stream_without_its_end_is_found(lost: int, suffix: str, tmp_path: Path) -> None:
    path = volume(tmp_path / f"a{suffix}")
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(Refusal, match=r"E_DECODE|E_TRUNCATED"):
        read_volume(path, "mr_t1")


def test_a_file_that_unpacks_without_measure_is_refused_by_its_header(tmp_path: Path) -> None:
    path = tmp_path / "zeros.nii"
    nibabel.Nifti1Image(np.zeros((256, 256, 256), np.uint8), np.eye(4)).to_filename(path)
    with gzip.open(tmp_path / "zeros.nii.gz", "wb") as packed, path.open("rb") as plain:
        shutil.copyfileobj(plain, packed)
    path.unlink()
    [item] = inventory([tmp_path]).volumes
    assert item.code == "E_TOO_LARGE"


def test_a_slope_of_zero_scales_nothing(tmp_path: Path) -> None:
    stored = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.to_filename(tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[112:120] = np.array([0, 5], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(data)
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii", "mr_t1").voxels, stored.T)


@pytest.mark.parametrize(
    ("line", "instead", "code"),
    [
        ("ObjectType", "DistanceUnits = um\nObjectType", "E_NO_GEOMETRY"),
        ("ObjectType", "DistanceUnits = mm\nObjectType", None),
        ("CompressedDataSize", "Comment", "E_DECODE"),
    ],
)
def test_what_a_metaimage_header_leaves_open_is_not_made_up(
    line: str, instead: str, code: str | None, tmp_path: Path
) -> None:
    path = volume(tmp_path / "a.mha")
    path.write_bytes(path.read_bytes().replace(line.encode(), instead.encode(), 1))
    [item] = inventory([tmp_path]).volumes
    assert item.code == (code or "")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_suffixes_are_written_in_any_case(suffix: str, tmp_path: Path) -> None:
    path = volume(tmp_path / f"Scan{suffix.upper()}")
    np.testing.assert_array_equal(read_volume(path, "mr_t1").voxels, NOISE)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["jpg", "tif", "png", "nii", "mov"])
def test_dicom_is_known_by_its_content(suffix: str, tmp_path: Path) -> None:
    write_series(tmp_path, np.zeros((1, 4, 5), np.uint16))
    (tmp_path / "000.dcm").rename(tmp_path / f"a.{suffix}")
    [item] = inventory([tmp_path]).volumes
    assert (item.source, item.usable) == ("dicom", True)


@pytest.mark.parametrize(("name", "word"), [("a.gif", "PNG"), ("a.HEIC", "PNG"), ("a.nhdr", "NIfTI"), ("a.wmv", "MP4")])
def test_a_kind_that_is_not_read_is_named_with_its_remedy(name: str, word: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GIF89a" * 40)
    [file] = inventory([tmp_path]).files
    assert word in file.reason
    assert name.split(".")[1].upper() in file.reason


def test_a_long_text_does_not_hide_a_picture(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", "x" * (3 << 20), zip=True)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=notes)
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png"), pixels)
    assert inventory([tmp_path]).volumes[0].usable


def test_twelve_bits_are_not_cut_to_eight(tmp_path: Path) -> None:
    ramp = np.linspace(0, 4095, 64).astype(np.uint16).reshape(8, 8)
    tifffile.imwrite(tmp_path / "a.tif", ramp, bitspersample=12)
    with pytest.raises(Refusal, match="E_BITS"):
        read_picture(tmp_path / "a.tif")


def test_lab_is_a_colour_space_and_its_a_no_opacity(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(40, 200, (2, 2, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    rgb = Image.fromarray(colours)
    lab = ImageCms.profileToProfile(
        rgb, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    read = read_picture(tmp_path / "a.tif", alpha=True)
    assert read.shape == colours.shape
    assert np.abs(read.astype(int) - colours).mean() < 3


def film(path: Path, *, late: float = 0, trc: int = 1, options: dict[str, str] | None = None) -> Path:
    """Write 12 frames that get lighter, with sound that begins ``late`` seconds before them."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=options or {"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.color_trc = trc
        sound = out.add_stream("libmp3lame", rate=44_100) if late else None
        if sound is not None:
            for k in range(40):
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16", layout="mono")
                samples.rate, samples.pts = 44_100, 1152 * k
                out.mux(sound.encode(samples))
            out.mux(sound.encode())
        for k in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * k, np.uint8), format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 25), k + round(25 * late)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def test_frames_of_a_container_without_times_come_in_order(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", options={"bf": "2", "b_strategy": "0"})
    frames = list(read_frames(path))
    assert [frame.time for frame in frames] == [Fraction(k, 25) for k in range(12)]
    assert np.diff([frame.pixels.mean() for frame in frames]).min() > 10


@pytest.mark.parametrize(
    "linear",
    [
        (1, 0, 0, 1),
        (-1, 0, 0, 1),
        (1, 0, 0, -1),
        (-1, 0, 0, -1),
        (0, 1, 1, 0),
        (0, -1, 1, 0),
        (0, 1, -1, 0),
        (0, -1, -1, 0),
    ],
)
def test_a_display_matrix_turns_and_mirrors(linear: tuple[int, ...], tmp_path: Path) -> None:
    """Known answer: the bright corner, at the left and top, goes where the matrix sends it."""
    path, (a, b, c, d) = tmp_path / "a.mp4", linear
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.sample_aspect_ratio = Fraction(4, 3)
        corner = np.zeros((48, 64, 3), np.uint8)
        corner[:16, :16] = 255
        out.mux(stream.encode(av.VideoFrame.from_ndarray(corner, format="rgb24")))
        out.mux(stream.encode())
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    [frame] = read_frames(path)
    height, width, _ = frame.pixels.shape
    assert (height, width) == ((48, 64) if a else (64, 48))
    x, y = a + c, b + d  # negative where the corner's side is sent to the far end
    rows, columns = (
        slice(0, 16) if y > 0 else slice(height - 16, height),
        slice(0, 16) if x > 0 else slice(width - 16, width),
    )
    assert frame.pixels[rows, columns].mean() > 250
    assert frame.pixels.sum() < 1.02 * frame.pixels[rows, columns].sum()
    with VideoWriter(tmp_path / "b.mp4", path) as writer:
        writer.write(frame)
    with av.open(str(tmp_path / "b.mp4")) as again:
        assert again.streams.video[0].sample_aspect_ratio == (Fraction(4, 3) if a else Fraction(3, 4))


def test_a_display_matrix_that_scales_is_refused(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 44
    data[start : start + 4] = struct.pack(">i", 2 << 16)
    path.write_bytes(data)
    with pytest.raises(Refusal, match="display matrix"):
        next(read_frames(path))


@pytest.mark.parametrize("trc", [16, 18])
def test_high_dynamic_range_is_named(trc: int, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="HDR"):
        next(read_frames(film(tmp_path / "a.mp4", trc=trc)))


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_sound_and_picture_keep_their_distance(suffix: str, tmp_path: Path) -> None:
    source, out = film(tmp_path / "a.mkv", late=0.52), tmp_path / f"b{suffix}"
    with VideoWriter(out, source) as writer:
        for frame in read_frames(source):
            writer.write(frame)

    def distance(path: Path) -> float:
        first: dict[str, float] = {}
        with av.open(str(path)) as container:
            for packet in container.demux():
                if packet.pts is not None:
                    first.setdefault(packet.stream.type, float(packet.pts * packet.time_base))
        return first["video"] - first["audio"]

    assert distance(source) > 0.5
    assert distance(out) == pytest.approx(distance(source), abs=0.002)
