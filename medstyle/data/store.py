"""The slice store that training reads: one memory-mapped ``.npy`` per domain and split, and one index.

Layout: ``index.json`` and ``<split>/<domain>.npy`` of shape ``(N, C, H, W)``, float16, network units. Row ``i`` of a
file is described by row ``i`` of the index. Half precision holds [-1, 3] to 1e-3, finer than a 10-bit display, at half
the size.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import UserError

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

SPLITS = ("train", "validation", "test")


class Row(NamedTuple):
    """Where a stored slice comes from.

    ``position`` runs from 0 (first slice of its volume) to 1; ``foreground`` is the share of body pixels.
    """

    subject: str
    slice: int
    position: float
    foreground: float


@dataclass(frozen=True)
class SliceStore:
    """A store opened for reading; arrays are mapped, not loaded."""

    folder: Path
    index: Mapping[str, Any]

    @staticmethod
    def open(folder: Path | str) -> SliceStore:
        """Open ``folder``; raises :class:`UserError` if it holds no readable index."""
        path = Path(folder) / "index.json"
        try:
            return SliceStore(Path(folder), json.loads(path.read_text()))
        except (OSError, ValueError):
            raise UserError(f"{path}: no readable slice store here; run `medstyle denoise` first") from None

    def array(self, domain: str, split: str) -> NDArray[np.float16]:
        """Map the slices of ``domain`` and ``split``, ``(N, C, H, W)``."""
        path = self.folder / split / f"{domain}.npy"
        if not path.is_file():
            raise UserError(f"{path}: the store holds no {split} slices of {domain}; it has {', '.join(self.domains)}")
        mapped: NDArray[np.float16] = np.load(path, mmap_mode="r")
        return mapped

    def rows(self, domain: str, split: str) -> list[Row]:
        """Describe each row of :meth:`array`."""
        return [Row(*row) for row in self.index["rows"].get(split, {}).get(domain, [])]

    def atlas(self, domain: str) -> dict[str, NDArray[np.float64]]:
        """Return for each training subject the map ``(4, 4)`` of stored voxels ``(z, y, x, 1)`` to a common space.

        Subjects that could not be brought there are missing; none is there without ``denoise.atlas``.
        """
        found = self.index.get("atlas", {}).get(domain, {})
        return {subject: np.array(matrix) for subject, matrix in found.items()}

    @property
    def domains(self) -> list[str]:
        """Domains that have slices in any split."""
        return sorted({domain for split in self.index["rows"].values() for domain in split})

    def subjects(self, split: str) -> list[str]:
        """Subject keys of ``split``."""
        return [key for key, where in self.index["subjects"].items() if where == split]

    def domains_of(self, subject: str) -> set[str]:
        """Domains in which the store holds ``subject``."""
        rows = self.index["rows"].get(self.index["subjects"][subject], {})
        return {domain for domain, of in rows.items() if any(row[0] == subject for row in of)}

    def pairs(self, source: str, target: str, split: str) -> NDArray[np.int64]:
        """Return ``(n, 2)`` row numbers where source and target show the same slice of the same subject."""
        other = {(row.subject, row.slice): i for i, row in enumerate(self.rows(target, split))}
        found = [
            (i, other[row.subject, row.slice])
            for i, row in enumerate(self.rows(source, split))
            if (row.subject, row.slice) in other
        ]
        return np.array(found, np.int64).reshape(-1, 2)


def write_rows(path: Path, blocks: Sequence[Path]) -> None:
    """Join the ``.npy`` files ``blocks`` along the first axis into ``path`` without holding them in memory."""
    mapped = [np.load(block, mmap_mode="r") for block in blocks]
    shape = (sum(len(block) for block in mapped), *mapped[0].shape[1:])
    path.parent.mkdir(parents=True, exist_ok=True)
    out = np.lib.format.open_memmap(path, "w+", np.float16, shape)
    start = 0
    for block in mapped:
        out[start : start + len(block)] = block
        start += len(block)
    out.flush()
