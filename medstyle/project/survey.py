"""Find out which subjects, domains and sites a folder of images holds."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from medstyle.cohort.inventory import Inventory, Item, inventory
from medstyle.cohort.sessions import BIDS_SUBJECT
from medstyle.errors import DataError, Refusal
from medstyle.imaging.picture import read_picture
from medstyle.project.contrast import by_words, contrast_of, looks_like_labels, tokens

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

MOSTLY = 0.6  # share of the subjects of the rarest domain that a pattern must complete
OPENED = 2  # images of a group whose voxels are looked at
FEWEST = 3  # pictures of a class, subjects of a protocol
MOST_PROTOCOLS = 4
_PAINTED = re.compile(r"paintings?|monet|vangogh|cezanne|ukiyoe|art|artworks?|drawings?|sketch(es)?|style")
_PHOTOS = re.compile(r"photos?|photographs?|real|content|pictures?|images?|natural")

Kind = Literal["scans", "pictures"]


class Image(NamedTuple):
    """An image that may be learned from.

    Attributes:
        item: the image.
        path: relative to the source.
        domain: what it shows, "" if it is left out.
        why: why this domain, or why it is left out.
    """

    item: Item
    path: str
    domain: str
    why: str


@dataclass(frozen=True, eq=False)
class Survey:
    """What a folder holds.

    Attributes:
        source: the folder.
        kind: scans or pictures; the rest is left out.
        images: every image that can be read, with its domain or the reason to leave it out.
        refused: code -> how many files or images were refused.
        subject: regular expression that finds the subject in a path; None: the header, ``sub-...``
            or the folder.
        sites: names of sites that are part of the domains; empty if there are none.
    """

    source: Path
    kind: Kind
    images: tuple[Image, ...]
    refused: Counter[str]
    subject: str | None = None
    sites: tuple[str, ...] = ()

    @property
    def domains(self) -> dict[str, dict[str, list[Image]]]:
        """Domain -> subject -> images, the most frequent domain first."""
        groups: dict[str, dict[str, list[Image]]] = defaultdict(lambda: defaultdict(list))
        for image in self.images:
            if image.domain:
                groups[image.domain][self.subject_of(image)].append(image)
        return dict(sorted(groups.items(), key=lambda one: (-len(one[1]), one[0])))

    def subject_of(self, image: Image) -> str:
        """Return the identifier of the subject, which is patient data."""
        return subject_of(image.item, image.path, self.subject)

    def left_out(self) -> Counter[str]:
        """Return how many readable images are left out for each reason."""
        return Counter(image.why for image in self.images if not image.domain)


def subject_of(item: Item, path: str, pattern: str | None) -> str:
    """Return what `ingest` takes for the subject: the match of ``pattern``, or its default."""
    if pattern is not None:
        match = re.search(pattern, path)
        return match.group(match.lastindex or 0) if match else ""
    if item.series is not None:
        return item.series.patient_id
    bids = BIDS_SUBJECT.search(path)
    return path if item.source == "picture" else bids.group(1) if bids else str(Path(path).parent)


def survey(source: Path, found: Inventory | None = None) -> Survey:
    """Look at all images below ``source``; headers of all, voxels of a few.

    Raises:
        DataError: the folder does not exist, or holds no image that can be read.
    """
    if not source.is_dir():
        raise DataError(f"{source}: no such folder; name the folder that holds the scans or pictures")
    found = found or inventory(sorted(path for path in source.iterdir() if path.name != "truth"))
    usable = [item for item in found.volumes if item.usable]
    refused = Counter(str(file.code) for file in found.files if file.verdict == "refused")
    scans = [item for item in usable if item.source in ("dicom", "volume") and item.kind in ("volume", "image")]
    pictures = [item for item in usable if item.source == "picture"]
    others = [item for item in usable if item not in scans and item not in pictures]
    if not scans and not pictures:
        causes = ", ".join(f"{n} x {code}" for code, n in refused.items()) or "it is empty"
        videos = "; videos are measured, not learned from: add pictures" if others else ""
        raise DataError(
            f"{source}: no scan and no picture can be used ({causes}){videos}; see `medstyle inspect {source}`"
        )
    kind: Kind = "scans" if len(scans) * 4 >= len(pictures) else "pictures"
    main, rest = (scans, pictures) if kind == "scans" else (pictures, scans)
    bare = [Image(item, _relative(item, source), "", "") for item in main]
    images = _scan_domains(bare) if kind == "scans" else _picture_domains(bare)
    for item in (*rest, *others):
        word = "video" if item.source == "video" else item.source
        images.append(Image(item, _relative(item, source), "", f"a {word} among {kind}"))
    whole = Survey(source, kind, tuple(images), refused)
    whole = replace(whole, subject=_subject_pattern(whole))
    return _with_sites(whole) if kind == "scans" else _one_view(whole)


def _relative(item: Item, source: Path) -> str:
    return item.path.relative_to(source).as_posix() if item.path.is_relative_to(source) else item.path.as_posix()


def _scan_domains(images: list[Image]) -> list[Image]:
    named = []
    for image in images:
        finding = contrast_of(image.item, image.path)
        doubts = image.item.doubts()
        one = image._replace(domain="" if doubts else finding.domain, why=doubts[0].code if doubts else finding.why)
        named.append(one)
    return _without_labels(named)


def _without_labels(images: list[Image]) -> list[Image]:
    """Leave out groups of volume files, by their name, whose voxels are labels."""
    groups: dict[tuple[str, str], list[Image]] = defaultdict(list)
    for image in images:
        if image.domain and image.item.source == "volume":
            stem = re.sub(r"\d+", "0", image.path.rsplit("/", 1)[-1].lower())
            groups[image.domain, stem].append(image)
    maps = set()
    for key, group in groups.items():
        looked = [one for image in islice(group, OPENED) if (one := _voxels(image.item, key[0])) is not None]
        if looked and all(looked):
            maps.add(key)
    why = "a mask or labels, by its values"
    gone = {id(image.item) for key in maps for image in groups[key]}
    return [image._replace(domain="", why=why) if id(image.item) in gone else image for image in images]


def _voxels(item: Item, domain: str) -> bool | None:
    """Return whether a scan looks like labels; None if it cannot be read."""
    try:
        return looks_like_labels(item.load(domain).voxels)
    except Refusal:
        return None


def _picture_domains(images: list[Image]) -> list[Image]:
    """Name the classes of pictures: by folder, or by the first word of the file name."""
    first = [image.path.split("/")[0] if "/" in image.path else "" for image in images]
    parent = [image.path.rsplit("/", 2)[-2] if "/" in image.path else "" for image in images]
    word = [re.split(r"[_\-. ]|(?<=[a-z])(?=\d)", image.path.rsplit("/", 1)[-1])[0].lower() for image in images]
    folders: dict[str, set[str]] = defaultdict(set)
    for folder, one in zip(parent, word, strict=True):
        folders[folder].add(one)
    alike = len(folders) > 1 and len({frozenset(words) for words in folders.values()}) == 1 and len(set(word)) > 1
    for classes in (word, first, parent) if alike else (first, parent, word):  # each folder has one of each class
        count = Counter(classes)
        if 1 < len(count) <= 12 and min(count.values()) >= FEWEST:
            break
    else:
        classes = ["photo"] * len(images)
        count = Counter(classes)
    masks = {name for name in count if _is_masks(name, [i for i, c in zip(images, classes, strict=True) if c == name])}
    plain = {name for name in count if name not in masks}
    domains = _picture_names(sorted(plain, key=lambda name: (-count[name], name)))
    return [
        image._replace(
            domain=domains.get(name, ""), why="masks, by name or values" if name in masks else f"class {name!r}"
        )
        for image, name in zip(images, classes, strict=True)
    ]


def _picture_names(classes: Sequence[str]) -> dict[str, str]:
    """Return the domain of each class: photo, painting, or one of them with the class's name."""
    painted = [name for name in classes if any(_PAINTED.fullmatch(word) for word in tokens(name))]
    photos = [name for name in classes if any(_PHOTOS.fullmatch(word) for word in tokens(name)) and name not in painted]
    names = {}
    for name in classes:
        base, same = ("painting", painted) if name in painted else ("photo", photos)
        plain = same == [name]
        names[name] = base if plain else f"{base}@{re.sub(r'[^A-Za-z0-9-]+', '-', name).strip('-') or 'other'}"
    return names


def _is_masks(name: str, images: Sequence[Image]) -> bool:
    finding = by_words(name)
    if finding is not None and finding.why.startswith("a mask"):
        return True
    few = []
    for image in islice(images, OPENED):
        try:
            few.append(len(np.unique(read_picture(image.item.path))) <= 2)
        except Refusal:
            continue
    return bool(few) and all(few)


PATTERNS = (  # where subjects are named in paths, the most explicit first
    r"^([^/]+)/",
    r"^(?:.*/)?([A-Za-z]*[-_]?\d+)[^/]*$",
    r"^(?:.*/)?([^/_]+)_[^/]*$",
    r"^(?:.*/)?([^/-]+)-[^/]*$",
    r"^(?:.*/)?[^/]*?(\d+)[^/\d]*$",
)


def _subject_pattern(found: Survey) -> str | None:
    """Return the pattern under which most subjects have every domain once; None: the default."""
    images = [image for image in found.images if image.domain and image.item.series is None]
    if not images:
        return None
    best, choice = _complete(images, None), None
    for pattern in PATTERNS:
        quality = _complete(images, pattern)
        if quality > best and quality.complete >= MOSTLY * quality.fewest:  # not by chance
            best, choice = quality, pattern
    return choice


class _Quality(NamedTuple):
    """How well a pattern finds subjects, the larger the better."""

    complete: int  # subjects with at least two domains
    once: int  # minus the number of images that come twice
    fewest: int  # subjects of the rarest domain


def _complete(images: Iterable[Image], pattern: str | None) -> _Quality:
    places: dict[str, Counter[str]] = defaultdict(Counter)
    nameless = 0
    for image in images:
        subject = subject_of(image.item, image.path, pattern)
        places[subject][image.domain] += 1
        nameless += not subject
    twice = sum(n - 1 for domains in places.values() for n in domains.values())
    fewest = min(Counter(domain for domains in places.values() for domain in domains).values(), default=0)
    if nameless:
        return _Quality(-1, -nameless, fewest)
    return _Quality(sum(len(domains) > 1 for domains in places.values()), -twice, fewest)


def _with_sites(found: Survey) -> Survey:
    """Make sites of the top folders, or else of the scanners, if there is only one contrast."""
    domains = found.domains
    if len(domains) != 1:
        return found
    [domain] = domains
    mine = [image for image in found.images if image.domain]
    folders = [image.path.split("/")[0] if image.path.count("/") > 1 else "" for image in mine]
    scanners = [_scanner(image.item) for image in mine]
    for names in (folders, scanners):
        subjects: dict[str, set[str]] = defaultdict(set)
        for name, image in zip(names, mine, strict=True):
            subjects[name].add(found.subject_of(image))
        if 1 < len(subjects) <= 6 and "" not in subjects and min(map(len, subjects.values())) > 1:
            sites = {id(image.item): _site(name) for name, image in zip(names, mine, strict=True)}
            images = tuple(
                one._replace(domain=f"{domain}@{sites[id(one.item)]}") if one.domain else one for one in found.images
            )
            return replace(found, images=images, sites=tuple(sorted(set(sites.values()))))
    return found


def with_protocols(found: Survey, domain: str) -> tuple[Survey, list[str]]:
    """Make a domain of each of the rarer protocols by which ``domain`` was acquired.

    Grey levels of MR follow the protocol. The most frequent one keeps the name. Where there are
    many protocols, or one has few subjects, nothing changes.

    Returns:
        The survey, and the names of the new domains.
    """
    groups: dict[Hashable, set[str]] = defaultdict(set)
    for subject, mine in found.domains[domain].items():
        for image in mine:
            groups[protocol_of(image.item)].add(subject)
    order = sorted(groups, key=lambda name: (-len(groups[name]), str(name)))
    if not 1 < len(order) <= MOST_PROTOCOLS or min(map(len, groups.values())) < FEWEST:
        return found, []
    names = {
        protocol: f"{domain}@{_site(protocol) if isinstance(protocol, str) else f'protocol-{number}'}"
        for number, protocol in enumerate(order[1:], 2)
    }
    images = tuple(
        one._replace(domain=names.get(protocol_of(one.item), domain)) if one.domain == domain else one
        for one in found.images
    )
    return replace(found, images=images), list(names.values())


def protocol_of(item: Item) -> Hashable:
    """Return the scanner, or spacing and matrix where headers do not name it, however it lies."""
    spacing = tuple(sorted(round(mm, 1) for mm in item.spacing_mm or ()))
    return item.attributes.get("ManufacturerModelName") or (spacing, tuple(sorted(item.shape)))


def _scanner(item: Item) -> str:
    if item.series is None:
        return ""
    return " ".join(filter(None, (item.attributes.get(k, "") for k in ("Manufacturer", "ManufacturerModelName"))))


def _site(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9-]+", "-", name).strip("-").lower() or "site"


def _one_view(found: Survey) -> Survey:
    """Keep one picture of each subject and class, if the names tell views, such as axial."""
    if found.subject is None:
        return found
    names = Counter(_view(image) for image in found.images if image.domain)
    several = any(len(images) > 1 for of in found.domains.values() for images in of.values())
    if not several or len(names) < 2:
        return found
    chosen = min(names, key=lambda name: (-names[name], name))
    images = tuple(
        one._replace(domain="", why=f"another view than {chosen!r}, which is used")
        if one.domain and _view(one) != chosen
        else one
        for one in found.images
    )
    return replace(found, images=images)


def _view(image: Image) -> str:
    return re.sub(r"^[a-zA-Z]+[_-]?", "", image.path.rsplit("/", 1)[-1].split(".")[0]).lower()
