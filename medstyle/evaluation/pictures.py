"""Measure translated pictures and videos."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from medstyle.data.store import SliceStore
from medstyle.errors import DataError
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.distances import set_distances
from medstyle.evaluation.measured import Array, EvaluateParams, Measure, Measured, Row, Subject, unit
from medstyle.evaluation.protocols import PictureSet
from medstyle.evaluation.report import clip_data, recorded
from medstyle.evaluation.video import measure_clip
from medstyle.imaging.formats import kind_of
from medstyle.imaging.picture import Pixels, from_unit, read_picture, to_unit
from medstyle.imaging.video import Frame, read_frames
from medstyle.inference.render_options import RenderOptions
from medstyle.inference.translate import render_frames, rendering, translate_picture
from medstyle.networks.imagenet import ImageNet, available
from medstyle.networks.texture import style_distance
from medstyle.networks.translator import Translator

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

REFERENCES = 3  # number of styles in which each picture is rendered, to measure how much they differ
TARGETS = 200_000  # largest number of values of training targets that the baselines use
SIDE = 224  # pixels of the pictures on which ImageNet's networks are trained
WHOLE = {"domain", "latent"}  # sources of style that represent the whole target domain


class Pictures:
    """Measure a picture against the set of unseen target pictures and its own content.

    If the translator takes styles from references, the picture is also compared with one of them, a
    different one for each picture.
    """

    def __init__(self, translator: Translator, store: SliceStore, measure: Measure) -> None:
        self.translator, self.measure = translator, measure
        target = translator.config.target
        unseen, training = (unit(np.asarray(store.array(target, split), np.float32)) for split in ("test", "train"))
        self.unseen = PictureSet(unseen.transpose(0, 2, 3, 1))
        values = training.transpose(0, 2, 3, 1).reshape(-1, 3)
        self.targets = values[:: max(1, len(values) // TARGETS)]
        self.styles = set(translator.config.architecture.style)
        self.training = training.transpose(0, 2, 3, 1)
        self.floor = PictureSet(self.training[: len(unseen)])

    def __call__(self, subject: Subject) -> Measured:
        """Measure a picture in the style of the target domain, of a single target, or both."""
        pixels = read_picture(subject.images[self.translator.config.source])
        whole = self._by_domain(subject, pixels) if self.styles & WHOLE else None
        if "reference" not in self.styles:
            assert whole is not None
            return whole
        single = self._by_reference(subject, pixels)
        if whole is None:
            return single
        return replace(
            single,
            rows=[*whole.rows, *single.rows],
            sheet={**single.sheet, **{name: whole.sheet[name] for name in whole.sheet}},
            outputs=whole.outputs,
        )

    def _by_domain(self, subject: Subject, pixels: Pixels) -> Measured:
        source, outputs = to_unit(pixels), self.outputs(pixels, self.targets, None)
        sheet = {"synthetic": outputs["model"], "histogram matching": outputs["histogram_matching"]}
        rows = [
            Row(subject.key, "unseen targets", name, self.measure(image, source, self.unseen))
            for name, image in outputs.items()
        ]
        return Measured(rows, sheet={"source": source, **sheet}, outputs=outputs)

    def _by_reference(self, subject: Subject, pixels: Pixels) -> Measured:
        source, targets = to_unit(pixels), self.unseen.pictures
        chosen = [targets[(subject.number * REFERENCES + i) % len(targets)] for i in range(REFERENCES)]
        styles = [from_unit(one, np.uint8) for one in chosen]
        outputs = self.outputs(pixels, chosen[0].reshape(-1, 3), styles[0])
        wanted = PictureSet(chosen[0][None])
        rows = [
            Row(subject.key, "one target each", name, self.measure(image, source, wanted))
            for name, image in outputs.items()
        ]
        others = [outputs["model"], *(self._rendered(pixels, style) for style in styles[1:])]
        diversity = float(np.mean([np.abs(a - b).mean() for a, b in combinations(others, 2)]))
        sheet = {"source": source, "style": chosen[0], "synthetic": outputs["model"]}
        return Measured(rows, sheet=sheet, safety={"diversity": diversity})

    def style_of_all(self, measured: Sequence[Measured]) -> dict[str, float]:
        """Return the style distance between all outputs of each method and all unseen targets.

        The training targets are included as the floor. A method may be close to the set as a whole,
        but not to any single picture, or vice versa.
        """
        outputs: dict[str, list[Array]] = {}
        for one in measured:
            for name, image in one.outputs.items():
                outputs.setdefault(name, []).append(image)
        sets = {name: PictureSet(images) for name, images in outputs.items()} | {"training targets": self.floor}
        return {
            name: float(style_distance(one.correlations, self.unseen.correlations)[0]) for name, one in sets.items()
        }

    def distances(self, measured: Sequence[Measured], seed: int) -> dict[str, Any]:
        """Return :func:`set_distances` of all outputs to all unseen targets by ImageNet's features.

        It is an independent judge: no training has seen these features, unless its perceptual or
        texture term used them. Without ``medstyle[art]`` the result is empty.
        """
        if not available() or not all(one.outputs for one in measured):
            return {}
        network = ImageNet()
        sets = {name: embedded(network, [one.outputs[name] for one in measured]) for name in measured[0].outputs}
        real = embedded(network, self.unseen.pictures)
        table = set_distances(sets, real, embedded(network, self.training), seed)
        subjects = [one.rows[0].subject for one in measured]
        return {"features": "ImageNet", "subjects": subjects, "slices": len(real), "table": table} if table else {}

    def _rendered(self, pixels: Pixels, style: Pixels | None) -> Array:
        image = translate_picture(pixels, self.translator, reference=style).image
        assert isinstance(image, np.ndarray)
        return to_unit(image)

    def outputs(self, pixels: Pixels, targets: Array, style: Pixels | None) -> dict[str, Array]:
        """Return the outputs of the model and of the baselines for a picture."""
        source = to_unit(pixels)
        classical = {name: method(source.reshape(-1, 3), targets) for name, method in BASELINES.items()}
        return {
            "model": self._rendered(pixels, style),
            **{name: values.reshape(source.shape) for name, values in classical.items()},
        }


def embedded(network: ImageNet, pictures: Iterable[Array]) -> NDArray[np.float64]:
    """Embed pictures ``(H, W, 3)`` in [0, 1] at the size for which the network was trained."""
    rows = []
    with torch.inference_mode():
        for picture in pictures:
            x = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None]
            x = F.interpolate(2 * x - 1, (SIDE, SIDE), mode="bilinear", antialias=True)
            rows.append(network.embed(x).numpy())
    return np.concatenate(rows).astype(np.float64)


class PairedPictures:
    """Measure a picture against the picture of the target domain that shows the same scene."""

    def __init__(self, translator: Translator, store: SliceStore, measure: Measure) -> None:
        self.pictures, self.measure = Pictures(translator, store, measure), measure

    def __call__(self, subject: Subject) -> Measured:
        """Measure a picture; raise :class:`UserError` if the two differ in size."""
        config = self.pictures.translator.config
        source, real = (read_picture(subject.images[name]) for name in (config.source, config.target))
        if source.shape != real.shape:
            raise DataError(f"evaluate: {config.source} and {config.target} of {subject.key} differ in size")
        outputs, target = self.pictures.outputs(source, self.pictures.targets, None), to_unit(real)
        whole = np.ones((3, *real.shape[:2]), bool)
        rows = [
            Row(
                subject.key,
                "real target",
                name,
                self.measure(image.transpose(2, 0, 1), target.transpose(2, 0, 1), whole),
            )
            for name, image in outputs.items()
        ]
        return Measured(rows, sheet={"source": to_unit(source), "synthetic": outputs["model"], "real": target})


class Clip:
    """The start of a video, unchanged and as rendered by each method."""

    def __init__(self, path: Path, pictures: Pictures, params: EvaluateParams) -> None:
        self.path, self.pictures, self.params = path, pictures, params
        self.style: NDArray[Any] | None = None
        if not pictures.styles & WHOLE:
            self.style = from_unit(pictures.unseen.pictures[0], np.uint8)

    def source(self) -> Iterator[Frame]:
        """Yield the unchanged frames."""
        return (frame.plain() for frame in islice(read_frames(self.path), self.params.clip_frames))

    def classical(self) -> Iterator[Frame]:
        """Yield the frames with the colours of the targets."""
        for frame in self.source():
            values = BASELINES["histogram_matching"](to_unit(frame.pixels).reshape(-1, 3), self.pictures.targets)
            yield Frame(from_unit(values.reshape(frame.pixels.shape), np.uint8), frame.time)

    def rendered(self, smoothing: float) -> Iterator[Frame]:
        """Yield the frames as the model renders them."""
        options = RenderOptions(temporal_smoothing=smoothing)
        how = rendering(self.pictures.translator, reference=self.style, options=options)
        results = render_frames((frame.pixels for frame in self.source()), how)
        for frame, result in zip(self.source(), results, strict=True):
            yield Frame(result.image, frame.time)  # type: ignore[arg-type]

    def measured(self) -> tuple[dict[str, dict[str, float]], dict[str, str]]:
        """Return method -> measures, and the clip before and after for the page."""
        with TemporaryDirectory() as folder:
            before, after = (Path(folder, f"{name}.mp4") for name in ("source", "synthetic"))

            def smoothed() -> Iterator[Frame]:
                return recorded(self.rendered(self.params.temporal_smoothing), after, self.path)

            methods: dict[str, Callable[[], Iterator[Frame]]] = {
                "histogram_matching": self.classical,
                "model, frame by frame": partial(self.rendered, 0.0),
                "model": smoothed,
            }
            deque(recorded(self.source(), before, self.path), maxlen=0)
            table = measure_clip(self.source, methods, "model, frame by frame", self.pictures.unseen)
            return table, {"source": clip_data(before), "synthetic": clip_data(after)}


def measure_videos(
    truth: Path, pictures: Pictures, params: EvaluateParams
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, Mapping[str, str]]]:
    """Measure the videos in ``truth``: clip -> method -> measures, and clip -> versions to play."""
    metrics, clips = {}, {}
    for path in sorted(path for path in truth.glob("*") if kind_of(path) == "video"):
        metrics[path.stem], clips[path.stem] = Clip(path, pictures, params).measured()
    return metrics, dict(clips)
