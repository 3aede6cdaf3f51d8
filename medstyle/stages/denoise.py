"""Canonical images -> clean, normalised slices of one size, split by subject: the slice store."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray

from medstyle.cohort.duplicates import near_duplicates, thumbnail
from medstyle.cohort.split import split_subjects
from medstyle.data.store import Row, write_rows
from medstyle.errors import Refusal, UserError
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.imaging.picture import read_picture
from medstyle.imaging.volume import Volume, read_volume
from medstyle.jobs.workers import Workers, each
from medstyle.params import params
from medstyle.pseudonyms import person_of, subject_key
from medstyle.transforms.align import Fit, fit, judge, onto_grid
from medstyle.transforms.common_space import Stored, join, middling
from medstyle.transforms.prepare import Preparation, frame_picture, picture_slices, prepare

REMEDY = "set denoise.registration to rigid, or check who is who"


@params
class Params:
    """How images become training slices."""

    size: tuple[int, int] = (128, 128)
    """Height and width of stored slices: scans are cropped or padded about their centre, pictures resized as
    `preparation.aspect` says."""
    preparation: Preparation = Preparation()
    """Cleaning and gridding of images; travels with the translator to inference."""
    registration: Literal["headers", "rigid", "affine"] = "headers"
    """How the scans of one subject are aligned: trust the headers, or maximise mutual information."""
    atlas: bool = False
    """Bring the training scans of all people into one space, affinely: for `train.objective.weights.population`."""
    bad_pairs: Literal["refuse", "flag"] = "refuse"
    """A scan that does not fit the subject's first one: leave it out, or only say so. Both are in `index.json`."""
    validation: float = 0.1
    """Share of the subjects that steer training."""
    test: float = 0.2
    """Share of the subjects that only `evaluate` sees."""
    test_subjects: tuple[str, ...] = ()
    """Instead of that share, their keys (`sub-...`, in the manifest of `ingest`), or the names that these were made of:
    PatientID, folder, or what ingest.subject matched. Names of patients do not belong into params.yaml."""
    seed: int = 0
    """Changes the split."""
    same_image: float = 0.999
    """Correlation of thumbnails from which the images of two subjects count as one: then they may not be on two sides
    of the split. 1 switches the check off."""
    workers: Workers = 1
    """1: threads of this process; more: processes; `tcp://host:8786`: the workers of a Dask scheduler."""

    def __post_init__(self) -> None:
        if min(self.size) < 16:
            raise UserError(f"denoise.size: must be at least 16, got {list(self.size)}")
        if not (0 <= self.validation < 1 and 0 <= self.test < 1):
            raise UserError("denoise.validation and denoise.test must lie in [0, 1)")


class _Block(NamedTuple):
    """The slices of one image, waiting on disk to be joined with the others of its domain and split."""

    subject: str
    domain: str
    rows: list[Row]
    fingerprint: Fingerprint
    path: Path
    spacing_mm: tuple[float, float, float] | None  # z first; pictures have none
    fit: Fit | None  # to the subject's first scan
    thumbnail: NDArray[np.float32]


class _Pair(NamedTuple):
    """What became of a scan beside the first one of its subject."""

    subject: str
    domain: str
    used: bool
    code: str
    reason: str
    overlap: float | None = None
    information: float | None = None


def run(params: Params, scans: Path, out: Path, log: Callable[[str], None] = print) -> None:
    """Read ``scans`` (of `ingest`) and write the slice store ``out``."""
    document = json.loads((scans / "manifest.json").read_text())
    subjects: dict[str, dict[str, Any]] = defaultdict(dict)
    for item in document["items"]:
        subjects[item["subject"]][item["domain"]] = {**item, "path": scans / item["path"]}
    splits = _split(subjects, params)
    scratch = out.with_name(f".part-{out.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "blocks").mkdir(parents=True)

    work = partial(_blocks, params=params, folder=scratch / "blocks")
    threads = os.cpu_count() or 1  # the filters release the interpreter lock
    done = list(each(work, sorted(subjects.items()), "denoise", params.workers, threads))
    blocks = [block for made, _ in done for block in made]
    pairs = _judged(blocks, [pair for _, found in done for pair in found], params.bad_pairs)
    left_out = {(pair.subject, pair.domain) for pair in pairs if not pair.used}
    groups: dict[str, dict[str, list[_Block]]] = {split: defaultdict(list) for split in dict.fromkeys(splits.values())}
    for block in blocks:
        if (block.subject, block.domain) not in left_out:
            groups[splits[block.subject]][block.domain].append(block)
    _check_leaks(blocks, splits, params.same_image)
    landmarks = params.preparation.landmarks
    if params.preparation.normalisation == "nyul":
        learned = _learn_landmarks({d: bs for d, bs in groups.get("train", {}).items() if d not in landmarks})
        for domains in groups.values():
            for domain in domains.keys() & learned.keys():
                domains[domain] = [_move(block, learned[domain]) for block in domains[domain]]
        landmarks = {**landmarks, **learned}
    training = [block for of in groups.get("train", {}).values() for block in of]
    atlas = _atlas(training, params.workers, threads, log) if params.atlas else {}
    for split, domains in groups.items():
        for domain, blocks in domains.items():
            write_rows(scratch / split / f"{domain}.npy", [block.path for block in blocks])
    shutil.rmtree(scratch / "blocks")
    index: dict[str, Any] = {
        "size": list(params.size),
        "preparation": asdict(replace(params.preparation, landmarks=landmarks)),
        "registration": params.registration,
        "pairs": [pair._asdict() for pair in pairs],
        "atlas": atlas,
        "rules": document["rules"],
        "subjects": splits,
        "rows": {s: {d: [row for b in bs for row in b.rows] for d, bs in ds.items()} for s, ds in groups.items()},
        "fingerprints": {
            s: {d: [[b.fingerprint.values, b.fingerprint.scaled] for b in bs] for d, bs in ds.items()}
            for s, ds in groups.items()
        },
    }
    (scratch / "index.json").write_text(json.dumps(index) + "\n")
    shutil.rmtree(out, ignore_errors=True)
    scratch.replace(out)
    counts = {split: len([s for s in splits.values() if s == split]) for split in groups}
    for pair in (pair for pair in pairs if pair.code):
        what = "used all the same" if pair.used else "left out"
        log(f"{pair.domain} of {pair.subject} {what}: {pair.code}, {pair.reason}")
    log(f"subjects {counts}, slices of {params.size[0]} x {params.size[1]} in {out}")


def _check_leaks(blocks: list[_Block], splits: Mapping[str, str], limit: float) -> None:
    """Raise UserError where two subjects on different sides of the split have the same image in a domain."""
    domains: dict[str, list[_Block]] = defaultdict(list)
    for block in blocks if limit < 1 else ():
        domains[block.domain].append(block)
    for domain, of in domains.items():
        found = [
            (a, b)
            for i, j in near_duplicates(np.stack([block.thumbnail for block in of]), limit)
            if splits[a := of[i].subject] != splits[b := of[j].subject]
        ]
        if found:
            a, b = found[0]
            more = f" ({len(found)} such pairs)" if len(found) > 1 else ""
            raise UserError(
                f"{domain} of {a} ({splits[a]}) and of {b} ({splits[b]}) is the same image{more}: name the person with "
                "ingest.subject, or take one out; denoise.same_image sets the limit"
            )


def _judged(blocks: list[_Block], pairs: list[_Pair], policy: str) -> list[_Pair]:
    """Add a verdict for each scan that stands beside another; all scans of a domain are one cohort."""
    cohorts: dict[str, list[_Block]] = defaultdict(list)
    for block in blocks:
        if block.fit is not None:
            cohorts[block.domain].append(block)
    known = {(pair.subject, pair.domain): pair for pair in pairs}
    for domain, cohort in cohorts.items():
        fits = [block.fit for block in cohort if block.fit is not None]
        for block, one, (code, reason) in zip(cohort, fits, judge(fits), strict=True):
            place = (block.subject, domain)
            if place not in known:
                used, words = not code or policy == "flag", f"{reason}; {REMEDY}" if code else ""
                known[place] = _Pair(*place, used, code, words, round(one.overlap, 4), round(one.information, 4))
    return [known[place] for place in sorted(known)]


def _atlas(
    blocks: list[_Block], workers: Workers, threads: int, log: Callable[[str], None]
) -> dict[str, dict[str, list[list[float]]]]:
    """Return for each domain and subject the map of the stored voxels into the space that all scans share."""
    stored = {(b.domain, b.subject): Stored(b.path, b.spacing_mm) for b in blocks if b.spacing_mm is not None}
    if not stored:
        raise UserError("denoise.atlas: pictures have no common space; set it to false")
    maps = each(partial(join, space=middling(list(stored.values()))), list(stored.values()), "atlas", workers, threads)
    atlas: dict[str, dict[str, list[list[float]]]] = defaultdict(dict)
    for (domain, subject), found in zip(stored, maps, strict=True):
        if found is None:
            log(f"{domain} of {subject} is not in the atlas: it could not be brought into the space of the others")
        else:
            atlas[domain][subject] = found.tolist()
    return atlas


def _learn_landmarks(groups: Mapping[str, list[_Block]]) -> dict[str, tuple[float, ...]]:
    """Return the mean positions of the deciles over training images, per domain that has no absolute unit."""
    return {
        domain: tuple(np.mean([block.fingerprint.scaled for block in blocks], axis=0).tolist())
        for domain, blocks in groups.items()
        if not DOMAINS[domain].absolute
    }


def _move(block: _Block, landmarks: tuple[float, ...]) -> _Block:
    """Bring a block that was stored before the landmarks were known to them."""
    own = block.fingerprint
    stored = np.load(block.path)
    np.save(block.path, np.clip(Fingerprint(own.scaled, landmarks).forward(stored), -1, 3))
    return block._replace(fingerprint=Fingerprint(own.values, landmarks))


def _split(subjects: Mapping[str, Mapping[str, Any]], params: Params) -> dict[str, str]:
    """Split by person; where everyone has one domain only (unpaired pictures), each domain is split alike."""
    people: dict[str, set[str]] = defaultdict(set)
    for subject, images in subjects.items():
        people[person_of(subject)].update(images)
    held = [person_of(name) if person_of(name) in people else subject_key(name) for name in params.test_subjects]
    if absent := [str(number) for number, key in enumerate(held, 1) if key not in people]:
        raise UserError(
            f"denoise.test_subjects: no subject fits number {', '.join(absent)} of the list; take keys from "
            "data/scans/manifest.json; for names MEDSTYLE_SECRET must be what it was at ingest"
        )
    kinds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for person, domains in people.items():
        kinds[tuple(sorted(domains))].append(person)
    single = all(len(kind) == 1 for kind in kinds)
    groups = list(kinds.values()) if single else [list(people)]
    shares = (params.validation, 0.0 if held else params.test)
    splits = dict.fromkeys(held, "test")
    for group in groups:
        splits.update(split_subjects([key for key in group if key not in held], shares, params.seed))
    return {subject: splits[person_of(subject)] for subject in sorted(subjects)}


def _blocks(
    item: tuple[str, Mapping[str, Mapping[str, Any]]], params: Params, folder: Path
) -> tuple[list[_Block], list[_Pair]]:
    """Prepare the images of one subject; the first scan, in the order of DOMAINS, gives the others its grid."""
    subject, images = item
    blocks, pairs = [], []
    reference: Volume | None = None
    space = ""
    for domain in sorted(images, key=lambda name: (list(DOMAINS).index(name.partition("@")[0]), name)):
        modality = DOMAINS[domain]
        fitted: Fit | None = None
        spacing: tuple[float, float, float] | None = None
        if modality.dicom is None:
            pixels = read_picture(images[domain]["path"])
            slices, foreground = (
                picture_slices(pixels, domain, params.preparation),
                np.ones((1, *pixels.shape[:2]), bool),
            )
            fingerprint = Fingerprint(modality.range)
            slices = frame_picture(slices, params.size, params.preparation.aspect)
        else:
            volume = read_volume(images[domain]["path"], domain)
            own = images[domain].get("space", "")
            if reference is not None:
                if params.registration == "headers" and own and space and own != space:
                    reason = f"the headers place it in a space of its own; {REMEDY}"
                    pairs.append(_Pair(subject, domain, params.bad_pairs == "flag", "E_PAIR_SPACE", reason))
                    if params.bad_pairs == "refuse":
                        continue
                try:
                    volume = onto_grid(volume, reference, params.registration)
                except Refusal as refusal:
                    pairs.append(_Pair(subject, domain, False, refusal.code, refusal.reason))
                    continue
                fitted = fit(reference, volume)
            reference, space = reference or volume, space or own
            prepared = prepare(volume, params.preparation)
            slices, foreground, fingerprint = prepared.slices, prepared.foreground, prepared.fingerprint
            spacing = prepared.spacing_mm
        crop = ResizeWithPadOrCrop((*params.size, len(slices)), mode="constant", value=-1)
        stored = torch.as_tensor(np.asarray(crop(slices.permute(1, 2, 3, 0)))).permute(3, 0, 1, 2)
        last = max(1, len(stored) - 1)
        rows = [Row(subject, z, round(z / last, 4), round(float(mask.mean()), 4)) for z, mask in enumerate(foreground)]
        path = folder / f"{subject}-{domain}.npy"
        np.save(path, stored.numpy())
        blocks.append(_Block(subject, domain, rows, fingerprint, path, spacing, fitted, thumbnail(stored)))
    return blocks, pairs
