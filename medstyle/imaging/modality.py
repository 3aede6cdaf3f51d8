"""A domain's unit, value range and normalisation, both ways."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fingerprint:
    """The two values of one image that the network's -1 and +1 stand for, in the domain's unit."""

    low: float
    high: float


@dataclass(frozen=True)
class Modality:
    """How the values of a domain are measured and brought to [-1, 1].

    Attributes:
        unit: unit of stored values: ``HU``, ``a.u.`` (MR has no absolute unit) or ``8-bit``.
        normalisation: ``percentile`` maps the 0.5th and 99.5th percentile of the foreground of each image; ``fixed``
            maps ``range`` for every image alike. CT is always fixed: its numbers have a meaning.
        range: smallest and largest legal value.
        air: value outside the body.
        channels: 1, or 3 for colour (RGB).
        dicom: DICOM Modality (0008,0060), or None for pictures.
        label: short name for descriptions and figures.
    """

    unit: str
    normalisation: Literal["percentile", "fixed"]
    range: tuple[float, float]
    air: float
    channels: int
    dicom: str | None
    label: str

    def fingerprint(self, values: NDArray, foreground: NDArray[np.bool_] | None = None) -> Fingerprint:
        """Find what -1 and +1 stand for in this image; ``foreground`` (same shape) limits the percentiles."""
        if self.normalisation == "fixed":
            return Fingerprint(*self.range)
        inside = values[foreground] if foreground is not None and foreground.any() else values
        low, high = np.percentile(inside, (0.5, 99.5))
        return Fingerprint(float(low), float(max(high, low + 1e-6)))

    def normalise(self, values: NDArray, fingerprint: Fingerprint) -> NDArray[np.float32]:
        """Map to network units; values below ``low`` become -1 (air noise), bright outliers stay above 1 up to 3."""
        scaled = (np.asarray(values, np.float32) - fingerprint.low) * (2 / (fingerprint.high - fingerprint.low)) - 1
        return np.clip(scaled, -1, 3)

    def denormalise(self, scaled: NDArray, fingerprint: Fingerprint) -> NDArray[np.float32]:
        """Map network units back to the domain's unit, clipped to its legal range."""
        values = (np.asarray(scaled, np.float32) + 1) * ((fingerprint.high - fingerprint.low) / 2) + fingerprint.low
        return np.clip(values, *self.range).astype(np.float32)


def _mr(label: str) -> Modality:
    return Modality("a.u.", "percentile", (0.0, 65535.0), 0.0, 1, "MR", label)


class _Domains(dict[str, Modality]):
    """Domains by name; ``mr_t1@site`` is the look of one site or scanner: a domain of its own, like ``mr_t1``."""

    def __missing__(self, name: str) -> Modality:
        base, _, site = name.partition("@")
        if not re.fullmatch(r"[A-Za-z0-9-]+", site):
            raise KeyError(name)
        modality = self[base]
        return replace(modality, label=f"{modality.label} {site}")

    def __contains__(self, name: object) -> bool:
        try:
            self[str(name)]
        except KeyError:
            return False
        return True


DOMAINS: dict[str, Modality] = _Domains(
    {
        "mr_t1": _mr("T1"),
        "mr_t2": _mr("T2"),
        "mr_pd": _mr("PD"),
        "mr_flair": _mr("FLAIR"),
        "ct": Modality("HU", "fixed", (-1024.0, 3071.0), -1024.0, 1, "CT", "CT"),
        "photo": Modality("8-bit", "fixed", (0.0, 255.0), 0.0, 3, None, "photo"),
        "painting": Modality("8-bit", "fixed", (0.0, 255.0), 0.0, 3, None, "painting"),
    }
)
