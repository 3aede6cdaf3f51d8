"""Read and write the slice store: one memory-mapped ``.npy`` per domain and split, and one index.

The layout is ``index.json`` and ``<split>/<domain>.npy`` of shape ``(N, C, H, W)``, float16, in
network units. Row ``i`` of the index describes row ``i`` of a file. Half precision represents [-1,
3] to 1e-3, which is finer than a 10-bit display, at half the size.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.cohort.rules import Rule
from medstyle.errors import DataError, UserError
from medstyle.imaging.modality import Fingerprint
from medstyle.params import params, parse_json
from medstyle.pseudonyms import person_of
from medstyle.transforms.body import Extent
from medstyle.transforms.prepare import Preparation

SPLITS = ("train", "validation", "test")
Matrix = tuple[tuple[float, ...], ...]  # (4, 4)


class Row(NamedTuple):
    """The origin of a stored slice.

    Attributes:
        subject: key of the subject.
        slice: its number in the volume.
        position: relative position, from 0 (first slice of the volume) to 1.
        foreground: share of body pixels.
        body: first and last row, first and last column of the body; None if the slice shows no
            body.
    """

    subject: str
    slice: int
    position: float
    foreground: float
    body: Extent | None


class Pair(NamedTuple):
    """The verdict on a scan, compared with the first scan of its subject.

    ``code`` and ``reason`` are "" if it fits.
    """

    subject: str
    domain: str
    used: bool
    code: str
    reason: str
    overlap: float | None = None
    information: float | None = None


@params
class StoreIndex:
    """What the store holds, and how it was made.

    Attributes:
        size: ``(H, W)`` of all slices.
        preparation: the settings, with the learned landmarks.
        alignment: how the scans of a subject were aligned.
        rules: the rules that assigned the domains.
        subjects: key -> split.
        rows: split -> domain -> one row per slice.
        fingerprints: split -> domain -> one fingerprint per image.
        pairs: verdict on each scan that was aligned with its subject's first.
        common_space: domain -> training subject -> map from stored voxels ``(z, y, x, 1)`` to the
            common space.
    """

    size: tuple[int, int]
    preparation: Preparation
    alignment: str
    rules: tuple[Rule, ...]
    subjects: dict[str, str]
    rows: dict[str, dict[str, tuple[Row, ...]]]
    fingerprints: dict[str, dict[str, tuple[Fingerprint, ...]]]
    pairs: tuple[Pair, ...] = ()
    common_space: dict[str, dict[str, Matrix]] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the text of ``index.json``."""
        return json.dumps(asdict(self)) + "\n"


@dataclass(frozen=True)
class SliceStore:
    """A store opened for reading; its arrays are memory-mapped."""

    folder: Path
    index: StoreIndex

    @staticmethod
    def open(folder: Path | str) -> SliceStore:
        """Open ``folder``; raises :class:`UserError` if it holds no readable index."""
        path = Path(folder) / "index.json"
        try:
            return SliceStore(Path(folder), parse_json(StoreIndex, path.read_bytes(), str(path)))
        except (OSError, ValueError, UserError):
            raise DataError(f"{path}: no readable slice store here; run `medstyle denoise` first") from None

    def array(self, domain: str, split: str) -> NDArray[np.float16]:
        """Map the slices of ``domain`` and ``split``, ``(N, C, H, W)``."""
        path = self.folder / split / f"{domain}.npy"
        if not path.is_file():
            raise DataError(f"{path}: the store holds no {split} slices of {domain}; it has {', '.join(self.domains)}")
        mapped: NDArray[np.float16] = np.load(path, mmap_mode="r")
        return mapped

    def rows(self, domain: str, split: str) -> Sequence[Row]:
        """Describe each row of :meth:`array`."""
        return self.index.rows.get(split, {}).get(domain, ())

    def common_space(self, domain: str) -> dict[str, NDArray[np.float64]]:
        """Return the map ``(4, 4)`` to the common space for each training subject.

        The maps start from stored voxels ``(z, y, x, 1)``. Subjects that could not be aligned are
        missing; without ``denoise.common_space`` the result is empty.
        """
        return {subject: np.array(matrix) for subject, matrix in self.index.common_space.get(domain, {}).items()}

    @property
    def domains(self) -> list[str]:
        """Domains that have slices in any split."""
        return sorted({domain for split in self.index.rows.values() for domain in split})

    def subjects(self, split: str) -> list[str]:
        """Return the subject keys of ``split``."""
        return [key for key, where in self.index.subjects.items() if where == split]

    def domains_of(self, subject: str) -> set[str]:
        """Return the domains in which the store holds ``subject``."""
        rows = self.index.rows.get(self.index.subjects[subject], {})
        return {domain for domain, of in rows.items() if any(row.subject == subject for row in of)}

    def complete(self, split: str, domains: Collection[str]) -> list[str]:
        """Return the subjects of ``split`` that have all ``domains``, one session per person.

        Of several sessions, the first is used.
        """
        found = [key for key in self.subjects(split) if set(domains) <= self.domains_of(key)]
        return list({person_of(key): key for key in reversed(found)}.values())[::-1]

    def pairs(self, source: str, target: str, split: str) -> NDArray[np.int64]:
        """Return ``(n, 2)`` row numbers where source and target show one slice of one subject."""
        other = {(row.subject, row.slice): i for i, row in enumerate(self.rows(target, split))}
        found = [
            (i, other[row.subject, row.slice])
            for i, row in enumerate(self.rows(source, split))
            if (row.subject, row.slice) in other
        ]
        return np.array(found, np.int64).reshape(-1, 2)


def write_rows(path: Path, blocks: Sequence[Path]) -> None:
    """Concatenate ``.npy`` files along the first axis into ``path`` without loading them."""
    mapped = [np.load(block, mmap_mode="r") for block in blocks]
    shape = (sum(len(block) for block in mapped), *mapped[0].shape[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    start = 0
    for block in mapped:
        out[start : start + len(block)] = block
        start += len(block)
    out.flush()
