"""Decide what to train on the data that a survey found, and say why."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, islice
from typing import Any, NamedTuple

import numpy as np

from medstyle.cohort.rules import Rule, domain_of
from medstyle.errors import DataError, ParamsError, Refusal
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume
from medstyle.project.contrast import tokens
from medstyle.project.jobs import JOBS, Job
from medstyle.project.survey import Image, Survey, protocol_of, with_protocols
from medstyle.transforms.align import Fit, measure_fit, onto_grid, pair_verdicts
from medstyle.transforms.intensity import foreground_mask
from medstyle.transforms.prepare import Preparation, axial

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SOURCES = (
    "mr_t1",
    "mr_t2",
    "mr_pd",
    "mr_flair",
    "mr_t1@contrast",
    "photo",
    "ct",
    "painting",
)  # the likelier source first
LOOKED_AT = 4  # subjects whose voxels are read
ENOUGH_PAIRS = 2  # pairs, and
MOST_PAIRED = 0.5  # share of the subjects of the rarer domain that have both: otherwise unpaired training has more
CROSS_VALIDATE = 12  # subjects below which one split says little
FEW = 40  # subjects up to which a training begins with the ready-made model
START_FITS = ([32, 64, 128], 5)  # the widths and the neighbours of `anybrain`, which has folded pixels
MOST_FILES = 24  # of a rarer protocol, that rules name one by one where no header tells it
MARGIN_MM = 10.0  # around the bodies that were seen, for heads that are larger
LARGEST = {"cpu": 256, "cuda": 384}  # pixels of a side
SMALLEST_PICTURE = 64


class Chosen(NamedTuple):
    """A value in params.yaml, and its reason, which becomes a comment."""

    value: Any
    why: str = ""


Section = dict[str, Chosen]


@dataclass(frozen=True)
class Proposal:
    """What to train.

    Attributes:
        job: the way to train.
        source, target: domains.
        sections: the sections of params.yaml.
        notes: what the user should know before a long run.
        labels: a table that names the domain of each file, if no rule could; else empty.
    """

    job: Job
    source: str
    target: str
    sections: Mapping[str, Section]
    notes: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Wishes:
    """What the user has decided already; None: propose it."""

    source: str | None = None
    target: str | None = None
    minutes: float = 60.0
    device: str = "auto"


@dataclass(frozen=True)
class _Grid:
    """The network's view of the images that were looked at: spacing in mm, and pixels."""

    spacing_mm: tuple[float, float]
    varies: bool
    slice_mm: float
    size: tuple[int, int]
    resampled: bool
    seen: int


def propose(found: Survey, wishes: Wishes = Wishes()) -> Proposal:
    """Propose the job for what was found.

    Raises:
        DataError: the data do not suffice for any job; the message says what is missing.
        ParamsError: a wish names a domain that was not found.
    """
    source, target = _direction(found, wishes)
    own, others = found.domains[source], found.domains[target]
    both = sorted(own.keys() & others.keys())
    rarer = min(len(own), len(others))
    paired = len(both) >= ENOUGH_PAIRS and len(both) >= MOST_PAIRED * rarer and not found.sites
    notes: list[str] = []
    alignment = Chosen("headers", "")
    if paired and found.kind == "scans":
        paired, alignment = _aligned(found, source, target, both, notes)
    job = _job(found, source, target, paired)
    subjects = sorted(own.keys() | others.keys()) if not paired else both
    if len(subjects) < 2:
        raise DataError(
            f"{found.source}: only one subject has {' and '.join((source, target))}, so nothing could be learned and "
            "measured on different people; add subjects"
        )
    grid = _grid(found, source, target, wishes)
    protocols: list[str] = []
    if paired and job.recipe == "paired_mr":
        found, protocols = with_protocols(found, target)
        notes += [
            f"{len(found.domains[name])} subjects have {target} by another protocol, learned as a style of its own: "
            f"--to {name}"
            for name in protocols
        ]
    rules, labels = rules_for(found, (source, *protocols, target))
    sections = {
        "ingest": _ingest(found, rules, labels),
        "denoise": _denoise(found, job, grid, alignment, subjects, notes),
        "train": _train(found, job, (source, target, *protocols), grid, wishes, notes),
        "evaluate": _evaluate(job, found),
        "register": {"regression": Chosen(0.05, "a new model may not lose more than this share against the champion")},
    }
    return Proposal(job, source, target, sections, tuple(notes), labels)


def _direction(found: Survey, wishes: Wishes) -> tuple[str, str]:
    """Choose source and target: what was asked for, or the two with the most subjects in common."""
    domains = found.domains
    for wish in filter(None, (wishes.source, wishes.target)):
        if wish not in domains:
            have = ", ".join(f"{name} ({len(of)})" for name, of in domains.items()) or "none"
            raise ParamsError(f"{wish}: no image of this domain was found in {found.source}; found: {have}")
    if len(domains) < 2:
        only = next(iter(domains), "none")
        raise DataError(
            f"{found.source}: only one domain was found ({only}), and a translation needs two: add images of another "
            "contrast, or of a second site in a folder of its own"
        )

    def rank(domain: str) -> tuple[int, str]:
        base, _, name = domain.partition("@")
        likely = ("mri", "mr", "t1", "ct")  # of pictures, by the name of their class
        base = domain if domain in SOURCES else base
        place = SOURCES.index(base) if base in SOURCES else len(SOURCES)
        return place, f"{likely.index(name)}" if name in likely else domain

    ways = [
        (a, b) if rank(a) <= rank(b) else (b, a)
        for a, b in combinations(domains, 2)
        if DOMAINS[a].channels == DOMAINS[b].channels
    ]
    if found.sites:  # to the site with the most subjects
        ways = [tuple(sorted(way, key=lambda name: (len(domains[name]), name))) for way in ways]  # type: ignore[misc]
    if wishes.source or wishes.target:
        every = ways + [way[::-1] for way in ways]
        ways = [way for way in every if wishes.source in (None, way[0]) and wishes.target in (None, way[1])]
    if not ways:
        raise ParamsError(f"{wishes.source} -> {wishes.target}: source and target must be two domains of one kind")

    def worth(way: tuple[str, str]) -> tuple[int, int, int]:
        a, b = (domains[name].keys() for name in way)
        return len(a & b), min(len(a), len(b)), -rank(way[0])[0]

    return max(ways, key=worth)


def _job(found: Survey, source: str, target: str, paired: bool) -> Job:
    if found.kind == "pictures":
        return JOBS["paired_pictures" if paired else "paintings"]
    if found.sites:
        return JOBS["harmonization"]
    kind = "mr" if {DOMAINS[source].dicom, DOMAINS[target].dicom} == {"MR"} else "mr_ct"
    job = JOBS[f"{'paired' if paired else 'unpaired'}_{kind}"]
    return job if DOMAINS[target].dicom == "CT" or kind == "mr" else job._replace(protocol="plain")


def _aligned(found: Survey, source: str, target: str, both: Sequence[str], notes: list[str]) -> tuple[bool, Chosen]:
    """Measure on a few subjects whether the headers align the scans, or a registration must."""
    domains = found.domains
    codes: dict[str, Counter[str]] = {}
    for how in ("headers", "rigid"):
        fits: list[Fit] = []
        for subject in islice(both, LOOKED_AT):
            pair = [_load(domains[name][subject][0], name) for name in (source, target)]
            if pair[0] is None or pair[1] is None:
                continue
            try:
                fits.append(measure_fit(pair[0], onto_grid(pair[1], pair[0], how)))
            except Refusal:
                fits.append(Fit(0.0, 1.0))
        codes[how] = Counter(code for code, _ in pair_verdicts(fits))
        seen = len(fits)
        fine = codes[how][""]
        if seen and fine == seen:
            why = f"in {seen} of {seen} subjects looked at, {_said(how)}"
            return True, Chosen(how, why)
    fine = codes["rigid"][""]
    if fine * 2 >= sum(codes["rigid"].values()):
        notes.append(
            f"{sum(codes['rigid'].values()) - fine} of the pairs looked at do not fit: denoise leaves such scans out"
        )
        return True, Chosen("rigid", "the headers do not align the scans")
    notes.append("the scans of a subject do not show the same place, so they are not used as pairs")
    return False, Chosen("headers", "")


def _said(how: str) -> str:
    return "the headers align the scans" if how == "headers" else "only a rigid registration aligns the scans"


def _load(image: Image, domain: str) -> Volume | None:
    try:
        return image.item.load(domain, allow=("E_DOMAIN",))
    except Refusal:
        return None


def rules_for(found: Survey, wanted: Sequence[str]) -> tuple[list[Rule], dict[str, str]]:
    """Return rules that assign exactly the images of ``wanted``, or a table of files as labels.

    Candidates are words and patterns of the names and descriptions; a set of rules is kept only if
    it gives every image its domain, and none to those that are left out.
    """
    rules: list[Rule] = []
    chosen = {id(image.item): image.domain for image in found.images if image.domain in wanted}
    views = [(_attributes(image), chosen.get(id(image.item))) for image in found.images]
    for domain in wanted:  # the first rule that matches wins: what earlier rules take is not at stake
        mine = [image for image in found.images if image.domain == domain]
        best = next(
            (some for some in _candidates(mine, domain) if _exact([*rules, *some], views, domain)),
            None,
        )
        if best is None:
            break
        rules += best
    else:
        if all(domain_of(attributes, rules) == domain for attributes, domain in views):
            return rules, {}
    table = {image.path: image.domain for image in found.images if image.domain in wanted and image.item.series is None}
    series = [image for image in found.images if image.domain in wanted and image.item.series is not None]
    rules = [Rule(domain, {"Domain": domain}) for domain in wanted] if table else []
    rules += [Rule(image.domain, {"path": f"{_folder(image.path)}/*"}) for image in series]
    return list({(rule.domain, tuple(rule.when.items())): rule for rule in rules}.values()), table


def _folder(path: str) -> str:
    return path.rsplit("/", 1)[0] if "/" in path else "."


def _attributes(image: Image) -> dict[str, str]:
    return {**image.item.attributes, "path": image.path}


def _exact(rules: Sequence[Rule], views: Sequence[tuple[dict[str, str], str | None]], domain: str) -> bool:
    return all((domain_of(attributes, rules) == domain) == (wanted == domain) for attributes, wanted in views)


def _candidates(mine: Sequence[Image], domain: str) -> Iterable[list[Rule]]:
    """Yield sets of rules for one domain, the most general first."""
    series = [image for image in mine if image.item.series is not None]
    files = [image for image in mine if image.item.series is None]
    of_series: list[list[Rule]] = [[]]
    if series:
        modality = {"Modality": DOMAINS[domain].dicom or ""}
        of_series = [[Rule(domain, modality)]]
        for name in ("SeriesDescription", "ProtocolName", "SequenceName"):
            texts = [image.item.attributes.get(name, "") for image in series]
            words = set(tokens(texts[0])).intersection(*map(tokens, texts[1:]))
            of_series += [[Rule(domain, {**modality, name: f"*{word}*"})] for word in _telling(words, domain)]
            if all(texts) and len(set(texts)) <= 12:
                of_series.append([Rule(domain, {**modality, name: _literal(text)}) for text in sorted(set(texts))])
        models = {image.item.attributes.get("ManufacturerModelName", "") for image in series}
        if "@" in domain and "" not in models:
            of_series += [
                [
                    Rule(domain, {**rule.when, "ManufacturerModelName": _literal(model)})
                    for rule in some for model in sorted(models)
                ]
                for some in list(of_series)
            ]  # fmt: skip
    of_files: list[list[Rule]] = [[]]
    if files:
        paths = [image.path for image in files]
        names = {path.rsplit("/", 1)[-1] for path in paths}
        tops = {path.split("/")[0] for path in paths}
        words = set(tokens(paths[0].rsplit("/", 1)[-1])).intersection(
            *(tokens(p.rsplit("/", 1)[-1]) for p in paths[1:])
        )
        of_files = [[Rule(domain, {"path": f"*{_literal(next(iter(names)))}"})]] if len(names) == 1 else []
        if all("/" in path for path in paths):
            of_files += (
                [[Rule(domain, {"path": f"{_literal(top)}/*"}) for top in sorted(tops)]] if len(tops) <= 3 else []
            )
            ends = {_folder(path).rsplit("/", 1)[-1] for path in paths}
            of_files += (
                [[Rule(domain, {"path": f"*{_literal(end)}/*"}) for end in sorted(ends)]] if len(ends) <= 3 else []
            )
        of_files += [[Rule(domain, {"path": f"*{word}*"})] for word in _telling(words, domain)]
        views = Counter(path.rsplit("/", 1)[-1] for path in paths)
        of_files += (
            [[Rule(domain, {"path": f"*{_literal(name)}"}) for name in sorted(views)]] if len(views) <= 6 else []
        )
        if "@" in domain and len(paths) <= MOST_FILES:
            of_files.append([Rule(domain, {"path": _literal(path)}) for path in sorted(paths)])
    for one in of_series:
        for other in of_files:
            yield [*one, *other]


def _telling(words: Iterable[str], domain: str) -> list[str]:
    """Return the words that may stand for a domain, those that name it first."""
    base = domain.partition("@")[0].removeprefix("mr_")
    useful = [word for word in words if len(word) > 1 and not word.isdigit()]
    return sorted(useful, key=lambda word: (word != base, base not in word, len(word), word))


def _literal(text: str) -> str:
    """Escape what a glob pattern would understand."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _ingest(found: Survey, rules: Sequence[Rule], labels: Mapping[str, str]) -> Section:
    source = found.source.resolve()
    section = {"source": Chosen(str(source), f"{sum(1 for i in found.images if i.domain)} images were recognised")}
    lines = [{"domain": rule.domain, "when": dict(rule.when)} for rule in rules]
    section["rules"] = Chosen(lines, "tested: they assign exactly the images that were recognised")
    if labels:
        section["labels"] = Chosen(None, "no pattern tells the files apart, so a table names them")
    if found.subject is not None:
        section["subject"] = Chosen(found.subject, "what the paths of one subject have in common")
    return section


def _grid(found: Survey, source: str, target: str, wishes: Wishes) -> _Grid:
    """Look at a few images: their spacing in the axial plane, and how much of it the body fills."""
    largest = LARGEST[_device(wishes)]
    if found.kind == "pictures":
        sides = [min(i.item.shape[1:]) for i in found.images if i.domain in (source, target)]
        side = int(np.median(sides))
        if side < SMALLEST_PICTURE:
            raise DataError(
                f"{found.source}: the pictures have about {side} pixels; at least {SMALLEST_PICTURE} are needed"
            )
        side = min(side, 128 if _device(wishes) == "cpu" else 256) // 16 * 16
        return _Grid((1.0, 1.0), False, 0.0, (side, side), False, len(sides))
    spacings, reaches, depths = [], [], []
    for name in (source, target):
        for images in islice(found.domains[name].values(), LOOKED_AT):
            if (volume := _load(images[0], name)) is None:
                continue
            try:
                slices, _ = axial(volume, Preparation())
            except Refusal:
                continue
            voxels = np.asarray(slices[0])
            x, y, z = np.linalg.norm(np.asarray(slices.affine)[:3, :3], axis=0)
            mask = foreground_mask(voxels)
            if not mask.any():
                continue
            middle = (np.array(voxels.shape[:2]) - 1) / 2
            places = np.argwhere(mask.any(axis=2))
            reach = 2 * np.abs(places - middle).max(axis=0) + 1
            spacings.append((float(x), float(y)))
            depths.append(float(z))
            reaches.append(reach * (x, y) + 2 * MARGIN_MM)
    if not spacings:
        raise DataError(f"{found.source}: none of the scans that were looked at can be read; see `medstyle inspect`")
    spread = np.ptp(np.log(np.array(spacings)), axis=0).max()
    spacing = tuple(float(v) for v in np.median(spacings, axis=0))
    extent = np.max(reaches, axis=0)  # mm, (x, y)
    resampled = bool(spread > 0.05)
    if (pixels := max(extent / spacing)) > largest:
        spacing, resampled = (spacing[0] * pixels / largest, spacing[1] * pixels / largest), True
    if resampled:
        spacing = tuple(math.ceil(v * 20 - 1e-6) / 20 for v in spacing)
    width, height = (int(math.ceil(mm / step / 8) * 8) for mm, step in zip(extent, spacing, strict=True))
    return _Grid(spacing, bool(spread > 0.05), float(np.median(depths)), (height, width), resampled, len(spacings))  # type: ignore[arg-type]


def _denoise(
    found: Survey, job: Job, grid: _Grid, alignment: Chosen, subjects: Sequence[str], notes: list[str]
) -> Section:
    height, width = grid.size
    scans = found.kind == "scans"
    why = (
        f"holds the body in the {grid.seen} scans looked at, with {MARGIN_MM:g} mm around it, in multiples of 8"
        if scans
        else "the shorter side of the pictures, as far as the time allows"
    )
    section = {"size": Chosen([height, width], why)}
    preparation: Section = {}
    if grid.resampled:
        reason = (
            "the scans differ in spacing" if grid.varies else f"so that a slice has at most {max(grid.size)} pixels"
        )
        preparation["spacing_mm"] = Chosen(list(grid.spacing_mm), reason)
    protocols = _protocols(found)
    if scans and protocols > 1 and len(subjects) >= 6 and job.recipe != "harmonization":
        preparation["normalisation"] = Chosen("nyul", f"{protocols} scanners or protocols")
    if preparation:
        section["preparation"] = Chosen(preparation)
    if alignment.why:
        section["alignment"] = alignment
    if "cross_subject" in job.objective["weights"] and job.recipe == "unpaired_mr":
        section["common_space"] = Chosen(True, "the contrast is learned from the same regions of other subjects")
    return section | _split(len(subjects), found, notes)


def _protocols(found: Survey) -> int:
    """Count scanners, or matrices and spacings where headers do not name them, of one contrast."""
    names = set()
    for image in found.images:
        if image.domain and image.item.spacing_mm is not None:
            names.add((image.domain, protocol_of(image.item)))
    return max(Counter(domain for domain, _ in names).values(), default=1)


def _split(subjects: int, found: Survey, notes: list[str]) -> Section:
    test = max(1, round((0.2 if subjects >= CROSS_VALIDATE else 0.25) * subjects))
    validation = max(1, round(0.1 * subjects)) if subjects >= 5 else 0
    counted = f"{subjects} subjects: {subjects - test - validation} to train, {validation} to validate, {test} to test"
    if found.kind == "pictures" and found.subject is None:
        counted = counted.replace("subjects", "pictures")
    if subjects < CROSS_VALIDATE:
        notes.append(
            f"{subjects} subjects are few: the figures depend on who is tested; after `dvc repro`, "
            f"`medstyle crossvalidate --folds {min(5, subjects)}` tests each of them once"
        )
    return {
        "validation": Chosen(round(validation / subjects, 3), "shows during training whether it still learns"),
        "test": Chosen(round(test / subjects, 3), counted),
    }


def _train(found: Survey, job: Job, way: Sequence[str], grid: _Grid, wishes: Wishes, notes: list[str]) -> Section:
    device = _device(wishes)
    widths = [16, 32, 64, 128] if device == "cpu" else [32, 64, 128, 256]
    widths = widths[1:] if "fold" in job.network else widths  # the finest level is folded into the next
    neighbours, why = _neighbours(found, grid)
    batch = (1 if neighbours > 1 else 2) if device == "cpu" else 8
    channels = DOMAINS[way[0]].channels
    seconds = time_step(widths, job, (batch, channels * neighbours, *grid.size), channels, device)
    steps = max(100, round(wishes.minutes * 60 * 0.95 / seconds / 100) * 100)
    threads = os.cpu_count() or 1
    training: Section = {
        "steps": Chosen(
            steps, f"{wishes.minutes:g} minutes at about {seconds * 1000:.0f} ms, measured on this machine"
        ),
        "batch": Chosen(batch, "small batches learn more per minute on a CPU" if device == "cpu" else "fills the GPU"),
        **{name: Chosen(value, f"recipes/{job.recipe}.yaml") for name, value in job.training.items()},
    }
    if device == "cpu":
        training["threads"] = Chosen(threads, "cores of this machine")
    network: Section = {
        "widths": Chosen(widths, "for a CPU" if device == "cpu" else "for a GPU"),
        **{name: Chosen(value, f"recipes/{job.recipe}.yaml") for name, value in job.network.items()},
    }
    if neighbours > 1:
        network["neighbours"] = Chosen(neighbours, why)
    section: Section = {
        "source": Chosen(way[0], f"{len(found.domains[way[0]])} subjects"),
        "target": Chosen(way[1], f"{len(found.domains[way[1]])} subjects"),
        "training": Chosen(training),
        "objective": Chosen(dict(job.objective), job.why),
        "network": Chosen(network),
    }
    if way[2:]:
        section["domains"] = Chosen(list(way[2:]), "the target by rarer protocols, whose grey levels differ")
    few = max(len(found.domains[name]) for name in way) <= FEW
    if job.recipe == "paired_mr" and few and (widths, neighbours) == START_FITS:
        why = (
            f"at most {FEW} subjects: begin with what a model knows of heads; leave it out for other parts of the body"
        )
        section["start"] = Chosen("anybrain", why)
    if job.augmentation:
        section["augmentation"] = Chosen(dict(job.augmentation), f"recipes/{job.recipe}.yaml")
    if wishes.minutes < 10:
        notes.append(f"{wishes.minutes:g} minutes make a first look, not a good model: --minutes 120 trains longer")
    return section


def _neighbours(found: Survey, grid: _Grid) -> tuple[int, str]:
    if found.kind == "pictures":
        return 1, ""
    depth = int(np.median([image.item.shape[0] for image in found.images if image.domain] or [1]))
    if depth < 8:
        return 1, ""
    thick = f"slices are {grid.slice_mm:.1f} mm apart"
    return (
        (5, f"2.5-D: {thick}") if grid.slice_mm <= 2.6 else (3, f"2.5-D: {thick}") if grid.slice_mm <= 5.1 else (1, "")
    )


def time_step(widths: Sequence[int], job: Job, shape: tuple[int, ...], channels: int, device: str) -> float:
    """Measure the seconds of a step on random numbers: passes of the generator and optimisers."""
    import torch

    from medstyle.networks.networks import Architecture, Networks
    from medstyle.training.muon import optimisers_of
    from medstyle.training.objectives.table import OBJECTIVES
    from medstyle.training.plan import Training

    neighbours = shape[1] // channels
    more = {
        name: value
        for name, value in job.network.items()
        if name in ("fold", "bottleneck_blocks", "levels_without_skip")
    }
    names = ("photo", "painting") if channels == 3 else ("mr_t1", "mr_t2")
    networks = Networks(Architecture(widths=tuple(widths), neighbours=neighbours, **more), names).to(device)
    x, domain = torch.rand(shape, device=device), torch.zeros(shape[0], dtype=torch.long, device=device)
    parts = {"passes": lambda: networks(x, domain).abs().mean().backward()}
    optimisers = optimisers_of(networks, Training().muon(OBJECTIVES[job.objective["kind"]].paired))
    parts |= {f"optimiser {n}": one.step for n, one in enumerate(optimisers)}
    taken = dict.fromkeys(parts, math.inf)
    for _ in range(4):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            if device == "cuda":
                torch.cuda.synchronize()
            taken[name] = min(taken[name], time.perf_counter() - start)
    return taken.pop("passes") * job.cost + sum(taken.values())


def _device(wishes: Wishes) -> str:
    import torch

    return "cuda" if wishes.device != "cpu" and torch.cuda.is_available() else "cpu"


def _evaluate(job: Job, found: Survey) -> Section:
    protocol = job.protocol
    why = {"plain": "paired scans", "synthrad2025": "paired scans with a CT target"}.get(
        protocol, "no pairs to compare with"
    )
    if protocol == "paired_pictures":
        why = "paired pictures"
    section = {"protocol": Chosen(protocol, why)}
    if found.kind == "scans" and not (found.source / "truth").is_dir():
        section["segmenter"] = Chosen(0, "no labels of structures in truth/")
    return section
