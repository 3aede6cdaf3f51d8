"""Convert raw files to canonical, de-identified images with a manifest and a report of refusals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

from medstyle.cohort.inventory import Inventory, Item, inventory
from medstyle.cohort.sessions import sessions
from medstyle.data.canonical import (
    IngestParams,
    Place,
    Taken,
    check_rules,
    degrade,
    labels_of,
    placed,
    refused_entry,
    repeats,
    shared_ids,
    take,
    write_report,
)
from medstyle.data.manifest import Manifest, ManifestItem
from medstyle.errors import DataError, Refusal
from medstyle.jobs.atomic import atomic_folder
from medstyle.jobs.workers import each
from medstyle.pseudonyms import NO_SECRET, own_secret, person_of

Params = IngestParams
Refused = list[dict[str, object]]

TRUTH = "truth"  # a folder of this name inside the source is only for `evaluate`


def run(params: Params, out: Path, report: Path, log: Callable[[str], None] = print) -> None:
    """Fill the new folder ``out`` with canonical images and ``manifest.json``.

    The images are ``<subject>/<domain>.nii.gz`` or ``.png``. Bad inputs are refused and reported;
    the others are processed.

    Raises:
        UserError: the source does not exist or contains nothing that a rule accepts.
    """
    source = Path(params.source)
    if not source.is_dir():
        raise DataError(f"ingest.source: {source}: no such folder; put images there or name the folder that holds them")
    if own_secret() is None:
        log(f"ingest: warning: {NO_SECRET}")
    labels = labels_of(params)
    found = inventory(sorted(path for path in source.iterdir() if path.name != TRUTH))
    check_rules(params.rules, labels, found)
    with atomic_folder(out) as scratch:
        places, refused = _places(found, params)
        taken: list[Taken] = []
        for one, left in each(
            partial(take, params=params, out=scratch), list(places.items()), "ingest", params.workers
        ):
            taken += one
            refused += left
        refused += _drop_repeats(taken, params, scratch)
        entries = [one.entry for one in taken]
        entries += [
            degrade(entry, how, scratch) for how in params.degraded for entry in entries if entry.domain == how.of
        ]
        refused.sort(key=lambda entry: str(entry["item"]))
        if not entries:
            causes = ", ".join(f"{n} x {code}" for code, n in Counter(r["code"] for r in refused).items())
            look = f"see `medstyle inspect {source}`"
            raise DataError(f"ingest.source: {source}: nothing could be used ({causes or 'it is empty'}); {look}")
        entries.sort(key=lambda entry: entry.path)
        Manifest(params.rules, tuple(entries)).write(scratch)
    write_report(report, found, entries, refused, source, labels)
    listed = {labels.name(item.path.relative_to(source).as_posix()) for item in found.volumes}
    if absent := len(labels.rows.keys() - listed):
        log(f"ingest.labels: {absent} of {len(labels.rows)} images that it lists are not in {source}")
    _tell(entries, refused, out, report, log)


def _places(found: Inventory, params: Params) -> tuple[dict[Place, list[Item]], Refused]:
    """Return the items of each subject and domain, best first, and the refused items."""
    people: dict[str, list[tuple[str, Item]]] = defaultdict(list)
    refused: Refused = []
    labels, shared = labels_of(params), shared_ids(found.volumes)
    for item in found.volumes:
        try:
            person, domain = placed(item, params, Path(params.source), labels, shared)
            people[person].append((domain, item))
        except Refusal as refusal:
            refused.append(refused_entry(item, refusal))
    places = {
        Place(subject, domain): list(items)
        for person, images in people.items()
        for subject, session in sessions(person, images).items()
        for domain, items in session.items()
    }
    return places, refused


def _drop_repeats(taken: list[Taken], params: Params, folder: Path) -> Refused:
    """Remove pictures that repeat another from the list and from the disk; return them."""
    refused: Refused = []
    for repeat, why in list(repeats(taken, params.same_image)) if params.duplicates == "refuse" else ():
        place = folder / repeat.entry.path
        place.unlink()
        if not any(place.parent.iterdir()):
            place.parent.rmdir()
        taken.remove(repeat)
        refused.append(refused_entry(repeat.item, why))
    return refused


def _tell(entries: list[ManifestItem], refused: Refused, out: Path, report: Path, log: Callable[[str], None]) -> None:
    if overruled := Counter(code for entry in entries for code in entry.allowed):
        log("ingest.allow overrode " + ", ".join(f"{n} x {code}" for code, n in sorted(overruled.items())))
    subjects = len({person_of(entry.subject) for entry in entries})
    log(f"{len(entries)} images of {subjects} subjects in {out}; {len(refused)} refused, reasons in {report}")
