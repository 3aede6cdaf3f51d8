"""Scan simulated heads: fixed protocols as targets, and inputs of any contrast and quality.

The signal of a tissue follows from its T1, T2 and proton density by the equations of
:mod:`medstyle.phantom.studies`, or is drawn at random, as in Billot et al., Medical Image Analysis
86:102789, 2023, whose ranges of bias, noise and resolution are used here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medstyle.phantom.anatomy import Array, smooth_noise
from medstyle.phantom.heads import BRAIN, INDEX, TISSUES, Head
from medstyle.phantom.studies import TEXTURE, TISSUE_VALUES, Sequence

COARSE_TEXTURE = 2.5  # of soft tissue outside the brain, relative to that of the brain
ROUGH = ("muscle", "fat", "skin", "marrow", "bone", "mucosa")
SPREAD, SPREAD_EACH = 0.06, 0.04  # coefficients of variation between heads: of all tissues, of each
LEVEL = 1000.0  # stored value of white matter in T1, of grey matter in the other protocols
FIELDS = {"1.5 T": 0.0, "3 T": 1.0}  # share of the T1 at 3 T
# A lesion multiplies the T1, T2 and proton density of its place, and adds HU. Ranges of a plaque:
# Truyen et al., Neurology 47:1469, 1996, and BrainWeb's lesion; a cavity is nearly CSF.
CHANGES = {
    "plaque": ((1.3, 2.2), (1.4, 3.0), (1.0, 1.12), (-10.0, -3.0)),
    "tumour": ((1.4, 2.4), (1.5, 3.0), (1.02, 1.15), (-14.0, -4.0)),
    "cavity": ((2.6, 4.0), (5.0, 14.0), (1.1, 1.25), (-28.0, -15.0)),
}
FLOW = 0.3  # share of the signal that flowing blood keeps in the protocols
T1, T2, PD, HU = range(4)
PROTOCOLS = {  # at 3 T, of the contrasts that are asked for
    "mr_t1": Sequence("T1 MPRAGE", 2000, 3, 900),
    "mr_t2": Sequence("T2 TSE", 5000, 95),
    "mr_pd": Sequence("PD TSE", 3000, 20),
    "mr_flair": Sequence("T2 FLAIR", 9000, 120, 2480),
}


@dataclass(frozen=True, eq=False)
class Tissues:
    """What a head is made of.

    Attributes:
        low, high: ``(len(TISSUES), 4)``, T1 (ms), T2 (ms), proton density and HU of each tissue, at
            1.5 T and at 3 T.
        lesions: ``(K, 4)`` factors of T1, T2 and proton density, and HU to add, of each lesion.
    """

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    lesions: NDArray[np.float64]

    def at(self, field: float) -> NDArray[np.float64]:
        """Return the values at a field strength, ``(len(TISSUES), 4)``; 0 is 1.5 T, 1 is 3 T."""
        return self.low + field * (self.high - self.low)


def _table(column: int) -> NDArray[np.float64]:
    aliases = {"wm_middle": "wm", "wm_deep": "wm", "lesion": "lesion"}
    rows = []
    for name in TISSUES:
        low, high, t2, pd, hu = TISSUE_VALUES[aliases.get(name, name)]
        rows.append((high if column else low, t2, pd, hu))
    return np.array(rows)


def draw_tissues(rng: np.random.Generator, head: Head) -> Tissues:
    """Draw a head's tissues around the values of the literature, and what its lesions change."""
    together = np.exp(SPREAD * np.clip(rng.standard_normal(2), -2, 2))
    each = np.exp(SPREAD_EACH * np.clip(rng.standard_normal((len(TISSUES), 3)), -2, 2))
    each[:, :2] *= together
    each[:, PD] = each[:, PD] ** 0.5
    each[[INDEX["wm_middle"], INDEX["wm_deep"]]] = each[INDEX["wm"]]
    # deep white matter is the most myelinated
    each[INDEX["wm_middle"], :2] *= rng.uniform(0.96, 1.0)
    each[INDEX["wm_deep"], :2] *= rng.uniform(0.92, 1.0)
    severity = rng.uniform(0.3, 1)
    bone = rng.uniform(0.8, 1.25)
    tables = []
    for column in (0, 1):
        table = _table(column)
        table[INDEX["lesion"]] += (1 - severity) * (table[INDEX["wm"]] - table[INDEX["lesion"]])
        table[:, :3] *= each
        table[[INDEX["bone"], INDEX["marrow"]], HU] *= bone
        table[1:, HU] += rng.normal(0, 1.5, len(TISSUES) - 1) if column else 0.0
        tables.append(table)
    tables[0][:, HU] = tables[1][:, HU]
    lesions = np.array([[rng.uniform(*r) for r in CHANGES[kind]] for kind in head.lesion_kinds]).reshape(-1, 4)
    return Tissues(tables[0], tables[1], lesions)


Signal = Callable[[NDArray[np.float64]], NDArray[np.float64]]  # (n, 4) of tissues -> (n,)


def signal_of(values: NDArray[np.float64], sequence: Sequence) -> NDArray[np.float64]:
    t1, t2, pd, _ = values.T
    found: NDArray[np.float64] = np.asarray(sequence.signal(t1, t2, pd), np.float64)
    return found


def hounsfield(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[:, HU]


def image(head: Head, values: NDArray[np.float64], lesions: NDArray[np.float64], signal: Signal) -> Array:
    """Return the noise-free signal of each voxel inside, ``(N,)``.

    Args:
        head: where the tissues are.
        values: ``(len(TISSUES), 4)`` of :class:`Tissues`.
        lesions: ``(K, 4)`` of :class:`Tissues`; one change of the tissue shows in every contrast.
        signal: from the values of tissues to their signal.
    """
    plain = signal(values)
    rough = np.ones(len(TISSUES))
    rough[[INDEX[name] for name in ROUGH]] = COARSE_TEXTURE
    rough[[INDEX["csf"], INDEX["eye"], INDEX["air"]]] = 0.2, 0.1, 0
    wetter = values.copy()
    for column, name in ((T1, "t1"), (T2, "t2"), (PD, "pd")):
        wetter[:, column] *= 1 + TEXTURE[name] * rough
    wetter[:, HU] += TEXTURE["hu"] * rough
    found = head.mean(plain) + head.water * head.mean(signal(wetter) - plain)
    for share, (t1, t2, pd, hu) in zip(head.lesions, lesions, strict=True):
        here = np.flatnonzero(share)
        changed = values * (t1, t2, pd, 1) + (0, 0, 0, hu)
        changed[:, T1], changed[:, T2] = np.minimum(changed[:, T1], 4300), np.minimum(changed[:, T2], 2000)
        table = signal(changed)
        sick = np.take(table.astype(np.float32), head.tissues[:, here]).mean(axis=0)
        found[here] += share[here] * (sick - found[here])
    return found.astype(np.float32)


def target(head: Head, tissues: Tissues, domain: str) -> Array:
    """Return a head in one of :data:`PROTOCOLS` or in HU, without noise, ``(D, H, W)``.

    The gain of MR is the same for all heads: average grey matter has the value :data:`LEVEL`, in T1
    average white matter.
    """
    values = tissues.at(1.0).copy()
    if domain == "ct":
        return _blurred(head, image(head, values, tissues.lesions, hounsfield), 0.5, -1000.0)
    signal = partial(signal_of, sequence=PROTOCOLS[domain])
    values[INDEX["blood"], PD] *= FLOW
    average = signal(_table(1)[[INDEX["wm" if domain == "mr_t1" else "gm"]]])
    found = image(head, values, tissues.lesions, signal) * np.float32(LEVEL / average[0])
    return _blurred(head, found, 0.5)


def _blurred(head: Head, values: Array, sigma_mm: float, outside: float = 0.0) -> Array:
    """Put the values ``(N,)`` on the grid, with the in-plane point spread of a scanner."""
    from scipy.ndimage import gaussian_filter

    spacing = np.linalg.norm(head.affine[:3, :3], axis=0)[::-1]
    blurred: Array = gaussian_filter(head.volume(values, outside), (0, *(sigma_mm / spacing[1:])), truncate=3)
    return blurred


def any_contrast(rng: np.random.Generator, head: Head, tissues: Tissues, artefacts: float = 1.0) -> Array:
    """Scan a head with a random sequence and a random scanner: ``(D, H, W)``, from 0 to about 1000.

    A third are random contrasts, whose tissues have any grey level; the rest are spin echo, TSE,
    inversion recovery, gradient echo, FLAIR, PD and windows of CT. ``artefacts`` from 0 to 1 scales
    the share of random contrasts and what the scanner adds.
    """
    kind = rng.random()
    free = 0.35 * artefacts
    if kind < free:
        values = np.zeros((len(TISSUES), 4))
        values[:, PD] = random_levels(rng)
        values[:, HU] = rng.normal(0, 0.04, len(TISSUES))  # the sign and the strength of the texture
        lesions = np.zeros((len(head.lesion_kinds), 4))
        found = free_contrast(head, values, rng, lesions)
    elif kind < free + 0.12:
        found = windowed(rng, image(head, tissues.at(1.0), tissues.lesions, hounsfield))
    else:
        values = tissues.at(rng.random())
        values[INDEX["blood"], PD] *= rng.random()  # flowing blood may give no signal
        if rng.random() < 0.3:
            values[INDEX["fat"], PD] *= rng.uniform(0.05, 0.5)  # fat saturation
            values[INDEX["marrow"], PD] *= rng.uniform(0.05, 0.5)
        signal = partial(signal_of, sequence=random_sequence(rng, values[INDEX["csf"], T1]))
        found = image(head, values, tissues.lesions, signal)
    top = np.percentile(found, 99.0)
    return scanned(rng, head, found * np.float32(LEVEL / max(float(top), 1e-6)), artefacts)


def random_levels(rng: np.random.Generator) -> NDArray[np.float64]:
    levels = rng.uniform(0, 1, len(TISSUES))
    levels[INDEX["air"]] = 0
    for name in ("wm_middle", "wm_deep"):
        levels[INDEX[name]] = np.clip(levels[INDEX["wm"]] + rng.normal(0, 0.03), 0, 1)
    if rng.random() < 0.7:  # nuclei and stem are mixtures of grey and white matter, as in every sequence
        for name in ("thalamus", "caudate", "putamen", "pallidum", "brain_stem", "cord"):
            share = rng.uniform(0, 1)
            levels[INDEX[name]] = share * levels[INDEX["gm"]] + (1 - share) * levels[INDEX["wm"]]
    if rng.random() < 0.7:
        levels[INDEX["bone"]] *= 0.2
    return levels


def free_contrast(
    head: Head, values: NDArray[np.float64], rng: np.random.Generator, lesions: NDArray[np.float64]
) -> Array:
    """Return a random contrast: proton density is the grey level, HU the slope of the texture."""
    found = head.mean(values[:, PD]) + head.water * head.mean(values[:, HU])
    level = values[INDEX["csf"], PD] if rng.random() < 0.5 else rng.random()
    for share in head.lesions:
        found += share * (level - found) * rng.uniform(0.3, 1)
    return np.maximum(found, 0).astype(np.float32)


def windowed(rng: np.random.Generator, hounsfield: Array) -> Array:
    """Show CT through a window, as in a picture: of the brain, of bone, or of all values."""
    noisy = hounsfield + rng.standard_normal(len(hounsfield), np.float32) * np.float32(rng.uniform(0, 12))
    choice = rng.random()
    if choice < 0.4:
        centre, width = rng.uniform(30, 60), rng.uniform(80, 400)
    elif choice < 0.7:
        centre, width = rng.uniform(300, 700), rng.uniform(1500, 3000)
    else:
        return noisy + 1024
    return np.clip((noisy - centre) / width + 0.5, 0, 1).astype(np.float32)


SEQUENCES = ("T1 SE", "T1 MPRAGE", "T2 TSE", "FLAIR", "PD SE", "T1 GRE")  # what `random_sequence` draws


def random_sequence(rng: np.random.Generator, csf_t1: float) -> Sequence:
    """Draw a sequence from the ranges of clinical protocols; times in ms.

    The inversion time of FLAIR is about that which nulls fluid of T1 ``csf_t1``.
    """
    return sequence(rng, SEQUENCES[int(rng.choice(6, p=(0.15, 0.3, 0.2, 0.15, 0.12, 0.08)))], csf_t1)


def sequence(rng: np.random.Generator, name: str, csf_t1: float) -> Sequence:
    """Draw the times of one of :data:`SEQUENCES`; see :func:`random_sequence`."""
    u = rng.uniform
    if name == "T1 SE":
        return Sequence(name, u(350, 800), u(8, 20))
    if name == "T1 MPRAGE":
        return Sequence(name, u(1600, 2600), u(2, 5), u(700, 1100))
    if name == "T2 TSE":
        return Sequence(name, u(2500, 7000), u(75, 130))
    if name == "FLAIR":
        tr = u(6000, 11000)
        null = csf_t1 * (np.log(2) - np.log1p(np.exp(-tr / csf_t1)))
        return Sequence(name, tr, u(80, 150), null * u(0.92, 1.05))
    if name == "PD SE":
        return Sequence(name, u(1800, 4500), u(8, 40))
    return Sequence(name, u(6, 30), u(2, 8), flip_deg=u(8, 40))


def scanned(rng: np.random.Generator, head: Head, found: Array, artefacts: float) -> Array:
    """Add what a scanner adds: resolution, bias field, motion or ringing, noise."""
    from scipy.ndimage import gaussian_filter

    spacing = np.linalg.norm(head.affine[:3, :3], axis=0)[::-1]
    values = head.volume(found)
    width = 0.5 + artefacts * rng.uniform(0, 0.9, 3)  # mm: standard deviation of the point spread
    if rng.random() < 0.5 * artefacts:  # thick slices, in any orientation, interpolated afterwards
        width[rng.integers(3)] = rng.uniform(1.5, 8.5) / 2.355
    width[0] = np.sqrt(max(width[0] ** 2 - (spacing[0] / 2.355) ** 2, 0))  # the grid itself has thick slices
    values = gaussian_filter(values, np.minimum(width / spacing, 4), truncate=2.5)
    if rng.random() < 0.25 * artefacts:
        values = _moved(rng, values)
    field = smooth_noise(rng, (8, 8, 8), 1.6)
    values *= np.exp(_enlarged(field, values.shape) * np.float32(artefacts * rng.uniform(0.0, 0.3)))
    sigma = np.float32(LEVEL * (0.002 + artefacts * rng.uniform(0, 0.058)))
    noise = gaussian_filter(rng.standard_normal((2, *values.shape), np.float32), (0, 0, *rng.uniform(0, 0.5, 2)))
    return np.hypot(values + noise[0] * sigma, noise[1] * sigma).astype(np.float32)


def _enlarged(field: Array, shape: tuple[int, ...]) -> Array:
    """Interpolate a small field to ``shape``, axis by axis."""
    for axis, n in enumerate(shape):
        at = np.linspace(0, field.shape[axis] - 1, n)
        low = np.minimum(at.astype(int), field.shape[axis] - 2)
        part = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(field.ndim)])
        field = np.take(field, low, axis) * (1 - part) + np.take(field, low + 1, axis) * part
    return field


def _moved(rng: np.random.Generator, values: Array) -> Array:
    """Add ghosts of motion, or the ringing of a truncated k-space, along the rows or columns."""
    axis = int(rng.integers(1, 3))
    n = values.shape[axis]
    spectrum = np.fft.rfft(values, axis=axis)
    lines = np.arange(spectrum.shape[axis]).reshape([-1 if a == axis else 1 for a in range(3)])
    if rng.random() < 0.5:
        spectrum = spectrum * (lines < rng.uniform(0.55, 0.9) * n / 2)
    else:  # a periodic shift of every few lines of k-space makes a faint copy beside the head
        shift = rng.uniform(0.3, 1.5) * np.sin(2 * np.pi * lines / rng.uniform(2.5, 9) + rng.uniform(0, 6))
        spectrum = spectrum * np.exp(-2j * np.pi * lines / n * shift * (lines > 3))
    back: Array = np.fft.irfft(spectrum, n, axis=axis).astype(np.float32)
    return np.maximum(back, 0)


def hidden(rng: np.random.Generator, head: Head) -> NDArray[np.bool_] | None:
    """Choose what all scans of a head lack: ``(D, H, W)``, or None if they show everything.

    A fifth are skull-stripped, a tenth defaced, a tenth end above the chin or below the vertex.
    """
    from scipy.ndimage import binary_closing, binary_dilation, binary_fill_holes

    choice = rng.random()
    if choice < 0.2:
        own = head.volume(head.share(*BRAIN, "wm_middle", "wm_deep")) > 0.3
        closed = binary_closing(np.pad(own, 4), iterations=3)[4:-4, 4:-4, 4:-4]
        brain = np.stack([binary_fill_holes(one) for one in closed])
        grown: NDArray[np.bool_] = (
            binary_dilation(brain, iterations=int(rng.integers(0, 3))) if rng.random() < 0.7 else brain
        )
        return ~grown
    if choice < 0.3:  # before and below a plane through the eyes
        z, y, _ = np.indices(head.shape)
        _, y0, z0 = head.affine[:3, 3]
        spacing = np.linalg.norm(head.affine[:3, :3], axis=0)
        front = -(y * spacing[1] + y0) - rng.uniform(55, 80)
        below = -(z * spacing[2] + z0) - rng.uniform(-5, 25)
        return (front > 0) & (below > 0) & (front + below > rng.uniform(0, 15))
    if choice < 0.4:
        gone = np.zeros(head.shape, bool)
        few = int(rng.uniform(0.05, 0.3) * head.shape[0])
        gone[:few] = True
        gone[head.shape[0] - int(rng.uniform(0, 0.2) * head.shape[0]) :] = True
        return gone
    return None
