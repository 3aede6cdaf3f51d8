"""Translate a scan or a picture to a synthetic one on the same grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from medstyle.errors import Code, ModelError, Refusal
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.imaging.picture import Pixels, over_white
from medstyle.imaging.volume import Volume
from medstyle.inference.ood import Verdict, assess, oddities
from medstyle.inference.render_options import FULL, RenderOptions
from medstyle.inference.synthesise import synthesise
from medstyle.inference.temporal import Shot
from medstyle.networks.conformal import scale
from medstyle.networks.translator import Translator
from medstyle.transforms.align import onto_grid
from medstyle.transforms.intensity import foreground_mask
from medstyle.transforms.prepare import Prepared, frame_picture, picture_slices, prepare, unit_picture

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

LEVELS = (0.5, 2, 5, *range(10, 100, 10), 95, 98, 99.5)  # percent: where grey levels are matched
STYLE_SLICES = (0.1, 0.3, 0.5, 0.7, 0.9)  # relative positions, in the body, of the slices of a reference scan
NEAR = 3  # pixels of a small picture around each one: where its painting is compared with it
FLAT = 1e-3  # variance in network units below which a region has no detail to follow

Image = Volume | Pixels  # a scan, or an RGB picture (H, W, 3)
Reference = Image | Sequence[tuple[float, Image]]  # defines the style; several are averaged with these weights


@dataclass(frozen=True)
class Translation:
    """The result of a translation.

    Attributes:
        image: a volume on the grid of its source, or a picture with the bits and the opacity of its
            source.
        ood: verdict on the source.
        uncertainty: in the unit of the target domain, uncalibrated; None unless requested.
        interval: half width of the interval around each voxel of the source's body, 0 elsewhere, in
            the unit of the target domain; with the uncertainty, if the translator is calibrated.
        warnings: what is wrong with the output, for any input; with an uncertainty, also why there
            is no interval.
    """

    image: Image
    ood: Verdict
    uncertainty: Volume | None = None
    interval: Volume | None = None
    warnings: tuple[str, ...] = ()


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

    The output has exactly the grid of the source; CT is in HU, MR in the units of the median
    training image.

    Args:
        volume: of any domain of the translator, which was trained from ``config.source``.
        translator: see :class:`Translator`.
        target: one of the translator's domains.
        contrasts: the other scans of the subject that the translator needs, on any grid and in any
            order.
        reference: a scan of ``target`` that defines the style, or several with their weights. With
            a model of any contrast, the output takes the grey levels of the one scan.
        seed: seed of a random style.
        uncertainty: also measure how much the output changes where it should not.

    Raises:
        UserError: a domain, a contrast or a source of style is not among those that the translator
            was trained with.
        Refusal: ``E_EMPTY`` the image shows no body to translate.
    """
    style = style_of(translator, target, reference, seed)
    prepared = prepare_source(volume, translator, contrasts)
    example = example_of(translator, target, reference)
    return translate_prepared(prepared, translator, target, style=style, uncertainty=uncertainty, example=example)


def prepare_source(volume: Volume, translator: Translator, contrasts: Sequence[Volume] = ()) -> Prepared:
    """Clean and resample ``volume`` and its contrasts in the same way as the training images."""
    config = translator.config
    translator.index(volume.domain)
    if DOMAINS[config.source].any_contrast and not DOMAINS[volume.domain].any_contrast:  # from air at 0, as in training
        volume = volume.with_voxels(volume.voxels - np.float32(DOMAINS[volume.domain].air), config.source)
    settings = config.preparation
    given = [other.domain for other in contrasts]
    if sorted(given) != sorted(config.contrasts):
        needs = " and ".join(config.contrasts) or "nothing"
        raise ModelError(
            f"this translator needs {needs} beside {config.source}, not {' and '.join(given) or 'nothing'}"
        )
    prepared = prepare(volume, settings)
    if not contrasts:
        return prepared
    stack = [prepared.slices]
    for other in sorted(contrasts, key=lambda other: config.contrasts.index(other.domain)):
        stack.append(prepare(onto_grid(other, volume, config.alignment), settings).slices)
    return replace(prepared, slices=torch.cat(stack, 1))


def style_of(
    translator: Translator,
    target: str | None = None,
    reference: Reference | None = None,
    seed: int | None = None,
) -> list[Tensor]:
    """Return style codes of ``target``: from a reference, from a seed, or the default ones.

    Where a reference is an example of grey levels alone (:func:`example_of`), they are the default.
    """
    if reference is None or example_of(translator, target, reference) is not None:
        return translator.style(target, seed=seed)
    if seed is not None:
        raise ModelError("a style comes from a reference or from a seed, not from both")
    domain = target or translator.config.target
    translator.index(domain)
    several = [(1.0, reference)] if isinstance(reference, Volume | np.ndarray) else list(reference)
    total = sum(weight for weight, _ in several)
    if not several or total <= 0 or min(weight for weight, _ in several) < 0:
        raise ModelError("the weights of the styles must not be negative, nor all be 0")
    translator.require_style("reference")
    codes = []
    for weight, image in several:
        if isinstance(image, Volume) == DOMAINS[domain].picture:
            raise ModelError(f"the reference must be {'a picture' if DOMAINS[domain].picture else 'a scan'}")
        of_members = translator.style(domain, _reference_images(image, translator, domain))
        codes.append([weight / total * code for code in of_members])
    return [torch.stack(each).sum(0) for each in zip(*codes, strict=True)]


def example_of(translator: Translator, target: str | None, reference: Reference | None) -> Volume | None:
    """Return the scan whose grey levels an output is to take, if a reference means that.

    A model of any contrast has one protocol for each target, with grey levels of its own. Without a
    style from references, a reference is an example of the site's: one MR scan of the target.
    """
    config, domain = translator.config, target or translator.config.target
    takes_any = DOMAINS[config.source].any_contrast and "reference" not in config.architecture.style
    if reference is None or not takes_any or DOMAINS[domain].absolute:
        return None
    several = [(1.0, reference)] if isinstance(reference, Volume | np.ndarray) else list(reference)
    if len(several) != 1 or not isinstance(several[0][1], Volume):
        return None
    example = several[0][1]
    if example.domain != domain:
        raise ModelError(f"the reference is {example.domain}, but an example of {domain} is needed")
    return example


def levels_of(example: Volume, made: Tensor) -> Fingerprint:
    """Return the rising map from network units to the unit of ``example`` that matches quantiles.

    Histogram matching within the body (Nyul and Udupa, MRM 42:1072, 1999), whose mask is found in
    the same way in both images. Both must show about the same part of the head.

    Args:
        example: scan of the target domain.
        made: ``(D, 1, H, W)`` output in network units.

    Raises:
        Refusal: ``E_EMPTY`` one of them shows no body.
    """
    knots = []
    for values in (example.voxels, made[:, 0].numpy()):
        turned = np.ascontiguousarray(values.transpose(2, 1, 0))
        mask = foreground_mask(turned)
        if not mask.any():
            raise Refusal(Code.E_EMPTY, "the reference or the output shows no body: all voxels have about one value")
        found = np.percentile(turned[mask], LEVELS)
        rise = 1e-4 * max(float(found[-1] - found[0]), 1e-3)  # a map that has an inverse needs rising knots
        knots.append(tuple((np.maximum.accumulate(found) + rise * np.arange(len(found))).tolist()))
    return Fingerprint(*knots)


def _reference_images(reference: Image, translator: Translator, domain: str) -> Tensor:
    """Return ``(R, C, ...)`` images in network units, framed like the training images."""
    from monai.transforms import ResizeWithPadOrCrop

    config = translator.config
    settings = config.preparation
    if isinstance(reference, Volume):
        if reference.domain != domain:
            raise ModelError(f"the reference is {reference.domain}, but a style of {domain} is needed")
        prepared = prepare(reference, settings)
        if not prepared.foreground.any():
            raise Refusal(Code.E_EMPTY, "the reference shows no body: all voxels have about the same value")
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
    example: Volume | None = None,
) -> Translation:
    """Translate a source that is already prepared, in a style from :func:`style_of`.

    The output takes the grey levels of ``example``, from :func:`example_of`.
    """
    target = target or translator.config.target
    if not prepared.foreground.any():
        raise Refusal(Code.E_EMPTY, "the image shows no body: all voxels have about the same value")
    fingerprint = translator.config.fingerprints[target]
    verdict = assess(prepared.slices[:, :1], translator, prepared.source.domain)
    made = torch.full_like(prepared.slices[:, :1], -1)
    deviation = torch.zeros_like(made) if uncertainty else None
    synthesise(
        translator, prepared.slices, target, style=style, body=prepared.foreground, out=made, deviation=deviation
    )
    fingerprint = fingerprint if example is None else levels_of(example, made)
    uncertain, interval, notes = None, None, oddities(made, prepared.foreground)
    if deviation is not None:
        sigma = deviation[:, 0].numpy()
        lacking = _why_no_interval(translator, prepared.source.domain, target, style, example)
        factor = translator.config.interval.factor
        if factor is not None and not lacking:
            half = np.float32(factor) * scale(sigma, prepared.foreground) * prepared.foreground
            interval = _spread_in_units(half, made, fingerprint, prepared, target)
        notes = (*notes, *filter(None, [lacking]))
        uncertain = _spread_in_units(sigma, made, fingerprint, prepared, target)
    return Translation(prepared.restore(made, target, fingerprint), verdict, uncertain, interval, notes)


def _why_no_interval(
    translator: Translator, source: str, target: str, style: list[Tensor] | None, example: Volume | None
) -> str:
    """Return why the translator's calibration does not hold for this output; "" if it does."""
    config = translator.config
    if config.interval.missing:
        return config.interval.missing
    default = style is None or all(map(torch.equal, style, translator.style()))
    if (source, target) == (config.source, config.target) and example is None and default:
        return ""
    return f"no interval: it was calibrated for {config.source} to {config.target} in the default style"


def _spread_in_units(
    spread: NDArray[np.float32], made: Tensor, fingerprint: Fingerprint, prepared: Prepared, target: str
) -> Volume:
    """Convert a spread ``(D, H, W)`` around the output in network units, in place.

    The result has the unit of ``target`` and the grid of the source.
    """
    for here, one in zip(spread, made[:, 0].numpy(), strict=True):
        here[:] = (fingerprint.backward(one + here) - fingerprint.backward(one - here)) / 2
    return prepared.source.with_voxels(prepared.to_source_grid(spread), target)


@dataclass(frozen=True)
class Rendering:
    """How to render pictures: the translator, the two domains, the style codes, the options."""

    translator: Translator
    target: str
    domain: str
    style: list[Tensor]
    options: RenderOptions = FULL


def rendering(
    translator: Translator,
    target: str | None = None,
    *,
    domain: str | None = None,
    reference: Reference | None = None,
    seed: int | None = None,
    options: RenderOptions = FULL,
) -> Rendering:
    """Build the settings for rendering pictures; see :func:`translate_picture`."""
    target, domain = target or translator.config.target, domain or translator.config.source
    translator.index(domain)
    return Rendering(translator, target, domain, style_of(translator, target, reference, seed), options)


def translate_picture(
    pixels: Pixels,
    translator: Translator,
    target: str | None = None,
    *,
    domain: str | None = None,
    reference: Reference | None = None,
    seed: int | None = None,
    options: RenderOptions = FULL,
) -> Translation:
    """Render an ``(H, W, 3)`` RGB picture of ``domain`` in ``target``, at its own size.

    The default domains are those that the translator was trained for. Pictures of 16 bits keep
    their 16 bits. A picture with opacity, ``(H, W, 4)``, is laid over white for the network and
    keeps its fourth channel. The other arguments are those of :func:`translate_volume`.
    """
    how = rendering(translator, target, domain=domain, reference=reference, seed=seed, options=options)
    return render_picture(pixels, how)


def render_picture(pixels: Pixels, how: Rendering) -> Translation:
    """Render one picture."""
    still = replace(how, options=replace(how.options, temporal_smoothing=0.0))  # there is no previous frame
    return next(render_frames([pixels], still))


def render_frames(frames: Iterable[Pixels], how: Rendering, shot: Shot | None = None) -> Iterator[Translation]:
    """Render pictures in order in one style, each like :func:`translate_picture`.

    They are the frames of a video unless ``temporal_smoothing`` is 0; ``shot`` continues an earlier
    one.
    """
    translator, options = how.translator, how.options
    shot = shot or Shot(translator, options.temporal_smoothing)
    for pixels in frames:
        opaque = over_white(pixels)
        slices = picture_slices(opaque, how.domain, translator.config.preparation)
        with shot.frame(opaque) as blend:
            output = _painted(translator, slices, how.target, how.style, options.size)
        image = options.apply(pixels, blend(unit_picture(output, how.target)))
        yield Translation(image, assess(slices, translator, how.domain), warnings=oddities(output))


def _painted(translator: Translator, x: Tensor, target: str, style: list[Tensor], size: int | None) -> Tensor:
    """Render a picture ``(1, C, H, W)`` at a shorter side of ``size``.

    The change is enlarged and added to the picture. So is what the picture lost when it was made
    smaller, times the local slope of the change: detail is turned where the painting opposes the
    picture, and goes where it was painted over (guided upsampling: Kopf, ACM TOG 26(3):96, 2007;
    He and Sun, arXiv 1505.00996).
    """
    scale = (size or math.inf) / min(x.shape[2:])
    if scale >= 1:
        return synthesise(translator, x, target, style=style)
    small = F.interpolate(x, [round(n * scale) for n in x.shape[2:]], mode="bilinear", antialias=True)
    change = synthesise(translator, small, target, style=style) - small
    a, b = _mean(small), _mean(change)
    slope = _mean((_mean(small * change) - a * b) / (_mean(small * small) - a * a + FLAT))  # (1, C, h, w)
    kept, slope, change = (
        F.interpolate(one, x.shape[2:], mode="bicubic", antialias=True) for one in (small, slope, change)
    )
    return (x - kept).mul_(slope).add_(change).add_(x).clamp_(-1, 1)


def _mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2 * NEAR + 1, 1, NEAR, count_include_pad=False)
