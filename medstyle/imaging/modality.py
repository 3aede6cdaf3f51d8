"""A domain's unit, value range and normalisation, both ways."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fingerprint:
    """Which values of one image lie where on the network's scale: a rising map, linear between its knots and beyond.

    Attributes:
        values: the knots in the domain's unit, rising.
        scaled: the same knots in network units, rising.
    """

    values: tuple[float, ...]
    scaled: tuple[float, ...] = (-1.0, 1.0)

    def forward(self, values: NDArray) -> NDArray[np.float32]:
        """Map from the domain's unit to network units, unlimited."""
        return _through(values, self.values, self.scaled)

    def backward(self, scaled: NDArray) -> NDArray[np.float32]:
        """Map from network units to the domain's unit, unlimited; the exact inverse."""
        return _through(scaled, self.scaled, self.values)


def _through(x: NDArray, knots: tuple[float, ...], heights: tuple[float, ...]) -> NDArray[np.float32]:
    a, b = np.array(knots), np.array(heights)
    slopes = np.diff(b) / np.diff(a)
    piece = np.searchsorted(a[1:-1], x, side="right")  # 0 wherever there are two knots
    x32, a32, b32, slopes32 = (np.asarray(one, np.float32) for one in (x, a, b, slopes))
    y: NDArray[np.float32] = (x32 - a32[piece]) * slopes32[piece] + b32[piece]
    return y


QUANTILES = (0.5, *range(10, 100, 10), 99.5)  # percent: the landmarks of Nyul 2000


def _percentile(body: NDArray, landmarks: tuple[float, ...]) -> Fingerprint:
    low, high = np.percentile(body, (0.5, 99.5))
    return Fingerprint((float(low), float(max(high, low + 1e-6))))


def _zscore(body: NDArray, landmarks: tuple[float, ...]) -> Fingerprint:
    mean, reach = float(body.mean(dtype=np.float64)), 4 * max(float(body.std(dtype=np.float64)), 1e-6)
    return Fingerprint((mean - reach, mean + reach))


def _nyul(body: NDArray, landmarks: tuple[float, ...]) -> Fingerprint:
    values = np.percentile(body, QUANTILES)
    # values that many voxels share may be several deciles at once, but an inverse needs a rising map
    values += np.linspace(0, 1e-4 * max(values[-1] - values[0], 1e-2), len(values))
    own = 2 * (values - values[0]) / (values[-1] - values[0]) - 1
    return Fingerprint(tuple(values.tolist()), landmarks or tuple(own.tolist()))


# how the intensities of MR, which have no unit, are made comparable, by the voxels of the body
NORMALISATIONS: dict[str, Callable[[NDArray, tuple[float, ...]], Fingerprint]] = {
    "percentile": _percentile,  # the 0.5th and 99.5th are -1 and +1
    "zscore": _zscore,  # four standard deviations below and above the mean are -1 and +1
    "nyul": _nyul,  # deciles go to those of the training subjects (Nyul and Udupa 1999, Nyul 2000)
}


@dataclass(frozen=True)
class Modality:
    """How the values of a domain are measured and brought to [-1, 1].

    Attributes:
        unit: unit of stored values: ``HU``, ``a.u.`` (MR has no absolute unit) or ``8-bit`` (of which 16 bits are
            fractions). Only ``a.u.`` is scaled by the image; the others have a meaning.
        range: smallest and largest legal value; the network's -1 and +1 where the unit is absolute.
        air: value outside the body.
        channels: 1, or 3 for colour (RGB).
        dicom: DICOM Modality (0008,0060), or None for pictures.
        label: short name for descriptions and figures.
    """

    unit: str
    range: tuple[float, float]
    air: float
    channels: int
    dicom: str | None
    label: str

    @property
    def picture(self) -> bool:
        """Whether it is no scan: colours without a place in a patient."""
        return self.dicom is None

    @property
    def absolute(self) -> bool:
        """Whether values mean the same in every image."""
        return self.unit != "a.u."

    def fingerprint(
        self,
        values: NDArray,
        foreground: NDArray[np.bool_] | None = None,
        normalisation: str = "percentile",
        landmarks: tuple[float, ...] = (),
    ) -> Fingerprint:
        """Find how this image comes to network units.

        Args:
            values: any shape, in the domain's unit.
            foreground: same shape; only these voxels are looked at.
            normalisation: a key of ``NORMALISATIONS``, for domains without an absolute unit.
            landmarks: for ``nyul``, where the deciles go; none leaves them where they are.
        """
        if self.absolute:
            return Fingerprint(self.range)
        inside = values[foreground] if foreground is not None and foreground.any() else np.ravel(values)
        return NORMALISATIONS[normalisation](inside, landmarks)

    def normalise(self, values: NDArray, fingerprint: Fingerprint) -> NDArray[np.float32]:
        """Map to network units; what is darker than -1 becomes -1 (air noise), bright outliers stay above 1 up to 3."""
        return np.clip(fingerprint.forward(values), -1, 3)

    def denormalise(self, scaled: NDArray, fingerprint: Fingerprint) -> NDArray[np.float32]:
        """Map network units back to the domain's unit, clipped to its legal range."""
        return np.clip(fingerprint.backward(scaled), *self.range)


def _mr(label: str) -> Modality:
    return Modality("a.u.", (0.0, 65535.0), 0.0, 1, "MR", label)


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
        "ct": Modality("HU", (-1024.0, 3071.0), -1024.0, 1, "CT", "CT"),
        "photo": Modality("8-bit", (0.0, 255.0), 0.0, 3, None, "photo"),
        "painting": Modality("8-bit", (0.0, 255.0), 0.0, 3, None, "painting"),
    }
)
