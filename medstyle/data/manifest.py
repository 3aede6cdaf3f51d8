"""Read and write the manifest of the canonical images that `ingest` produces."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import MISSING, asdict, field, fields
from pathlib import Path

from medstyle.cohort.rules import Rule
from medstyle.errors import DataError
from medstyle.jobs.atomic import write_json
from medstyle.params import params, parse_json
from medstyle.transforms.degrade import Degradation


@params
class ManifestItem:
    """One canonical image.

    Attributes:
        subject, domain: which image it is.
        path: relative to the folder of the manifest.
        source: kind of the original: ``dicom``, ``volume`` or ``picture``.
        shape: ``(D, H, W)``.
        spacing_mm: along (column, row, slice); None for pictures.
        scanner: manufacturer, model and field strength, if the header has them.
        space: keyed hash of the frame of reference; "" if there is none.
        flags: flags of the original.
        allowed: codes of the original that ``ingest.allow`` overrode.
        interpolated_slices, time_point, straightened, degraded: what a policy changed.
    """

    subject: str
    domain: str
    path: str
    source: str = "volume"
    shape: tuple[int, int, int] = (0, 0, 0)
    spacing_mm: tuple[float, float, float] | None = None
    scanner: dict[str, str] = field(default_factory=dict)
    space: str = ""
    flags: tuple[str, ...] = ()
    allowed: tuple[str, ...] = ()
    interpolated_slices: int | None = None
    time_point: int | None = None
    straightened: bool = False
    degraded: Degradation | None = None


@params
class Manifest:
    """The canonical images of a folder, and the rules that assigned their domains."""

    rules: tuple[Rule, ...]
    items: tuple[ManifestItem, ...]

    @staticmethod
    def read(folder: Path) -> Manifest:
        """Read ``folder/manifest.json``.

        Raises :class:`UserError` if it is missing or unreadable.
        """
        path = folder / "manifest.json"
        try:
            return parse_json(Manifest, path.read_bytes(), str(path))
        except (OSError, ValueError):
            raise DataError(f"{path}: no readable manifest; run `medstyle ingest` first") from None

    def write(self, folder: Path) -> None:
        """Write ``folder/manifest.json``, leaving out empty and default values."""
        items = [
            {
                key: value
                for key, value in asdict(item).items()
                if key in _NEEDED or value not in (None, "", (), {}, False)
            }
            for item in self.items
        ]
        write_json(folder / "manifest.json", {"rules": [asdict(rule) for rule in self.rules], "items": items})

    def subjects(self) -> dict[str, dict[str, ManifestItem]]:
        """Return subject -> domain -> image."""
        found: dict[str, dict[str, ManifestItem]] = defaultdict(dict)
        for item in self.items:
            found[item.subject][item.domain] = item
        return found


_NEEDED = {one.name for one in fields(ManifestItem) if one.default is MISSING and one.default_factory is MISSING}
