"""Measure styled videos: temporal consistency and its price, speed and memory.

Models are made by `benchmarks/quality.py`: `paintings` learns picture by picture, `video` with
motion as well; each renders frame by frame and with temporal smoothing. Beside them: nothing done,
and classical methods frame by frame.

Usage: python benchmarks/quality.py paintings video --seeds 1
       python benchmarks/video.py [--frames 60] [--threads 2]
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from quality import ROOT, SHARED

from medstyle.data.store import SliceStore
from medstyle.evaluation.baselines import PICTURE_METHODS
from medstyle.evaluation.protocols import PictureSet, ssim_map, unpaired
from medstyle.evaluation.video import MEASURES, measure_clip
from medstyle.imaging.picture import from_unit, to_unit, write_picture
from medstyle.imaging.video import Frame, VideoWriter, read_frames
from medstyle.inference.files import Request, translate_path
from medstyle.inference.render_options import RenderOptions
from medstyle.inference.translate import render_frames, rendering
from medstyle.networks.translator import Translator

SMOOTHED = 0.8  # as `medstyle translate` has it
CLASSICAL = ("histogram_matching", "whitening_colouring")
PICTURE = "a picture of 24 megapixels"
SIZES = {"480p": (854, 480), "1080p": (1920, 1080), "4K": (3840, 2160), PICTURE: (6000, 4000)}


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=60, help="of each clip")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", type=Path, default=ROOT / ".medstyle/quality")
    parser.add_argument("--speed-frames", type=int, default=4, help="of each size, for speed and memory")
    parser.add_argument("--sizes", action="store_true", help="only what `paintings` paints at smaller sizes, and speed")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folders = {name: arguments.models / name / "seed-0" for name in ("paintings", "video")}
    clips = sorted((SHARED / "video").iterdir())
    for clip in [] if arguments.sizes else clips:
        compare(clip, folders, arguments.frames)
    for clip in clips:
        smaller(clip, folders["paintings"], 8)
    speed(clips[0], folders["paintings"] / "models/translator", arguments.speed_frames, arguments.threads)


def compare(clip: Path, folders: dict[str, Path], frames: int) -> None:
    """Print one clip's table."""
    targets = _targets(folders["video"])
    unseen = targets.pictures
    reference = from_unit(unseen[: len(unseen) // 2].reshape(-1, 1, 3)[::7], np.uint8)
    methods: dict[str, Callable[[], Iterator[Frame]]] = {
        name: partial(classical, clip, frames, name, reference) for name in CLASSICAL
    }
    for name, folder in folders.items():
        translator = Translator.load(folder / "models/translator")
        for words, smoothing in (("frame by frame", 0.0), ("smoothed", SMOOTHED)):
            methods[f"`{name}`, {words}"] = partial(styled, clip, frames, translator, smoothing)
    seconds: dict[str, float] = {}
    timed = {name: partial(_timed, video, name, seconds) for name, video in methods.items()}
    found = measure_clip(partial(source, clip, frames), timed, "`paintings`, frame by frame", targets)
    first = next(read_frames(clip)).pixels
    print(f"\n{clip.name}, {first.shape[1]} x {first.shape[0]}, {frames} frames\n")
    print(f"| method | {' | '.join(MEASURES)} | frames/s |\n|{'---|' * (len(MEASURES) + 2)}")
    for name, row in found.items():
        cells = " | ".join(f"{row[m]:.3f}" if m in row else "" for m in MEASURES)
        print(f"| {name} | {cells} | {f'{frames / seconds[name]:.2f}' if name in seconds else ''} |", flush=True)


def _targets(folder: Path) -> PictureSet:
    unseen = np.asarray(SliceStore.open(folder / "data/slices").array("painting", "test"), np.float32)
    return PictureSet((unseen.transpose(0, 2, 3, 1) + 1) / 2)


def source(clip: Path, frames: int) -> Iterator[Frame]:
    """Read the start of a clip."""
    return islice(read_frames(clip), frames)


def classical(clip: Path, frames: int, name: str, reference: np.ndarray) -> Iterator[Frame]:
    """Render a clip by a classical method, frame by frame."""
    for frame in source(clip, frames):
        yield Frame(PICTURE_METHODS[name](frame.pixels, reference), frame.time)


def styled(clip: Path, frames: int, translator: Translator, smoothing: float) -> Iterator[Frame]:
    """Render a clip by a model."""
    pixels = (frame.pixels for frame in source(clip, frames))
    made = render_frames(pixels, rendering(translator, options=RenderOptions(temporal_smoothing=smoothing)))
    for frame, result in zip(source(clip, frames), made, strict=True):
        yield Frame(result.image, frame.time)


def _timed(video: Callable[[], Iterator[Frame]], name: str, seconds: dict[str, float]) -> Iterator[Frame]:
    seconds[name], frames = 0.0, video()
    while True:
        start = time.perf_counter()
        frame = next(frames, None)
        seconds[name] += time.perf_counter() - start
        if frame is None:
            return
        yield frame


def smaller(clip: Path, model: Path, frames: int) -> None:
    """Print how like the full rendering frames are that were painted at a smaller size."""
    translator = Translator.load(model / "models/translator")
    targets = _targets(model)
    pixels = [frame.pixels for frame in source(clip, frames)]
    side = min(pixels[0].shape[:2])
    full: list[np.ndarray] = []
    print(f"\n{clip.name}, {frames} frames, each by itself\n")
    print("| painted at | SSIM to the full rendering | style distance | structure | s |\n|---|---|---|---|---|")
    for size in (None, side // 2, side // 4):
        start = time.perf_counter()
        how = rendering(translator, options=RenderOptions(size=size, temporal_smoothing=0))
        made = [to_unit(result.image) for result in render_frames(pixels, how)]
        seconds = (time.perf_counter() - start) / frames
        full = full or made
        alike = np.mean(
            [ssim_map(a.transpose(2, 0, 1), b.transpose(2, 0, 1)).mean() for a, b in zip(made, full, strict=True)]
        )
        rows = [unpaired(a, to_unit(p), targets) for a, p in zip(made, pixels, strict=True)]
        distance, structure = (np.mean([row[name] for row in rows]) for name in ("style_distance", "structure"))
        print(f"| {size or side} | {alike:.3f} | {distance:.3f} | {structure:.3f} | {seconds:.2f} |", flush=True)


def speed(clip: Path, model: Path, frames: int, threads: int) -> None:
    """Print speed and peak memory of `medstyle translate` for the sizes of television, each in a
    process of its own."""
    print(f"\nFile to file, {frames} frames of {clip.name} enlarged:\n")
    print("| size | painted at | frames/s | peak MiB |\n|---|---|---|---|")
    for (name, size), painted in product(SIZES.items(), (None, 512, 256)):
        with tempfile.TemporaryDirectory() as folder:
            film = name != PICTURE
            large = Path(folder) / ("in.mp4" if film else "in.jpg")
            shown = (np.asarray(Image.fromarray(frame.pixels).resize(size)) for frame in source(clip, frames))
            if film:
                with VideoWriter(large, clip, sound=False) as writer:
                    for number, pixels in enumerate(shown):
                        writer.write(Frame(pixels, Fraction(number, 25)))
            else:
                write_picture(large, next(shown))
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, peak = pool.apply(_translate, (large, large.with_stem("out"), model, threads, painted))
        print(
            f"| {name} | {painted or 'its size'} | {(frames if film else 1) / seconds:.3f} | {peak:.0f} |", flush=True
        )


def _translate(path: Path, out: Path, model: Path, threads: int, size: int | None) -> tuple[float, float]:
    torch.set_num_threads(threads)
    translator = Translator.load(model)
    options = RenderOptions(temporal_smoothing=SMOOTHED, size=size)
    start = time.perf_counter()
    translate_path(path, out, translator, Request(options=options, force=True))
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text()
    return seconds, int(status.split("VmHWM:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
