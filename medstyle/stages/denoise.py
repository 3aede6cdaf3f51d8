"""Canonical images -> clean, normalised slices of one size, split by subject: the slice store."""

from __future__ import annotations

import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from monai.transforms import Resize, ResizeWithPadOrCrop

from medstyle.errors import UserError
from medstyle.imaging.dicom.deidentify import subject_key
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.imaging.picture import read_picture
from medstyle.imaging.progress import track
from medstyle.imaging.store import Row, split_subjects, write_rows
from medstyle.imaging.volume import Volume, read_volume
from medstyle.params import params
from medstyle.transforms.prepare import Preparation, picture_slices, prepare
from medstyle.transforms.register import onto_grid


@params
class Params:
    """How images become training slices."""

    size: tuple[int, int] = (128, 128)
    """Height and width of stored slices: scans are cropped or padded about their centre, pictures resized."""
    preparation: Preparation = Preparation()
    """Cleaning and gridding of scans; travels with the translator to inference."""
    registration: Literal["headers", "rigid"] = "headers"
    """How the scans of one subject are aligned: trust the headers, or maximise mutual information."""
    validation: float = 0.1
    """Share of the subjects that steer training."""
    test: float = 0.2
    """Share of the subjects that only `evaluate` sees."""
    test_subjects: tuple[str, ...] = ()
    """Instead of that share, their names as `ingest` found them: PatientID, folder, or what ingest.subject matched."""
    seed: int = 0
    """Changes the split."""

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


def run(params: Params, scans: Path, out: Path, log: Callable[[str], None] = print) -> None:
    """Read ``scans`` (of `ingest`) and write the slice store ``out``."""
    document = json.loads((scans / "manifest.json").read_text())
    subjects: dict[str, dict[str, Path]] = defaultdict(dict)
    for item in document["items"]:
        subjects[item["subject"]][item["domain"]] = scans / item["path"]
    splits = _split(subjects, params)
    scratch = out.with_name(f".part-{out.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "blocks").mkdir(parents=True)

    def one(subject: str) -> list[_Block]:
        return _blocks(subject, subjects[subject], params, scratch / "blocks")

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the filters release the interpreter lock
        done = list(track(pool.map(one, sorted(subjects)), "denoise", len(subjects)))
    groups: dict[str, dict[str, list[_Block]]] = {split: defaultdict(list) for split in dict.fromkeys(splits.values())}
    for block in (block for blocks in done for block in blocks):
        groups[splits[block.subject]][block.domain].append(block)
    landmarks = params.preparation.landmarks
    if params.preparation.normalisation == "nyul":
        learned = _learn_landmarks({d: bs for d, bs in groups.get("train", {}).items() if d not in landmarks})
        for domains in groups.values():
            for domain in domains.keys() & learned.keys():
                domains[domain] = [_move(block, learned[domain]) for block in domains[domain]]
        landmarks = {**landmarks, **learned}
    for split, domains in groups.items():
        for domain, blocks in domains.items():
            write_rows(scratch / split / f"{domain}.npy", [block.path for block in blocks])
    shutil.rmtree(scratch / "blocks")
    index: dict[str, Any] = {
        "size": list(params.size),
        "preparation": asdict(replace(params.preparation, landmarks=landmarks)),
        "registration": params.registration,
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
    log(f"subjects {counts}, slices of {params.size[0]} x {params.size[1]} in {out}")


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


def _split(subjects: dict[str, dict[str, Path]], params: Params) -> dict[str, str]:
    """Split subjects; where every subject has one domain only (unpaired pictures), each domain is split alike."""
    held = {subject_key(name): name for name in params.test_subjects}
    if absent := [name for key, name in held.items() if key not in subjects]:
        raise UserError(
            f"denoise.test_subjects: no subject is named {', '.join(absent)}; a name is a PatientID, a folder below "
            "ingest.source or what ingest.subject matches, and MEDSTYLE_SECRET must be what it was at ingest"
        )
    kinds: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for subject, images in subjects.items():
        kinds[tuple(sorted(images))].append(subject)
    single = all(len(kind) == 1 for kind in kinds)
    groups = list(kinds.values()) if single else [list(subjects)]
    shares = (params.validation, 0.0 if held else params.test)
    splits = dict.fromkeys(held, "test")
    for group in groups:
        splits.update(split_subjects([key for key in group if key not in held], shares, params.seed))
    return dict(sorted(splits.items()))


def _blocks(subject: str, images: dict[str, Path], params: Params, folder: Path) -> list[_Block]:
    blocks = []
    reference: Volume | None = None
    for domain in sorted(images, key=lambda name: (list(DOMAINS).index(name.partition("@")[0]), name)):
        modality = DOMAINS[domain]
        if modality.dicom is None:
            pixels = read_picture(images[domain])
            slices, foreground = picture_slices(pixels, domain), np.ones((1, *pixels.shape[:2]), bool)
            fingerprint = Fingerprint(modality.range)
            shorter = min(slices.shape[2:])
            fit = Resize([max(n, round(n * m / shorter)) for n, m in zip(params.size, slices.shape[2:], strict=True)],
                         mode="bilinear", anti_aliasing=True)  # fmt: skip
            slices = fit(slices[0]).as_tensor()[None]  # type: ignore[union-attr]
        else:
            volume = read_volume(images[domain], domain)
            if reference is not None:
                volume = onto_grid(volume, reference, rigid=params.registration == "rigid")
            reference = reference or volume
            prepared = prepare(volume, params.preparation)
            slices, foreground, fingerprint = prepared.slices, prepared.foreground, prepared.fingerprint
        crop = ResizeWithPadOrCrop((*params.size, len(slices)), mode="constant", value=-1)
        stored = torch.as_tensor(np.asarray(crop(slices.permute(1, 2, 3, 0)))).permute(3, 0, 1, 2)
        last = max(1, len(stored) - 1)
        rows = [Row(subject, z, round(z / last, 4), round(float(mask.mean()), 4)) for z, mask in enumerate(foreground)]
        path = folder / f"{subject}-{domain}.npy"
        np.save(path, stored.numpy())
        blocks.append(_Block(subject, domain, rows, fingerprint, path))
    return blocks
