"""Convert input files to canonical, de-identified volumes and pictures, and list them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.cohort.duplicates import near_duplicates, picture_signature
from medstyle.cohort.inventory import DOUBTS, Inventory, Item
from medstyle.cohort.labels import Labels, read_labels
from medstyle.cohort.rules import LOOKS_LIKE, Rule, domain_of
from medstyle.cohort.sessions import BIDS_SUBJECT
from medstyle.data.looks import looks_asked_for
from medstyle.data.manifest import ManifestItem
from medstyle.data.regular import read_with_gaps, straighten
from medstyle.errors import Code, ParamsError, Refusal, reading
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import read_picture, write_picture
from medstyle.imaging.volume import Volume, read_volume, write_volume
from medstyle.jobs.atomic import write_json
from medstyle.jobs.workers import Workers
from medstyle.params import params
from medstyle.pseudonyms import short_key, subject_key
from medstyle.transforms.degrade import Degradation

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SCANNER = ("Manufacturer", "ManufacturerModelName", "MagneticFieldStrength")
OVERRULED = {Code.E_BURNED_IN, *(code for code, _ in DOUBTS.values())}


@params
class IngestParams:
    """Where the scans or pictures come from, and to which domain each belongs."""

    source: str = "data/raw"
    """Folder of DICOM studies, volume files or pictures, in any arrangement; its subfolder `truth`
    is ignored."""
    rules: tuple[Rule, ...] = ()
    """Rules that assign domains; the first rule that matches wins. Images that match no rule are
    reported and left out."""
    subject: str | None = None
    """Regular expression that extracts the subject from a file's path. Default: PatientID,
    `sub-...` in the path (BIDS), the folder, or, for pictures, the picture itself. Several studies
    of one person that contain the same domains are treated as sessions."""
    labels: str | None = None
    """File, relative to the source, that adds attributes for the rules: a CSV table whose column
    `path` names the image and whose other columns are attributes, or annotations in COCO format
    (`.json`), whose categories become the attribute `Category` (several are sorted and joined by
    commas)."""
    gaps: Literal["refuse", "interpolate"] = "refuse"
    """DICOM series with uneven or missing slices: refuse them, or interpolate on a grid of the
    smallest spacing."""
    tilt: Literal["straighten", "refuse"] = "straighten"
    """Sheared scans (gantry tilt): shift each slice within its plane until the axes are orthogonal,
    or refuse them."""
    time_point: int | None = None
    """DICOM series with several images at each position (4-D): null refuses them; a number selects
    a time point, starting at 0."""
    allow: tuple[str, ...] = ()
    """Codes to override after inspection: any of `E_BURNED_IN`, `E_SYNTHETIC`, `E_INCOMPLETE`
    and `E_INTERLEAVED`. The manifest and the log record where an override was needed."""
    min_pixels: int = 1
    """Smallest accepted length of a picture's shorter side, in pixels."""
    duplicates: Literal["refuse", "keep"] = "refuse"
    """Pictures of one domain that are identical or nearly identical (`same_image`): `refuse` keeps
    only the first in the order of paths, `keep` keeps all."""
    same_image: float = 0.999
    """Correlation of signatures above which two pictures count as nearly identical; 1: only equal
    pixels count."""
    degraded: tuple[Degradation, ...] = ()
    """Degraded copies of the images of a domain, used as inputs of `recipes/enhance.yaml`."""
    workers: Workers = 1
    """1: this process; more than 1: processes; `tcp://host:8786`: the workers of a Dask
    scheduler."""

    def __post_init__(self) -> None:
        if not self.rules:
            raise ParamsError("ingest.rules: no rule assigns a domain to the inputs; see params.yaml for examples")
        if unknown := sorted(set(self.allow) - OVERRULED):
            raise ParamsError(f"ingest.allow: {unknown[0]!r} is none of {', '.join(sorted(OVERRULED))}")
        try:
            re.compile(self.subject or "")
        except re.error as error:
            raise ParamsError(f"ingest.subject: not a regular expression: {error}") from None


class Place(NamedTuple):
    """The subject and domain under which images are written."""

    subject: str
    domain: str


@dataclass(frozen=True, eq=False)
class Taken:
    """An image that was written.

    Attributes:
        entry: its entry in the manifest.
        item: the input that it was made from.
        digest, signature: for pictures only; they identify exact and near duplicates.
    """

    entry: ManifestItem
    item: Item
    digest: bytes = b""
    signature: NDArray[np.float32] | None = None


def labels_of(params: IngestParams) -> Labels:
    """Read the labels file that `params` name; without one, return an empty table."""
    return read_labels(Path(params.source) / params.labels) if params.labels else Labels()


def attributes_of(item: Item, source: Path, labels: Labels, rules: Sequence[Rule]) -> dict[str, str]:
    """Return what ``rules`` match: attributes of header and labels, the path in the source, looks.

    The voxels are read only if a rule asks what the scan looks like.
    """
    path = (item.path.relative_to(source) if item.path.is_relative_to(source) else item.path).as_posix()
    labelled = labels.rows.get(labels.name(path) or "", {})
    return {**item.attributes, **labelled, "path": path, **looks_asked_for(item, rules)}


def check_rules(rules: Sequence[Rule], labels: Labels, found: Inventory) -> None:
    """Raise UserError if a rule uses an attribute that neither the labels nor any header has."""
    known = {"path", LOOKS_LIKE, *labels.attributes, *(name for item in found.volumes for name in item.attributes)}
    unknown = [name for rule in rules for name in rule.when if name not in known]
    if labels.file is not None and unknown:
        has = ", ".join(labels.attributes) or "no attributes"
        raise ParamsError(f"ingest.rules: no image has an attribute {unknown[0]!r}; {labels.file.name} has {has}")


def shared_ids(items: Iterable[Item]) -> set[str]:
    """Return the PatientIDs that several people have: some anonymisers give the same to all.

    Two images with one PatientID belong to different people if issuer, birth date or sex differ.
    An empty element is no difference.
    """
    people: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for item in items:
        if item.series is not None and item.series.patient_id:
            people[item.series.patient_id].add(item.series.person)
    return {
        patient
        for patient, of in people.items()
        if any(a != b for one, other in combinations(of, 2) for a, b in zip(one, other, strict=True) if a and b)
    }


def placed(
    item: Item, params: IngestParams, source: Path, labels: Labels, shared: Collection[str] = ()
) -> tuple[str, str]:
    """Determine subject and domain of an item from its header, its path and the labels alone.

    ``shared`` holds the PatientIDs of :func:`shared_ids`, for which issuer, birth date and sex are
    part of the subject.
    """
    attributes = attributes_of(item, source, labels, params.rules)
    for refusal in item.doubts():
        if refusal.code not in _overruled(item, params):
            raise refusal
    domain = domain_of(attributes, params.rules)
    if domain is None and labels.file is not None and labels.name(attributes["path"]) is None:
        raise Refusal(Code.E_NO_LABEL, f"{labels.file.name} does not list it, and no rule matches its path alone")
    if domain is None:
        raise Refusal(Code.E_NO_RULE, "no rule in params.yaml assigns it a domain; add one or leave it out")
    if item.source == "picture" and min(item.shape[1:]) < params.min_pixels:
        size = f"{item.shape[2]} x {item.shape[1]}"
        raise Refusal(Code.E_SMALL, f"has {size} pixels; ingest.min_pixels requires {params.min_pixels} on each side")
    modality = DOMAINS[domain]
    if (item.source == "picture") != (modality.picture):
        raise Refusal(Code.E_DOMAIN, f"a {item.source} cannot be {domain}; correct the rule")
    if item.source == "dicom" and item.attributes.get("Modality") != modality.dicom:
        raise Refusal(Code.E_DOMAIN, f"Modality is not {modality.dicom}, so it cannot be {domain}; correct the rule")
    return subject_key(_subject(item, params, attributes["path"], shared)), domain


def _overruled(item: Item, params: IngestParams) -> set[str]:
    """Return the codes that do not exclude this item."""
    policies = {Code.E_GAP: params.gaps == "interpolate", Code.E_4D: params.time_point is not None}
    dicom = item.series is not None
    return {*params.allow, *(code for code, chosen in policies.items() if chosen and dicom)}


def take(
    work: tuple[Place, Sequence[Item]], params: IngestParams, out: Path
) -> tuple[list[Taken], list[dict[str, object]]]:
    """Write the first readable item of a subject and domain; return it, and the refused items."""
    place, items = work
    taken: list[Taken] = []
    refused: list[dict[str, object]] = []
    for item in items:
        try:
            if taken:
                reason = f"another image of this session is already {place.domain}; make the rules more specific"
                raise Refusal(Code.E_DUPLICATE_DOMAIN, reason)
            taken.append(_write(item, place, params, out))
        except Refusal as refusal:
            refused.append(refused_entry(item, refusal))
    return taken, refused


def repeats(taken: Sequence[Taken], limit: float) -> Iterator[tuple[Taken, Refusal]]:
    """Find the pictures that (nearly) duplicate an earlier picture of their domain that is kept."""
    domains: dict[str, list[Taken]] = defaultdict(list)
    for one in sorted(taken, key=lambda one: one.item.path):
        if one.signature is not None:
            domains[one.entry.domain].append(one)
    for of in domains.values():
        first: dict[bytes, int] = {}
        same = {(first.setdefault(one.digest, number), number) for number, one in enumerate(of)}
        alike = near_duplicates(np.stack([one.signature for one in of]), limit) if limit < 1 else ()  # type: ignore[misc]
        gone: set[int] = set()
        for i, j in sorted({*same, *alike}):
            if i != j and not gone & {i, j}:
                gone.add(j)
                what = "the same picture as" if (i, j) in same else "nearly the same picture as"
                reason = f"{what} {of[i].item.key}, which is kept; set ingest.duplicates to keep to use both"
                yield of[j], Refusal(Code.E_DUPLICATE, reason)


def degrade(entry: ManifestItem, how: Degradation, out: Path) -> ManifestItem:
    """Write a degraded copy of an image below ``out``.

    The random choices depend only on its subject.
    """
    good = out / entry.path
    worse = good.with_name(f"{how.domain}{good.name.removeprefix(how.of)}")
    rng = np.random.default_rng(int(hashlib.sha256(entry.subject.encode()).hexdigest()[:16], 16))
    if entry.source == "picture":
        write_picture(worse, how.picture(read_picture(good), rng))
    else:
        write_volume(worse, how.scan(read_volume(good, how.of), rng))
    return replace(entry, domain=how.domain, path=worse.relative_to(out).as_posix(), degraded=how)


def refused_entry(item: Item, refusal: Refusal) -> dict[str, object]:
    shape = list(item.shape)
    return {"item": item.key, "kind": item.kind, "shape": shape, "code": refusal.code, "reason": refusal.reason}


def _write(item: Item, place: Place, params: IngestParams, out: Path) -> Taken:
    """Write one item in canonical form."""
    name = f"{place.subject}/{place.domain}{'.png' if item.source == 'picture' else '.nii.gz'}"
    (out / name).parent.mkdir(exist_ok=True)
    if item.source == "picture":
        pixels = read_picture(item.path, "picture")
        write_picture(out / name, pixels)
        digest = hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode() + pixels.tobytes()).digest()
        entry = ManifestItem(place.subject, place.domain, name, item.source, (1, *pixels.shape[:2]))
        return Taken(entry, item, digest, picture_signature(pixels))
    volume, changes = _load(item, place.domain, params)
    write_volume(out / name, volume)
    x, y, z = (round(spacing, 4) for spacing in volume.spacing_mm)
    depth, height, width = volume.voxels.shape
    entry = ManifestItem(
        place.subject,
        place.domain,
        name,
        item.source,
        (depth, height, width),
        (x, y, z),
        scanner={key: item.attributes[key] for key in SCANNER if item.attributes.get(key)},
        **changes,
    )
    return Taken(entry, item)


@reading()
def _load(item: Item, domain: str, params: IngestParams) -> tuple[Volume, dict[str, Any]]:
    """Read a scan.

    Return it, and the manifest fields that record what a policy changed and its frame of reference.
    """
    notes: dict[str, Any] = {}
    if item.series is not None and item.code == Code.E_GAP:
        volume, notes["interpolated_slices"] = read_with_gaps(item.series, domain, allow=params.allow)
    elif item.code == Code.E_4D and params.time_point is not None:
        volume, notes["time_point"] = item.at(params.time_point).load(domain, allow=params.allow), params.time_point
    else:
        volume = item.load(domain, allow=params.allow)
    notes["flags"] = tuple(sorted(item.flags))
    notes["allowed"] = tuple(sorted({doubt.code for doubt in item.doubts()} & set(params.allow)))
    if volume.is_sheared and params.tilt == "straighten":
        volume, notes["straightened"] = straighten(volume), True
    if item.series is not None and item.series.frame_of_reference_uid:
        notes["space"] = short_key("space", item.series.frame_of_reference_uid)
    return volume, notes


def _subject(item: Item, params: IngestParams, path: str, shared: Collection[str]) -> str:
    if params.subject is not None:
        match = re.search(params.subject, path)
        if match is None:
            raise Refusal(Code.E_SUBJECT, "ingest.subject does not match its path; correct the expression")
        return match.group(match.lastindex or 0)
    if item.series is not None:
        if not item.series.patient_id:
            raise Refusal(Code.E_SUBJECT, "PatientID is empty; set ingest.subject to find the subject in the path")
        person = item.series.person if item.series.patient_id in shared else ()
        return "\0".join((item.series.patient_id, *person))
    bids = BIDS_SUBJECT.search(path)
    return path if item.source == "picture" else bids.group(1) if bids else str(Path(path).parent)


def write_report(
    report: Path, found: Inventory, entries: Sequence[ManifestItem], refused: list, source: Path, labels: Labels
) -> None:
    """Write counts and verdicts.

    File names can be patient data, so files are listed by a hash of their relative path.
    """
    files = [
        {"file": short_key("file", str(file.path.relative_to(source))), "code": file.code, "reason": file.reason}
        for file in found.files
        if file.verdict != "used" and file.path != labels.file
    ]
    used = Counter(entry.domain for entry in entries)
    write_json(report, {"used": dict(sorted(used.items())), "refused": refused, "files": files})
