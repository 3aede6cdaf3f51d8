"""Group DICOM files into series, and find volumes by positions and orientations (PS3.3 C.7.6.2)."""

from __future__ import annotations

import filecmp
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medstyle.dicom.elements import Skip, quiet
from medstyle.dicom.header import LIMITS, TOMOGRAPHIC, Damaged, Frame, Limits, read_frames
from medstyle.errors import USABLE, Code, Refusal
from medstyle.imaging.verdict import FileVerdict
from medstyle.jobs.progress import LINE_EVERY_S, track

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

POSITION_TOLERANCE_MM = 0.01
SPACING_TOLERANCE = 0.01  # as a share of the spacing
SHEAR_TOLERANCE_DEG = 0.1
CONTRAST_TOLERANCE = 1e-3  # of an echo time, an inversion time or a b-value
ORIENTATION_TOLERANCE = 1e-3  # of a unit vector's component


@dataclass(frozen=True, eq=False)
class Series:
    """Planes that belong together.

    Attributes:
        kind: ``volume``: planes at regular positions; ``4d``: several images at each position;
            ``image``: one plane; ``video``: frames without positions; ``refused``: no image can be
            made of it.
        code: why it may not be used, or ``E_TILT_NEEDS_RESAMPLE`` for a sheared volume, which may
            be used; "" if there is nothing to report.
        reason: the numbers behind ``code`` and the remedy, without patient data.
        frames: in spatial order (first = slice 0); for ``4d``, volume by volume.
        shape: ``(D, H, W)`` of one volume.
        volumes: number of volumes that share the positions; 1 except for ``4d``.
        affine: ``(4, 4)``, (column, row, slice, 1) -> (x, y, z, 1) in mm, LPS, only from positions,
            orientations and pixel spacings. For a single plane, the slice axis is the normal, with
            the length of the slice thickness (1 mm if unknown). None if the geometry is unknown.
        attributes: allow-listed elements for domain rules. They may contain free text: never print
            or store them.
        flags: a subset of ``LOSSY SYNTHETIC DERIVED MOSAIC MONOCHROME1 BURNED_IN_UNKNOWN COLOUR
            DUPLICATES INCOMPLETE``.
    """

    kind: Literal["volume", "4d", "image", "video", "refused"]
    code: str
    reason: str
    frames: tuple[Frame, ...] = field(repr=False)
    shape: tuple[int, int, int]
    affine: NDArray[np.float64] | None
    flags: frozenset[str] = frozenset()
    volumes: int = 1

    @property
    def files(self) -> tuple[Path, ...]:
        """The files in spatial order, without repetition."""
        return tuple(dict.fromkeys(frame.instance.path for frame in self.frames))

    @property
    def usable(self) -> bool:
        """Whether it may be read without an explicit override."""
        return self.kind != "refused" and self.code in USABLE

    @property
    def attributes(self) -> Mapping[str, str]:
        """Allow-listed header elements, by keyword."""
        return self.frames[0].instance.attributes if self.frames else MappingProxyType({})

    @property
    def patient_id(self) -> str:
        """PatientID (0010,0020), which is patient data."""
        return self.frames[0].instance.patient_id

    @property
    def person(self) -> tuple[str, ...]:
        """Issuer of the PatientID, birth date and sex: patient data."""
        return self.frames[0].instance.person

    @property
    def study_uid(self) -> str:
        """StudyInstanceUID (0020,000D), which is patient data."""
        return self.frames[0].instance.study_uid

    @property
    def series_uid(self) -> str:
        """SeriesInstanceUID (0020,000E), which is patient data."""
        return self.frames[0].instance.series_uid

    @property
    def frame_of_reference_uid(self) -> str:
        """FrameOfReferenceUID (0020,0052), "" if there is none; it is patient data."""
        return self.frames[0].instance.frame_of_reference_uid

    def volume(self, index: int) -> Series:
        """Return volume ``index`` of a ``4d`` series as a series of its own."""
        depth = self.shape[0]
        frames = self.frames[index * depth : (index + 1) * depth]
        if not 0 <= index < self.volumes or self.kind != "4d":
            raise Refusal(Code.E_4D, f"there is no volume {index} among {self.volumes}")
        return replace(_stack(frames), flags=self.flags) if self.affine is not None else replace(self, frames=frames)


@dataclass(frozen=True, eq=False)
class Scan:
    """The verdict on every file and all series, in a stable order."""

    files: tuple[FileVerdict, ...]
    series: tuple[Series, ...]


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield files and everything below folders, sorted; symlink loops are entered only once."""
    seen: set[tuple[int, int]] = set()
    stack = [Path(path) for path in reversed(list(paths))]
    while stack:
        path = stack.pop()
        try:
            if not path.is_dir():
                yield path
                continue
            status = path.stat()
            if (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                stack += sorted(path.iterdir(), reverse=True)
        except OSError:  # reported like an unreadable file
            yield path


def scan(paths: Iterable[Path], limits: Limits = LIMITS) -> Scan:
    """Read the header of every file below ``paths``, group the planes and assess each group.

    No pixel is decoded, and bad input leads to a verdict, never to an exception. The grouping key
    contains everything that must not vary within a volume; within a group, the order is given by
    the positions along the normal.
    """
    verdicts: dict[Path, FileVerdict | None] = {}  # in the order of the files; None until its series is judged
    every: list[Frame] = []
    known: dict[tuple[str, ...], Path] = {}
    notes: dict[tuple[object, ...], set[str]] = defaultdict(set)  # series -> flags
    conflicts: set[tuple[str, ...]] = set()
    with quiet():
        for path in track(find_files(paths), "headers", patience_s=LINE_EVERY_S):
            if path in verdicts:
                continue
            try:
                frames = read_frames(path, limits)
                instance = frames[0].instance
                twin = known.setdefault(instance.identity, path)
                if instance.sop_uid and twin != path:
                    if not filecmp.cmp(twin, path, shallow=False):
                        conflicts.add(instance.identity)
                        raise Refusal(
                            Code.E_DUP_CONFLICT, "another file has the same SOP instance UID but other bytes; keep one"
                        )
                    notes[instance.series].add("DUPLICATES")
                    raise Skip(Code.E_DUPLICATE, "the same SOP instance with the same bytes was found before")
            except Skip as skip:
                verdicts[path] = FileVerdict(path, "skipped", skip.code, skip.reason)
            except Refusal as refusal:
                verdicts[path] = FileVerdict(path, "refused", refusal.code, refusal.reason)
                if isinstance(refusal, Damaged):
                    notes[refusal.series].add("INCOMPLETE")
            else:
                verdicts[path] = None
                every += frames
    groups: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    for frame in _settled(every):
        groups[_key(frame)].append(frame)
    series = [
        replace(one, flags=one.flags | notes[one.frames[0].instance.series])
        for group in _join_parts(groups)
        for one in _judge(group, conflicts, limits)
    ]
    judged = _flag_interleaved(_flag_uneven(series))
    for one in judged:
        for path in one.files:
            if one.usable:
                verdicts[path] = FileVerdict(path, "used", one.code, one.reason)
            elif (earlier := verdicts[path]) is None or earlier.verdict != "used":
                verdicts[path] = FileVerdict(path, "refused", one.code, one.reason)
    return Scan(tuple(filter(None, verdicts.values())), tuple(judged))


def _settled(frames: Sequence[Frame]) -> list[Frame]:
    """Give one value to numbers that differ only by rounding, which must not split a series."""
    by_series: dict[tuple[object, ...], list[Frame]] = defaultdict(list)
    for frame in frames:
        by_series[frame.instance.series].append(frame)
    settled = []
    for of in by_series.values():
        echo, inversion, b = (_steps(f.contrast[k] for f in of) for k in (1, 2, 3))
        for frame in of:
            kind, *numbers, stack = frame.contrast
            numbers = [steps[value] for steps, value in zip((echo, inversion, b), numbers, strict=True)]
            contrast = (kind, *numbers, stack)
            settled.append(frame if contrast == frame.contrast else replace(frame, contrast=contrast))
    return settled


def _steps(values: Iterable[float]) -> dict[float, float]:
    """Map each value to the smallest one of its chain of values that differ only by rounding."""
    steps: dict[float, float] = {}
    last = least = -np.inf
    for value in sorted(set(values)):
        if value - last > CONTRAST_TOLERANCE * abs(value):
            least = value
        steps[value], last = least, value
    return steps


def _key(frame: Frame) -> tuple[object, ...]:
    """Return what must not differ within a volume.

    The orientation is compared later, with a tolerance.
    """
    i = frame.instance
    return (
        *(*i.series, i.series_number, i.sop_class, i.frame_of_reference_uid),
        *(*frame.shape, i.samples, i.photometric, "MOSAIC" in i.flags),
        frame.spacing and tuple(round(v, 5) for v in frame.spacing),
        frame.contrast,
        i.concatenation or i.sop_uid if i.frames > 1 else "",  # one enhanced object per time point is common
    )


def _join_parts(groups: dict[tuple[object, ...], list[Frame]]) -> list[list[Frame]]:
    """Combine groups that differ only in image type and lie side by side.

    Image types at the same positions are alternatives; otherwise they are parts of one scan, whose
    spacing may differ from part to part.
    """
    joined: dict[tuple[object, ...], list[Frame]] = {}
    for key, group in groups.items():
        frame = group[0]
        bare = (*key[:-2], frame.contrast[1:], key[-1], frame.orientation)
        other = joined.get(bare)
        if other is None:
            joined[bare] = group
        elif len(group) > 1 and len(other) > 1 and _side_by_side(group, other):
            other.extend(group)
        else:
            joined[key] = group
    return list(joined.values())


def _side_by_side(group: list[Frame], other: list[Frame]) -> bool:
    if not all(f.position and f.orientation for f in (*group, *other)):
        return False
    normal = np.cross(*np.array(group[0].orientation).reshape(2, 3))
    a, b = (np.array([f.position for f in frames]) @ normal for frames in (group, other))
    return bool(a.max() < b.min() - POSITION_TOLERANCE_MM or b.max() < a.min() - POSITION_TOLERANCE_MM)


def _judge(group: list[Frame], conflicts: set[tuple[str, ...]], limits: Limits) -> Iterator[Series]:
    first = group[0].instance
    placed = [f for f in group if f.position and f.orientation]
    if first.frames > 1 and first.sop_class not in TOMOGRAPHIC:
        verdict = (Code.E_SOPCLASS, "a cine: its frames have no positions and form no volume; read_colour reads them")
        yield _series("video", group, (len(group), first.rows, first.columns), None, verdict)
    elif "MOSAIC" in first.flags and first.tiles == 1:
        reason = (
            "a mosaic (slices tiled in one picture) whose private header does not define their positions; "
            "export it as enhanced, or as one file per slice"
        )
        yield _refused(group, Code.E_4D, reason)
    elif any(f.instance.identity in conflicts for f in group):
        yield _refused(
            group, Code.E_DUP_CONFLICT, "two files share a SOP instance UID and differ; keep the correct one"
        )
    elif placed and group[0].spacing is None:
        yield _refused(
            group, Code.E_ZERO_SPACING, "PixelSpacing is missing or not positive; export the original images"
        )
    elif len(placed) < len(group) and first.sop_class in TOMOGRAPHIC and len(group) > 1:
        reason = (
            f"{len(group) - len(placed)} of {len(group)} images have no position or orientation; export the originals"
        )
        yield _refused(group, Code.E_NO_GEOMETRY, reason)
    elif len(placed) < len(group):
        for frame in group:
            yield _series("image", [frame], (1, first.rows, first.columns), None)
    else:
        stacks = _by_orientation(group)
        lone = [stack for stack in stacks if len(stack) == 1]
        if len(lone) > 1:
            reason = f"{len(lone)} single images in different orientations; choose the original parallel slices"
            yield _refused([f for stack in lone for f in stack], Code.E_MIXED_ORIENTATION, reason)
        for stack in stacks:
            if len(lone) < 2 or len(stack) > 1:
                yield _stack(stack, limits)


def _by_orientation(frames: list[Frame]) -> list[list[Frame]]:
    stacks: list[tuple[NDArray[np.float64], list[Frame]]] = []
    for frame in frames:
        axes = np.array(frame.orientation)
        for reference, stack in stacks:
            if np.abs(axes - reference).max() <= ORIENTATION_TOLERANCE:
                stack.append(frame)
                break
        else:
            stacks.append((axes, [frame]))
    return [stack for _, stack in stacks]


def _stack(frames: Sequence[Frame], limits: Limits = LIMITS) -> Series:
    """Order parallel planes along their normal; regular positions make them a volume."""
    shape = (len(frames), *frames[0].shape)
    axes = np.array(frames[0].orientation).reshape(2, 3)
    normal = np.cross(*axes)
    if len(frames) == 1:
        return _series("image", frames, shape, _affine(frames, normal * _thickness(frames[0])))
    distance = np.array([f.position for f in frames]) @ normal
    order = np.argsort(distance, kind="stable")
    starts = np.flatnonzero(np.diff(distance[order], prepend=-np.inf) > POSITION_TOLERANCE_MM)
    counts = np.diff([*starts, len(frames)])
    if counts.max() > 1:
        return _time_series(frames, order, starts, counts, limits)
    ordered = [frames[k] for k in order]
    positions = np.array([f.position for f in ordered])
    gaps = np.diff(distance[order])
    typical = float(np.median(gaps)) if len(gaps) > 2 else float(gaps.min())
    tolerance = max(POSITION_TOLERANCE_MM, SPACING_TOLERANCE * typical) + 1e-6
    worst = int(np.argmax(np.abs(gaps - typical)))
    if abs(gaps[worst] - typical) > tolerance:
        missing = round(gaps[worst] / typical) - 1
        cause = f"{missing} slices seem to be missing" if gaps[worst] >= 1.5 * typical else "the spacing varies"
        where = f"slices {worst + 1} and {worst + 2} of {len(frames)} are {gaps[worst]:.3f} mm apart"
        reason = f"{where}, the others typically {typical:.3f} mm: {cause}; add what is missing or split the series"
        return _refused(ordered, Code.E_GAP, reason)
    step = (positions[-1] - positions[0]) / (len(frames) - 1)
    off = float(np.abs(positions - positions[0] - np.arange(len(frames))[:, None] * step).max())
    if off > tolerance:
        reason = f"slice positions leave a straight line by {off:.3f} mm (tolerance {tolerance:.3f}); split the series"
        return _refused(ordered, Code.E_GAP, reason)
    if np.prod(shape, dtype=object) * 4 > limits.object_bytes:
        return _refused(ordered, Code.E_TOO_LARGE, f"{shape} voxels exceed the limit of {limits.object_bytes} bytes")
    tilt = float(np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1))))
    code, reason = "", ""
    if tilt > SHEAR_TOLERANCE_DEG:
        code, reason = (
            Code.E_TILT_NEEDS_RESAMPLE,
            f"the slice axis is tilted by {tilt:.2f} degrees; the affine keeps the shear",
        )
    return _series("volume", ordered, shape, _affine(ordered, step), (code, reason))


def _time_series(
    frames: Sequence[Frame],
    order: NDArray[np.intp],
    starts: NDArray[np.intp],
    counts: NDArray[np.intp],
    limits: Limits,
) -> Series:
    """Combine several images at each position: by time, the n-th of each position form volume n.

    Unequal counts or times are a conflict.
    """
    depth, volumes = len(starts), int(counts.max())
    if counts.min() != volumes:
        reason = f"between {counts.min()} and {volumes} images at each of {depth} positions; keep one at each"
        return _refused([frames[k] for k in order], Code.E_DUP_CONFLICT, reason)
    places = [
        sorted((frames[k] for k in order[start : start + volumes]), key=lambda frame: frame.time) for start in starts
    ]
    by_direction = _by_direction(places)
    places = by_direction or places
    ordered = [place[k] for k in range(volumes) for place in places]
    if by_direction is None and (why := _told_apart(places)):
        reason = f"{volumes} images at each of {depth} positions, but {why}; export each time point"
        return _refused(ordered, Code.E_DUP_CONFLICT, reason)
    first = _stack(ordered[:depth], limits)
    if first.kind == "refused":
        return replace(first, frames=tuple(ordered))
    what = f"{volumes} images at each of {depth} positions"
    reason = f"{what}; choose one volume, or export the time points as separate series"
    one = _series("4d", ordered, first.shape, first.affine, (Code.E_4D, reason))
    return replace(one, volumes=volumes)


def _told_apart(places: list[list[Frame]]) -> str:
    """Return why the images cannot be assigned to time points, "" if they can.

    A temporal position or acquisition number that all images at a position share is ignored.
    Instance numbers count only if all of one volume come before all of the next.
    """
    temporal, acquired = ([[frame.labels[k] for frame in place] for place in places] for k in (0, 1))
    if any(len(set(place)) > 1 for place in temporal):
        return "" if all(place == temporal[0] for place in temporal) else "not of the same times"
    if any(len(set(place)) > 1 for place in acquired):
        alike = all(sorted(p) == sorted(acquired[0]) or not {*p} & {*acquired[0]} for p in acquired)
        return "" if alike else "not of the same times"
    if len(places[0]) > 1 and any(len({frame.time[2:4] for frame in place}) == 1 for place in places):
        number = [[frame.time[4:] for frame in place] for place in places]
        following = all(max(p[k] for p in number) < min(p[k + 1] for p in number) for k in range(len(number[0]) - 1))
        if not following:
            return "their times are not told apart"
    return ""


def _by_direction(places: list[list[Frame]]) -> list[list[Frame]] | None:
    """Sort each position by the direction of the diffusion gradient; None unless all differ."""
    directions = [{tuple(np.round(frame.direction, 3)) for frame in place} for place in places]
    if len(directions[0]) < len(places[0]) or any(one != directions[0] for one in directions) or () in directions[0]:
        return None
    return [sorted(place, key=lambda frame: tuple(np.round(frame.direction, 3))) for place in places]


def _affine(frames: Sequence[Frame], step: NDArray[np.float64]) -> NDArray[np.float64]:
    row_mm, column_mm = frames[0].spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0] = np.array(frames[0].orientation[:3]) * column_mm  # type: ignore[index]
    affine[:3, 1] = np.array(frames[0].orientation[3:]) * row_mm  # type: ignore[index]
    affine[:3, 2] = step
    affine[:3, 3] = frames[0].position
    return affine


def _thickness(frame: Frame) -> float:
    """Return the slice thickness in mm, 1 if unknown; SpacingBetweenSlices may be negative."""
    try:
        thickness = float(frame.instance.attributes.get("SliceThickness", "1"))
    except ValueError:
        return 1.0
    return thickness if 0 < thickness < 1e3 else 1.0


def _series(
    kind: Literal["volume", "4d", "image", "video", "refused"],
    frames: Sequence[Frame],
    shape: tuple[int, int, int],
    affine: NDArray[np.float64] | None,
    verdict: tuple[str, str] = ("", ""),
) -> Series:
    code, reason = verdict
    flags = frozenset[str]().union(*(f.instance.flags for f in frames))
    if frames[0].instance.colour:
        flags |= {"COLOUR"}
    if kind != "refused" and "BURNED_IN_UNKNOWN" in flags:
        code = Code.E_BURNED_IN
        reason = (
            "a screen image may show patient data, and BurnedInAnnotation is not NO; inspect it, then allow the code"
        )
    elif kind != "refused" and "COLOUR" in flags:
        code, reason = Code.E_COLOR, "the pixels are colours; a grey-scale image is expected"
    return Series(kind, code, reason, tuple(frames), shape, affine, flags)


def _refused(frames: Sequence[Frame], code: str, reason: str) -> Series:
    return _series("refused", frames, (len(frames), *frames[0].shape), None, (code, reason))


def _flag_uneven(series: list[Series]) -> list[Series]:
    """Flag ``INCOMPLETE`` volumes, with fewer slices than others of series and orientation."""
    deepest: Counter[tuple[object, ...]] = Counter()

    def key(one: Series) -> tuple[object, ...]:
        return (*one.frames[0].instance.series, tuple(np.round(one.frames[0].orientation or (0,), 2)))

    for one in series:
        deepest[key(one)] = max(deepest[key(one)], one.shape[0])
    return [
        replace(one, flags=one.flags | {"INCOMPLETE"})
        if one.kind in ("volume", "4d") and one.shape[0] < deepest[key(one)]
        else one
        for one in series
    ]


def _flag_interleaved(series: list[Series]) -> list[Series]:
    """Flag ``INTERLEAVED`` where the slices of two volumes of one series lie between each other's.

    They may be one scan that some attribute divides, each half with twice the spacing.
    """
    flagged: set[int] = set()
    volumes = [k for k, one in enumerate(series) if one.kind == "volume" and one.shape[0] > 1]
    for a, b in combinations(volumes, 2):
        one, other = series[a], series[b]
        first, second = (np.array(s.frames[0].orientation) for s in (one, other))
        if one.frames[0].instance.series != other.frames[0].instance.series or first.shape != second.shape:
            continue
        if np.abs(first - second).max() > ORIENTATION_TOLERANCE:
            continue
        normal = np.cross(*first.reshape(2, 3))
        places = [np.array([f.position for f in s.frames]) @ normal for s in (one, other)]
        merged = sorted([(place, 0) for place in places[0]] + [(place, 1) for place in places[1]])
        apart = np.diff([place for place, _ in merged])
        turns = np.mean([x[1] != y[1] for x, y in pairwise(merged)])
        if turns > 0.8 and apart.min() > 0.25 * np.median(apart):
            flagged |= {a, b}
    return [replace(one, flags=one.flags | {"INTERLEAVED"}) if k in flagged else one for k, one in enumerate(series)]
