"""Define the unit, the value range and the invertible normalisation of each domain."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Fingerprint:
    """The map from the values of one image to network units.

    It rises, and is linear between its knots and beyond.

    Attributes:
        values: the knots in the unit of the domain, rising.
        scaled: the same knots in network units, rising.
    """

    values: tuple[float, ...]
    scaled: tuple[float, ...] = (-1.0, 1.0)

    def forward(self, values: NDArray) -> NDArray[np.float32]:
        """Map from the unit of the domain to network units, without clipping."""
        return _through(values, self.values, self.scaled)

    def backward(self, scaled: NDArray) -> NDArray[np.float32]:
        """Map from network units to the unit of the domain, without clipping; the exact inverse."""
        return _through(scaled, self.scaled, self.values)


def _through(x: NDArray, knots: tuple[float, ...], heights: tuple[float, ...]) -> NDArray[np.float32]:
    a, b = np.array(knots), np.array(heights)
    slopes = np.diff(b) / np.diff(a)
    piece = sum(x >= knot for knot in a[1:-1])  # 0 for all values if there are two knots
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
    # several deciles may have the same value if many voxels share it, but an inverse needs a rising
    # map
    values += np.linspace(0, 1e-4 * max(values[-1] - values[0], 1e-2), len(values))
    own = 2 * (values - values[0]) / (values[-1] - values[0]) - 1
    return Fingerprint(tuple(values.tolist()), landmarks or tuple(own.tolist()))


# how MR intensities, which have no absolute unit, are made comparable, using the voxels of the body
NORMALISATIONS: dict[str, Callable[[NDArray, tuple[float, ...]], Fingerprint]] = {
    "percentile": _percentile,  # the 0.5th and 99.5th percentiles become -1 and +1
    "zscore": _zscore,  # four standard deviations below and above the mean become -1 and +1
    "nyul": _nyul,  # deciles are mapped to those of the training subjects (Nyul and Udupa 1999, Nyul 2000)
}


@dataclass(frozen=True)
class Modality:
    """The values of a domain, and their normalisation to [-1, 1].

    Attributes:
        unit: unit of stored values: ``HU``, ``a.u.`` (MR has no absolute unit) or ``8-bit`` (16
            bits are fractions of it). Only ``a.u.`` is scaled per image; values in the other units
            have an absolute meaning.
        range: smallest and largest valid value; it maps to -1 and +1 in network units if the unit
            is absolute.
        air: value outside the body.
        channels: 1, or 3 for colour (RGB).
        dicom: DICOM Modality (0008,0060), or None for pictures.
        label: short name for descriptions and figures.
        any_contrast: whether scans of other domains, CT among them, may be given as this one; only
            a source can be.
    """

    unit: str
    range: tuple[float, float]
    air: float
    channels: int
    dicom: str | None
    label: str
    any_contrast: bool = False

    @property
    def picture(self) -> bool:
        """Whether it is no scan: colours without a place in a patient."""
        return self.dicom is None

    @property
    def absolute(self) -> bool:
        """Whether a value has the same meaning in every image."""
        return self.unit != "a.u."

    def fingerprint(
        self,
        values: NDArray,
        foreground: NDArray[np.bool_] | None = None,
        normalisation: str = "percentile",
        landmarks: tuple[float, ...] = (),
    ) -> Fingerprint:
        """Return how this image is mapped to network units.

        Args:
            values: any shape, in the unit of the domain.
            foreground: same shape; only these voxels are used.
            normalisation: a key of ``NORMALISATIONS``, for domains without an absolute unit.
            landmarks: for ``nyul``, the standard positions of the deciles; without them, the
                deciles are not moved.
        """
        if self.absolute:
            return Fingerprint(self.range)
        inside = values[foreground] if foreground is not None and foreground.any() else np.ravel(values)
        return NORMALISATIONS[normalisation](inside, landmarks)

    def normalise(self, values: NDArray, fingerprint: Fingerprint) -> NDArray[np.float32]:
        """Map to network units.

        Values below -1 (air noise) become -1, bright outliers stay, up to 3.
        """
        return np.clip(fingerprint.forward(values), -1, 3)

    def denormalise(self, scaled: NDArray, fingerprint: Fingerprint) -> NDArray[np.float32]:
        """Map network units back to the unit of the domain, clipped to its valid range."""
        return np.clip(fingerprint.backward(scaled), *self.range)


def _mr(label: str) -> Modality:
    return Modality("a.u.", (0.0, 65535.0), 0.0, 1, "MR", label)


class _Domains(dict[str, Modality]):
    """Domains by name.

    ``mr_t1@site`` is a domain like ``mr_t1`` for the images of one site or scanner.
    """

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
        "brain": replace(_mr("brain scan"), any_contrast=True),
        "photo": Modality("8-bit", (0.0, 255.0), 0.0, 3, None, "photo"),
        "painting": Modality("8-bit", (0.0, 255.0), 0.0, 3, None, "painting"),
    }
)
