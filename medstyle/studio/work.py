"""Define the studio's jobs: the functions that the commands call, on what was dropped."""

from __future__ import annotations

import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from medstyle.cohort.inventory import Item, inventory
from medstyle.errors import DataError, ModelError, UserError
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import SYNTHETIC_NOTE, read_picture, write_picture
from medstyle.imaging.volume import Volume, write_volume
from medstyle.inference.files import CLINICAL_NOTE, Job, Request, domain_in, plan, translate_job
from medstyle.inference.render_options import RenderOptions
from medstyle.inference.translate import Translation
from medstyle.jobs.unzip import unzip
from medstyle.networks.translator import Translator
from medstyle.studio import shelf
from medstyle.studio.place import Place
from medstyle.studio.sessions import safe_name

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SIDE, PREVIEW = 1600, 256  # pixels: the longer side of a picture that is shown, the shorter one of a preview
UNPACKED, MEMBERS = 4 << 30, 20_000  # bytes and files that a zip may hold
NAMED = 100  # files that are named in a verdict
PASSES = 5  # of a network for a map of uncertainty; for the estimate of progress alone


class Look(BaseModel):
    """Arguments of `inspect` and `view`: files, a model, and one image of them."""

    model_config = ConfigDict(extra="forbid")
    set: str
    model: str = "given"
    item: str = ""
    as_source: bool = False


class Make(BaseModel):
    """Arguments of `translate` and `style`."""

    model_config = ConfigDict(extra="forbid")
    set: str
    model: str = "given"
    target: str | None = None
    as_source: bool = False
    uncertainty: bool = False
    sharpness: float | None = None
    force: bool = False
    exemplars: str | None = None
    weights: list[float] = Field(default=[], max_length=16)
    method: str | None = None
    strength: float = 1.0
    keep_colour: bool = False
    size: int | None = None
    seed: int | None = None
    preview: bool = False


def inspect(place: Place, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Say what the files are, which would be used by the model, and what was refused and why."""
    asked = Look(**arguments)
    folder = place.dropped(asked.set)
    unpack(folder)
    found = inventory([folder])
    used, domains, why = {}, {}, ""
    try:
        if any(item.usable for item in found.volumes):
            translator = shelf.translator(asked.model, place.model)
            domains = {
                item.key: domain_in(item, item.path.relative_to(folder).as_posix(), translator)
                for item in found.volumes
            }
            used = _used(folder, translator, asked, place)
    except UserError as error:
        why = place.cleaned(str(error))
    rows = [
        {
            "item": item.key,
            "what": words(item),
            "kind": item.source,
            "domain": domains.get(item.key),
            "use": used.get(item.key, "not used" if item.usable else "refused"),
            "why": place.cleaned(item.reason or item.code),
            "doubts": [place.cleaned(doubt.reason) for doubt in item.doubts()] if item.usable else [],
            "view": item.usable and item.kind in ("volume", "image", "video"),
        }
        for item in found.volumes
    ]
    lost = [file for file in found.files if file.verdict != "used"]
    named = [
        {"file": place.cleaned(str(file.path)), "code": str(file.code), "why": place.cleaned(file.reason)}
        for file in lost[:NAMED]
    ]
    counts = Counter(str(file.code) for file in lost)
    return {"images": rows, "files": len(found.files), "refused": named, "counts": counts, "why": why}


def _used(folder: Path, translator: Translator, asked: Look, place: Place) -> dict[str, str]:
    """Return what the model would use: key -> in which role."""
    source = translator.config.source
    picture = asked.as_source or DOMAINS[source].picture
    scratch = place.out / "plan"
    used = {}
    for job in plan(folder, scratch, translator, Request(source_domain=source if picture else None)):
        if (job.item.source in ("picture", "video")) != DOMAINS[source].picture:
            raise DataError(f"a {job.item.source} cannot be an input for a model of {DOMAINS[source].label}")
        used[job.item.key] = f"used as {DOMAINS[source].label}"
        used |= {one.key: "used as a further contrast" for one in job.contrasts}
    return used


def words(item: Item) -> str:
    """Describe an image.

    Example: ``DICOM series, 8 slices of 48 × 48, voxels of 4.8 × 4.8 × 12 mm``
    """
    kind = {"dicom": "DICOM series", "volume": "Volume file", "picture": "Picture", "video": "Clip"}[item.source]
    depth, height, width = item.shape
    if item.source == "dicom" and item.kind == "image":
        kind = "DICOM image"
    if not height:
        return kind
    if item.source in ("picture", "video"):
        frames = f", {depth} frames" if item.source == "video" and depth else ""
        return f"{kind}{frames}, {width} × {height} pixels"
    size = f"{depth} slices of {height} × {width}" if depth != 1 else f"one slice of {height} × {width}"
    spacing = item.spacing_mm
    return f"{kind}, {size}" + (f", voxels of {' × '.join(f'{v:.2g}' for v in spacing)} mm" if spacing else "")


def view(place: Place, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Prepare one image to be shown."""
    asked = Look(**arguments)
    folder = place.dropped(asked.set)
    items = [item for item in inventory([folder]).volumes if item.key == asked.item]
    if len(items) != 1:
        raise DataError("this image is no longer there; drop it again")
    [item] = items
    domain = None
    try:
        translator = shelf.translator(asked.model, place.model)
        domain = domain_in(item, item.path.relative_to(folder).as_posix(), translator)
    except UserError:
        pass  # it can be shown without a model
    return {"images": [shown(place, item, "source", domain)]}


def shown(place: Place, item: Item, name: str, domain: str | None) -> dict[str, Any]:
    """Write one image in a form that browsers show; return how it is shown."""
    place.out.mkdir(parents=True, exist_ok=True)
    if item.source == "video":
        return {"kind": "video", name: place.offer(f"{name}{item.path.suffix.lower()}", item.path)}
    if item.source == "picture":
        return {"kind": "picture", name: place.offer(f"{name}.png", _small(item.path, place.out / f"{name}.png"))}
    return offer_volume(place, item.load(domain or "mr_t1", allow=("E_DOMAIN",)), name, "", domain)


def offer_volume(place: Place, volume: Volume, name: str, note: str, domain: str | None = None) -> dict[str, Any]:
    """Write a volume as NIfTI; return how it is shown."""
    place.out.mkdir(parents=True, exist_ok=True)
    path = place.out / f"{name}.nii.gz"
    write_volume(path, volume, note)
    return {"kind": "volume", name: place.offer(path.name, path), f"{name}_window": _window(volume, domain)}


def _window(volume: Volume, domain: str | None) -> list[float]:
    if (domain or volume.domain) == "ct":
        return [-160.0, 240.0]
    low, high = np.percentile(volume.voxels, (1, 99.5))
    return [float(low), float(max(high, low + 1e-3))]


def _small(path: Path, out: Path, side: int = SIDE, *, shorter: bool = False) -> Path:
    """Write a picture with 8 bits, and not larger than ``side``."""
    from PIL import Image

    pixels = read_picture(path)
    image = Image.fromarray((pixels >> 8).astype(np.uint8) if pixels.dtype == np.uint16 else pixels)
    scale = side / (min if shorter else max)(image.size)
    if scale < 1:
        image = image.resize([max(1, round(n * scale)) for n in image.size], Image.Resampling.LANCZOS)
    image.save(out)
    return out


def translate(place: Place, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Translate what the model can use of a set, and prepare source and result to be shown."""
    asked = Make(**arguments)
    place.say({"progress": 0.02, "said": "loading the model"})
    translator = shelf.translator(asked.model, place.model).sharpened(asked.sharpness)
    source = translator.config.source
    folder, made = place.dropped(asked.set), place.out / "made"
    picture = asked.as_source or DOMAINS[source].picture
    request = Request(
        asked.target,
        source if picture else None,
        uncertainty=asked.uncertainty and not DOMAINS[source].picture,
        force=asked.force,
    )
    jobs = [
        replace(job, out=made / f"{number}") if job.item.series is not None else job
        for number, job in enumerate(plan(folder, made, translator, request))
    ]
    images = []
    for number, job in enumerate(jobs):
        results: list[Translation] = []
        with _progress(place, translator, job, (number / len(jobs), 1 / len(jobs))):
            row = translate_job(job, translator, results.append)
        images.append(_compared(place, job, row, results, number))
    return {"images": images, "downloads": _downloads(place, jobs, made)}


@contextmanager
def _progress(place: Place, translator: Translator, job: Job, share: tuple[float, float]) -> Iterator[None]:
    """Tell how many slices have passed through the network."""
    passes = len(translator.members) * (PASSES if job.request.uncertainty else 1)
    total, done = max(1, job.item.shape[0]) * passes, 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal done
        done += len(inputs[0])
        part = min(done / total, 1.0)
        place.say({"progress": share[0] + share[1] * (0.1 + 0.8 * part), "said": f"translating, {part:.0%}"})

    place.say({"progress": share[0] + share[1] * 0.05, "said": "preparing the image"})
    hooks = [one.generator.register_forward_hook(count) for one in translator.members]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _compared(
    place: Place, job: Job, row: Mapping[str, Any], results: list[Translation], number: int
) -> dict[str, Any]:
    """Return source and result of a translation, as they are shown."""
    place.say({"said": "preparing the view"})
    facts = shown(place, job.item, f"{number}-source", job.domain)
    made = f"{number}-synthetic"
    volumes = [one for one in results if isinstance(one.image, Volume)]
    for one in volumes:
        assert isinstance(one.image, Volume)
        facts |= offer_volume(place, one.image, made, CLINICAL_NOTE)
        for kind, volume in (("uncertainty", one.uncertainty), ("interval", one.interval)):
            if volume is not None:
                facts |= offer_volume(place, volume, f"{number}-{kind}", f"{kind.upper()} MAP {CLINICAL_NOTE}")
    if not volumes:
        [item] = inventory([job.out]).volumes
        facts |= shown(place, item, made, job.target)
    facts = {name.removeprefix(f"{number}-"): value for name, value in facts.items()}
    labels = {"from": DOMAINS[job.domain].label, "to": DOMAINS[job.target].label, "unit": DOMAINS[job.target].unit}
    place_of = {"item": job.item.key, "number": number, "target": job.target}
    found = {"score": row["ood_score"], "verdict": row["ood_verdict"]}
    warnings = [place.cleaned(text) for text in row["warnings"]]
    return {**facts, **labels, **place_of, "ood": found, "warnings": warnings}


def _downloads(place: Place, jobs: list[Job], made: Path) -> list[dict[str, str]]:
    """Offer what was made: a zip of DICOM, NIfTI, and files of the kind that was dropped."""
    offers = []
    if any(job.item.series is not None for job in jobs):
        packed = place.out / "synthetic-dicom.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for path in sorted(made.rglob("*")):
                if path.is_file():
                    archive.write(path, path.relative_to(made).as_posix())
        offers.append({"file": place.offer("dicom", packed, packed.name), "label": "DICOM (zip)"})
    for name in [name for name in place.files if name.endswith("synthetic.nii.gz")]:
        place.files[name]["saved"] = f"synthetic-{name}".replace("-synthetic", "")
        offers.append({"file": name, "label": "NIfTI"})
    for number, job in enumerate(jobs):
        if job.item.series is None and job.item.source != "volume":
            suffix = job.out.suffix.lower()
            label = suffix.removeprefix(".").upper()
            name = place.offer(f"{number}-made{suffix}", job.out, f"synthetic-{number}{suffix}")
            offers.append({"file": name, "label": label})
    return offers


def style(place: Place, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Style one picture or clip by exemplars: by a model, or a picture by a classical method."""
    asked = Make(**arguments)
    sources = _pictures(place.dropped(asked.set), clips=True)
    exemplars = [item.path for item in _pictures(place.dropped(asked.exemplars))] if asked.exemplars else []
    if len(sources) != 1:
        raise DataError(f"drop one picture or clip to style; found {len(sources)}")
    place.out.mkdir(parents=True, exist_ok=True)
    [item] = sources
    clip = item.source == "video"
    source = item.path
    if asked.preview:
        source = _small(_still(item, place.out), place.out / "small.png", PREVIEW, shorter=True)
    moving = clip and not asked.preview
    size = min(asked.size, PREVIEW) if asked.preview and asked.size else asked.size
    options = RenderOptions(asked.strength, asked.keep_colour, size=size)
    kinds, other = ((".mp4", ".webm"), ".mkv") if moving else ((".png", ".jpg", ".webp"), ".png")
    out = place.out / f"styled{source.suffix.lower() if source.suffix.lower() in kinds else other}"
    facts: dict[str, Any] = {"from": "Clip" if moving else "Picture", "to": "Styled", "warnings": [], "ood": None}
    if asked.method:
        if moving:
            raise DataError("a classical method styles pictures; choose a model of pictures for a clip")
        _classical(source, exemplars, asked.method, options, out)
    else:
        facts |= _by_model(place, asked, (source, out), exemplars, options)
    if moving:
        facts |= {"kind": "video", "source": place.offer(f"source{source.suffix.lower()}", source),
                  "synthetic": place.offer(f"synthetic{out.suffix}", out)}  # fmt: skip
    else:
        facts |= {"kind": "picture", "source": place.offer("source.png", _small(source, place.out / "source.png")),
                  "synthetic": place.offer("synthetic.png", _small(out, place.out / "synthetic.png"))}  # fmt: skip
    label = out.suffix.removeprefix(".").upper()
    return {"images": [facts], "downloads": [{"file": place.offer("made", out, out.name), "label": label}]}


def _by_model(
    place: Place, asked: Make, files: tuple[Path, Path], exemplars: list[Path], options: RenderOptions
) -> dict[str, Any]:
    """Style a file by a model of pictures; return its verdict and warnings."""
    translator = shelf.translator(asked.model, place.model)
    if not DOMAINS[translator.config.source].picture:
        raise ModelError("this model translates scans; choose a model of pictures, or a classical method")
    weights = asked.weights or [1.0] * len(exemplars)
    if len(weights) != len(exemplars):
        raise DataError(f"{len(weights)} weights for {len(exemplars)} exemplars; give one for each")
    mixture = list(zip(weights, exemplars, strict=True))
    request = Request(asked.target, translator.config.source, mixture, asked.seed, options=options, force=True)
    [job] = plan(*files, translator, request)
    with _progress(place, translator, job, (0, 1)):
        row = translate_job(job, translator)
    return {"ood": {"score": row["ood_score"], "verdict": row["ood_verdict"]}, "warnings": row["warnings"]}


def _pictures(folder: Path, *, clips: bool = False) -> list[Item]:
    unpack(folder)
    items = [
        item for item in inventory([folder]).volumes if item.source in (("picture", "video") if clips else ("picture",))
    ]
    refused = [item.reason for item in items if not item.usable]
    if refused:
        raise DataError(f"a picture cannot be used: {refused[0]}")
    return items


def _still(item: Item, folder: Path) -> Path:
    """Return a picture, or the first frame of a clip as one."""
    if item.source == "picture":
        return item.path
    from PIL import Image

    from medstyle.imaging.video import read_frames

    Image.fromarray(next(iter(read_frames(item.path))).plain().pixels).save(folder / "still.png")
    return folder / "still.png"


def _classical(source: Path, exemplars: list[Path], method: str, options: RenderOptions, out: Path) -> None:
    from medstyle.evaluation.baselines import PICTURE_METHODS, style_picture

    if method not in PICTURE_METHODS:
        raise DataError(f"{method}: none of {', '.join(PICTURE_METHODS)}")
    if len(exemplars) != 1:
        raise DataError(f"a classical method takes the style of one exemplar; found {len(exemplars)}")
    pixels = read_picture(source, alpha=True)
    write_picture(out, options.apply(pixels, style_picture(pixels, exemplars[0], method)), SYNTHETIC_NOTE)


def unpack(folder: Path) -> None:
    """Replace every zip below ``folder`` by its content.

    Raises:
        Refusal: it is damaged, encrypted or too large; what other sets of the session hold counts.
    """
    held = [path for path in sorted(folder.parent.rglob("*")) if path.is_file()]
    members, left = MEMBERS, UNPACKED - sum(path.stat().st_size for path in held)
    for packed in sorted(folder.rglob("*.[zZ][iI][pP]")):
        inside = packed.with_suffix("")

        def place(number: int, name: str, inside: Path = inside) -> Path:
            found = inside / safe_name(name)
            if found.exists() or any(above.is_file() for above in found.parents):
                found = inside / f"{number:05d}" / found.name
            found.parent.mkdir(parents=True, exist_ok=True)
            return found

        count, size = unzip(packed, place, members, left)
        members, left = members - count, left - size
        packed.unlink()


KINDS: dict[str, Callable[[Place, Mapping[str, Any]], dict[str, Any]]] = {
    "inspect": inspect,
    "view": view,
    "translate": translate,
    "style": style,
}
