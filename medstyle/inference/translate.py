"""From a source image to a synthetic one on the same grid."""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medstyle.errors import Refusal, UserError
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import Pixels, from_unit, over_white, to_unit
from medstyle.imaging.volume import Volume
from medstyle.inference.ood import Verdict, judge, oddities
from medstyle.inference.statistics import Statistics
from medstyle.inference.steady import Shot
from medstyle.inference.uncertainty import spread
from medstyle.inference.windows import Render, blend
from medstyle.networks.translator import Translator, box_around, extent_of
from medstyle.params import parse
from medstyle.transforms.finish import enlarge, sharpen
from medstyle.transforms.prepare import Preparation, Prepared, frame_picture, picture_slices, prepare, slices_picture
from medstyle.transforms.register import onto_grid

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

CHUNK = {
    "cpu": 1 << 16,
    "cuda": 1 << 22,
}  # pixels at once; more than a CPU's cache holds is slower (docs/benchmarks.md)
WHOLE = 1 << 20  # pixels of the largest slice or picture that is rendered in one piece
WINDOW = 512  # pixels; larger ones in windows of the training size, but not smaller than this
SHARED = 0.25  # overlap of windows that share statistics: they differ near their edges alone
STYLE_SLICES = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the body's extent: where a reference scan is looked at

Image = Volume | Pixels  # a scan, or an RGB picture (H, W, 3)
Reference = Image | Sequence[tuple[float, Image]]  # whose style is taken; of several, the mean by these weights


@dataclass(frozen=True)
class Translation:
    """What came out: a volume on the grid of its source, or a picture as its source is: bits, opacity.

    ``uncertainty`` is in the unit of the target domain, uncalibrated; None unless asked for. ``warnings`` says what is
    wrong with the output, whatever the input was.
    """

    image: Image
    ood: Verdict
    uncertainty: Volume | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """How much of the style a picture gets, and what is done to it afterwards.

    Attributes:
        strength: 0 leaves the picture as it is, 1 is the whole style; between them the two are mixed.
        keep_colour: take the lightness alone from the style (CIELAB), the colours from the picture.
        size: shorter side, pixels, at which the picture is painted; the change is enlarged and added to the picture, so
            that strokes become larger and details stay. None: its own size.
        mask: ``(h, w)`` in [0, 1], stretched over the picture: how much of the style each place gets.
        steady: frames of a video: share of what the frame before showed, where it is found again; see :class:`Shot`.
        sharpen: in [0, 1], how strongly edges are raised.
        upscale: 1 to 4, how many times the rows and columns; interpolated, so no detail is added.
    """

    strength: float = 1.0
    keep_colour: bool = False
    sharpen: float = 0.0
    upscale: int = 1
    size: int | None = None
    mask: NDArray[np.float32] | None = field(default=None, compare=False)
    steady: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise UserError(f"strength: must lie in [0, 1], got {self.strength:g}")
        if not 0 <= self.sharpen <= 1:
            raise UserError(f"sharpen: must lie in [0, 1], got {self.sharpen:g}")
        if not 1 <= self.upscale <= 4:
            raise UserError(f"upscale: must be 1, 2, 3 or 4, got {self.upscale}")
        if self.size is not None and self.size < 32:
            raise UserError(f"size: must be at least 32 pixels, got {self.size}")

    @property
    def whole(self) -> bool:
        """Tell whether the output is the network's as it is."""
        return replace(self, steady=FULL.steady) == FULL and self.mask is None

    def applied(self, source: Pixels, made: Pixels) -> Pixels:
        """Mix and finish RGB pictures of one type, both ``(H, W, 3)``; a fourth channel of the source is taken over."""
        source, opacity = over_white(source), source[..., 3:]
        if self.keep_colour:
            from skimage.color import lab2rgb, rgb2lab

            lab = rgb2lab(source)
            lab[..., 0] = rgb2lab(made)[..., 0]
            with warnings.catch_warnings(action="ignore"):  # colours beyond what a screen shows are cut
                made = from_unit(lab2rgb(lab), made.dtype)
        if self.strength < 1 or self.mask is not None:
            share: Any = self.strength
            if self.mask is not None:
                from skimage.transform import resize

                share = share * resize(self.mask, source.shape[:2], order=1, mode="edge").astype(np.float32)[..., None]
            made = from_unit((1 - share) * to_unit(source) + share * to_unit(made), made.dtype)
        if self.sharpen:
            made = sharpen(made, self.sharpen)
        image = np.dstack([made, opacity])
        return enlarge(image, self.upscale) if self.upscale > 1 else image


FULL = Look()


def translate_volume(
    volume: Volume,
    translator: Translator,
    target: str | None = None,
    *,
    contrasts: Sequence[Volume] = (),
    reference: Reference | None = None,
    seed: int | None = None,
    uncertainty: bool = False,
) -> Translation:
    """Render ``volume`` in ``target`` (default: the domain the translator was trained for).

    The output lies on exactly the grid of the source; CT is in HU, MR in the units of the median training image.

    Args:
        volume: of any domain of the translator; it was trained from ``config.source``.
        translator: see :class:`Translator`.
        target: one of the translator's domains.
        contrasts: the other scans of the subject that the translator needs, on any grid and in any order.
        reference: a scan of ``target`` whose style is taken, or several with their weights.
        seed: draws a style.
        uncertainty: also measure how much the output changes where it should not.

    Raises:
        UserError: a domain, a contrast or a source of style is not what the translator was trained with.
        Refusal: ``E_EMPTY`` there is no body to translate.
    """
    style = style_of(translator, target, reference, seed)
    prepared = prepare_source(volume, translator, contrasts)
    return translate_prepared(prepared, translator, target, style=style, uncertainty=uncertainty)


def prepare_source(volume: Volume, translator: Translator, contrasts: Sequence[Volume] = ()) -> Prepared:
    """Clean and grid ``volume`` and its contrasts as the translator's training images were."""
    config = translator.config
    translator.index(volume.domain)
    settings = parse(Preparation, config.preparation, "translator preparation")
    given = [other.domain for other in contrasts]
    if sorted(given) != sorted(config.contrasts):
        needs = " and ".join(config.contrasts) or "nothing"
        raise UserError(f"this translator needs {needs} beside {config.source}, not {' and '.join(given) or 'nothing'}")
    prepared = prepare(volume, settings)
    if not contrasts:
        return prepared
    stack = [prepared.slices]
    for other in sorted(contrasts, key=lambda other: config.contrasts.index(other.domain)):
        stack.append(prepare(onto_grid(other, volume, config.registration), settings).slices)
    return replace(prepared, slices=torch.cat(stack, 1))


def style_of(
    translator: Translator,
    target: str | None = None,
    reference: Reference | None = None,
    seed: int | None = None,
) -> list[Tensor]:
    """Return the style codes of ``target``: of a reference image of it, of a seed, else its own."""
    if reference is None:
        return translator.style(target, seed=seed)
    if seed is not None:
        raise UserError("a style comes from a reference or from a seed, not from both")
    domain, config = target or translator.config.target, translator.config
    translator.index(domain)
    several = [(1.0, reference)] if isinstance(reference, Volume | np.ndarray) else list(reference)
    total = sum(weight for weight, _ in several)
    if not several or total <= 0 or min(weight for weight, _ in several) < 0:
        raise UserError("the weights of the styles must not be negative, and not all be 0")
    codes = []
    for weight, image in several:
        if isinstance(image, Volume) != (DOMAINS[domain].dicom is not None):
            raise UserError(f"the reference must be {'a picture' if DOMAINS[domain].dicom is None else 'a scan'}")
        if "reference" not in config.architecture.style:
            return translator.style(domain, torch.empty(1))  # says so
        of_members = translator.style(domain, _reference_images(image, translator, domain))
        codes.append([weight / total * code for code in of_members])
    return [torch.stack(each).sum(0) for each in zip(*codes, strict=True)]


def _reference_images(reference: Image, translator: Translator, domain: str) -> Tensor:
    """Return ``(R, C, ...)`` images in network units, framed as the training images were."""
    from monai.transforms import ResizeWithPadOrCrop

    config = translator.config
    settings = parse(Preparation, config.preparation, "translator preparation")
    if isinstance(reference, Volume):
        if reference.domain != domain:
            raise UserError(f"the reference is {reference.domain}, but its style is wanted for {domain}")
        prepared = prepare(reference, settings)
        if not prepared.foreground.any():
            raise Refusal("E_EMPTY", "the reference shows no body: every voxel has about the same value")
        if config.architecture.dimensions == 3:
            images = prepared.slices.movedim(1, 0)[None]
        else:
            depths = np.flatnonzero(prepared.foreground.any(axis=(1, 2)))
            where = np.unique(np.quantile(depths, STYLE_SLICES, method="nearest"))
            images = prepared.slices[torch.from_numpy(where)]
    else:
        images = picture_slices(reference, domain, settings)
        if config.size:
            images = frame_picture(images, config.size, settings.aspect)
    if not config.size:
        return images
    framed = ResizeWithPadOrCrop(config.size, mode="constant", value=-1)(images.flatten(0, 1))
    return torch.as_tensor(np.asarray(framed)).unflatten(0, images.shape[:2])


def translate_prepared(
    prepared: Prepared,
    translator: Translator,
    target: str | None = None,
    *,
    style: list[Tensor] | None = None,
    uncertainty: bool = False,
) -> Translation:
    """Do as :func:`translate_volume` for a source that is prepared already, in a style of :func:`style_of`."""
    target = target or translator.config.target
    if not prepared.foreground.any():
        raise Refusal("E_EMPTY", "the image shows no body: every voxel has about the same value")
    fingerprint = translator.config.fingerprints[target]
    verdict = judge(prepared.slices[:, :1], translator, prepared.source.domain)
    made = torch.full_like(prepared.slices[:, :1], -1)
    deviation = torch.zeros_like(made) if uncertainty else None
    synthesise(
        translator, prepared.slices, target, style=style, body=prepared.foreground, out=made, deviation=deviation
    )
    extra = None
    if deviation is not None:
        shown = deviation[:, 0].numpy()
        for sigma, one in zip(shown, made[:, 0].numpy(), strict=True):
            sigma[:] = (fingerprint.backward(one + sigma) - fingerprint.backward(one - sigma)) / 2
        extra = prepared.source.with_voxels(prepared.to_source_grid(shown), target)
    found = oddities(made, prepared.foreground)
    return Translation(prepared.restore(made, target, fingerprint), verdict, extra, found)


def translate_picture(
    pixels: Pixels,
    translator: Translator,
    target: str | None = None,
    *,
    domain: str | None = None,
    reference: Reference | None = None,
    seed: int | None = None,
    look: Look = FULL,
) -> Translation:
    """Render an ``(H, W, 3)`` RGB picture of ``domain`` in ``target``, at its own size; see :func:`translate_volume`.

    Default: from the domain that the translator was trained from to the one it was trained for. 16 bits stay 16. A
    picture with opacity, ``(H, W, 4)``, is laid over white for the network and keeps its fourth channel.
    """
    look = replace(look, steady=0.0)  # there is no frame before
    frames = translate_frames([pixels], translator, target, domain=domain, reference=reference, seed=seed, look=look)
    return next(frames)


def translate_frames(
    frames: Iterable[Pixels],
    translator: Translator,
    target: str | None = None,
    *,
    domain: str | None = None,
    reference: Reference | None = None,
    seed: int | None = None,
    look: Look = FULL,
    style: list[Tensor] | None = None,
    shot: Shot | None = None,
) -> Iterator[Translation]:
    """Render pictures one after the other in one style, as :func:`translate_picture` does each.

    They are the frames of a video unless ``look.steady`` is 0; ``shot`` goes on with one that was begun before.
    ``style``, of :func:`style_of`, stands for reference and seed.
    """
    target, domain = target or translator.config.target, domain or translator.config.source
    translator.index(domain)
    style = style or style_of(translator, target, reference, seed)
    shot = shot or Shot(translator, look.steady)
    settings = parse(Preparation, translator.config.preparation, "translator preparation")
    for pixels in frames:
        opaque = over_white(pixels)
        slices = picture_slices(opaque, domain, settings)
        with shot.frame(opaque) as join:
            made = _painted(translator, slices, target, style, look.size)
        image = look.applied(pixels, join(slices_picture(made, target, pixels.dtype)))
        yield Translation(image, judge(slices, translator, domain), warnings=oddities(made))


def _painted(translator: Translator, x: Tensor, target: str, style: list[Tensor], size: int | None) -> Tensor:
    """Render a picture ``(1, C, H, W)`` at a shorter side of ``size``, and add the change, enlarged, to the picture."""
    scale = (size or math.inf) / min(x.shape[2:])
    if scale >= 1:
        return synthesise(translator, x, target, style=style)
    small = F.interpolate(x, [round(n * scale) for n in x.shape[2:]], mode="bilinear", antialias=True)
    change = synthesise(translator, small, target, style=style) - small
    return (x + F.interpolate(change, x.shape[2:], mode="bicubic")).clamp(-1, 1)


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
    """Render a stack of slices; never more than a few of them, or one window, are at work at once.

    Args:
        translator: 2-D: slices one by one; 2.5-D: each with its neighbours; 3-D: windows of its training size.
        content: ``(D, M, H, W)`` in network units, a view or not; ``M`` counts the channels of source and contrasts.
        target: default: the trained one.
        style: of :meth:`Translator.style`; default: the target's.
        body: ``(D, H, W)``: a slice is rendered in the box around the body that it and its neighbours show, as in
            training; the rest of ``out`` stays as it is. Default: whole slices.
        out: ``(D, C, H, W)`` to fill, a view or not; default: a new one.
        deviation: filled with :func:`spread`, which is not computed without it. Where windows overlap it is the
            blend of theirs.
    """
    architecture, training = translator.config.architecture, translator.config.size
    codes = style or translator.style(target)
    if out is None:
        channels = DOMAINS[translator.config.domains[0]].channels
        out = content.new_full((len(content), channels, *content.shape[2:]), -1.0)
    outs = [out] if deviation is None else [out, deviation]

    def render(x: Tensor) -> Sequence[Tensor]:
        return [translator(x, style=codes)] if deviation is None else spread(translator, x, codes)

    size = content.shape[2:]
    if architecture.dimensions == 3:
        inside = (..., *box_around((0, -1, 0, -1) if body is None else extent_of(body), size, translator.multiple))
        volume = content[inside].movedim(0, 1)[None]
        blend(render, volume, training or volume.shape[2:], [image[inside].movedim(0, 1)[None] for image in outs])
        return out
    # slices with boxes of one size are rendered together, wherever these lie
    alike: dict[tuple[int, int], list[tuple[int, tuple[slice, slice]]]] = defaultdict(list)
    for place in range(len(content)):
        extent = (0, -1, 0, -1)
        if body is not None:
            extent = extent_of(body[_around(place, architecture.neighbours, len(content))])
            if extent[1] < 0:  # air alone
                continue
        rows, columns = box_around(extent, size, translator.multiple)
        alike[rows.stop - rows.start, columns.stop - columns.start].append((place, (rows, columns)))
    for (height, width), places in alike.items():
        large = height * width > WHOLE
        window = [max(n, WINDOW) for n in training or (WINDOW, WINDOW)] if large else [height, width]
        step = 1 if large else max(1, CHUNK[translator.device.type] // (height * width))
        for chunk in (places[start : start + step] for start in range(0, len(places), step)):
            x = torch.stack([_with_neighbours(content, z, architecture.neighbours)[(..., *box)] for z, box in chunk])
            parts = [image.new_empty((len(chunk), image.shape[1], height, width)) for image in outs]
            _blended(translator, render, x, window, parts)
            for image, part in zip(outs, parts, strict=True):
                for (z, box), one in zip(chunk, part, strict=True):
                    image[(z, ..., *box)] = one
    return out


def _blended(translator: Translator, render: Render, x: Tensor, window: Sequence[int], parts: Sequence[Tensor]) -> None:
    """Render slices in windows that share the statistics of the whole, made smaller: one style everywhere."""
    scale = (WHOLE / (x.shape[2] * x.shape[3])) ** 0.5
    if scale >= 1:
        blend(render, x, window, parts)
        return
    statistics = Statistics(one.generator for one in translator.members)
    with statistics.gather():
        small = [max(min(n, 64), round(n * scale)) for n in x.shape[2:]]
        render(F.interpolate(x, small, mode="bilinear", antialias=True))
    with statistics.share():
        blend(render, x, window, parts, SHARED)


def _around(place: int, neighbours: int, depth: int) -> NDArray[np.int64]:
    """Return the slices that the network sees around a place, the ends repeated."""
    return np.clip(np.arange(neighbours) + place - neighbours // 2, 0, depth - 1)


def _with_neighbours(content: Tensor, place: int, neighbours: int) -> Tensor:
    """Return a slice of ``(D, M, H, W)`` with its neighbours as ``(M B, H, W)``: channel ``m B + b``."""
    if neighbours == 1:
        return content[place]
    return content[torch.from_numpy(_around(place, neighbours, len(content)))].transpose(0, 1).flatten(0, 1)
