"""Translate files; the output has the same kind of file as the input, marked as synthetic."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medstyle.cohort.inventory import Item, inventory
from medstyle.cohort.rules import domain_of
from medstyle.data.looks import looks_asked_for
from medstyle.errors import Code, DataError, OutputError, Refusal
from medstyle.imaging.formats import FORMATS
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import SYNTHETIC_MARK, SYNTHETIC_NOTE, read_picture, to_unit, write_picture
from medstyle.imaging.volume import Volume, write_volume
from medstyle.inference.film import Film
from medstyle.inference.ood import Verdict, contradiction
from medstyle.inference.render_options import FULL, RenderOptions
from medstyle.inference.translate import (
    Image,
    Reference,
    Rendering,
    Translation,
    example_of,
    prepare_source,
    render_picture,
    style_of,
    translate_prepared,
)
from medstyle.networks.translator import Translator

if TYPE_CHECKING:
    from medstyle.dicom.scan import Series
    from medstyle.dicom.write import Derivation, ModelIdentity

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

Row = dict[str, Any]  # serialisable as JSON
CLINICAL_NOTE = f"{SYNTHETIC_MARK} - NOT FOR DIAGNOSTIC USE"


def domain_in(item: Item, path: str, translator: Translator) -> str | None:
    """Return the domain of ``item`` by the translator's rules or by its file name."""
    named = item.path.name.split(".")[0] if item.source != "dicom" else ""
    rules = translator.config.rules
    attributes = {**item.attributes, "path": path, **looks_asked_for(item, rules)}
    return domain_of(attributes, rules) or (named if named in DOMAINS else None)


@dataclass(frozen=True)
class About:
    """What a report says of the model: its name, its version, and the verdict of the gate."""

    name: str
    version: str
    gate: str = "not asked"


@dataclass(frozen=True)
class Request:
    """The options of a translation of files.

    Attributes:
        target: target domain; default: the one that the translator was trained for.
        source_domain: source domain; default: the one that the translator was trained from. Its
            images are recognised by the translator's rules or by their file names. If none are
            recognised, all images are assigned to a domain that was named here; otherwise a single
            file is assigned to the default.
        reference: image of ``target`` that defines the style: a file, a folder with one such image,
            or several of these with weights.
        seed: seed of a random style.
        uncertainty: also write a map of how much the output changes where it should not, and of the
            interval, if the translator is calibrated.
        options: how the style is applied to pictures and videos.
        force: translate even images that do not resemble the training images.
        allow: codes to override after inspection of the images, such as ``E_BURNED_IN``.
        about: the model; then a structured report is written beside each derived DICOM series.
    """

    target: str | None = None
    source_domain: str | None = None
    reference: Path | Sequence[tuple[float, Path]] | None = None
    seed: int | None = None
    uncertainty: bool = False
    options: RenderOptions = FULL
    force: bool = False
    allow: Collection[str] = ()
    about: About | None = None


@dataclass(frozen=True)
class Job:
    """One image to translate: its file, its output file, its domains and its style."""

    item: Item
    out: Path
    domain: str
    target: str
    contrasts: tuple[Item, ...]
    style: Reference | None
    request: Request


def translate_path(
    source: Path, out: Path, translator: Translator, request: Request = Request()
) -> list[dict[str, Any]]:
    """Translate every image of the source domain below ``source``; return a row of facts for each.

    DICOM series are written as series in folders below ``out``. One volume file, picture or video
    is written to the file ``out`` (or to a file of the same name in the folder ``out``). Nothing is
    overwritten. For a translator of several contrasts, the others must be in the same DICOM study
    or in the same folder.

    Args:
        source: file or folder.
        out: file or folder.
        translator: see :class:`Translator`.
        request: see :class:`Request`.

    Raises:
        UserError: no image below ``source`` fits the translator, a contrast is missing, or an
            output exists.
        Refusal: ``E_OUT_OF_DISTRIBUTION`` unless the request forces it.
    """
    return [translate_job(job, translator) for job in plan(source, out, translator, request)]


def plan(source: Path, out: Path, translator: Translator, request: Request) -> list[Job]:
    """Find the images to translate and their inputs.

    Raises the errors of :func:`translate_path`.
    """
    config = translator.config
    for name in filter(None, (request.target, request.source_domain)):
        translator.index(name)
    items = _usable(source, request.allow)
    target, wanted = request.target or config.target, request.source_domain or config.source
    root = source if source.is_dir() else source.parent
    around = _usable(root, request.allow) if config.contrasts and source.is_file() else items
    domains = {o.key: domain_in(o, o.path.relative_to(root).as_posix(), translator) for o in (*items, *around)}
    if request.source_domain is not None and wanted not in {domains[o.key] for o in items}:  # an explicit override
        domains |= {o.key: wanted for o in items if domains[o.key] not in config.contrasts}
    elif len(items) == 1 and items[0].source != "dicom":
        domains[items[0].key] = domains[items[0].key] or wanted
    takes = config.domains if DOMAINS[wanted].any_contrast else (wanted,)
    chosen = [item for item in items if domains[item.key] in takes]
    if not chosen:
        raise DataError(f"{source}: nothing to translate: {_why_none(source, root, translator, wanted, len(items))}")
    several = [(1.0, request.reference)] if isinstance(request.reference, Path) else request.reference or []
    style = [(weight, read_reference(path, translator, target)) for weight, path in several] or None
    return [
        Job(
            item,
            _place(item, source, out),
            domains[item.key] or wanted,
            target,
            tuple(_beside(item, name, around, domains) for name in config.contrasts),
            style,
            request,
        )
        for item in chosen
    ]


def _why_none(source: Path, root: Path, translator: Translator, wanted: str, count: int) -> str:
    for item in inventory([source]).volumes:  # look for an image that cannot be used
        if domain_in(item, item.path.relative_to(root).as_posix(), translator) == wanted:
            return f"{_name(item)}: {item.code}: {item.reason}"
    return f"none of its {count} images matches the model's rules for {wanted}; set the domain with --from"


def translate_job(job: Job, translator: Translator, look: Callable[[Translation], None] | None = None) -> Row:
    """Translate one image and write it; return its row of facts.

    ``look`` is called with what was made, unless it is a video.
    """
    if job.item.source == "video":
        return _film(job, translator)
    result = _translate(job, translator)
    if result.ood.verdict == "refuse" and not job.request.force:
        raise _unlike(job.item, result.ood)
    written = _write(job, result, translator)
    if look is not None:
        look(result)
    shape = result.image.voxels.shape if isinstance(result.image, Volume) else result.image.shape
    notes = [*result.warnings, *(f"the source: {doubt.reason}" for doubt in job.item.doubts())]
    if job.item.source == "picture" and job.item.shape[0] > 1:
        notes.append(f"only the first of {job.item.shape[0]} pages was translated; split the file to have them all")
    return _row(job, written, shape, result.ood, notes, translator)


def _film(job: Job, translator: Translator) -> Row:
    """Translate a video in one style; returns its row, with the score of the oddest frame."""
    if not DOMAINS[job.domain].picture:
        raise DataError(f"{_name(job.item)}: a video cannot be an input for {job.domain} -> {job.target}")
    codes = style_of(translator, job.target, job.style, job.request.seed)
    rendering = Rendering(translator, job.target, job.domain, codes, job.request.options)
    film = Film(job.item.path, job.out, rendering, SYNTHETIC_NOTE)
    for result in film.render(job.item.shape[0] or None):
        if result.ood.verdict == "refuse" and not job.request.force:
            film.discard()
            raise _unlike(job.item, result.ood)
    return _row(job, job.out, [film.frames, *film.shape], film.worst, sorted(film.warnings), translator)


def _unlike(item: Item, ood: Verdict) -> Refusal:
    reason = ood.reason or f"does not resemble the training images (deviates by {ood.score:.1f} SD)"
    remedy = "check its domain and its orientation, or override with --force"
    return Refusal(Code.E_OUT_OF_DISTRIBUTION, f"{_name(item)} {reason}; {remedy}")


def _row(
    job: Job, written: Path, shape: Sequence[int], ood: Verdict, warnings: Sequence[str], translator: Translator
) -> Row:
    return {
        "series": job.item.key,
        "out": str(written),
        "domain": job.target,
        "shape": list(shape),
        "ood_score": ood.score,
        "ood_verdict": ood.verdict,
        "warnings": list(warnings),
        "weights_sha256": translator.sha256,
    }


def read_reference(path: Path, translator: Translator, target: str | None) -> Image:
    """Read the one image of ``target`` at or below ``path``; raise :class:`UserError` otherwise."""
    domain, items = target or translator.config.target, _usable(path)
    root = path if path.is_dir() else path.parent
    if len(items) > 1:
        items = [i for i in items if domain_in(i, i.path.relative_to(root).as_posix(), translator) == domain]
    if len(items) != 1:
        raise DataError(f"{path}: a style needs exactly one image of {domain}; found {len(items)}")
    [item] = items
    return read_picture(item.path, "picture") if item.source == "picture" else item.load(domain)


def read_mask(path: Path) -> NDArray[np.float32]:
    """Read a picture as the mask of :class:`RenderOptions`: white is full style, black none."""
    return to_unit(read_picture(path)).mean(axis=2)


def _usable(path: Path, allow: Collection[str] = ()) -> list[Item]:
    """List the usable images below ``path``.

    Raise :class:`UserError` with the cause if there are none.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = inventory([path])
    usable = [item for item in found.volumes if item.usable or (item.kind != "refused" and item.code in allow)]
    if not usable:
        causes = sorted({f"{one.code}: {one.reason}" for one in found.volumes or found.files}) or [
            "it contains no file"
        ]
        raise DataError(f"{path}: no usable image: {causes[0]}")
    return usable


def _beside(item: Item, domain: str, items: Sequence[Item], domains: Mapping[str, str | None]) -> Item:
    """Find the image of ``domain`` in the study, or the folder, of ``item``."""

    def place(one: Item) -> str:
        return (one.series.study_uid if one.series is not None else "") or str(one.path.parent)

    found = [other for other in items if domains[other.key] == domain and place(other) == place(item)]
    if len(found) != 1:
        where = "DICOM study" if item.series is not None else "folder"
        raise DataError(
            f"{_name(item)}: this translator needs one image of {domain} in the same {where}; found {len(found)}"
        )
    return found[0]


def _name(item: Item) -> str:
    """Name an item in a message without its file name, which may be the patient's name.

    `medstyle inspect` shows which file it is.
    """
    return f"image {item.key}"


def _translate(job: Job, translator: Translator) -> Translation:
    item, request = job.item, job.request
    if (item.source == "picture") != (DOMAINS[job.domain].picture):
        raise DataError(f"{_name(item)}: a {item.source} cannot be an input for {job.domain} -> {job.target}")
    if item.source == "picture":
        if request.uncertainty:
            raise DataError("an uncertainty map has the unit of a scan; pictures have no unit")
        pixels = read_picture(item.path, "picture", alpha=True)
        codes = style_of(translator, job.target, job.style, request.seed)
        return render_picture(pixels, Rendering(translator, job.target, job.domain, codes, request.options))
    if not request.options.whole:
        why = "strength, colours, mask, sharpness and size apply to pictures only; a partly styled scan has no meaning"
        raise DataError(f"{_name(item)}: {why}")
    if item.series is not None:  # what cannot be written is known before the work
        from medstyle.dicom.write import check_derived

        try:
            check_derived(_derivation(job, item.series, translator), job.target, job.out)
        except Refusal as refusal:
            raise Refusal(refusal.code, f"{_name(item)}: {refusal.reason}") from None
    names = translator.config.contrasts
    volumes = [other.load(name, allow=request.allow) for other, name in zip(job.contrasts, names, strict=True)]
    source = item.load(job.domain, allow=request.allow)
    prepared = prepare_source(source, translator, volumes)
    codes = style_of(translator, job.target, job.style, request.seed)
    example = example_of(translator, job.target, job.style)
    result = translate_prepared(
        prepared, translator, job.target, style=codes, uncertainty=request.uncertainty, example=example
    )
    return _doubted(result, (source, *volumes))


def _doubted(result: Translation, sources: Sequence[Volume]) -> Translation:
    """Let the verdict be to refuse if a source clearly is not what it was given as."""
    reasons = [reason for reason in map(contradiction, sources) if reason]
    if not reasons:
        return result
    warnings = (*result.warnings, *(f"the source {reason}" for reason in reasons))
    return replace(result, ood=Verdict(result.ood.score, "refuse", reasons[0]), warnings=warnings)


def _write(job: Job, result: Translation, translator: Translator) -> Path:
    """Write image and maps; return the file, or the folder of a DICOM series."""
    image = result.image
    if not isinstance(image, Volume):
        write_picture(job.out, image, SYNTHETIC_NOTE)
    elif job.item.series is not None:
        return _write_dicom(job, job.item.series, image, result, translator)
    else:
        write_volume(job.out, image, CLINICAL_NOTE)
        for kind, volume in _maps(result).items():
            write_volume(_companion(job.out, kind), volume, f"{kind.upper()} MAP {CLINICAL_NOTE}")
    return job.out


def _maps(result: Translation) -> dict[Literal["uncertainty", "interval"], Volume]:
    """Return what is written beside the image."""
    maps: dict[Literal["uncertainty", "interval"], Volume | None]
    maps = {"uncertainty": result.uncertainty, "interval": result.interval}
    return {kind: volume for kind, volume in maps.items() if volume is not None}


def _derivation(job: Job, series: Series, translator: Translator) -> Derivation:
    from importlib.metadata import version

    from medstyle.dicom.write import Derivation, ModelIdentity

    name = f"medstyle {DOMAINS[job.domain].label}->{DOMAINS[job.target].label}"
    contrasts = tuple(other.series for other in job.contrasts if other.series is not None)
    aligned = translator.config.alignment != "headers"
    model = ModelIdentity(name, version("medstyle"), translator.sha256)
    variant = _variant(job, translator)
    return Derivation(series, model, job.domain, contrasts, aligned=aligned, variant=variant)


def _variant(job: Job, translator: Translator) -> tuple[str, ...]:
    """Return what determines the voxels beside model and source: sharpness, seed and styles."""
    architecture, several = translator.config.architecture, job.style if isinstance(job.style, Sequence) else []
    if isinstance(job.style, Volume):
        several = [(1.0, job.style)]
    return (
        *([f"sharpness {architecture.sharpness:g}"] if architecture.refiner else []),
        *([f"seed {job.request.seed}"] if job.request.seed is not None else []),
        *(
            f"style {weight:g} {hashlib.sha256(one.voxels.tobytes()).hexdigest()}"
            for weight, one in several
            if isinstance(one, Volume)
        ),
    )


def _write_dicom(job: Job, series: Series, image: Volume, result: Translation, translator: Translator) -> Path:
    from medstyle.dicom.write import write_derived

    uncertainty = result.uncertainty
    details: dict[str, Any] = {"ood_score": result.ood.score, "ood_verdict": result.ood.verdict}
    details["config_sha256"] = hashlib.sha256(translator.config.to_json().encode()).hexdigest()
    if uncertainty is not None:
        inside = uncertainty.voxels[uncertainty.voxels > 0]
        details["uncertainty_mean"] = float(inside.mean()) if inside.size else 0.0
        details["uncertainty_max"] = float(uncertainty.voxels.max())
    if result.interval is not None:
        details["interval"] = str(translator.config.interval)
    derivation = _derivation(job, series, translator)
    model = replace(derivation.model, details=details)
    derivation = replace(derivation, model=model, neighbourhood=_neighbourhood(image, translator))
    files = write_derived(image, derivation, job.out)
    written = files[0].parent
    for kind, volume in _maps(result).items():
        files += write_derived(volume, replace(derivation, kind=kind), job.out)
    if job.request.about is not None:
        _write_report(job, series, result, model, files)
    return written


def _write_report(job: Job, series: Series, result: Translation, model: ModelIdentity, files: Sequence[Path]) -> None:
    from medstyle.dicom.report import Finding, write_report

    about = job.request.about
    assert about is not None
    finding = Finding(
        about.name,
        about.version,
        about.gate,
        software=model.version,
        sha256=model.sha256,
        domain=job.target,
        ood_score=result.ood.score,
        ood_verdict=result.ood.verdict,
        uncertainty=model.details.get("uncertainty_mean"),
        notes=tuple(result.warnings),
    )
    write_report(finding, series, files, job.out)


def _neighbourhood(volume: Volume, translator: Translator) -> int | None:
    """Return the number of source slices on either side that affect an output slice; None: all."""
    architecture = translator.config.architecture
    axial = np.abs(volume.direction[2]).argmax() == 2  # the slices of the network are always axial
    return architecture.neighbours // 2 if axial and architecture.dimensions == 2 else None


def _place(item: Item, source: Path, out: Path) -> Path:
    """Choose the output file; raise :class:`UserError` if it exists or has an unsuitable suffix."""
    if item.series is not None:
        return out
    if source.is_dir() or out.is_dir():
        place = out / (item.path.relative_to(source) if source.is_dir() else item.path.name)
        if item.source == "video" and place.suffix.lower() not in FORMATS["video"].writes:
            place = place.with_suffix(".mkv")  # holds any sound
    else:
        place = out
        assert item.source != "dicom"
        suffixes = FORMATS[item.source].writes
        if not place.name.lower().endswith(suffixes):
            raise DataError(f"{place}: a {item.source} must be written as one of {', '.join(suffixes)}")
    if place.exists():
        raise OutputError(f"{out}: the output for {_name(item)} exists already; remove it or choose another name")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _companion(path: Path, kind: str) -> Path:
    suffix = FORMATS["volume"].suffix(path) or ""
    return path.with_name(f"{path.name.removesuffix(suffix)}_{kind}{suffix}")
