"""Build the slice store: clean, normalised slices of one size, split by subject."""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from medstyle.data.build import (
    Block,
    DenoiseParams,
    blocks_of,
    check_leaks,
    common_space,
    learn_landmarks,
    moved,
    rows_of,
    split,
    with_verdicts,
)
from medstyle.data.manifest import Manifest
from medstyle.data.store import StoreIndex, write_rows
from medstyle.jobs.atomic import atomic_folder
from medstyle.jobs.workers import each

Params = DenoiseParams


def run(params: Params, scans: Path, out: Path, log: Callable[[str], None] = print) -> None:
    """Read ``scans`` (of `ingest`) and write the slice store ``out``."""
    manifest = Manifest.read(scans)
    subjects = manifest.subjects()
    splits = split(subjects, params)
    threads = os.cpu_count() or 1  # the filters release the interpreter lock
    with atomic_folder(out) as scratch:
        folder = scratch / "blocks"
        folder.mkdir()
        work = partial(blocks_of, params=params, scans=scans, folder=folder)
        done = list(each(work, sorted(subjects.items()), "denoise", params.workers, threads))
        blocks = [block for made, _ in done for block in made]
        pairs = with_verdicts(blocks, [pair for _, found in done for pair in found], params.bad_pairs)
        left_out = {(pair.subject, pair.domain) for pair in pairs if not pair.used}
        groups: dict[str, dict[str, list[Block]]] = {name: defaultdict(list) for name in dict.fromkeys(splits.values())}
        for block in blocks:
            if (block.subject, block.domain) not in left_out:
                groups[splits[block.subject]][block.domain].append(block)
        check_leaks(blocks, splits, params.same_image)
        landmarks = params.preparation.landmarks
        if params.preparation.normalisation == "nyul":
            learned = learn_landmarks({d: bs for d, bs in groups.get("train", {}).items() if d not in landmarks})
            for domains in groups.values():
                for domain in domains.keys() & learned.keys():
                    domains[domain] = [moved(block, learned[domain]) for block in domains[domain]]
            landmarks = {**landmarks, **learned}
        training = [block for of in groups.get("train", {}).values() for block in of]
        maps = common_space(training, params.workers, threads, log) if params.common_space else {}
        for name, domains in groups.items():
            for domain, of in domains.items():
                write_rows(scratch / name / f"{domain}.npy", [block.path for block in of])
        index = StoreIndex(
            size=params.size,
            preparation=replace(params.preparation, landmarks=landmarks),
            alignment=params.alignment,
            rules=manifest.rules,
            subjects=splits,
            rows={
                s: {d: tuple(row for b in bs for row in rows_of(b)) for d, bs in ds.items()} for s, ds in groups.items()
            },
            fingerprints={s: {d: tuple(b.fingerprint for b in bs) for d, bs in ds.items()} for s, ds in groups.items()},
            pairs=tuple(pairs),
            common_space=maps,
        )
        (scratch / "index.json").write_text(index.to_json())
        shutil.rmtree(folder)
    for pair in (pair for pair in pairs if pair.code):
        what = "used nevertheless" if pair.used else "left out"
        log(f"{pair.domain} of {pair.subject} {what}: {pair.code}, {pair.reason}")
    counts = {name: len([s for s in splits.values() if s == name]) for name in groups}
    log(f"subjects {counts}, slices of {params.size[0]} x {params.size[1]} in {out}")
