"""Choose the images of each training step as a function of (seed, step).

A resumed run therefore sees the same images. Examples are drawn uniformly over subjects and then
over slices, regardless of how many slices each subject has. Unpaired images are matched by their
relative height in the body.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates

from medstyle.data.batch import Batch, MatchedSubject
from medstyle.data.store import SliceStore
from medstyle.errors import DataError
from medstyle.imaging.modality import DOMAINS
from medstyle.pseudonyms import person_of
from medstyle.transforms.augment import Augmentation, augment
from medstyle.transforms.body import AIR, Extent, box_around, union

NEAR = 0.05  # largest difference in relative height of two unpaired images, where such slices exist
MATCHED = 0.5  # share of multi-domain examples whose target is the same slice, if the subject has it


def seed_of(*parts: object) -> int:
    """Return a seed that is a function of ``parts``."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def seeded(*parts: object) -> torch.Generator:
    """Return a CPU generator that is a function of ``parts``."""
    return torch.Generator().manual_seed(seed_of(*parts))


@functools.lru_cache(maxsize=65536)
def _order(n: int, *parts: object) -> NDArray[np.int64]:
    return torch.randperm(n, generator=seeded(*parts)).numpy()


def nth(n: int, k: int, *parts: object) -> int:
    """Return item ``k`` of an endless sequence of permutations of ``range(n)``."""
    return int(_order(n, *parts, k // n)[k % n])


class Images:
    """The slices of one domain and split, grouped by subject.

    Attributes:
        domain: its name.
        array: ``(N, C, H, W)``, memory-mapped.
        rows: subject -> rows of the array in spatial order.
        usable: subject -> indices into ``rows`` of the slices with enough body.
        position: relative height of each row.
        common_space: subject -> map ``(4, 4)`` from voxels (slice, row, column, 1) to the common
            space.
    """

    def __init__(self, store: SliceStore, domain: str, split: str, foreground: float) -> None:
        self.domain, self.array = domain, store.array(domain, split)
        listed = store.rows(domain, split)
        self.position = np.array([row.position for row in listed])
        self.common_space = store.common_space(domain) if split == "train" else {}
        self.slices = [row.slice for row in listed]
        self.bodies = [row.body for row in listed]
        groups: dict[str, list[int]] = {}
        for number, row in enumerate(listed):
            groups.setdefault(row.subject, []).append(number)
        self.rows = {subject: np.array(rows) for subject, rows in groups.items()}
        self.usable = {
            subject: np.array([i for i, row in enumerate(rows) if listed[row].foreground >= foreground])
            for subject, rows in groups.items()
        }
        self.subjects = sorted(subject for subject, places in self.usable.items() if len(places))
        self.shown = {  # the scan shows nothing beyond its first and last slice with body
            subject: np.flatnonzero([listed[row].foreground > 0 for row in rows])[[0, -1]]
            for subject, rows in groups.items()
            if subject in self.subjects
        }

    def body(self, subject: str, place: int, depth: int) -> Extent | None:
        """Return the extent of the body in the block of slices around a place."""
        return union(self.bodies[row] for row in self._around(subject, place, depth))

    def _around(self, subject: str, place: int, depth: int) -> NDArray[np.int64]:
        rows = self.rows[subject]
        return rows[np.clip(np.arange(place - depth // 2, place - depth // 2 + depth), 0, len(rows) - 1)]

    def block(self, subject: str, place: int, depth: int) -> NDArray[np.float32]:
        """Read ``(depth, C, H, W)`` around a place.

        The first and last slices are repeated beyond the ends.

        Raises:
            UserError: a value is not finite.
        """
        block = np.asarray(self.array[self._around(subject, place, depth)], np.float32)
        if not np.isfinite(block).all():
            where = f"{self.domain} of subject {subject}, at slice {self.slices[self.rows[subject][place]]}"
            raise DataError(f"{where}: holds values that are not finite; remove or repair the image")
        return block

    def at(self, subject: str, voxels: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Interpolate at ``voxels`` ``(3, depth, H, W)``.

        Returns ``(depth, C, H, W)`` in network units, and ``(depth, 1, H, W)``, which is 1 where
        the scan has data and -1 elsewhere.
        """
        first, last = self.shown[subject]
        within = (voxels[0] >= first) & (voxels[0] <= last)
        inside = voxels[0][within] if within.any() else np.array([first])
        near = np.arange(int(inside.min()), min(int(inside.max()) + 1, last) + 1)
        stack = np.asarray(self.array[self.rows[subject][near]], np.float32)
        where = voxels - np.array([near[0], 0, 0])[:, None, None, None]
        values = [map_coordinates(stack[:, c], where, order=1, cval=AIR) for c in range(stack.shape[1])]
        return np.stack(values, 1), np.where(within, 1, -1).astype(np.float32)[:, None]


class Example(NamedTuple):
    """One example: its domains, subjects and slices (as indices into the subject's rows)."""

    source: str
    target: str
    subject: str
    place: int
    target_subject: str
    target_place: int


@dataclass(frozen=True)
class Sampling:
    """Which examples are drawn, and how.

    Attributes:
        domains: names in the order of the style indices; the first two are source and target.
        batch: size of a batch over all processes.
        seed: determines the order of the examples.
        augmentation: random changes to the images.
        contrasts: further input domains of the same subject.
        variants: input domains that take turns with the source; paired only.
        paired: whether the target shows the same slice; all domains but the first are then targets.
        all_directions: draw every ordered pair of domains instead of source -> target only.
        foreground: smallest share of body pixels of a slice.
        depth: number of slices of an example: neighbours for a 2-D network, the third axis of a 3-D
            one.
        volumetric: whether the network is 3-D.
        cross_subject: match another subject at the same body location, through the common space of
            the store, and resample that subject's scan on the plane of the source.
        split: split of the store.
        multiple: a batch is cropped to the bounding box of its bodies, whose sides are multiples of
            this where possible.
        window: side of a random square of that box, to which a batch is cropped; 0: the whole box.
        rank, world: index of this process and number of processes, among which a batch is divided.
    """

    domains: Sequence[str]
    batch: int
    seed: int
    augmentation: Augmentation
    contrasts: Sequence[str] = ()
    variants: Sequence[str] = ()
    paired: bool = False
    all_directions: bool = False
    foreground: float = 0.0
    depth: int = 1
    volumetric: bool = False
    cross_subject: bool = False
    split: str = "train"
    multiple: int = 1
    window: int = 0
    rank: int = 0
    world: int = 1


class BatchSampler:
    """Batches of a split of the store; each is a function of the seed and the step.

    Raises:
        UserError: no subject has all the images that an example needs.
    """

    def __init__(self, store: SliceStore, sampling: Sampling) -> None:
        self.sampling = s = sampling
        self.images = {
            name: Images(store, name, s.split, s.foreground)
            for name in dict.fromkeys((*s.domains, *s.contrasts, *s.variants))
        }
        ways = [(a, b) for a in s.domains for b in s.domains if a != b]
        self.ways = ways if s.all_directions else [(s.domains[0], s.domains[1])]
        if s.paired:
            self.ways = [(a, b) for a in (s.domains[0], *s.variants) for b in s.domains[1:]]
        for a, b in self.ways if s.paired else ():  # the field of view of the target may end before the source's
            own, other = (self.images[name].usable for name in (a, b))
            common = own.keys() & other.keys()
            own.update({subject: np.intersect1d(own[subject], other[subject]) for subject in common})
        self.subjects = self._subjects()
        if s.cross_subject and (lacking := [a for way in self.ways for a in way if not self.images[a].common_space]):
            raise DataError(
                f"objective.weights.cross_subject: the store has no common space for {lacking[0]}; set "
                "denoise.common_space to true"
            )
        maps = [matrix for a in self.images if s.cross_subject for matrix in self.images[a].common_space.values()]
        self.voxel_mm = tuple(np.median([np.linalg.norm(m[:3, :3], axis=0) for m in maps], axis=0)) if maps else ()
        self.size = self.images[s.domains[0]].array.shape[2:]
        self._pool = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[dict[str, Any]]] | None = None

    def _subjects(self) -> dict[tuple[str, str], list[str]]:
        """Return, for each direction, the subjects that have every image an example needs."""
        s = self.sampling
        subjects = {}
        for a, b in self.ways:
            needed = [*s.contrasts, *([b] if s.paired else [])]
            subjects[a, b] = [
                subject
                for subject in self.images[a].subjects
                if len(self.images[a].usable[subject]) and all(self._matches(subject, a, one) for one in needed)
            ]
            if not subjects[a, b] or not self.images[b].subjects:
                what = " and ".join(dict.fromkeys([a, *needed])) if needed else f"{a} and another domain"
                have = "all slices of" if needed else "one of"
                raise DataError(
                    f"no {s.split} subject has {have} {what} with enough body; check ingest.rules, denoise and the "
                    "split"
                )
        return subjects

    def _matches(self, subject: str, a: str, b: str) -> bool:
        """Return whether two domains of a subject have the same slices."""
        one, other = self.images[a], self.images[b]
        rows = other.rows.get(subject)
        return rows is not None and [one.slices[i] for i in one.rows[subject]] == [other.slices[i] for i in rows]

    def example(self, k: int) -> Example:
        """Choose example ``k`` of the endless sequence."""
        a, b = self.ways[nth(len(self.ways), k, self.sampling.seed, "ways")]
        turn = k // len(self.ways)
        subjects, images = self.subjects[a, b], self.images[a]
        subject = subjects[nth(len(subjects), turn, self.sampling.seed, "source", a, b)]
        places = images.usable[subject]
        place = int(places[nth(len(places), turn // len(subjects), self.sampling.seed, "slice", subject, a, b)])
        draws = torch.rand(2, generator=seeded(self.sampling.seed, k, "meeting")).tolist()
        matched = len(self.ways) > 1 and draws[0] < MATCHED and self._matches(subject, a, b)
        if self.sampling.paired or (matched and place in self.images[b].usable[subject]):
            return Example(a, b, subject, place, subject, place)
        if self.sampling.cross_subject and (match := self._match(a, b, subject, turn // len(subjects))):
            return match
        others = self.images[b]
        other = others.subjects[nth(len(others.subjects), turn, self.sampling.seed, "target", a, b)]
        height = images.position[images.rows[subject][place]] + NEAR * (2 * draws[1] - 1)
        candidates = others.usable[other]
        nearest = np.abs(others.position[others.rows[other][candidates]] - height).argmin()
        return Example(a, b, subject, place, other, int(candidates[nearest]))

    def _match(self, a: str, b: str, subject: str, turn: int) -> Example | None:
        """Choose another person and a body location that both scans show.

        None if the common space has none.
        """
        one, other = self.images[a], self.images[b]
        people = [s for s in other.subjects if s in other.common_space and person_of(s) != person_of(subject)]
        if subject not in one.common_space or not people:
            return None
        person = people[nth(len(people), turn, self.sampling.seed, "person", subject, a, b)]
        places = one.usable[subject]
        rise, *rest = self._there(a, b, subject, person)[0]
        heights = rise * places + np.dot(rest, [(self.size[0] - 1) / 2, (self.size[1] - 1) / 2, 1])
        first, last = other.shown[person]
        both = np.flatnonzero((heights >= first) & (heights <= last))
        if not len(both):
            return None
        chosen = both[nth(len(both), turn // len(people), self.sampling.seed, "place", subject, person, a, b)]
        nearest = np.abs(other.usable[person] - heights[chosen]).argmin()
        return Example(a, b, subject, int(places[chosen]), person, int(other.usable[person][nearest]))

    def _there(self, a: str, b: str, subject: str, person: str) -> NDArray[np.float64]:
        """Return the map ``(4, 4)`` from the voxels of one subject's scan to those of another's."""
        there: NDArray[np.float64] = (
            np.linalg.inv(self.images[b].common_space[person]) @ self.images[a].common_space[subject]
        )
        return there

    def _matched(self, e: Example) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Resample the target's scan on the source's slices; 1 or -1 tells if it covers a voxel."""
        source, target = self.images[e.source], self.images[e.target]
        depth, (height, width) = self.sampling.depth if self.sampling.volumetric else 1, self.size
        if e.subject not in source.common_space or e.target_subject not in target.common_space:
            nothing = np.full((depth, 1, height, width), -1, np.float32)
            return nothing.repeat(target.array.shape[1], 1), nothing
        there = self._there(e.source, e.target, e.subject, e.target_subject)
        planes = np.clip(np.arange(depth) + e.place - depth // 2, 0, len(source.rows[e.subject]) - 1)
        grid = np.stack(np.meshgrid(planes, np.arange(height), np.arange(width), indexing="ij"))
        return target.at(e.target_subject, np.tensordot(there[:3, :3], grid, 1) + there[:3, 3, None, None, None])

    def read(self, step: int) -> dict[str, Any]:
        """Read this process's part of the batch of ``step``, without augmentation."""
        share = self.sampling.batch // self.sampling.world
        first = step * self.sampling.batch + self.sampling.rank * share
        every = [self.example(k) for k in range(step * self.sampling.batch, (step + 1) * self.sampling.batch)]
        chosen = every[self.sampling.rank * share : (self.sampling.rank + 1) * share]
        inputs = [
            [
                self._arrange(self.images[name].block(e.subject, e.place, self.sampling.depth))
                for name in (e.source, *self.sampling.contrasts)
            ]
            for e in chosen
        ]
        depth = self.sampling.depth if self.sampling.volumetric else 1
        targets = [self.images[e.target].block(e.target_subject, e.target_place, depth) for e in chosen]
        matched = [self._matched(e) for e in chosen] if self.sampling.cross_subject else []
        return {
            "matched": [
                torch.from_numpy(np.stack([self._arrange(part) for part in parts]))
                for parts in zip(*matched, strict=True)
            ],
            "source": torch.from_numpy(np.stack([np.concatenate(parts) for parts in inputs])),
            "target": torch.from_numpy(np.stack([self._arrange(block) for block in targets])),
            "source_index": torch.tensor([self._index(e.source) for e in chosen]),
            "target_index": torch.tensor([self.sampling.domains.index(e.target) for e in chosen]),
            "paired": torch.tensor([e.subject == e.target_subject and e.place == e.target_place for e in chosen]),
            "contrast": torch.tensor([DOMAINS[e.source].dicom != "CT" for e in chosen]),
            "box": self._box(every),
            "seeds": [seed_of(self.sampling.seed, k, "example") for k in range(first, first + share)],
        }

    def _index(self, domain: str) -> int:
        """Return the style index of a domain; that of a variant is its source's."""
        return 0 if domain in self.sampling.variants else list(self.sampling.domains).index(domain)

    def _box(self, every: list[Example]) -> tuple[slice, slice]:
        """Return the bounding box of the whole batch's bodies, so that all processes crop alike."""
        extents = [
            self.images[name].body(subject, place, self.sampling.depth)
            for e in every
            for name, subject, place in [
                *((name, e.subject, e.place) for name in (e.source, *self.sampling.contrasts)),
                (e.target, e.target_subject, e.target_place),
            ]
        ]
        return box_around(union(extents), self.size, self.sampling.multiple)

    def _window(self, size: Sequence[int], step: int) -> tuple[slice, slice]:
        """Return a random square of images of ``size``; all of them where they are smaller."""
        rng, side = seeded(self.sampling.seed, step, "window"), self.sampling.window
        sides = [min(side or n, n) for n in size]
        starts = [int(torch.randint(n - m + 1, (), generator=rng)) for n, m in zip(size, sides, strict=True)]
        rows, columns = (slice(start, start + m) for start, m in zip(starts, sides, strict=True))
        return rows, columns

    def _arrange(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Turn ``(depth, C, H, W)`` into channels ``(C * depth, H, W)``.

        For a 3-D network ``(C, depth, H, W)``.
        """
        turned = block.swapaxes(0, 1)
        return turned if self.sampling.volumetric else turned.reshape(-1, *block.shape[2:])

    def __call__(self, step: int, steps: int, device: torch.device) -> Batch:
        """Return the augmented batch of ``step`` on ``device``.

        The next batch is read in the background.
        """
        ready = self._ahead[1].result() if self._ahead is not None and self._ahead[0] == step else self.read(step)
        self._ahead = (step + 1, self._pool.submit(self.read, step + 1)) if step + 1 < steps else None
        images = [
            image.to(device, non_blocking=True) for image in (ready["source"], ready["target"], *ready["matched"])
        ]
        images = augment(images, self.sampling.augmentation, ready["seeds"], ready["contrast"])
        source, whole, *matched = (image[(..., *ready["box"])] for image in images)
        window = self._window(source.shape[-2:], step)
        source, target, *matched = (image[(..., *window)] for image in (source, whole, *matched))
        return Batch(
            source,
            target,
            ready["source_index"].to(device),
            ready["target_index"].to(device),
            ready["paired"].to(device),
            ready["seeds"],
            step,
            step / steps,
            whole,
            MatchedSubject(matched[0], matched[1], self.voxel_mm) if matched else None,
        )
