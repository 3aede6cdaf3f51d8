"""From a source image to a synthetic one on the same grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medstyle.errors import Refusal
from medstyle.imaging.volume import Volume
from medstyle.inference.ood import Verdict, judge
from medstyle.inference.uncertainty import spread
from medstyle.networks.translator import Translator
from medstyle.params import parse
from medstyle.transforms.prepare import Preparation, Prepared, picture_slices, prepare, slices_picture

BATCH = {"cpu": 4, "cuda": 64}  # slices at once; small batches stay in a CPU's cache
MARGIN = 8  # pixels of air kept around the body


@dataclass(frozen=True)
class Translation:
    """What came out: a volume on the grid of its source, or an ``(H, W, 3)`` picture.

    ``uncertainty`` is in the unit of the target domain, uncalibrated; None unless asked for.
    """

    image: Volume | NDArray[np.uint8]
    ood: Verdict
    uncertainty: Volume | None = None


def translate_volume(
    volume: Volume, translator: Translator, target: str | None = None, uncertainty: bool = False
) -> Translation:
    """Render ``volume`` in ``target`` (default: the domain the translator was trained for).

    The output lies on exactly the grid of the source; CT is in HU, MR in the units of the median training image.
    """
    return translate_prepared(prepare_source(volume, translator), translator, target, uncertainty)


def prepare_source(volume: Volume, translator: Translator) -> Prepared:
    """Clean and grid ``volume`` as the translator's training images were."""
    return prepare(volume, parse(Preparation, translator.config.preparation, "translator preparation"))


def translate_prepared(
    prepared: Prepared, translator: Translator, target: str | None = None, uncertainty: bool = False
) -> Translation:
    """Do as :func:`translate_volume` for a source that is prepared already."""
    target = target or translator.config.target
    if not prepared.foreground.any():
        raise Refusal("E_EMPTY", "the image shows no body: every voxel has about the same value")
    fingerprint = translator.config.fingerprints[target]
    box = _body(prepared.foreground, translator.multiple)
    inside = prepared.slices[:, :, *box]
    made = synthesise(translator, inside, target)

    def whole(values: Tensor, fill: float) -> Tensor:
        out = torch.full_like(prepared.slices, fill)
        out[:, :, *box] = values
        return out

    image = prepared.restore(whole(made, -1.0), target, fingerprint)
    extra = None
    if uncertainty:
        deviation = torch.cat(
            [
                spread(translator, x, target, y)
                for x, y in zip(_chunks(inside, translator), _chunks(made, translator), strict=True)
            ]
        )
        unit = (fingerprint.high - fingerprint.low) / 2
        extra = prepared.source.with_voxels(prepared.to_source_grid(whole(deviation * unit, 0.0)[:, 0].numpy()), target)
    return Translation(image, judge(prepared.slices, translator), extra)


def translate_picture(pixels: NDArray[np.uint8], translator: Translator, target: str | None = None) -> Translation:
    """Render an ``(H, W, 3)`` RGB picture in ``target``, at its own size."""
    target = target or translator.config.target
    slices = picture_slices(pixels, translator.config.source)
    return Translation(slices_picture(synthesise(translator, slices, target), target), judge(slices, translator))


def synthesise(translator: Translator, slices: Tensor, target: str) -> Tensor:
    """Run the generator over slices ``(N, C, H, W)`` in batches; returns float32 on the CPU."""
    return torch.cat([translator(chunk, target).float() for chunk in _chunks(slices, translator)])


def _chunks(slices: Tensor, translator: Translator) -> list[Tensor]:
    return list(slices.split(BATCH[translator.device.type]))


def _body(foreground: NDArray[np.bool_], multiple: int) -> tuple[slice, slice]:
    """Return the in-plane box of the body with a margin, grown to a multiple of the network's stride."""
    box = []
    for axis, size in ((1, foreground.shape[1]), (2, foreground.shape[2])):
        where = np.flatnonzero(foreground.any(axis=(0, 3 - axis)))
        low, high = max(0, int(where[0]) - MARGIN), min(size, int(where[-1]) + 1 + MARGIN)
        box.append(slice(low, min(size, high + -(high - low) % multiple)))
    return box[0], box[1]
