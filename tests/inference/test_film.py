"""A long video goes on where a killed run stopped, and ends as if nothing had happened."""

from fractions import Fraction

import av
import numpy as np
import pytest

from medstyle import translate_path
from medstyle.errors import Refusal
from medstyle.imaging.video import Frame, VideoWriter, read_frames
from medstyle.inference import film
from medstyle.inference.files import Request
from medstyle.inference.render_options import RenderOptions
from medstyle.transforms.descriptors import FeatureStatistics, Reference
from tests.inference.conftest import make_translator
from tests.inference.test_temporal import pan

FRAMES = 11


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eleven frames of a camera that moves, with sound, at a variable frame rate."""
    folder = tmp_path_factory.mktemp("film")
    silent = folder / "silent.mkv"
    with av.open(str(silent), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        voice = out.add_stream("aac", rate=48000, layout="mono")
        out.mux(stream.encode(av.VideoFrame.from_ndarray(pan(1, 1)[0], format="rgb24")))
        out.mux(stream.encode())
        tone = (8000 * np.sin(np.arange(24000) / 20)).astype(np.float32)[None] / 32768
        for start in range(0, 24000, 1024):
            part = av.AudioFrame.from_ndarray(tone[:, start : start + 1024], format="fltp", layout="mono")
            part.sample_rate, part.pts, part.time_base = 48000, start, Fraction(1, 48000)
            out.mux(voice.encode(part))
        out.mux(voice.encode())
    path = folder / "in.mp4"
    with VideoWriter(path, silent) as writer:
        for k, pixels in enumerate(pan(1, FRAMES)):
            writer.write(Frame(pixels, Fraction(k * (3 if k > 5 else 1), 25)))
    return path


def seen(path):
    with av.open(str(path)) as container:
        sound = [bytes(p) for p in container.demux(container.streams.audio[0]) if p.dts is not None]
    return list(read_frames(path)), sound


@pytest.mark.parametrize("steady", [0.0, 0.8])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_killed_anywhere_it_ends_in_the_same_frames(source, tmp_path, monkeypatch, steady, suffix):
    monkeypatch.setattr(film, "PART", 4)
    translator, look = make_translator(("photo", "painting")), RenderOptions(temporal_smoothing=steady)
    whole, again = tmp_path / f"whole{suffix}", tmp_path / f"again{suffix}"
    [row] = translate_path(source, whole, translator, Request(options=look))
    assert row["shape"] == [FRAMES, 96, 128]
    made = []
    for killed_after in (2, 4, 1):  # frames of a run; of the first one no part is finished
        left, real = [killed_after], film.render_frames

        def dying(*args, left=left, real=real, **kwargs):
            for result in real(*args, **kwargs):
                if left[0] == 0:
                    raise KeyboardInterrupt
                left[0] -= 1
                made.append(result)
                yield result

        with monkeypatch.context() as patch:
            patch.setattr(film, "render_frames", dying)
            with pytest.raises(KeyboardInterrupt):
                translate_path(source, again, translator, Request(options=look))
        assert not again.exists()
    [row] = translate_path(source, again, translator, Request(options=look))
    assert row["shape"] == [FRAMES, 96, 128]
    (frames, sound), (others, other_sound) = seen(whole), seen(again)
    assert [frame.time for frame in others] == [frame.time for frame in frames]
    assert [round(float(frame.time), 2) for frame in frames] == [round(float(f.time), 2) for f in read_frames(source)]
    assert sound == other_sound == seen(source)[1]
    for one, other in zip(frames, others, strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)
    assert {path.name for path in tmp_path.iterdir()} == {whole.name, again.name}, "no part is left"


def test_the_parts_of_another_look_are_not_mixed_in(source, tmp_path, monkeypatch):
    monkeypatch.setattr(film, "PART", 4)
    translator, out = make_translator(("photo", "painting")), tmp_path / "out.mp4"
    with monkeypatch.context() as patch:
        patch.setattr(film.VideoWriter, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            translate_path(source, out, translator, Request(options=RenderOptions(strength=0.0)))
    translate_path(source, out, translator)
    translate_path(source, tmp_path / "clean.mp4", translator)
    for one, other in zip(read_frames(out), read_frames(tmp_path / "clean.mp4"), strict=True):
        np.testing.assert_array_equal(one.pixels, other.pixels)


def test_an_odd_frame_ends_the_work_unless_forced(source, tmp_path):
    odd = FeatureStatistics((9.0,) * 21, (0.01,) * 21, 1.0)
    translator = make_translator(("photo", "painting"), reference={"photo": Reference(odd, odd)})
    with pytest.raises(Refusal, match="E_OUT_OF_DISTRIBUTION"):
        translate_path(source, tmp_path / "out.mp4", translator)
    [row] = translate_path(source, tmp_path / "out.mp4", translator, Request(force=True))
    assert row["ood_verdict"] == "refuse"


@pytest.mark.parametrize("suffix", [".webm", ".mov"])
def test_a_film_keeps_its_opacity_over_several_parts(source, tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(film, "PART", 2)
    opacity = np.zeros((96, 128, 1), np.uint8)
    opacity[:, 64:] = 255
    clip, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    with VideoWriter(clip, source, sound=False) as writer:
        for k, pixels in enumerate(pan(1, 3)):
            writer.write(Frame(np.dstack([pixels, opacity]), Fraction(k, 25)))
    translate_path(clip, out, make_translator(("photo", "painting")))
    frames = list(read_frames(out))
    assert len(frames) == 3
    for frame in frames:
        found = frame.pixels[..., 3] / np.iinfo(frame.pixels.dtype).max
        assert np.abs(found - opacity[..., 0] / 255).mean() < 0.02
