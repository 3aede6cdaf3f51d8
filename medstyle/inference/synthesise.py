"""Run slices and volumes through the network, a few slices or one window at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medstyle.imaging.modality import DOMAINS
from medstyle.inference.shared_norm import Statistics
from medstyle.inference.uncertainty import spread
from medstyle.inference.windows import Render, blend
from medstyle.networks.translator import Translator
from medstyle.transforms.body import AIR, box_around, extent_of

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

Box = tuple[slice, slice]  # rows and columns

CHUNK = {
    "cpu": 1 << 16,
    "cuda": 1 << 22,
}  # pixels per forward pass; more than fit into the cache of a CPU are slower (docs/benchmarks.md)


WHOLE = 1 << 20  # pixels of the largest slice or picture that is rendered in one piece


WINDOW = 512  # pixels; larger images are rendered in windows of the training size, but at least of this size


SHARED = 0.25  # overlap of windows that share statistics: they differ only near their edges


@torch.inference_mode()
def synthesise(
    translator: Translator,
    content: Tensor,
    target: str | None = None,
    *,
    style: list[Tensor] | None = None,
    body: NDArray[np.bool_] | None = None,
    out: Tensor | None = None,
    deviation: Tensor | None = None,
) -> Tensor:
    """Render a stack of slices, processing only a few slices or one window at a time.

    Args:
        translator: 2-D: slices one by one; 2.5-D: each with its neighbours; 3-D: windows of its
            training size.
        content: ``(D, M, H, W)`` in network units, a view or not; ``M`` counts the channels of
            source and contrasts.
        target: default: the target that the translator was trained for.
        style: codes from :meth:`Translator.style`; default: those of the target.
        body: ``(D, H, W)``: a slice is rendered in the bounding box of the body in it and its
            neighbours, as in training; the rest of ``out`` is unchanged. Default: whole slices.
        out: ``(D, C, H, W)`` to fill, a view or not; default: a new one.
        deviation: filled with the deviation from :func:`spread`, which is not computed without it.
            Where windows overlap, their deviations are blended.
    """
    architecture, training = translator.config.architecture, translator.config.size
    codes = style or translator.style(target)
    if out is None:
        channels = DOMAINS[translator.config.domains[0]].channels
        out = content.new_full((len(content), channels, *content.shape[2:]), AIR)
    outs = [out] if deviation is None else [out, deviation]

    def render(x: Tensor) -> Sequence[Tensor]:
        return [translator(x, style=codes)] if deviation is None else spread(translator, x, codes)

    if architecture.dimensions == 3:
        extent = None if body is None else extent_of(body)
        inside = (..., *box_around(extent, content.shape[2:], translator.multiple))
        volume = content[inside].movedim(0, 1)[None]
        blend(render, volume, training or volume.shape[2:], [image[inside].movedim(0, 1)[None] for image in outs])
        return out
    for (height, width), places in _boxes(translator, content, body).items():
        large = height * width > WHOLE
        window = [max(n, WINDOW) for n in training or (WINDOW, WINDOW)] if large else [height, width]
        step = 1 if large else max(1, CHUNK[translator.device.type] // (height * width))
        for chunk in (places[start : start + step] for start in range(0, len(places), step)):
            x = torch.stack([with_neighbours(content, z, architecture.neighbours)[(..., *box)] for z, box in chunk])
            parts = [image.new_empty((len(chunk), image.shape[1], height, width)) for image in outs]
            _blended(translator, render, x, window, parts)
            for image, part in zip(outs, parts, strict=True):
                for (z, box), one in zip(chunk, part, strict=True):
                    image[(z, ..., *box)] = one
    return out


def _boxes(
    translator: Translator, content: Tensor, body: NDArray[np.bool_] | None
) -> dict[tuple[int, int], list[tuple[int, Box]]]:
    """Return the slices to render and their boxes, grouped by the size of the box for batching."""
    boxes: dict[tuple[int, int], list[tuple[int, Box]]] = defaultdict(list)
    for place in range(len(content)):
        around = slices_around(place, translator.config.architecture.neighbours, len(content))
        extent = None if body is None else extent_of(body[around])
        if body is not None and extent is None:  # nothing but air
            continue
        rows, columns = box_around(extent, content.shape[2:], translator.multiple)
        boxes[rows.stop - rows.start, columns.stop - columns.start].append((place, (rows, columns)))
    return boxes


def _blended(translator: Translator, render: Render, x: Tensor, window: Sequence[int], parts: Sequence[Tensor]) -> None:
    """Render slices in windows that share the statistics of the downsampled whole image."""
    scale = (WHOLE / (x.shape[2] * x.shape[3])) ** 0.5
    if scale >= 1:
        blend(render, x, window, parts)
        return
    statistics = Statistics(translator.members)
    with statistics.gather():
        small = [max(min(n, 64), round(n * scale)) for n in x.shape[2:]]
        render(F.interpolate(x, small, mode="bilinear", antialias=True))
    with statistics.share():
        blend(render, x, window, parts, SHARED)


def slices_around(place: int, neighbours: int, depth: int) -> NDArray[np.int64]:
    """Return the slices that the network sees around a place; the end slices are repeated."""
    return np.clip(np.arange(neighbours) + place - neighbours // 2, 0, depth - 1)


def with_neighbours(content: Tensor, place: int, neighbours: int) -> Tensor:
    """Return a slice of ``(D, M, H, W)`` with neighbours, ``(M B, H, W)``: channel ``m B + b``."""
    if neighbours == 1:
        return content[place]
    return content[torch.from_numpy(slices_around(place, neighbours, len(content)))].transpose(0, 1).flatten(0, 1)
