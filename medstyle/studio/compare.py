"""Compare a synthetic image with a real scan of the same contrast: the difference as an overlay."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from medstyle.cohort.inventory import Item, inventory
from medstyle.errors import DataError
from medstyle.imaging.modality import DOMAINS
from medstyle.imaging.volume import Volume, read_volume
from medstyle.inference.files import CLINICAL_NOTE, domain_in
from medstyle.networks.translator import Translator
from medstyle.studio import shelf
from medstyle.studio.place import Place
from medstyle.studio.work import offer_volume, unpack
from medstyle.transforms.align import onto_grid
from medstyle.transforms.intensity import foreground_mask

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

LEAST = 0.02  # share of the body that both scans must show


class Compare(BaseModel):
    """Arguments of `difference`: a job that has translated, one of its images, and a real scan."""

    model_config = ConfigDict(extra="forbid")
    set: str
    item: str
    model: str = "given"
    target: str
    job: str = Field(pattern=r"^[0-9a-f]{16}$")
    number: int = Field(ge=0)
    real: str


class Difference(NamedTuple):
    """How a real scan differs from a synthetic one.

    Attributes:
        volume: real minus synthetic on the grid of the synthetic image, in its grey levels; 0
            outside the body and where the real scan shows nothing.
        body: ``(D, H, W)`` bool, where it was measured.
        covered: share of the grid's body that the real scan shows.
    """

    volume: Volume
    body: NDArray[np.bool_]
    covered: float


def difference(place: Place, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the difference of a real scan to an image that an earlier job has made."""
    asked = Compare(**arguments)
    place.say({"progress": 0.1, "said": "reading the real scan"})
    translator = shelf.translator(asked.model, place.model)
    translator.index(asked.target)
    folder = place.dropped(asked.real)
    unpack(folder)
    item = real_scan(folder, translator, asked.target)
    made = place.session / "jobs" / asked.job / f"{asked.number}-synthetic.nii.gz"
    if not made.is_file():
        raise DataError("the synthetic image is no longer there; translate again")
    sources = [one for one in inventory([place.dropped(asked.set)]).volumes if one.key == asked.item]
    place.say({"progress": 0.4, "said": "comparing"})
    found = differ(item.load(asked.target), read_volume(made, asked.target), translator)
    values = np.abs(found.volume.voxels[found.body])
    domain = DOMAINS[asked.target]
    span = np.ptp(translator.config.fingerprints[asked.target].values)
    facts = offer_volume(place, found.volume, "difference", f"DIFFERENCE MAP {CLINICAL_NOTE}")
    high = float(np.percentile(values, 99.5))
    return {
        "difference": facts["difference"],
        "difference_window": [-high, high] if high > 0 else [-1.0, 1.0],
        "mean": float(values.mean()),
        "unit": domain.unit,
        "share": float(values.mean() / span),
        "covered": found.covered,
        "frames": frames_of(sources[0] if sources else None, item),
        "what": domain.label,
        "same": not domain.absolute,
    }


def real_scan(folder: Path, translator: Translator, target: str) -> Item:
    """Return the one scan of ``target`` below ``folder``: by the model's rules, or the only one.

    Raises:
        DataError: there is none, or more than one.
    """
    usable = [one for one in inventory([folder]).volumes if one.usable and one.source in ("dicom", "volume")]
    domains = {one.key: domain_in(one, one.path.relative_to(folder).as_posix(), translator) for one in usable}
    chosen = [one for one in usable if domains[one.key] == target]
    if not chosen and len(usable) == 1 and domains[usable[0].key] is None:
        chosen = usable  # nothing says that it is of another contrast
    if len(chosen) != 1:
        raise DataError(
            f"the comparison needs one scan of {DOMAINS[target].label}; found {len(chosen)} among {len(usable)} scans; "
            f"drop that series alone"
        )
    return chosen[0]


def differ(real: Volume, synthetic: Volume, translator: Translator) -> Difference:
    """Subtract: ``real`` goes onto the grid and to the grey levels of ``synthetic``.

    The levels of a scan without an absolute unit are matched as those of the training images were.

    Raises:
        DataError: the scans show different places.
    """
    modality, levels = DOMAINS[real.domain], translator.config.fingerprints[real.domain]
    inside = within(synthetic, real)
    moved = onto_grid(real, synthetic)
    own = foreground_mask(moved.voxels.transpose(2, 1, 0)).transpose(2, 1, 0) & inside
    shown = synthetic.voxels > modality.air
    body = (own | shown) & inside
    covered = float((shown & inside).sum() / max(shown.sum(), 1))
    if covered < LEAST or not own.any():
        raise DataError("the real scan shows another place than the synthetic image, by the positions in their headers")
    fingerprint = translator.config.preparation.fingerprint(real.domain, moved.voxels, own)
    scaled = modality.denormalise(modality.normalise(moved.voxels, fingerprint), levels)
    apart = np.where(body, np.where(own, scaled, modality.air) - synthetic.voxels, 0)
    return Difference(synthetic.with_voxels(apart.astype(np.float32)), body, covered)


def within(grid: Volume, other: Volume) -> NDArray[np.bool_]:
    """Return which voxels of ``grid`` lie inside ``other``: ``(D, H, W)``."""
    to = np.linalg.inv(other.affine) @ grid.affine
    z, y, x = np.ogrid[tuple(slice(n) for n in grid.voxels.shape)]
    inside = np.ones(grid.voxels.shape, bool)
    for row, size in zip(to[:3], other.voxels.shape[::-1], strict=True):
        index = np.float32(row[0]) * x + np.float32(row[1]) * y + np.float32(row[2]) * z + np.float32(row[3])
        inside &= (index > -0.5) & (index < size - 0.5)
    return inside


def frames_of(source: Item | None, real: Item) -> str:
    """Return whether positions of two scans are comparable: same, other, or unknown."""
    ours, theirs = (one.series.frame_of_reference_uid if one and one.series else "" for one in (source, real))
    return "unknown" if not ours or not theirs else "same" if ours == theirs else "other"
