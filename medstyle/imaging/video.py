"""Read and write video frame by frame.

Times, rotation, colours, depth, opacity and audio are preserved where the container can hold them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from medstyle.errors import Code, MissingPackage, OutputError, Refusal, reading
from medstyle.imaging.picture import MAX_PIXELS, Pixels, from_unit, over_white, to_unit
from medstyle.jobs.atomic import atomic

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

# codec by the suffix of the output, with nearly lossless settings; frames in order, so that parts
# can be concatenated
CODECS = {
    **dict.fromkeys((".mp4", ".m4v", ".mov", ".mkv"), ("libx264", {"crf": "16", "preset": "medium", "bf": "0"})),
    ".webm": ("libvpx-vp9", {"crf": "20", "b": "0"}),
}
WITH_OPACITY = {".mov": ("prores_ks", {"profile": "4444"}), ".webm": CODECS[".webm"]}
LAYOUTS = {(3, 8): "rgb24", (4, 8): "rgba", (3, 16): "rgb48le", (4, 16): "rgba64le"}  # channels, bits -> FFmpeg's name
DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these leave opacity out
TICKS = Fraction(1, 90_000)  # s: fine enough for any frame rate, as in MPEG
RANGES = {1: "MPEG", 2: "JPEG"}  # AVColorRange
MATRICES = {1: "ITU709", 5: "ITU624", 6: "SMPTE170M", 9: "BT2020"}  # AVColorSpace -> name for the scaler
HDR = {16, 18}  # AVColorTransferCharacteristic: SMPTE 2084 (PQ), ARIB STD-B67 (HLG)
HD = 720  # an unmarked video with at least this many lines is BT.709, otherwise BT.601, as in players


class Frame(NamedTuple):
    """``pixels``: upright ``(H, W, 3)`` RGB, or ``(H, W, 4)`` with opacity.

    They are uint16 if the video has more than 8 bits, else uint8. ``time``: seconds from the start
    of the stream.
    """

    pixels: Pixels
    time: Fraction

    def plain(self) -> Frame:
        """Return the frame with 8 bits, laid over white where it is not opaque."""
        return Frame(from_unit(to_unit(over_white(self.pixels)), np.uint8), self.time)


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
        for number, frame in enumerate(_decoded(container, stream)):
            if int(stream.codec_context.color_trc or 0) in HDR:
                raise Refusal(Code.E_DECODE, "video: HDR (PQ or HLG) is not read; convert it to SDR (BT.709)")
            start = frame.pts if start is None else start
            time = number / rate if rate else (frame.pts - start) * frame.time_base
            yield Frame(_upright(frame), time)


def _decoded(container: Any, stream: Any) -> Iterator[Any]:
    """Decode the frames of a stream, with their opacity if it says that it has one."""
    from av import CodecContext

    decoder = DECODERS.get(stream.codec_context.name)
    if decoder is None or stream.metadata.get("alpha_mode") != "1":
        yield from container.decode(stream)
        return
    context = CodecContext.create(decoder, "r")
    context.extradata = stream.codec_context.extradata
    for packet in container.demux(stream):
        for frame in context.decode(packet):
            frame.time_base = stream.time_base
            yield frame


def _upright(frame: Any) -> Pixels:
    unmarked = "ITU709" if frame.height >= HD else "ITU601"
    parts = frame.format.components
    channels, bits = 3 + any(part.is_alpha for part in parts), 16 if max(part.bits for part in parts) > 8 else 8
    pixels = frame.to_ndarray(
        format=LAYOUTS[channels, bits],
        src_colorspace=MATRICES.get(int(frame.colorspace), unmarked),
        src_color_range=RANGES.get(int(frame.color_range), "MPEG"),
        dst_color_range="JPEG",
    )
    return np.ascontiguousarray(_displayed(pixels, frame.side_data.get("DISPLAYMATRIX")))


def _displayed(pixels: Pixels, matrix: Any) -> Pixels:
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
        self.suffix, self.crf = suffix, crf
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

        pixels = frame.pixels if self.suffix in WITH_OPACITY else over_white(frame.pixels)
        if self.stream is None:
            self._start(pixels)
        layout = LAYOUTS[pixels.shape[2], 8 * pixels.itemsize]
        picture = VideoFrame.from_ndarray(pixels, format=layout).reformat(
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
                if own.metadata.get("alpha_mode") == "1":  # the decoder does not see it, and the copy would not say it
                    self.stream.codec_context.pix_fmt = "yuva420p"
                self._start_sound()
            for packet in container.demux(own):
                if packet.dts is not None:
                    self._mux_sound(packet.pts * packet.time_base)
                    packet.stream = self.stream
                    self.out.mux(packet)

    def _start(self, pixels: Pixels) -> None:
        height, width, channels = pixels.shape
        codec, options = (WITH_OPACITY if channels == 4 else CODECS)[self.suffix]
        if self.crf is not None:
            options = {**options, "crf": str(self.crf)}
        stream = self.out.add_stream(codec, rate=self.rate, options=options)
        stream.width, stream.height = width, height
        own = self.source.streams.video[0]
        if (pixel := own.sample_aspect_ratio) and pixel != 1:  # width by height of a pixel
            turned = (width > height) != (own.width > own.height)
            stream.sample_aspect_ratio = 1 / pixel if turned else pixel
        stream.pix_fmt = _stored(codec, pixels)
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


def _stored(codec: str, pixels: Pixels) -> str:
    """Return the codec's format that keeps most: opacity, odd sizes, then more than 8 bits."""
    from av.codec import Codec

    known = {one.name for one in Codec(codec, "w").video_formats or ()}
    height, width, channels = pixels.shape
    planes = ("444p",) if height % 2 or width % 2 else ("420p", "444p")
    depths = ("10le", "") if pixels.dtype == np.uint16 else ("", "10le")
    names = (f"yuv{'a' * (channels == 4)}{plane}{depth}" for plane in planes for depth in depths)
    return next(name for name in names if name in known)


def _av() -> Any:
    try:
        import av
    except ImportError:
        raise MissingPackage("videos need PyAV: pip install medstyle[video]") from None
    return av
