"""A small slice store whose target is a fixed map of the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medstyle.data.store import Row, SliceStore, StoreIndex
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.transforms.body import extent_of, is_body
from medstyle.transforms.prepare import Preparation

MAPS = {"mr_t1": lambda x: x, "mr_t2": lambda x: -x, "mr_flair": lambda x: 2 * np.abs(x) - 1}
SLICES = 6


def make_store(
    folder: Path,
    change=lambda domain, images: images,
    subjects: int = 5,
    size: int = 24,
    domains: Sequence[str] = tuple(MAPS),
    validation: int = 2,
) -> SliceStore:
    """Write smooth random slices in several domains.

    ``change(domain, images)`` may spoil the training images.
    """
    rng = np.random.default_rng(0)
    rows: dict = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, n in (("train", subjects), ("validation", validation)):
        noise = rng.normal(size=(n * SLICES, 1, size, size))
        base = np.stack([gaussian_filter(one[0], 2)[None] * 8 for one in noise]).clip(-0.99, 1)
        (folder / split).mkdir()
        for number, domain in enumerate(domains):
            make = MAPS.get(domain, list(MAPS.values())[number % 3])
            images = make(base).clip(-0.99, 1).repeat(DOMAINS[domain].channels, 1)
            images = change(domain, images) if split == "train" else images
            np.save(folder / split / f"{domain}.npy", images.astype(np.float16))
        rows[split] = {
            domain: tuple(
                Row(f"{split}-{i // SLICES}", i % SLICES, (i % SLICES) / (SLICES - 1), 1.0, extent_of(body))
                for i, body in enumerate(is_body(np.load(folder / split / f"{domain}.npy")).any(axis=1))
            )
            for domain in domains
        }
    index = StoreIndex(
        size=(size, size),
        preparation=Preparation(),
        alignment="headers",
        rules=(),
        subjects={row.subject: split for split, of in rows.items() for row in of[domains[0]]},
        rows=rows,
        fingerprints={split: dict.fromkeys(domains, (Fingerprint((0.0, 1000.0)),)) for split in rows},
        common_space={
            d: {f"train-{k}": tuple(map(tuple, np.eye(4).tolist())) for k in range(subjects)} for d in domains
        },
    )
    (folder / "index.json").write_text(index.to_json())
    return SliceStore.open(folder)


@pytest.fixture
def store(tmp_path: Path) -> SliceStore:
    return make_store(tmp_path / "store")
