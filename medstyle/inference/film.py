"""Translate long videos frame by frame in constant memory; an interrupted run resumes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from medstyle.imaging.video import Frame, VideoWriter, read_frames
from medstyle.inference.ood import Verdict
from medstyle.inference.temporal import Shot
from medstyle.inference.translate import Rendering, Translation, render_frames
from medstyle.jobs.checkpoint import load_state, run_key, save_state
from medstyle.jobs.progress import track

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

PART = 250  # frames between the states from which an interrupted run resumes
PARTS = {".webm": ".mkv", ".mov": ".mov"}  # NUT, which keeps times unchanged, holds neither VP9's opacity nor ProRes


class Film:
    """The translation of one video into another.

    Args:
        source, out: files.
        how: how the frames are rendered.
        note: text for the comment of the container.

    Attributes:
        frames: number of frames that are done.
        shape: ``(H, W)`` of a frame.
        worst: verdict on the frame with the highest score.
        warnings: warnings about any frame.
    """

    def __init__(self, source: Path, out: Path, how: Rendering, note: str) -> None:
        self.source, self.out, self.how, self.note = source, out, how, note
        self.shot = Shot(how.translator, how.options.temporal_smoothing)
        self.folder = out.with_name(f".part-{out.name}.{self._key()}")
        self.frames, self.shape = 0, [0, 0]
        self.worst, self.warnings = Verdict(0.0, "ok"), set[str]()

    def _key(self) -> str:
        """Return a key of everything that determines the result.

        Parts of other runs are not reused.
        """
        about, options, translator = self.source.stat(), self.how.options, self.how.translator
        mask = None if options.mask is None else options.mask.tolist()
        codes = [code.tolist() for code in self.how.style]
        where = (about.st_size, about.st_mtime_ns, self.how.domain, self.how.target)
        return run_key(
            where,
            repr(replace(options, mask=None)),
            mask,
            codes,
            translator.sha256,
            translator.config.architecture.sharpness,
        )

    def render(self, total: int | None) -> Iterator[Translation]:
        """Write the video.

        Yield the translation of each new frame, at which the caller may raise.
        """
        for other in self.out.parent.glob(f".part-{self.out.name}.*"):
            if other != self.folder:
                shutil.rmtree(other, ignore_errors=True)
        self.folder.mkdir(exist_ok=True)
        self._resume()
        rest = islice(read_frames(self.source), self.frames, None)
        frames = iter(track(rest, "video", total - self.frames if total else None))
        for first in frames:
            yield from self._part(chain([first], islice(frames, PART - 1)))
            self._save()
        with VideoWriter(self.out, self.source, self.note) as writer:
            for path in self._parts():
                writer.append(path)
        self.discard()

    def discard(self) -> None:
        """Remove the parts."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _part(self, frames: Iterator[Frame]) -> Iterator[Translation]:
        times = []

        def pixels() -> Iterator[NDArray[Any]]:
            for frame in frames:
                times.append(frame.time)
                yield frame.pixels

        rendered = render_frames(pixels(), self.how, self.shot)
        path = self.folder / f"{self.frames:08d}{PARTS.get(self.out.suffix.lower(), '.nut')}"
        with VideoWriter(path, self.source, sound=False, part_of=self.out) as writer:
            for result in rendered:
                yield result
                self.frames += 1
                self.worst, self.shape = max(self.worst, result.ood), list(result.image.shape[:2])  # type: ignore[union-attr]
                self.warnings |= set(result.warnings)
                writer.write(Frame(result.image, times[-1]))  # type: ignore[arg-type]

    def _parts(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("[0-9]*") if path.suffix in (".mkv", ".mov", ".nut"))

    def _save(self) -> None:
        facts = {"frames": self.frames, "shape": self.shape, "worst": tuple(self.worst)}
        state = {**facts, "warnings": sorted(self.warnings), "shot": self.shot.state()}
        save_state(self.folder, self.frames, state)

    def _resume(self) -> None:
        """Resume after the last part whose state was saved; later parts are rendered again."""
        if (state := load_state(self.folder)) is not None:
            self.frames, self.shape, self.worst = state["frames"], state["shape"], Verdict(*state["worst"])
            self.warnings = set(state["warnings"])
            self.shot.load(state["shot"])
        for part in self._parts():
            if int(part.stem) >= self.frames:
                part.unlink()
