"""Prepare the benchmark data once by medstyle's stages, for every method alike.

``brain``: ``../shared/data/brain_t1_flair``, T1 to FLAIR of 16 adults at 2 mm, subjects 04, 11, 18,
21 and 23 unseen. ``phantom``: medstyle's digital phantom, T1 to T2. Both 128 x 128, because the
U-Net of pix2pix halves seven times.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes
from torch import Tensor

from medstyle.cohort.rules import Rule
from medstyle.data.store import SliceStore
from medstyle.evaluation.baselines import BASELINES
from medstyle.evaluation.protocols import plain
from medstyle.phantom.studies import PhantomParams
from medstyle.stages import acquire, denoise, ingest
from medstyle.transforms.common_space import Stored, map_to_space, median_scan
from medstyle.transforms.prepare import Preparation

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".medstyle/bench"
BRAIN = ROOT / "../shared/data/brain_t1_flair"
DOMAINS = {"brain": ("mr_t1", "mr_flair"), "phantom": ("mr_t1", "mr_t2")}
SPACING_MM = {"brain": (2.0, 2.0, 2.0), "phantom": PhantomParams().spacing_mm[::-1]}  # of stored voxels, z first
REACH = 2  # slices on either side that a method may look at
FOREGROUND = 0.1  # slices with a smaller share of body are left out of training
Image = NDArray[np.float32]


def store_of(name: str, normalisation: str = "nyul", tuning: bool = False) -> SliceStore:
    """Open the store ``brain`` or ``phantom``; the first call builds it, in about a minute.

    ``tuning`` keeps a quarter of the training subjects out, in the split ``validation``: settings
    are chosen on them.
    """
    folder = CACHE / "-".join([name, normalisation, *["tuning"] * tuning])
    validation = 0.27 if tuning else 0.0
    if not (folder / "slices/index.json").is_file():
        if name == "brain":
            rules = tuple(Rule(domain, {"path": f"*/{file}.nii.gz"}) for domain, file in _FILES.items())
            settings = ingest.Params(str(BRAIN), rules)
            slices = denoise.Params(
                preparation=Preparation(denoise="none", normalisation=normalisation),
                alignment="rigid", common_space=True,
                validation=validation, seed=3,  # one of the three is of the second protocol, as of the five
                test_subjects=tuple(f"sub-{number}" for number in ("04", "11", "18", "21", "23")),
            )  # fmt: skip
        else:
            acquire.run(acquire.Params(lesions=16), folder / "raw")
            rules = tuple(Rule(d, {"SeriesDescription": f"*{d[-2:]}*"}) for d in DOMAINS[name])
            settings = ingest.Params(str(folder / "raw"), rules)
            slices = denoise.Params(
                validation=validation, common_space=True, preparation=Preparation(normalisation=normalisation)
            )
        ingest.run(settings, folder / "scans", folder / "ingest.json")
        denoise.run(slices, folder / "scans", folder / "slices")
    return SliceStore.open(folder / "slices")


_FILES = {"mr_t1": "t1", "mr_flair": "flair"}


class Feed:
    """Batches of one training slice in [-1, 1], shifted by up to 4 pixels and mirrored half of the
    time.

    That is the published resize-crop-mirror augmentation at this size; source and target of a pair
    move together. Values above 1 are cut, because the references end in tanh (and because the
    measures cut them too).
    """

    def __init__(self, store: SliceStore, source: str, target: str, paired: bool, seed: int = 0) -> None:
        self.rng, self.paired = np.random.default_rng(seed), paired
        self.arrays = store.array(source, "train"), store.array(target, "train")
        body = [np.array([row.foreground for row in store.rows(domain, "train")]) for domain in (source, target)]
        pairs = store.pairs(source, target, "train")
        if paired:
            # of both: where the target's field of view has ended it shows air, which teaches a
            # network to paint air
            draws = [pairs[(body[0][pairs[:, 0]] >= FOREGROUND) & (body[1][pairs[:, 1]] >= FOREGROUND)]]
        else:
            draws = [np.flatnonzero(share >= FOREGROUND)[:, None] for share in body]
        self.draws = [self._endless(rows) for rows in draws]

    def _endless(self, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        while True:
            yield from self.rng.permutation(rows)

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Return source and target ``(1, C, H, W)`` float32."""
        rows = np.concatenate([next(draw) for draw in self.draws])
        moves = [self._move()] * 2 if self.paired else [self._move(), self._move()]
        x, y = (self._moved(array[row], *move) for array, row, move in zip(self.arrays, rows, moves, strict=True))
        return x, y

    def _move(self) -> tuple[int, int, bool]:
        return int(self.rng.integers(9)), int(self.rng.integers(9)), bool(self.rng.random() < 0.5)

    @staticmethod
    def _moved(image: NDArray[np.float16], down: int, right: int, mirrored: bool) -> Tensor:
        _, h, w = image.shape
        padded = np.pad(image.astype(np.float32), ((0, 0), (4, 4), (4, 4)), constant_values=-1)
        moved = padded[:, down : down + h, right : right + w].clip(-1, 1)
        return torch.from_numpy(np.ascontiguousarray(moved[..., ::-1] if mirrored else moved))[None]


def atlas_seconds(name: str, store: SliceStore, threads: int) -> float:
    """Return the time to compute the store's common space, which counts for a method that uses
    it."""
    with tempfile.TemporaryDirectory() as scratch:
        scans = []
        for domain in DOMAINS[name]:
            array, rows = store.array(domain, "train"), store.rows(domain, "train")
            for subject in store.subjects("train"):
                path = Path(scratch) / f"{domain}-{subject}.npy"
                np.save(path, array[[i for i, row in enumerate(rows) if row.subject == subject]])
                scans.append(Stored(path, SPACING_MM[name]))
        start = time.perf_counter()
        space = median_scan(scans)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda scan: map_to_space(scan, space), scans))
        return time.perf_counter() - start


@dataclass(frozen=True)
class Subject:
    """Every ``stride``-th slice of an unseen subject.

    ``around (D, K, H, W)`` in network units: each slice between its K - 1 nearest. ``real (D, H,
    W)`` in [0, 1]. ``mask``: the foreground of the target. ``body``: that of the source, for
    histogram matching.
    """

    name: str
    around: Tensor
    real: Image
    mask: NDArray[np.bool_]
    body: NDArray[np.bool_]

    def source(self, neighbours: int = 1) -> Tensor:
        """Return each slice in the middle of its ``neighbours``, itself among them (odd)."""
        edge = (self.around.shape[1] - neighbours) // 2
        return self.around[:, edge : edge + neighbours]

    def measure(self, output: Image) -> dict[str, float]:
        """Measure ``(D, H, W)`` in [0, 1] by the product's protocol ``plain``."""
        return plain(output, self.real, self.mask)


def unit(scaled: NDArray) -> Image:
    """Map network units to [0, 1], as in the product's evaluation."""
    return ((np.clip(scaled, -1, 1) + 1) / 2).astype(np.float32)


def unseen(store: SliceStore, source: str, target: str, stride: int, split: str = "test") -> list[Subject]:
    """Return the subjects of ``split``, sorted by key; slices without foreground are left out."""
    pairs = store.pairs(source, target, split)
    rows = store.rows(source, split)
    found = []
    for subject in sorted(store.subjects(split)):
        every = np.array([pair for pair in pairs if rows[pair[0]].subject == subject])
        own = every[::stride]
        near = np.clip(np.arange(len(every))[::stride, None] + np.arange(-REACH, REACH + 1), 0, len(every) - 1)
        x = store.array(source, split)[every[:, 0], 0].astype(np.float32)[near]
        y = store.array(target, split)[own[:, 1], 0].astype(np.float32)
        mask = _filled(y > -1)
        seen = mask.any(axis=(1, 2))
        body = _filled(x[seen, REACH] > -1)
        found.append(Subject(subject, torch.from_numpy(x[seen]), unit(y[seen]), mask[seen], body))
    return found


def _filled(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the body as the values above air, filled: the store has no mask, and dark spots are
    -1."""
    return np.stack([binary_fill_holes(one) for one in mask])


def classical(name: str, subject: Subject, targets: Image) -> Image:
    """Return what a baseline of the product makes of a subject.

    ``targets (m, 1)`` are training values in [0, 1].
    """
    image = unit(subject.source()[:, 0].numpy())
    image[subject.body] = BASELINES[name](image[subject.body][:, None], targets)[:, 0]
    return image


def target_values(store: SliceStore, target: str) -> Image:
    """Return at most 200,000 body values ``(m, 1)`` of the training targets, in [0, 1]."""
    stored = np.asarray(store.array(target, "train"), np.float32)
    body = stored[stored > -1]
    return unit(body[:: max(1, body.size // 200_000)])[:, None]
