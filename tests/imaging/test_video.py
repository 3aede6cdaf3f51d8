from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from medstyle.errors import Refusal, UserError
from medstyle.imaging.video import CODECS, WITH_OPACITY, Frame, VideoWriter, read_frames

TIMES = [Fraction(n, 1000) for n in (0, 40, 80, 200, 240, 500, 540, 580)]  # a variable frame rate


def picture(k: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Colours that move: frame k is told from any other by its mean, up from down by its corner."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([40 + 20 * k + 0 * x, 60 + x, 200 - y], -1).clip(0, 255).astype(np.uint8)
    pixels[:12, :16] = (250, 250, 250)
    return pixels


def film(path: Path, *, sound: str = "", rotation: int = 0, rate: int = 25, colours: int = 1) -> Path:
    """Write a film by PyAV alone."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.codec_context.colorspace, stream.codec_context.color_range = colours, 1
        if rotation:
            stream.set_display_rotation(rotation)
        voice = out.add_stream(sound, rate=48000, layout="mono") if sound else None
        for k, time in enumerate(TIMES):
            name = {1: "ITU709", 6: "SMPTE170M"}[colours]
            frame = av.VideoFrame.from_ndarray(picture(k), format="rgb24").reformat(
                format="yuv420p", dst_colorspace=name, dst_color_range="MPEG"
            )
            frame.time_base, frame.pts = Fraction(1, 1000), round(time * 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if voice is not None:
            tone = (8000 * np.sin(np.arange(24000) / 20)).astype(np.int16)[None]
            for start in range(0, 24000, 960):
                part = av.AudioFrame.from_ndarray(tone[:, start : start + 960], format="s16", layout="mono")
                part.sample_rate, part.pts, part.time_base = 48000, start, Fraction(1, 48000)
                out.mux(voice.encode(part))
            out.mux(voice.encode())
    return path


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(p) for p in container.demux(container.streams.audio[0]) if p.dts is not None]


def copy_first(source: Path, out: Path) -> None:
    with VideoWriter(out, source) as writer:
        writer.write(Frame(picture(0), Fraction(0)))


@pytest.mark.parametrize("colours", [1, 6])
def test_frames_come_upright_in_order_with_their_times_and_colours(tmp_path, colours):
    frames = list(read_frames(film(tmp_path / "a.mp4", colours=colours)))
    assert [frame.time for frame in frames] == TIMES
    for k, frame in enumerate(frames):
        assert np.abs(frame.pixels.astype(int) - picture(k)).mean() < 4


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotation_flag_is_obeyed(tmp_path, rotation):
    frames = list(read_frames(film(tmp_path / "a.mp4", rotation=rotation)))
    expected = np.rot90(picture(0), rotation // 90)
    assert frames[0].pixels.shape == expected.shape
    assert np.abs(frames[0].pixels.astype(int) - expected).mean() < 4


@pytest.mark.parametrize("suffix", CODECS)
def test_what_is_written_is_read_again(tmp_path, suffix):
    source = film(tmp_path / "in.mp4")
    with VideoWriter(tmp_path / f"out{suffix}", source, note="synthetic") as writer:
        for frame in read_frames(source):
            writer.write(frame)
    again = list(read_frames(tmp_path / f"out{suffix}"))
    assert len(again) == len(TIMES)
    for frame, before, time in zip(again, read_frames(source), TIMES, strict=True):
        assert np.abs(frame.pixels.astype(int) - before.pixels).mean() < 6
        assert abs(frame.time - time) < Fraction(2, 1000)
    with av.open(str(tmp_path / f"out{suffix}")) as container:
        assert "synthetic" in container.metadata.get("comment", container.metadata.get("COMMENT", ""))


def test_sound_is_copied_bit_for_bit(tmp_path):
    source = film(tmp_path / "in.mp4", sound="aac")
    with VideoWriter(tmp_path / "out.mkv", source) as writer:
        for frame in read_frames(source):
            writer.write(frame)
    assert packets(tmp_path / "out.mkv") == packets(source)
    assert len(packets(source)) > 10
    with pytest.raises(UserError, match=r"cannot hold aac audio; write \.mkv"):
        copy_first(source, tmp_path / "out.webm")
    assert not (tmp_path / "out.webm").exists()


def test_odd_sizes_are_kept(tmp_path):
    source = film(tmp_path / "in.mp4")
    with VideoWriter(tmp_path / "out.mp4", source) as writer:
        writer.write(Frame(picture(0, 47, 63), Fraction(0)))
    (frame,) = read_frames(tmp_path / "out.mp4")
    assert frame.pixels.shape == (47, 63, 3)


def test_after_an_error_there_is_no_file(tmp_path):
    source = film(tmp_path / "in.mp4")

    def broken() -> None:
        with VideoWriter(tmp_path / "out.mp4", source) as writer:
            writer.write(Frame(picture(0), Fraction(0)))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4"}


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"nothing" * 100)
    with pytest.raises(Refusal, match="E_DECODE"):
        list(read_frames(tmp_path / "a.mp4"))
    with pytest.raises(UserError, match="written as one of"):
        VideoWriter(tmp_path / "a.gif", film(tmp_path / "in.mp4"))


def deep(k: int) -> np.ndarray:
    """A slope of 120 of 65,535 per pixel, which 8 bits show in steps of two pixels."""
    x = np.mgrid[:48, :64][1]
    return np.stack([20000 + 120 * x + 2000 * k] * 3, -1).astype(np.uint16)


def see_through(k: int) -> np.ndarray:
    opacity = np.zeros((48, 64, 1), np.uint8)
    opacity[8:40, 16:48] = 255
    return np.dstack([picture(k), opacity])


def written(path: Path, pictures: list[np.ndarray], like: Path) -> list[Frame]:
    with VideoWriter(path, like) as writer:
        for pixels, time in zip(pictures, TIMES, strict=False):
            writer.write(Frame(pixels, time))
    return list(read_frames(path))


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv"])
def test_more_than_eight_bits_are_kept(tmp_path, suffix):
    for frame, pixels in zip(written(tmp_path / f"a{suffix}", [deep(0), deep(1)], film(tmp_path / "in.mp4")),
                             [deep(0), deep(1)], strict=True):  # fmt: skip
        assert frame.pixels.dtype == np.uint16
        assert np.abs(frame.pixels.astype(int) - pixels).mean() < 100, "a step of 8 bits is 257"
        assert len(np.unique(frame.pixels[24, :, 1])) > 40, "no bands"
        assert frame.plain().pixels.dtype == np.uint8
        assert np.abs(257 * frame.plain().pixels.astype(int) - pixels).mean() < 200


@pytest.mark.parametrize("suffix", WITH_OPACITY)
def test_opacity_is_kept(tmp_path, suffix):
    source = written(tmp_path / f"in{suffix}", [see_through(0), see_through(1)], film(tmp_path / "in.mp4"))
    with VideoWriter(tmp_path / f"out{suffix}", tmp_path / f"in{suffix}") as writer:
        writer.append(tmp_path / f"in{suffix}")
    for frames in (source, list(read_frames(tmp_path / f"out{suffix}"))):
        for k, frame in enumerate(frames):
            found = frame.pixels / np.iinfo(frame.pixels.dtype).max
            assert found.shape[2] == 4
            assert np.abs(found - see_through(k) / 255)[..., 3].mean() < 0.02
            assert np.abs(found - see_through(k) / 255)[10:38, 18:46].mean() < 0.03
            assert frame.plain().pixels[:6].min() > 240, "what is not opaque is white"


def test_where_opacity_has_no_place_the_film_lies_on_white(tmp_path):
    [frame] = written(tmp_path / "a.mp4", [see_through(0)], film(tmp_path / "in.mp4"))
    assert frame.pixels.shape == (48, 64, 3)
    assert frame.pixels[:6].min() > 240
