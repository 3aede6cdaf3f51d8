"""Measure translated pictures and videos."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.cohort.inventory import VIDEO_SUFFIXES
from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.measured import Array, Measure, Params, _unit
from medstyle.evaluation.protocols import PictureSet
from medstyle.evaluation.report import (
    clip_data,
    recorded,
)
from medstyle.evaluation.video import measure_clip
from medstyle.imaging.picture import from_unit, read_picture, to_unit
from medstyle.imaging.video import Frame, read_frames
from medstyle.inference.render_options import Look
from medstyle.inference.translate import translate_frames, translate_picture
from medstyle.networks.texture import style_distance
from medstyle.networks.translator import Translator

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

REFERENCES = 3  # styles in which each picture is rendered, to see how they differ


class _Pictures:
    """Measure a picture against the set of unseen target pictures and its own content.

    Where the translator takes styles from references, also against one of them, another for each picture.
    """

    def __init__(self, translator: Translator, store: SliceStore, measure: Measure) -> None:
        self.translator, self.measure = translator, measure
        target = translator.config.target
        unseen, training = (_unit(np.asarray(store.array(target, split), np.float32)) for split in ("test", "train"))
        self.unseen = PictureSet(unseen.transpose(0, 2, 3, 1))
        values = training.transpose(0, 2, 3, 1).reshape(-1, 3)
        self.targets = values[:: max(1, len(values) // 200_000)]
        self.styles = translator.config.architecture.style
        self.turn = 0
        self.floor = PictureSet(training.transpose(0, 2, 3, 1)[: len(unseen)])
        self.made: dict[str, list[Array]] = {}

    def __call__(self, subject: str, images: dict[str, Path]) -> dict[str, Any]:
        pixels = read_picture(images[self.translator.config.source])
        source = to_unit(pixels)
        rows, sheet = [], {"source": source}
        facts = {"subject": subject, "reference": "unseen targets"}
        if {"domain", "latent"} & set(self.styles):
            outputs = self.outputs(pixels, self.targets, None)
            rows += [
                {**facts, "method": name, **self.measure(image, source, self.unseen)} for name, image in outputs.items()
            ]
            sheet |= {"synthetic": outputs["model"], "histogram matching": outputs["histogram_matching"]}
            for name, image in outputs.items():
                self.made.setdefault(name, []).append(image)
        diversity = {}
        if "reference" in self.styles:
            chosen = [self.unseen.pictures[(self.turn + i) % len(self.unseen.pictures)] for i in range(REFERENCES)]
            self.turn += REFERENCES
            styles = [from_unit(one, np.uint8) for one in chosen]
            outputs = self.outputs(pixels, chosen[0].reshape(-1, 3), styles[0])
            facts["reference"] = "one target each"
            wanted = PictureSet(chosen[0][None])
            rows += [
                {**facts, "method": name, **self.measure(image, source, wanted)} for name, image in outputs.items()
            ]
            sheet = {"source": source, "style": chosen[0], "synthetic": outputs["model"], **sheet}
            others = [outputs["model"], *(self._made(pixels, style) for style in styles[1:])]
            diversity = {"diversity": float(np.mean([np.abs(a - b).mean() for a, b in combinations(others, 2)]))}
        return {"rows": rows, "sheet": sheet, "safety": [diversity]}

    def style_of_all(self) -> dict[str, float]:
        """Return the distance of all outputs of each method together to all unseen targets; training targets' as floor.

        A method may come near to the whole set and not to any single picture, or the other way round.
        """
        sets = {name: PictureSet(images) for name, images in self.made.items()} | {"training targets": self.floor}
        return {
            name: float(style_distance(one.correlations, self.unseen.correlations)[0]) for name, one in sets.items()
        }

    def _made(self, pixels: NDArray, style: NDArray | None) -> Array:
        made = translate_picture(pixels, self.translator, reference=style).image
        assert isinstance(made, np.ndarray)
        return to_unit(made)

    def outputs(self, pixels: NDArray, targets: Array, style: NDArray | None) -> dict[str, Array]:
        """Return what the model and the baselines make of a picture."""
        source = to_unit(pixels)
        classical = {name: method(source.reshape(-1, 3), targets) for name, method in BASELINES.items()}
        return {
            "model": self._made(pixels, style),
            **{name: values.reshape(source.shape) for name, values in classical.items()},
        }


class _PairedPictures:
    """Measure a picture against the picture of the target domain that shows the same."""

    def __init__(self, translator: Translator, store: SliceStore, measure: Measure) -> None:
        self.pictures, self.measure = _Pictures(translator, store, measure), measure

    def __call__(self, subject: str, images: dict[str, Path]) -> dict[str, Any]:
        config = self.pictures.translator.config
        source, real = (read_picture(images[name]) for name in (config.source, config.target))
        if source.shape != real.shape:
            raise UserError(f"evaluate: {config.source} and {config.target} of {subject} differ in size")
        outputs, target = self.pictures.outputs(source, self.pictures.targets, None), to_unit(real)
        whole = np.ones((3, *real.shape[:2]), bool)
        rows = [
            {
                "subject": subject,
                "reference": "real target",
                "method": name,
                **self.measure(image.transpose(2, 0, 1), target.transpose(2, 0, 1), whole),
            }
            for name, image in outputs.items()
        ]
        return {"rows": rows, "sheet": {"source": to_unit(source), "synthetic": outputs["model"], "real": target}}


def _videos(
    truth: Path, translator: Translator, pictures: _Pictures, params: Params
) -> tuple[dict[str, Any], dict[str, dict[str, str]]]:
    """Measure the videos in ``truth``: clip -> method -> measures, and clip -> the start of both versions to play."""
    metrics: dict[str, Any] = {}
    clips: dict[str, dict[str, str]] = {}
    style = None
    if not {"domain", "latent"} & set(pictures.styles):
        style = from_unit(pictures.unseen.pictures[0], np.uint8)
    for path in sorted(path for path in truth.glob("*") if path.suffix.lower() in VIDEO_SUFFIXES):

        def source(path: Path = path) -> Iterator[Frame]:
            return islice(read_frames(path), params.clip_frames)

        def classical(source: Callable[[], Iterator[Frame]] = source) -> Iterator[Frame]:
            for frame in source():
                values = BASELINES["histogram_matching"](to_unit(frame.pixels).reshape(-1, 3), pictures.targets)
                yield Frame(from_unit(values.reshape(frame.pixels.shape), np.uint8), frame.time)

        def ours(steady: float, source: Callable[[], Iterator[Frame]] = source) -> Iterator[Frame]:
            frames = (frame.pixels for frame in source())
            made = translate_frames(frames, translator, reference=style, look=Look(steady=steady))
            for frame, result in zip(source(), made, strict=True):
                yield Frame(result.image, frame.time)  # type: ignore[arg-type]

        with TemporaryDirectory() as folder:
            before, after = (Path(folder, f"{name}.mp4") for name in ("source", "synthetic"))
            methods: dict[str, Callable[[], Iterator[Frame]]] = {
                "histogram_matching": classical,
                "model, frame by frame": partial(ours, 0.0),
                "model": partial(_recorded, partial(ours, params.steady), after, path),
            }
            deque(_recorded(source, before, path), maxlen=0)
            metrics[path.stem] = measure_clip(source, methods, "model, frame by frame", pictures.unseen)
            clips[path.stem] = {"source": clip_data(before), "synthetic": clip_data(after)}
    return metrics, clips


def _recorded(video: Callable[[], Iterator[Frame]], out: Path, like: Path) -> Iterator[Frame]:
    return recorded(video(), out, like)
