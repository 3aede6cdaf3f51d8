"""Group the images of one person into sessions, and choose the images that fit best."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, islice, product

import numpy as np
from numpy.typing import NDArray

from medstyle.cohort.inventory import Item
from medstyle.pseudonyms import SESSION, short_key

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

Candidates = Mapping[str, Sequence[Item]]  # domain -> items, best first
BIDS_SUBJECT, BIDS_SESSION = (re.compile(rf"(?:^|/)({name}-[A-Za-z0-9]+)(?=[/_.])") for name in ("sub", "ses"))
_TRIED = 10_000  # largest number of combinations that are compared


def sessions(person: str, images: Iterable[tuple[str, Item]]) -> dict[str, Candidates]:
    """Divide the images of one person, ``(domain, item)``, into sessions, each with a subject key.

    A session is a DICOM study, or what a path calls ``ses-...`` (BIDS). Studies without a common
    domain form one session, because CT and MR, for example, are rarely from one study. Within a
    session, the first item of each domain belongs to the combination in which most pairs share a
    frame of reference; ties are resolved by the largest overlap.

    Returns:
        Subject key -> domain -> items. A single session keeps the person's key.
    """
    studies: dict[str, dict[str, list[Item]]] = defaultdict(lambda: defaultdict(list))
    for domain, item in images:
        studies[_study(item)][domain].append(item)
    found: list[tuple[str, dict[str, list[Item]]]] = []
    for study, domains in sorted(studies.items(), key=lambda one: -len(one[1])):  # ties in the order of their paths
        for _, others in found:
            if not others.keys() & domains.keys():
                others.update(domains)
                break
        else:
            found.append((study, domains))
    if len(found) == 1:
        return {person: _fitting(found[0][1])}
    return {f"{person}{SESSION}{short_key('session', study)}": _fitting(domains) for study, domains in found}


def _study(item: Item) -> str:
    if item.series is not None:
        return item.series.study_uid or str(item.path.parent)  # an empty UID joins nothing
    match = BIDS_SESSION.search(item.path.as_posix())
    return match.group(1) if match else ""


def _fitting(candidates: Candidates) -> Candidates:
    best = max(islice(product(*candidates.values()), _TRIED), key=_fit)  # the first of equals
    return {
        domain: [first, *(item for item in items if item is not first)]
        for (domain, items), first in zip(candidates.items(), best, strict=True)
    }


def _fit(items: Sequence[Item]) -> tuple[int, float]:
    pairs = list(combinations(items, 2))
    return sum(_one_space(a, b) for a, b in pairs), round(sum(_overlap(a, b) for a, b in pairs), 2)


def _one_space(a: Item, b: Item) -> bool:
    if a.series is None or b.series is None:
        return False
    return a.series.frame_of_reference_uid == b.series.frame_of_reference_uid != ""


def _overlap(a: Item, b: Item) -> float:
    """Return the share of the smaller bounding box that lies in the other, 0 without geometry."""
    boxes = [_box(one) for one in (a, b)]
    if boxes[0] is None or boxes[1] is None:
        return 0.0
    low, high = np.maximum(boxes[0][0], boxes[1][0]), np.minimum(boxes[0][1], boxes[1][1])
    smaller = min(float(np.prod(box[1] - box[0])) for box in (boxes[0], boxes[1]))
    return float(np.prod(np.clip(high - low, 0, None))) / smaller


def _box(item: Item) -> NDArray[np.float64] | None:
    """Return the smallest and largest coordinates of the voxel edges, ``(2, 3)`` in mm, LPS."""
    if item.affine is None:
        return None
    ends = [(-0.5, extent - 0.5) for extent in reversed(item.shape)]
    corners = np.array([(*corner, 1.0) for corner in product(*ends)]) @ item.affine.T
    return np.stack([corners[:, :3].min(0), corners[:, :3].max(0)])
