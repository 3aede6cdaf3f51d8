"""Take inventory of files of every supported kind, for ``medstyle inspect`` and ``ingest``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import USABLE, Code, Refusal, reading
from medstyle.imaging.formats import Kind as FileKind
from medstyle.imaging.formats import kind_of, why_unread
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.picture import MAX_PIXELS, SYNTHETIC_MARK, opened
from medstyle.imaging.verdict import FileVerdict
from medstyle.imaging.volume import Volume, read_volume
from medstyle.imaging.volume_header import read_volume_header
from medstyle.jobs.progress import LINE_EVERY_S, track
from medstyle.pseudonyms import short_key

if TYPE_CHECKING:
    from medstyle.dicom.scan import Series

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

VOLUME_VOXELS = 1 << 31

# flags of a sound image that still may not be what it seems -> code and reason
DOUBTS = {
    "SYNTHETIC": (Code.E_SYNTHETIC, "a model made it, so it shows what that model knew"),
    "INTERLEAVED": (Code.E_INTERLEAVED, "another volume of this series has its slices between these"),
    "INCOMPLETE": (
        Code.E_INCOMPLETE,
        "images of this series are damaged, or missing beside its other volumes",
    ),
}

Kind = Literal["volume", "4d", "image", "video", "refused"]
Source = Literal["dicom", "volume", "picture", "video"]


@dataclass(frozen=True, eq=False)
class Item:
    """One image that can be loaded: a DICOM series, a volume file, a picture or a video.

    Attributes:
        source: ``dicom``, ``volume``, ``picture`` or ``video``.
        kind, code, reason: as in :class:`medstyle.dicom.scan.Series`.
        files: its files; for DICOM in spatial order.
        shape: ``(D, H, W)``; D is the number of frames of a video (0 if unknown).
        affine: ``(4, 4)`` LPS, mm; None if the geometry is unknown.
        attributes: attributes that domain rules may match. They contain free text from headers:
            never print or store them.
        flags: as in :class:`medstyle.dicom.scan.Series`.
        series: the DICOM series, if it is one.
    """

    source: Source
    kind: Kind
    code: str
    reason: str
    files: tuple[Path, ...] = field(repr=False)
    shape: tuple[int, int, int] = (0, 0, 0)
    affine: NDArray[np.float64] | None = None
    attributes: Mapping[str, str] = field(default_factory=dict, repr=False)
    flags: frozenset[str] = frozenset()
    series: Series | None = field(default=None, repr=False)

    @classmethod
    def of(cls, series: Series) -> Item:
        """Wrap a DICOM series."""
        s = series
        return cls("dicom", s.kind, s.code, s.reason, s.files, s.shape, s.affine, s.attributes, s.flags, s)

    @property
    def key(self) -> str:
        """Keyed hash of 12 hexadecimal digits that identifies this item, but reveals nothing."""
        if self.series is None:
            return short_key("item", str(self.path))
        frame = self.series.frames[0]
        return short_key("item", "\0".join((*frame.instance.identity, str(frame.number))))

    @property
    def path(self) -> Path:
        """The only file, or the first."""
        return self.files[0]

    @property
    def usable(self) -> bool:
        """Whether it may be loaded without an explicit override."""
        return self.kind != "refused" and self.code in USABLE

    def doubts(self) -> list[Refusal]:
        """Return why it may not be used for training: its own code, then doubts from its flags."""
        own = [] if self.usable else [Refusal(self.code, self.reason)]
        return own + [
            Refusal(code, f"{reason}; restore the original, or allow {code}")
            for flag, (code, reason) in DOUBTS.items()
            if flag in self.flags
        ]

    def at(self, time_point: int) -> Item:
        """Return one time point of a ``4d`` series; raise :class:`Refusal` if it does not exist."""
        if self.series is None:
            raise Refusal(self.code, self.reason)
        return Item.of(self.series.volume(time_point))

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """Distance between voxel centres along (column, row, slice) axes, mm."""
        if self.affine is None:
            return None
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)

    @reading()
    def load(self, domain: str, *, allow: Collection[str] = ()) -> Volume:
        """Read the voxels of a DICOM series or a volume file.

        Pictures and videos have their own modules.

        ``allow`` contains codes to override after inspection, such as ``E_BURNED_IN``.

        Raises:
            Refusal: with the item's own code, or with one that is only found from the voxels.
        """
        if not self.usable and self.code not in allow:
            raise Refusal(self.code, self.reason)
        if self.series is not None:
            from medstyle.dicom.read import read_image, read_series

            return (read_image if self.kind == "image" else read_series)(self.series, domain, allow=allow)
        if self.source != "volume":
            raise Refusal(Code.E_SOPCLASS, f"a {self.source} is not a scan; read it as a picture")
        return read_volume(self.path, domain, "volume")


@dataclass(frozen=True, eq=False)
class Inventory:
    """The verdict on every file and all images that can be loaded, in a stable order."""

    files: tuple[FileVerdict, ...]
    volumes: tuple[Item, ...]

    def to_json(
        self, domain: Callable[[Item], str | None] | None = None, *, values: bool = False
    ) -> dict[str, list[dict[str, Any]]]:
        """Return the content of ``medstyle inspect --json``. Paths are given as they were found.

        ``domain`` returns the domain of an item; the caller owns the rules. ``values`` reads the
        voxels of usable items to report their range, which takes time; items that cannot be read
        are then refused, together with their files.
        """
        rows = [_row(item, domain, values) for item in self.volumes]
        fine = {
            path for item, row in zip(self.volumes, rows, strict=True) if row["code"] in USABLE for path in item.files
        }
        refused = {
            path: (row["code"], row["reason"])
            for item, row in zip(self.volumes, rows, strict=True)
            if item.usable and row["code"] not in USABLE
            for path in item.files
            if path not in fine
        }
        files = [
            FileVerdict(f.path, "refused", *refused[f.path]) if f.path in refused and f.verdict == "used" else f
            for f in self.files
        ]
        return {
            "files": [{"path": str(f.path), "verdict": f.verdict, "code": f.code, "reason": f.reason} for f in files],
            "volumes": rows,
        }


def _row(item: Item, domain: Callable[[Item], str | None] | None, values: bool) -> dict[str, Any]:
    name = domain(item) if domain else None
    doubt = next(iter(item.doubts()), item)
    code, reason, value_range = doubt.code, doubt.reason, None
    if values and item.usable and item.source in ("dicom", "volume"):
        try:
            voxels = item.load(name or _like(item), allow=() if name else (Code.E_DOMAIN,)).voxels
            value_range = [float(voxels.min()), float(voxels.max())]
        except Refusal as refusal:
            code, reason = refusal.code, refusal.reason
    return {
        "series": item.key,
        "domain": name,
        "kind": item.kind,
        "code": code,
        "reason": "; ".join(filter(None, (reason, ", ".join(sorted(item.flags))))),
        "shape": list(item.shape),
        "spacing_mm": item.spacing_mm and list(item.spacing_mm),
        "affine": None if item.affine is None else item.affine.tolist(),
        "value_range": value_range,
        "files": [str(path) for path in item.files],
    }


def _like(item: Item) -> str:
    """Return a domain of the item's modality, which determines the value of padding."""
    modality = item.attributes.get("Modality", "")
    return next((name for name, domain in DOMAINS.items() if domain.dicom == modality), "mr_t1")


def inventory(paths: Iterable[Path]) -> Inventory:
    """Inspect the headers of all files below ``paths``: DICOM by content, others by suffix.

    Bad input leads to a verdict, never to an exception; no pixel is decoded.
    """
    from medstyle.dicom.scan import find_files, scan

    dicom: list[Path] = []
    files: list[FileVerdict] = []
    items: list[Item] = []
    for path in track(dict.fromkeys(find_files(paths)), "files", patience_s=LINE_EVERY_S):
        source = kind_of(path) if path.is_file() else None
        if source is None:
            dicom.append(path)
            continue
        try:
            with reading():
                item = _READERS[source](path)
        except Refusal as refusal:
            item = Item(source, "refused", refusal.code, refusal.reason, (path,))
        items.append(item)
        files.append(FileVerdict(path, "used" if item.usable else "refused", item.code, item.reason))
    found = scan(dicom)
    files += map(_explained, found.files)
    items += [Item.of(series) for series in found.series]
    return Inventory(tuple(sorted(files, key=lambda f: f.path)), tuple(sorted(items, key=lambda i: i.path)))


def _explained(file: FileVerdict) -> FileVerdict:
    """Name the kind of a file that is not read, and the files that a DICOMDIR lists in vain."""
    if file.code == Code.E_NOT_DICOM and (known := why_unread(file.path)):
        return replace(file, reason=known)
    if file.code == Code.E_SOPCLASS and file.path.name.upper() == "DICOMDIR":
        from medstyle.dicom.directory import check_directory

        try:
            check_directory(file.path)
        except Refusal as refusal:
            return FileVerdict(file.path, "refused", refusal.code, refusal.reason)
    return file


def _volume(path: Path) -> Item:
    """Check a volume file's header."""
    header = read_volume_header(path)
    if header.volumes != 1:
        return Item("volume", "4d", Code.E_4D, f"has size {header.size}; split it into volumes", (path,), header.shape)
    if header.channels != 1:
        raise Refusal(Code.E_COLOR, f"has {header.channels} values at each voxel; one is expected")
    if np.prod(header.size, dtype=object) > VOLUME_VOXELS:
        raise Refusal(Code.E_TOO_LARGE, f"claims {header.size} voxels; the limit is {VOLUME_VOXELS}")
    notes = (header.reader.GetMetaData(key) for key in header.reader.GetMetaDataKeys())
    return Item(
        "volume", "volume", "", "", (path,), header.shape, header.affine, {"Name": path.name}, _flags(notes)
    )  # fmt: skip


def _flags(notes: Iterable[object]) -> frozenset[str]:
    """Return the flag of images made by a model if a note beside the pixels has its mark."""
    return frozenset({"SYNTHETIC"} if any(SYNTHETIC_MARK in str(note) for note in notes) else ())


def _picture(path: Path) -> Item:
    from PIL import Image

    try:
        with opened(path) as image:
            width, height = image.size
            frames = getattr(image, "n_frames", 1)
            exif = {} if image.format == "PNG" else image.getexif()  # getexif would decode a PNG; its notes are chunks
            flags = _flags([*image.info.values(), *exif.values()])
    except Image.DecompressionBombError:
        raise Refusal(Code.E_TOO_LARGE, f"claims more than {MAX_PIXELS} pixels; scale it down first") from None
    if width * height > MAX_PIXELS:
        raise Refusal(Code.E_TOO_LARGE, f"claims {width} x {height} pixels; the limit is {MAX_PIXELS}")
    return Item("picture", "image", "", "", (path,), (frames, height, width), None, {"Name": path.name}, flags)


def _video(path: Path) -> Item:
    try:
        import av
    except ImportError:
        return Item("video", "video", "", "", (path,), attributes={"Name": path.name})
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        shape = (int(stream.frames), int(stream.height), int(stream.width))
    return Item("video", "video", "", "", (path,), shape, None, {"Name": path.name})


_READERS: dict[FileKind, Callable[[Path], Item]] = {"volume": _volume, "picture": _picture, "video": _video}
