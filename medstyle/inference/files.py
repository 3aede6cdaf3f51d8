"""Translate files: what comes out is the same kind of file, marked as synthetic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from medstyle.errors import Refusal, UserError
from medstyle.imaging.inventory import Item, inventory
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import SYNTHETIC_NOTE, read_picture, write_picture
from medstyle.imaging.rules import Rule, domain_of
from medstyle.imaging.volume import VOLUME_SUFFIXES, Volume, write_volume
from medstyle.inference.translate import translate_picture, translate_volume
from medstyle.networks.translator import Translator
from medstyle.params import parse

CLINICAL_NOTE = "AI SYNTHETIC - NOT FOR DIAGNOSTIC USE"


def source_domain_of(item: Item, translator: Translator, path: str, named: str | None, alone: bool) -> str | None:
    """Tell whether ``item`` is an input for this translator: its domain, or None.

    ``named`` is the user's word. A single volume file or picture that no rule knows is taken for the source: file
    names follow no standard. A DICOM series must match a rule.
    """
    if named is not None:
        return named
    rules = [parse(Rule, rule, "translator rules") for rule in translator.config.rules]
    found = domain_of({**item.attributes, "path": path}, rules)
    if found is None and alone and item.source != "dicom":
        return translator.config.source
    return found


def translate_path(
    source: Path,
    out: Path,
    translator: Translator,
    *,
    target: str | None = None,
    source_domain: str | None = None,
    uncertainty: bool = False,
    force: bool = False,
) -> list[dict[str, Any]]:
    """Translate every image of the source domain below ``source``; answers with a row of facts for each.

    DICOM series become series in folders below ``out``. One volume file or picture becomes the file ``out`` (or a file
    of the same name in the folder ``out``). Nothing is overwritten.

    Raises:
        UserError: nothing below ``source`` fits the translator, or an output exists.
        Refusal: ``E_OUT_OF_DISTRIBUTION`` unless ``force``.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    for name in filter(None, (target, source_domain)):
        translator.index(name)
    wanted = source_domain or translator.config.source
    items = inventory([source]).volumes
    root = source if source.is_dir() else source.parent
    chosen = [
        item
        for item in items
        if item.usable
        and source_domain_of(item, translator, item.path.relative_to(root).as_posix(), source_domain, len(items) == 1)
        == wanted
    ]
    if not chosen:
        causes = sorted({f"{i.code}: {i.reason}" for i in items if not i.usable})
        why = (
            causes[0]
            if causes
            else f"none of its {len(items)} images matches the model's rules for {wanted}; name it with --from"
        )
        raise UserError(f"{source}: nothing to translate: {why}")
    return [_translate_item(item, source, out, translator, target, uncertainty, force) for item in chosen]


def _translate_item(
    item: Item, source: Path, out: Path, translator: Translator, target: str | None, uncertainty: bool, force: bool
) -> dict[str, Any]:
    domain, config = target or translator.config.target, translator.config
    if item.source == "video":
        raise UserError(f"{item.path}: video is not supported yet; extract its frames as pictures")
    if (item.source == "picture") != (DOMAINS[config.source].dicom is None):
        raise UserError(f"{item.path.name}: a {item.source} is no input for {config.source} -> {domain}")
    place = _place(item, source, out)
    if item.source == "picture":
        result = translate_picture(read_picture(item.path), translator, target)
    else:
        result = translate_volume(item.load(config.source), translator, target, uncertainty)
    if result.ood.verdict == "refuse" and not force:
        raise Refusal(
            "E_OUT_OF_DISTRIBUTION",
            f"{item.path.name} is unlike the training images (score {result.ood.score:.1f}, a typical one has 1); "
            "check its domain, or insist with --force",
        )
    written = place
    if isinstance(result.image, Volume):
        if item.series is not None:
            from importlib.metadata import version

            from medstyle.imaging.dicom.write import ModelIdentity, write_derived

            details = {"ood_score": result.ood.score, "ood_verdict": result.ood.verdict}
            name = f"medstyle {DOMAINS[config.source].label}->{DOMAINS[domain].label}"
            model = ModelIdentity(name, version("medstyle"), translator.sha256, details)
            written = write_derived(result.image, item.series, out, model, source_domain=config.source)[0].parent
            if result.uncertainty is not None:
                write_derived(
                    result.uncertainty, item.series, out, model, kind="uncertainty", source_domain=config.source
                )
        else:
            write_volume(place, result.image, CLINICAL_NOTE)
            if result.uncertainty is not None:
                write_volume(_companion(place), result.uncertainty, f"UNCERTAINTY MAP {CLINICAL_NOTE}")
    else:
        write_picture(place, result.image, SYNTHETIC_NOTE)
    shape = result.image.voxels.shape if isinstance(result.image, Volume) else result.image.shape
    return {
        "series": item.key,
        "out": str(written),
        "domain": domain,
        "shape": list(shape),
        "ood_score": result.ood.score,
        "ood_verdict": result.ood.verdict,
        "weights_sha256": translator.sha256,
    }


def _place(item: Item, source: Path, out: Path) -> Path:
    """Choose the output file; raises :class:`UserError` if it exists or its suffix cannot hold the image."""
    if item.series is not None:
        return out
    if source.is_dir() or out.is_dir():
        place = out / (item.path.relative_to(source) if source.is_dir() else item.path.name)
    else:
        place = out
        suffixes = VOLUME_SUFFIXES if item.source == "volume" else (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
        if not place.name.lower().endswith(suffixes):
            raise UserError(f"{place}: a {item.source} is written as one of {', '.join(suffixes)}")
    if place.exists():
        raise UserError(f"{place}: exists already; remove it or choose another name")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _companion(path: Path) -> Path:
    suffix = next(s for s in sorted(VOLUME_SUFFIXES, key=len, reverse=True) if path.name.lower().endswith(s))
    return path.with_name(f"{path.name[: -len(suffix)]}_uncertainty{path.name[-len(suffix) :]}")
