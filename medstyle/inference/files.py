"""Translate files: what comes out is the same kind of file, marked as synthetic."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.cohort.inventory import Item, inventory
from medstyle.cohort.rules import Rule, domain_of
from medstyle.errors import Refusal, UserError
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import SYNTHETIC_MARK, SYNTHETIC_NOTE, read_picture, to_unit, write_picture
from medstyle.imaging.video import CODECS
from medstyle.imaging.volume import Volume, write_volume
from medstyle.imaging.volume_header import VOLUME_SUFFIXES
from medstyle.inference.film import Film
from medstyle.inference.ood import Verdict
from medstyle.inference.render_options import FULL, Look
from medstyle.inference.translate import Image, Reference, Translation, style_of, translate_picture, translate_volume
from medstyle.networks.translator import Translator
from medstyle.params import parse

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

CLINICAL_NOTE = f"{SYNTHETIC_MARK} - NOT FOR DIAGNOSTIC USE"


def domain_in(item: Item, path: str, translator: Translator) -> str | None:
    """Tell the domain of ``item`` at ``path`` by the translator's rules, else by a file name that is a domain's."""
    rules = [parse(Rule, rule, "translator rules") for rule in translator.config.rules]
    named = item.path.name.split(".")[0] if item.source != "dicom" else ""
    return domain_of({**item.attributes, "path": path}, rules) or (named if named in DOMAINS else None)


def translate_path(
    source: Path,
    out: Path,
    translator: Translator,
    *,
    target: str | None = None,
    source_domain: str | None = None,
    reference: Path | Sequence[tuple[float, Path]] | None = None,
    seed: int | None = None,
    uncertainty: bool = False,
    look: Look = FULL,
    force: bool = False,
    allow: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Translate every image of the source domain below ``source``; answers with a row of facts for each.

    DICOM series become series in folders below ``out``. One volume file, picture or video becomes the file ``out`` (or
    a file of the same name in the folder ``out``). Nothing is overwritten. A translator of several contrasts finds the
    others in the same DICOM study, or in the same folder.

    Args:
        source: file or folder.
        out: file or folder.
        translator: see :class:`Translator`.
        target: default: the domain it was trained for.
        source_domain: default: the domain it was trained from. Its images are told by the translator's rules or by
            their file names. Where none are, all images are taken for it if it was named, and else a single file.
        reference: image of ``target`` whose style is taken: a file, or a folder with one such image; or several with
            their weights.
        seed, uncertainty: see :func:`translate_volume`.
        look: how much of the style a picture or video gets.
        force: translate even what is unlike the training images.
        allow: codes of images that a person has looked at and overrides, such as ``E_BURNED_IN``.

    Raises:
        UserError: nothing below ``source`` fits the translator, a contrast is missing, or an output exists.
        Refusal: ``E_OUT_OF_DISTRIBUTION`` unless ``force``.
    """
    config = translator.config
    for name in filter(None, (target, source_domain)):
        translator.index(name)
    items = _usable(source, allow)
    target, wanted = target or config.target, source_domain or config.source
    root = source if source.is_dir() else source.parent
    around = _usable(root, allow) if config.contrasts and source.is_file() else items
    domains = {o.key: domain_in(o, o.path.relative_to(root).as_posix(), translator) for o in (*items, *around)}
    if source_domain is not None and wanted not in {domains[o.key] for o in items}:  # a person's word
        domains |= {o.key: wanted for o in items if domains[o.key] not in config.contrasts}
    elif len(items) == 1 and items[0].source != "dicom":
        domains[items[0].key] = domains[items[0].key] or wanted
    chosen = [item for item in items if domains[item.key] == wanted]
    if not chosen:
        why = f"none of its {len(items)} images matches the model's rules for {wanted}; name it with --from"
        for item in inventory([source]).volumes:  # there may be one that cannot be used
            if domain_in(item, item.path.relative_to(root).as_posix(), translator) == wanted:
                why = f"{_name(item)}: {item.code}: {item.reason}"
        raise UserError(f"{source}: nothing to translate: {why}")
    several = [(1.0, reference)] if isinstance(reference, Path) else reference or []
    style = [(weight, read_reference(path, translator, target)) for weight, path in several] or None
    rows = []
    for item in chosen:
        place = _place(item, source, out)
        if item.source == "video":
            rows.append(_film(item, place, translator, wanted, target, style, seed, look, force))
            continue
        contrasts = [_beside(item, name, around, domains) for name in config.contrasts]
        result = _translate(item, contrasts, translator, wanted, target, style, seed, uncertainty, look, allow)
        if result.ood.verdict == "refuse" and not force:
            raise _unlike(item, result.ood.score)
        written = _write(item, contrasts, place, result, translator, wanted)
        shape = result.image.voxels.shape if isinstance(result.image, Volume) else result.image.shape
        notes = [*result.warnings, *(f"the source: {doubt.reason}" for doubt in item.doubts())]
        rows.append(_row(item, written, target, shape, result.ood, notes, translator))
    return rows


def _film(
    item: Item,
    place: Path,
    translator: Translator,
    domain: str,
    target: str,
    reference: Reference | None,
    seed: int | None,
    look: Look,
    force: bool,
) -> dict[str, Any]:
    """Translate a video in one style; returns the row of facts, with the score of the oddest frame."""
    if DOMAINS[domain].dicom is not None:
        raise UserError(f"{_name(item)}: a video is no input for {domain} -> {target}")
    style = style_of(translator, target, reference, seed)
    film = Film(item.path, place, translator, target, domain, style, look, SYNTHETIC_NOTE)
    for result in film.render(item.shape[0] or None):
        if result.ood.verdict == "refuse" and not force:
            film.discard()
            raise _unlike(item, result.ood.score)
    shape = [film.frames, *film.shape]
    return _row(item, place, target, shape, film.worst, sorted(film.warnings), translator)


def _unlike(item: Item, score: float) -> Refusal:
    return Refusal(
        "E_OUT_OF_DISTRIBUTION",
        f"{_name(item)} is unlike the training images (deviates by {score:.1f} SD); "
        "check its domain, or insist with --force",
    )


def _row(
    item: Item,
    written: Path,
    target: str,
    shape: Sequence[int],
    ood: Verdict,
    warnings: Sequence[str],
    translator: Translator,
) -> dict[str, Any]:
    return {
        "series": item.key,
        "out": str(written),
        "domain": target,
        "shape": list(shape),
        "ood_score": ood.score,
        "ood_verdict": ood.verdict,
        "warnings": list(warnings),
        "weights_sha256": translator.sha256,
    }


def read_reference(path: Path, translator: Translator, target: str | None) -> Image:
    """Read the image of ``target`` that is or lies below ``path``; :class:`UserError` if there is not exactly one."""
    domain, items = target or translator.config.target, _usable(path)
    root = path if path.is_dir() else path.parent
    if len(items) > 1:
        items = [i for i in items if domain_in(i, i.path.relative_to(root).as_posix(), translator) == domain]
    if len(items) != 1:
        raise UserError(f"{path}: a style needs one image of {domain}; {len(items)} found")
    [item] = items
    return read_picture(item.path, "picture") if item.source == "picture" else item.load(domain)


def read_mask(path: Path) -> NDArray[np.float32]:
    """Read a picture as the mask of a :class:`Look`: white gets the whole style, black none."""
    return to_unit(read_picture(path)).mean(axis=2)


def _usable(path: Path, allow: Collection[str] = ()) -> list[Item]:
    """List what can be read below ``path``; raises :class:`UserError` saying why if nothing can."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    found = inventory([path])
    usable = [item for item in found.volumes if item.usable or (item.kind != "refused" and item.code in allow)]
    if not usable:
        causes = sorted({f"{one.code}: {one.reason}" for one in found.volumes or found.files}) or ["it holds no file"]
        raise UserError(f"{path}: nothing that can be used: {causes[0]}")
    return usable


def _beside(item: Item, domain: str, items: Sequence[Item], domains: Mapping[str, str | None]) -> Item:
    """Find the image of ``domain`` in the study, or the folder, of ``item``."""

    def place(one: Item) -> str:
        return one.series.study_uid if one.series is not None else str(one.path.parent)

    found = [other for other in items if domains[other.key] == domain and place(other) == place(item)]
    if len(found) != 1:
        where = "DICOM study" if item.series is not None else "folder"
        raise UserError(
            f"{_name(item)}: this translator needs one image of {domain} in the same {where}; {len(found)} found"
        )
    return found[0]


def _name(item: Item) -> str:
    """Name an item in a message: its file may be named after the patient; `medstyle inspect` shows which it is."""
    return f"image {item.key}"


def _translate(
    item: Item,
    contrasts: Sequence[Item],
    translator: Translator,
    domain: str,
    target: str,
    reference: Reference | None,
    seed: int | None,
    uncertainty: bool,
    look: Look,
    allow: Collection[str],
) -> Translation:
    if (item.source == "picture") != (DOMAINS[domain].dicom is None):
        raise UserError(f"{_name(item)}: a {item.source} is no input for {domain} -> {target}")
    if item.source == "picture":
        if uncertainty:
            raise UserError("an uncertainty map is in the unit of a scan; pictures have none")
        pixels = read_picture(item.path, "picture", alpha=True)
        return translate_picture(pixels, translator, target, domain=domain, reference=reference, seed=seed, look=look)
    if not look.whole:
        why = "strength, colours, mask, sharpness and size are for pictures; half a scan means nothing"
        raise UserError(f"{_name(item)}: {why}")
    if item.series is not None and item.affine is None:  # it could not be written: say so before the work
        raise Refusal(
            "E_NO_GEOMETRY", f"{_name(item)} has no position in the patient, which a derived series must have"
        )
    names = translator.config.contrasts
    volumes = [other.load(name, allow=allow) for other, name in zip(contrasts, names, strict=True)]
    return translate_volume(
        item.load(domain, allow=allow),
        translator,
        target,
        contrasts=volumes,
        reference=reference,
        seed=seed,
        uncertainty=uncertainty,
    )


def _write(
    item: Item, contrasts: Sequence[Item], place: Path, result: Translation, translator: Translator, domain: str
) -> Path:
    """Write image and uncertainty beside each other; returns the file, or the folder of a DICOM series."""
    image, uncertainty = result.image, result.uncertainty
    if not isinstance(image, Volume):
        write_picture(place, image, SYNTHETIC_NOTE)
    elif item.series is None:
        write_volume(place, image, CLINICAL_NOTE)
        if uncertainty is not None:
            write_volume(_companion(place), uncertainty, f"UNCERTAINTY MAP {CLINICAL_NOTE}")
    else:
        from importlib.metadata import version

        from medstyle.dicom.write import ModelIdentity, write_derived

        config = translator.config
        details: dict[str, Any] = {"ood_score": result.ood.score, "ood_verdict": result.ood.verdict}
        details["config_sha256"] = hashlib.sha256(config.to_json().encode()).hexdigest()
        if uncertainty is not None:
            inside = uncertainty.voxels[uncertainty.voxels > 0]
            details["uncertainty_mean"] = float(inside.mean()) if inside.size else 0.0
            details["uncertainty_max"] = float(uncertainty.voxels.max())
        name = f"medstyle {DOMAINS[domain].label}->{DOMAINS[image.domain].label}"
        model = ModelIdentity(name, version("medstyle"), translator.sha256, details)
        write = partial(
            write_derived,
            source=item.series,
            out_dir=place,
            model=model,
            source_domain=domain,
            reach=_reach(image, translator),
            contrasts=[other.series for other in contrasts if other.series is not None],
            registered=config.registration != "headers",
        )
        written = write(image)[0].parent
        if uncertainty is not None:
            write(uncertainty, kind="uncertainty")
        return written
    return place


def _reach(volume: Volume, translator: Translator) -> int | None:
    """Return how many slices of the source on either side of its own enter an output slice; None: all."""
    architecture = translator.config.architecture
    axial = np.abs(volume.direction[2]).argmax() == 2  # the network's slices always are
    return architecture.neighbours // 2 if axial and architecture.dimensions == 2 else None


def _place(item: Item, source: Path, out: Path) -> Path:
    """Choose the output file; raises :class:`UserError` if it exists or its suffix cannot hold the image."""
    if item.series is not None:
        return out
    if source.is_dir() or out.is_dir():
        place = out / (item.path.relative_to(source) if source.is_dir() else item.path.name)
        if item.source == "video" and place.suffix.lower() not in CODECS:
            place = place.with_suffix(".mkv")  # holds any sound
    else:
        place = out
        pictures = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
        suffixes = {"volume": VOLUME_SUFFIXES, "video": tuple(CODECS)}.get(item.source, pictures)
        if not place.name.lower().endswith(suffixes):
            raise UserError(f"{place}: a {item.source} is written as one of {', '.join(suffixes)}")
    if place.exists():
        raise UserError(f"{out}: the output for {_name(item)} exists already; remove it or choose another name")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _companion(path: Path) -> Path:
    suffix = next(s for s in sorted(VOLUME_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s))
    return path.with_name(f"{path.name[: -len(suffix)]}_uncertainty{path.name[-len(suffix) :]}")
