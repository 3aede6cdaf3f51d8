"""Read and write video frame by frame; times, rotation, colours and audio are preserved."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import Code, MissingPackage, OutputError, Refusal, reading
from medstyle.imaging.picture import MAX_PIXELS, Pixels
from medstyle.jobs.atomic import atomic

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

# codec by the suffix of the output, with nearly lossless settings; frames in order, so that parts
# can be concatenated
CODECS = {
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".mkv"), ("libx264", {"crf": "16", "preset": "medium", "bf": "0"})),
    ".webm": ("libvpx-vp9", {"crf": "20", "b": "0"}),
}
TICKS = Fraction(1, 90_000)  # s: fine enough for any frame rate, as in MPEG
RANGES = {1: "MPEG", 2: "JPEG"}  # AVColorRange
MATRICES = {1: "ITU709", 5: "ITU624", 6: "SMPTE170M", 9: "BT2020"}  # AVColorSpace -> name for the scaler
HDR = {16, 18}  # AVColorTransferCharacteristic: SMPTE 2084 (PQ), ARIB STD-B67 (HLG)
HD = 720  # an unmarked video with at least this many lines is BT.709, otherwise BT.601, as in players


class Frame(NamedTuple):
    """``pixels``: upright ``(H, W, 3)`` RGB uint8.

    ``time``: seconds from the start of the stream.
    """

    pixels: Pixels
    time: Fraction


def read_frames(path: Path) -> Iterator[Frame]:
    """Decode the first video stream frame by frame.

    Raises:
        Refusal: ``E_DECODE`` no video, or damaged; ``E_TOO_LARGE`` a frame has more than
            ``MAX_PIXELS``.
    """
    av = _av()
    with reading("video"), av.open(str(path)) as container:
        stream = container.streams.video[0]
        if stream.width * stream.height > MAX_PIXELS:
            raise Refusal(Code.E_TOO_LARGE, f"video: {stream.width} x {stream.height}; the limit is {MAX_PIXELS}")
        stream.thread_type = "AUTO"
        stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # the size may change within the stream
        start: int | None = None
        # AVI has no presentation times, and the decoder's guesses fall with B frames
        rate = stream.average_rate if container.format.name == "avi" else None
        for number, frame in enumerate(container.decode(stream)):
            if int(stream.codec_context.color_trc or 0) in HDR:
                raise Refusal(Code.E_DECODE, "video: HDR (PQ or HLG) is not read; convert it to SDR (BT.709)")
            start = frame.pts if start is None else start
            time = number / rate if rate else (frame.pts - start) * frame.time_base
            yield Frame(_upright(frame), time)


def _upright(frame: Any) -> NDArray[np.uint8]:
    unmarked = "ITU709" if frame.height >= HD else "ITU601"
    pixels = frame.to_ndarray(
        format="rgb24",
        src_colorspace=MATRICES.get(int(frame.colorspace), unmarked),
        src_color_range=RANGES.get(int(frame.color_range), "MPEG"),
        dst_color_range="JPEG",
    )
    return np.ascontiguousarray(_displayed(pixels, frame.side_data.get("DISPLAYMATRIX")))


def _displayed(pixels: NDArray[np.uint8], matrix: Any) -> NDArray[np.uint8]:
    """Turn and mirror a frame as the display matrix of its container says (ISO/IEC 14496-12).

    Raises:
        Refusal: ``E_DECODE`` it turns by other than right angles, or scales.
    """
    if matrix is None:
        return pixels
    (a, b), (c, d) = np.frombuffer(matrix, np.int32).reshape(3, 3)[:2, :2] / (1 << 16)  # x' = a x + c y, y' = b x + d y
    if np.abs(np.abs([a, b, c, d]) - ([0, 1, 1, 0] if a == 0 else [1, 0, 0, 1])).max() > 1e-3:
        raise Refusal(Code.E_DECODE, "video: its display matrix does more than turn by right angles; convert it first")
    if a == 0:
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: int(np.sign(d)), :: int(np.sign(a))]


class VideoWriter:
    """Write frames at their times, with the audio of another file.

    The file appears when it is complete.

    Args:
        path: new file; its suffix selects container and codec (:data:`CODECS`).
        like: source of the frame rate and of the first audio stream, which is copied bit for bit.
        note: text for the comment of the container.
        sound: whether to copy the audio.
        crf: quality, smaller is better; default: nearly lossless to the eye.
        part_of: for a part that :meth:`append` will add to another file: that file, which selects
            the codec.

    Raises:
        UserError: the suffix is unknown, or the container cannot hold the audio.
    """

    def __init__(
        self,
        path: Path,
        like: Path,
        note: str = "",
        *,
        sound: bool = True,
        crf: int | None = None,
        part_of: Path | None = None,
    ) -> None:
        av = _av()
        suffix = (part_of or path).suffix.lower()
        if suffix not in CODECS:
            raise OutputError(f"{path}: a video is written as one of {', '.join(CODECS)}")
        self.path = path
        self.codec, options = CODECS[suffix]
        self.options = options if crf is None else {**options, "crf": str(crf)}
        self.with_sound = sound
        with ExitStack() as stack:
            self.source = stack.enter_context(av.open(str(like)))
            scratch = stack.enter_context(atomic(path))
            self.out = stack.enter_context(av.open(str(scratch), "w"))
            self.files = stack.pop_all()
        self.out.metadata["comment"] = note
        self.rate = self.source.streams.video[0].average_rate or Fraction(25)
        self.stream: Any = None
        self.encodes = True
        self.sound: Iterator[Any] = iter(())
        self.waiting: Any = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Complete the file; after an error it does not exist."""
        if kind is not None:
            self.files.__exit__(kind, *error)
            return
        with self.files:
            if self.stream is None:
                raise OutputError(f"{self.path.name}: no frame was written")
            if self.encodes:
                self.out.mux(self.stream.encode())
            self._mux_sound(None)

    def write(self, frame: Frame) -> None:
        """Append a frame; all frames have the same size, and their times must rise."""
        from av import VideoFrame

        if self.stream is None:
            self._start(*frame.pixels.shape[:2])
        picture = VideoFrame.from_ndarray(frame.pixels, format="rgb24").reformat(
            format=self.stream.pix_fmt, dst_colorspace="ITU709", src_color_range="JPEG", dst_color_range="MPEG"
        )
        picture.time_base = self.stream.codec_context.time_base
        picture.pts = round(frame.time / picture.time_base)
        self._mux_sound(frame.time)
        self.out.mux(self.stream.encode(picture))

    def append(self, part: Path) -> None:
        """Append a video that was written as a part of this one, without encoding it again."""
        av = _av()
        with av.open(str(part)) as container:
            own = container.streams.video[0]
            if self.stream is None:
                self.stream, self.encodes = self.out.add_stream_from_template(own), False
                self._start_sound()
            for packet in container.demux(own):
                if packet.dts is not None:
                    self._mux_sound(packet.pts * packet.time_base)
                    packet.stream = self.stream
                    self.out.mux(packet)

    def _start(self, height: int, width: int) -> None:
        stream = self.out.add_stream(self.codec, rate=self.rate, options=self.options)
        stream.width, stream.height = width, height
        own = self.source.streams.video[0]
        if (pixel := own.sample_aspect_ratio) and pixel != 1:  # width by height of a pixel
            turned = (width > height) != (own.width > own.height)
            stream.sample_aspect_ratio = 1 / pixel if turned else pixel
        stream.pix_fmt = "yuv444p" if height % 2 or width % 2 else "yuv420p"
        context = stream.codec_context
        context.time_base = TICKS
        context.colorspace = context.color_primaries = context.color_trc = 1  # BT.709
        context.color_range = 1  # limited range, as in television: 16 to 235
        self.stream = stream
        self._start_sound()

    def _start_sound(self) -> None:
        """Prepare to copy the audio, after adding the video stream, before writing the header."""
        if self.with_sound and self.source.streams.audio:
            own = self.source.streams.audio[0]
            try:
                copy = self.out.add_stream_from_template(own)
            except ValueError:
                name = own.codec_context.name
                raise OutputError(f"{self.path.name}: this container cannot hold {name} audio; write .mkv") from None

            picture = self.source.streams.video[0]
            start = picture.start_time * picture.time_base if picture.start_time else Fraction(0)
            ticks = round(start / own.time_base)  # the picture begins at 0, and the sound keeps its distance

            def packets() -> Iterator[Any]:
                for packet in self.source.demux(own):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
                        packet.stream = copy
                        yield packet

            self.sound = packets()

    def _mux_sound(self, until: Fraction | None) -> None:
        """Copy the audio up to a time, so that writing needs little buffering."""
        while True:
            packet = self.waiting or next(self.sound, None)
            self.waiting = None
            if packet is None:
                return
            if until is not None and packet.dts * packet.time_base > until:
                self.waiting = packet
                return
            self.out.mux(packet)


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise MissingPackage("videos need PyAV: pip install medstyle[video]") from None
    return av
