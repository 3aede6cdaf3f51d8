"""Prepare the canonical images of each subject and write them as blocks of slices for the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
from monai.transforms import ResizeWithPadOrCrop
from numpy.typing import NDArray
from pydantic import Field

from medstyle.cohort.duplicates import near_duplicates, volume_signature
from medstyle.cohort.split import split_subjects
from medstyle.data.manifest import ManifestItem
from medstyle.data.store import Matrix, Pair, Row
from medstyle.errors import Code, DataError, Refusal
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.imaging.picture import read_picture
from medstyle.imaging.volume import Volume, read_volume
from medstyle.jobs.workers import Workers, each
from medstyle.params import params
from medstyle.pseudonyms import person_of, subject_key
from medstyle.transforms.align import Fit, measure_fit, onto_grid, pair_verdicts
from medstyle.transforms.body import AIR, extent_of, is_body
from medstyle.transforms.common_space import Stored, map_to_space, median_scan
from medstyle.transforms.prepare import Preparation, frame_picture, picture_slices, prepare

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

SMALLEST_GROUP = 3  # people of a protocol: one each to train, validate and test
REMEDY = "set denoise.alignment to rigid, or check that both scans belong to this subject"


@params
class DenoiseParams:
    """How images become training slices."""

    size: tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]] = (128, 128)
    """Height and width of the stored slices. Scans are cropped or padded about their centre;
    pictures are resized as `preparation.aspect` says."""
    preparation: Preparation = Preparation()
    """Cleaning and resampling of the images; stored with the translator and applied again at
    inference."""
    alignment: Literal["headers", "rigid", "affine"] = "headers"
    """How the scans of one subject are aligned: `headers` trusts the geometry in the headers;
    `rigid` and `affine` maximise mutual information."""
    common_space: bool = False
    """Align the training scans of all subjects affinely to one common space; needed by
    `train.objective.weights.cross_subject`."""
    bad_pairs: Literal["refuse", "flag", "ignore"] = "refuse"
    """What to do with a scan that does not fit the first scan of its subject: `refuse` leaves it
    out, `flag` only reports it. Both are recorded in `index.json`. `ignore` measures nothing, for
    images that are simulated together."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the subjects used for validation during training."""
    test: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of the subjects that are held out for `evaluate`."""
    test_subjects: tuple[str, ...] = ()
    """Test subjects, instead of the share `test`: their keys (`sub-...`, from the manifest of
    `ingest`), or the identifiers that the keys were made from (PatientID, folder, or the match of
    ingest.subject). Do not put patient names into params.yaml."""
    seed: int = 0
    """Seed of the random split."""
    same_image: float = 0.999
    """Correlation of downsampled copies above which the images of two subjects count as the same
    image; such subjects must not be on different sides of the split. 1 switches the check off."""
    workers: Workers = 1
    """1: threads of this process; more than 1: processes; `tcp://host:8786`: the workers of a Dask
    scheduler."""


class Block(NamedTuple):
    """The slices of one image on disk, before splitting and concatenation with their domain."""

    subject: str
    domain: str
    rows: list[Row]
    fingerprint: Fingerprint
    path: Path
    spacing_mm: tuple[float, float, float] | None  # z first; pictures have none
    fit: Fit | None  # to the subject's first scan
    signature: NDArray[np.float32]


def check_leaks(blocks: list[Block], splits: Mapping[str, str], limit: float) -> None:
    """Raise UserError if subjects on different sides of the split share an image of a domain."""
    domains: dict[str, list[Block]] = defaultdict(list)
    for block in blocks if limit < 1 else ():
        domains[block.domain].append(block)
    for domain, of in domains.items():
        found = [
            (a, b)
            for i, j in near_duplicates(np.stack([block.signature for block in of]), limit)
            if splits[a := of[i].subject] != splits[b := of[j].subject]
        ]
        if found:
            a, b = found[0]
            more = f" ({len(found)} such pairs)" if len(found) > 1 else ""
            raise DataError(
                f"{domain} of {a} ({splits[a]}) and of {b} ({splits[b]}) is the same image{more}: set "
                "ingest.subject so that both have the same subject, or remove one of them; "
                "denoise.same_image sets the limit"
            )


def with_verdicts(blocks: list[Block], pairs: list[Pair], policy: str) -> list[Pair]:
    """Add a verdict for each scan that was aligned with another.

    The scans of a domain are compared with each other.
    """
    cohorts: dict[str, list[Block]] = defaultdict(list)
    for block in blocks:
        if block.fit is not None:
            cohorts[block.domain].append(block)
    known = {(pair.subject, pair.domain): pair for pair in pairs}
    for domain, cohort in cohorts.items():
        fits = [block.fit for block in cohort if block.fit is not None]
        for block, one, (code, reason) in zip(cohort, fits, pair_verdicts(fits), strict=True):
            key = (block.subject, domain)
            if key not in known:
                used, said = not code or policy == "flag", f"{reason}; {REMEDY}" if code else ""
                known[key] = Pair(*key, used, code, said, round(one.overlap, 4), round(one.information, 4))
    return [known[key] for key in sorted(known)]


def common_space(
    blocks: list[Block], workers: Workers, threads: int, log: Callable[[str], None]
) -> dict[str, dict[str, Matrix]]:
    """Return, for each domain and subject, the map from stored voxels to the common space."""
    stored = {(b.domain, b.subject): Stored(b.path, b.spacing_mm) for b in blocks if b.spacing_mm is not None}
    if not stored:
        raise DataError("denoise.common_space: pictures have no common space; set it to false")
    work = partial(map_to_space, space=median_scan(list(stored.values())))
    maps: dict[str, dict[str, Matrix]] = defaultdict(dict)
    for (domain, subject), matrix in zip(
        stored, each(work, list(stored.values()), "common space", workers, threads), strict=True
    ):
        if matrix is None:
            log(f"{domain} of {subject} is left out of the common space: it could not be aligned with the others")
        else:
            maps[domain][subject] = tuple(map(tuple, matrix.tolist()))
    return dict(maps)


def learn_landmarks(groups: Mapping[str, list[Block]]) -> dict[str, tuple[float, ...]]:
    """Return the mean deciles over the training images of each domain without an absolute unit."""
    return {
        domain: tuple(np.mean([block.fingerprint.scaled for block in blocks], axis=0).tolist())
        for domain, blocks in groups.items()
        if not DOMAINS[domain].absolute
    }


def moved(block: Block, landmarks: tuple[float, ...]) -> Block:
    """Map the intensities of a stored block to landmarks that were learned after it was written."""
    own = block.fingerprint
    stored = np.load(block.path)
    np.save(block.path, np.clip(Fingerprint(own.scaled, landmarks).forward(stored), -1, 3))
    return block._replace(fingerprint=Fingerprint(own.values, landmarks))


def split(subjects: Mapping[str, Iterable[str]], params: DenoiseParams) -> dict[str, str]:
    """Split by person.

    Groups of :func:`people_of` are split separately.
    """
    groups = people_of(subjects)
    people = {person for group in groups for person in group}
    held = [person_of(name) if person_of(name) in people else subject_key(name) for name in params.test_subjects]
    if absent := [str(number) for number, key in enumerate(held, 1) if key not in people]:
        raise DataError(
            f"denoise.test_subjects: no subject matches number {', '.join(absent)} of the list; take keys from "
            "data/scans/manifest.json; to use names, MEDSTYLE_SECRET must have the value it had at ingest"
        )
    shares = (params.validation, 0.0 if held else params.test)
    splits = dict.fromkeys(held, "test")
    for group in groups:
        splits.update(split_subjects([key for key in group if key not in held], shares, params.seed))
    return {subject: splits[person_of(subject)] for subject in sorted(subjects)}


def people_of(subjects: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Return the people, who may have several sessions, in the groups that are split separately.

    It is one group, or one for each domain if every person has a single domain, or one for each
    protocol if all have the same contrasts by different ones (``mr_flair``, ``mr_flair@north``).
    """
    people: dict[str, set[str]] = defaultdict(set)
    for subject, images in subjects.items():
        people[person_of(subject)].update(images)
    kinds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for person, domains in people.items():
        kinds[tuple(sorted(domains))].append(person)
    single = all(len(kind) == 1 for kind in kinds)
    contrasts = {tuple(sorted(domain.partition("@")[0] for domain in kind)) for kind in kinds}
    apart = len(contrasts) == 1 and min(map(len, kinds.values()), default=0) >= SMALLEST_GROUP
    return list(kinds.values()) if single or apart else [list(people)]


def rows_of(block: Block) -> tuple[Row, ...]:
    """Return one index row per slice of a block, with the extent of the body in it."""
    slices = np.load(block.path, mmap_mode="r")
    bodies = (is_body(image.astype(np.float16)).any(axis=0) for image in slices)  # colours: in any channel
    return tuple(row._replace(body=extent_of(body)) for row, body in zip(block.rows, bodies, strict=True))


def blocks_of(
    item: tuple[str, Mapping[str, ManifestItem]], params: DenoiseParams, scans: Path, folder: Path
) -> tuple[list[Block], list[Pair]]:
    """Prepare the images of one subject.

    The first scan, in the order of DOMAINS, defines the grid of the others.
    """
    subject, images = item
    blocks: list[Block] = []
    pairs: list[Pair] = []
    reference: Volume | None = None
    space = ""
    for domain in sorted(images, key=lambda name: (list(DOMAINS).index(name.partition("@")[0]), name)):
        image = images[domain]
        if DOMAINS[domain].picture:
            blocks.append(_picture_block(subject, domain, scans / image.path, params, folder))
            continue
        volume = read_volume(scans / image.path, domain)
        fitted: Fit | None = None
        if reference is not None:
            if params.alignment == "headers" and image.space and space and image.space != space:
                reason = f"the headers place it in a different frame of reference; {REMEDY}"
                pairs.append(Pair(subject, domain, params.bad_pairs != "refuse", Code.E_PAIR_SPACE, reason))
                if params.bad_pairs == "refuse":
                    continue
            try:
                volume = onto_grid(volume, reference, params.alignment)
            except Refusal as refusal:
                pairs.append(Pair(subject, domain, False, refusal.code, refusal.reason))
                continue
            fitted = measure_fit(reference, volume) if params.bad_pairs != "ignore" else None
        reference, space = reference or volume, space or image.space
        prepared = prepare(volume, params.preparation)
        block = _stored(subject, domain, prepared.slices, prepared.foreground, params, folder)
        blocks.append(block._replace(fingerprint=prepared.fingerprint, spacing_mm=prepared.spacing_mm, fit=fitted))
    return blocks, pairs


def _picture_block(subject: str, domain: str, path: Path, params: DenoiseParams, folder: Path) -> Block:
    pixels = read_picture(path)
    whole = frame_picture(picture_slices(pixels, domain, params.preparation), params.size, params.preparation.aspect)
    return _stored(subject, domain, whole, np.ones((1, *pixels.shape[:2]), bool), params, folder)


def _stored(
    subject: str,
    domain: str,
    slices: torch.Tensor,
    foreground: NDArray[np.bool_],
    params: DenoiseParams,
    folder: Path,
) -> Block:
    """Write slices ``(D, C, H, W)`` at the size that the store uses."""
    crop = ResizeWithPadOrCrop((*params.size, len(slices)), mode="constant", value=AIR)
    stored = torch.as_tensor(np.asarray(crop(slices.permute(1, 2, 3, 0)))).permute(3, 0, 1, 2)
    last = max(1, len(stored) - 1)
    rows = [
        Row(subject, z, round(z / last, 4), round(float(mask.mean()), 4), None) for z, mask in enumerate(foreground)
    ]
    path = folder / f"{subject}-{domain}.npy"
    np.save(path, stored.numpy())
    return Block(subject, domain, rows, Fingerprint(DOMAINS[domain].range), path, None, None, volume_signature(stored))
