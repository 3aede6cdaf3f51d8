"""Generate DICOM studies of synthetic heads with known truth: the digital brain phantom.

Anatomy comes from the MNI152 atlas (:mod:`medstyle.phantom.anatomy`), deformed differently for
every subject. Images are computed from the tissues' T1, T2 and proton density by the textbook
signal equations, so the contrasts of one subject are functions of the same tissue, as in a patient;
then the coil's bias field and Rician noise are added.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import ParamsError
from medstyle.imaging.volume import Volume
from medstyle.params import params
from medstyle.phantom.anatomy import (
    AIR,
    CSF,
    LESION,
    TISSUES,
    WM,
    Array,
    Lesion,
    add_lesions,
    atlas_files,
    deformation,
    load_atlas,
    rotation,
    sample,
    smooth_noise,
    texture,
    tissue_fractions,
)

# T1 at 1.5 T and at 3 T in ms, T2 in ms, proton density relative to water, CT number in HU.
# 1.5 T: BrainWeb (Kwan et al., IEEE TMI 18:1085, 1999; brainweb tissue_mr_parameters.txt).
# Lesion: T2 and PD of BrainWeb's MS lesion. Its T1 of 752 ms looks like cortex in a T1-weighted
# image, where chronic lesions are darker than cortex ("black holes", Truyen et al., Neurology
# 47:1469, 1996); T1 is therefore chosen between grey matter and CSF. CSF: T1 4.3 s at both field
# strengths (Rooney et al., MRM 57:308, 2007); BrainWeb's 2569 ms would not be nulled by a clinical
# TI. Fat T2: 90 ms, within the 41-143 ms of Pai et al., MRI 26:1215, 2008. 3 T: grey and white
# matter of Wansapura et al., JMRI 9:531, 1999; muscle and fat scaled by the ratio of 3 T to 1.5 T
# of Stanisz et al., MRM 54:507, 2005 and Gold et al., AJR 183:343, 2004. CT numbers: Bushberg, The
# Essential Physics of Medical Imaging; bone is compact bone, and marrow mixes it with fat.
TISSUE_VALUES = {
    "air": (1.0, 1.0, 1.0, 0.0, -1000.0),
    "csf": (4300.0, 4300.0, 2000.0, 1.00, 8.0),
    "gm": (833.0, 1331.0, 83.0, 0.86, 38.0),
    "wm": (500.0, 832.0, 70.0, 0.77, 29.0),
    "fat": (350.0, 450.0, 90.0, 1.00, -90.0),
    "muscle": (900.0, 1260.0, 47.0, 1.00, 55.0),
    "bone": (1.0, 1.0, 1.0, 0.0, 1150.0),
    "lesion": (1200.0, 1700.0, 237.0, 0.76, 22.0),
    # Of heads from label maps alone (medstyle.phantom.heads). Nuclei: T1 as far between white and
    # grey matter as in Gelman et al., MRM 45:71, 2001, T2 shortened by iron. Blood: Stanisz et
    # al., MRM 54:507, 2005. No single source has the rest: fluid of the eye is nearly free water,
    # mucosa and plexus hold much water, skin has short T2, marrow is half fat between trabeculae.
    "thalamus": (635.0, 1034.0, 76.0, 0.82, 35.0),
    "caudate": (731.0, 1178.0, 79.0, 0.85, 37.0),
    "putamen": (678.0, 1099.0, 73.0, 0.83, 37.0),
    "pallidum": (571.0, 939.0, 60.0, 0.79, 37.0),
    "brain_stem": (570.0, 930.0, 74.0, 0.79, 30.0),
    "cord": (560.0, 920.0, 74.0, 0.78, 32.0),
    "plexus": (1000.0, 1500.0, 130.0, 0.90, 40.0),
    "blood": (1441.0, 1932.0, 280.0, 0.80, 48.0),
    "marrow": (380.0, 480.0, 70.0, 0.50, 420.0),
    "skin": (800.0, 1100.0, 35.0, 0.75, 30.0),
    "mucosa": (1000.0, 1400.0, 100.0, 0.95, 40.0),
    "eye": (4000.0, 4000.0, 1200.0, 1.00, 10.0),
}
# Coefficients of variation of T1, T2 and PD between subjects: of all tissues, and of each.
SPREAD, SPREAD_EACH = 0.03, 0.015
# What a deviation of the water content by one unit does to a tissue: more water has a longer T1 and
# T2, a larger proton density and a CT number nearer to 0. Relative changes, and HU.
TEXTURE = {"t1": 0.05, "t2": 0.06, "pd": 0.015, "hu": -2.0}
WATER = 0.6  # standard deviation of the water content: 6 % of the signal of T2, 1 % of that of T1


@dataclass(frozen=True)
class Sequence:
    """A pulse sequence, times in ms: inversion recovery if it has a TI, else a spin echo.

    With a flip angle it is a spoiled gradient echo.
    """

    description: str
    tr: float
    te: float
    ti: float | None = None
    flip_deg: float | None = None

    def signal(self, t1: NDArray | float, t2: NDArray | float, pd: NDArray | float) -> Any:
        """Return the magnitude signal relative to fully relaxed water (Brown et al., 2014).

        The equations are those of Magnetic Resonance Imaging (Brown et al.). Spin echo: PD (1 - E1)
        exp(-TE/T2) with E1 = exp(-TR/T1). Inversion recovery: PD |1 - 2 exp(-TI/T1) + E1|
        exp(-TE/T2). Spoiled gradient echo: PD sin(a) (1 - E1) / (1 - cos(a) E1) exp(-TE/T2), with
        T2 in place of T2*.
        """
        e1 = np.exp(-self.tr / t1)
        if self.ti is not None:
            recovered = np.abs(1 - 2 * np.exp(-self.ti / t1) + e1)
        elif self.flip_deg is not None:
            angle = np.deg2rad(self.flip_deg)
            recovered = np.sin(angle) * (1 - e1) / (1 - np.cos(angle) * e1)
        else:
            recovered = 1 - e1
        return pd * recovered * np.exp(-self.te / t2)


@dataclass(frozen=True)
class Site:
    """A scanner and its protocol."""

    name: str
    model: str
    field_t: float
    level: float  # stored value of average white matter
    blur_mm: float  # standard deviation of the in-plane point spread
    sequences: dict[str, Sequence]


SITES = (
    Site(
        "SITE-A", "Phantom One", 1.5, 400.0, 0.6,
        {
            "mr_t1": Sequence("T1 GRE", 18, 5, flip_deg=30),
            "mr_t2": Sequence("T2 TSE", 4500, 100),
            "mr_pd": Sequence("PD SE", 3000, 20),
            "mr_flair": Sequence("FLAIR", 9000, 120, 2460),
        },
    ),
    Site(
        "SITE-B", "Phantom Two", 3.0, 250.0, 1.0,
        {
            "mr_t1": Sequence("T1 GRE", 12, 3, flip_deg=20),
            "mr_t2": Sequence("T2 TSE", 6000, 85),
            "mr_pd": Sequence("PD SE", 3500, 22),
            "mr_flair": Sequence("FLAIR", 11000, 125, 2590),
        },
    ),
)  # fmt: skip
DOMAINS = (*SITES[0].sequences, "ct")


@params
class PhantomParams:
    """Parameters of the digital brain phantom."""

    subjects: int = 28
    """Number of subjects, with one study each."""
    seed: int = 0
    """Seed of all random choices; subject ``i`` is the same for any number of subjects."""
    domains: tuple[str, ...] = ("mr_t1", "mr_t2")
    """Contrasts, one series each: mr_t1, mr_t2, mr_pd, mr_flair, ct."""
    matrix: int = 128
    """Number of rows and columns of a slice."""
    slices: int = 43
    """Number of slices in a series."""
    spacing_mm: tuple[float, float, float] = (1.8, 1.8, 3.0)
    """Distances of columns, rows and slices in mm; a head needs 230 mm in the plane."""
    noise: float = 0.03
    """Standard deviation of each channel's noise, relative to the signal of white matter; in CT,
    150 HU times this."""
    bias: float = 0.3
    """Range of the coil's multiplicative field over the image: 0.3 means 0.85 to 1.15 (BrainWeb's
    INU of 30 %)."""
    lesions: int = 8
    """Largest number of lesions in a subject; about a quarter of the subjects have none."""
    sites: int = 1
    """1: a single scanner. 2: every other subject is scanned at 3 T with another protocol, gain and
    resolution."""
    labels: str | None = None
    """Folder of label maps of whole heads (`*.nii.gz`, FreeSurfer's labels): heads are drawn from
    them instead of the MNI152 atlas and written as NIfTI, in the fixed protocols of a scanner and,
    as domain `brain` and its variants (`brain@2`), in random contrasts and qualities. `lesions`,
    `noise` and `bias` are then random."""
    artefacts: float = 1.0
    """With `labels`, how bad the scans of `brain` may be, from 0 to 1: noise, shading, thick
    slices, motion, and contrasts that no sequence gives."""

    def __post_init__(self) -> None:
        """Raise UserError if a value is out of range."""
        for key, low, high in (
            ("subjects", 1, 9999), ("seed", 0, 2**63), ("matrix", 16, 1024), ("slices", 2, 1024), ("noise", 0, 1),
            ("bias", 0, 1), ("artefacts", 0, 1), ("lesions", 0, 200), ("sites", 1, len(SITES)),
        ):  # fmt: skip
            if not low <= getattr(self, key) <= high:
                raise ParamsError(f"{key}: expected {low} to {high}, got {getattr(self, key)}")
        known = (*DOMAINS, "brain") if self.labels else DOMAINS
        bases = [name.partition("@")[0] if name.startswith("brain") and self.labels else name for name in self.domains]
        if not self.domains or len(set(self.domains)) < len(self.domains) or not set(bases) <= set(known):
            raise ParamsError(f"domains: expected different ones of {', '.join(known)}, got {list(self.domains)}")
        if len(self.spacing_mm) != 3 or not all(0.2 <= s <= 20 for s in self.spacing_mm):
            raise ParamsError(f"spacing_mm: expected three distances of 0.2 to 20, got {list(self.spacing_mm)}")


@dataclass(frozen=True, eq=False)
class Subject:
    """One synthetic head on its acquisition grid.

    Attributes:
        index: number of the subject.
        site: site that scans the subject.
        affine: affine of the grid, see :class:`Volume`.
        fractions: ``(len(TISSUES), D, H, W)``, summing to one.
        water: ``(D, H, W)`` deviation of the water content: the texture that all contrasts share.
        scale: ``(len(TISSUES), 3)``, the subject's T1, T2 and PD relative to the table.
        lesions: lesions in the order of their component ids, which start at one.
        lesion_ids: ``(D, H, W)`` uint8.
    """

    index: int
    site: Site
    affine: NDArray[np.float64]
    fractions: Array
    water: Array
    scale: NDArray[np.float64]
    lesions: tuple[Lesion, ...]
    lesion_ids: NDArray[np.uint8]

    def values(self, tissue: int, site: Site | None = None) -> tuple[float, float, float]:
        """Return T1 (ms), T2 (ms) and PD of a tissue of this subject at a site's field strength."""
        low, high, t2, pd, _ = TISSUE_VALUES[TISSUES[tissue]]
        t1 = low if (site or self.site).field_t < 2 else high
        a, b, c = self.scale[tissue].tolist()
        return t1 * a, t2 * b, pd * c

    def image(self, domain: str, site: Site | None = None) -> Volume:
        """Return the noise-free image: relative signal for MR, HU for CT."""
        from scipy.ndimage import gaussian_filter

        site = site or self.site
        mixed = np.zeros(self.fractions.shape[1:], np.float32)
        for tissue in range(len(TISSUES)):
            here = self.fractions[tissue] > 0
            part = self.fractions[tissue][here]
            water = np.zeros(1, np.float32) if tissue in (AIR, CSF) else self.water[here]
            if domain == "ct":
                mixed[here] += part * (TISSUE_VALUES[TISSUES[tissue]][4] + TEXTURE["hu"] * water)
                continue
            t1, t2, pd = self.values(tissue, site)
            if pd > 0:
                wetter = [v * (1 + TEXTURE[name] * water) for name, v in (("t1", t1), ("t2", t2), ("pd", pd))]
                mixed[here] += part * site.sequences[domain].signal(*wetter)
        spacing = np.linalg.norm(self.affine[:3, :2], axis=0)
        blurred = gaussian_filter(mixed, (0, site.blur_mm / spacing[1], site.blur_mm / spacing[0]), mode="nearest")
        return Volume(blurred, self.affine, domain)


def _rng(*stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(stream)))


def draw_subject(params: PhantomParams, index: int, lesions: bool = True) -> Subject:
    """Draw subject ``index``; without ``lesions``, it is the same head without the disease."""
    atlas = load_atlas()
    rng = _rng(params.seed, index, 0)
    spacing = np.array(params.spacing_mm)
    shape = (params.slices, params.matrix, params.matrix)
    size = spacing * shape[::-1]

    # The slices are tilted to the head, but not perfectly: the header has one rotation, the image
    # the rest.
    tilt = rotation(rng.uniform(-6, 6, 3))
    affine = np.eye(4)
    affine[:3, :3] = tilt * spacing
    affine[:3, 3] = rng.uniform(-10, 10, 3) - affine[:3, :3] @ ((np.array(shape[::-1]) - 1) / 2)
    scale = rng.uniform(0.89, 0.97) * rng.uniform(0.97, 1.03, 3)  # MNI152 is larger than most heads
    pose = rotation(rng.uniform(-3, 3, 3)) / scale[:, None]
    top = 100 - size[2] / 2 / scale[2]  # a slab that is too thin for the head is centred on the ventricles
    centre = np.array([0.0, 14.0, min(top, 24.0)]) + rng.uniform(-2, 2, 3)

    # Points in atlas space, several per voxel along the slice axis, where partial volume is
    # largest.
    sub = max(1, round(spacing[2] / spacing[0] * 1.5))
    counts = (shape[2], shape[1], shape[0] * sub)
    steps = [((np.arange(n) + 0.5) / n - 0.5) * length for n, length in zip(counts, size, strict=True)]
    along = [np.outer(pose[:, axis], steps[axis]).astype(np.float32) for axis in range(3)]
    grid_points = along[0][:, None, None, :] + along[1][:, None, :, None] + along[2][:, :, None, None]
    points = grid_points.reshape(3, -1) + centre[:, None].astype(np.float32)
    away = (points - np.array([[0], [14], [15]], np.float32)) / np.array([[112], [132], [120]], np.float32)
    head = np.flatnonzero((away**2).sum(axis=0) < 1)  # the rest is air, whatever the deformation
    displacement, grid = deformation(rng, atlas)
    points = points[:, head] + np.stack([sample(d, grid, points[:, head]) for d in displacement])

    def noise(sigma_mm: float) -> Array:
        return smooth_noise(rng, shape, tuple(sigma_mm / spacing[::-1]))

    habitus = np.array([rng.uniform(3.5, 5.5), rng.uniform(2.5, 6), rng.uniform(6, 11), rng.uniform(-0.4, 0.6)])
    repeated = np.repeat([noise(6), noise(6), noise(14)], sub, axis=1).reshape(3, -1)[:, head]
    fine = np.zeros((len(TISSUES), shape[0] * sub * shape[1] * shape[2]), np.float32)
    fine[AIR] = 1
    fine[:, head] = tissue_fractions(points, atlas, repeated, 0.8 * float(spacing[:2].mean()), habitus)
    fractions = fine.reshape(len(TISSUES), shape[0], sub, *shape[1:]).mean(axis=2)
    water = np.float32(WATER) * texture(rng, shape, spacing, np.array([0.4, 0.3, 0.3]))
    together, each = np.clip(rng.standard_normal(3), -2, 2), np.clip(rng.standard_normal((len(TISSUES), 3)), -2, 2)
    relative = 1 + SPREAD * together + SPREAD_EACH * each
    distance = np.full(shape, np.inf, np.float32)
    white = np.argwhere(fractions[WM] > 0.9)
    middle = np.ravel_multi_index((white * (sub, 1, 1) + (sub // 2, 0, 0)).T, (shape[0] * sub, *shape[1:]))
    distance[tuple(white.T)] = atlas.at(atlas.ventricle, points[:, np.searchsorted(head, middle)])
    found, ids = add_lesions(_rng(params.seed, index, 1), params.lesions if lesions else 0, fractions, affine, distance)
    return Subject(index, SITES[index % params.sites], affine, fractions, water, relative, found, ids)


def _coil(rng: np.random.Generator, own: np.random.Generator, shape: tuple[int, ...], strength: float) -> Array:
    """Draw the coil's cubic field, 1 +- strength / 2, mostly common to the subject.

    A smaller part of it differs between the series of a subject.
    """
    z, y, x = (np.linspace(-1, 1, n, dtype=np.float32).reshape(s) for n, s in zip(
        shape, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), strict=True))  # fmt: skip
    terms = [x, y, z, x * y, x * z, y * z, x * x, y * y, z * z, x * x * y, y * y * x]
    weights = rng.standard_normal(len(terms)) + 0.3 * own.standard_normal(len(terms))
    field = np.zeros(shape, np.float32)
    for weight, term in zip(weights, terms, strict=True):
        field += np.float32(weight) * term
    low, high = float(field.min()), float(field.max())
    return (1 + strength * ((field - low) / max(high - low, 1e-6) - 0.5)).astype(np.float32)


def acquire(params: PhantomParams, subject: Subject, domain: str) -> tuple[Volume, Volume]:
    """Scan a subject.

    Return the image as the scanner stores it, and the image without bias and noise.
    """
    rng = _rng(params.seed, subject.index, 2, DOMAINS.index(domain))
    truth = subject.image(domain)
    shape = truth.voxels.shape
    if domain == "ct":
        noise = rng.standard_normal(shape, np.float32) * np.float32(150 * params.noise)
        return truth.with_voxels(truth.voxels + noise), truth
    gain = np.float32(_gain(subject.site, domain) * rng.uniform(0.85, 1.15))  # MR has no absolute unit
    truth = truth.with_voxels(truth.voxels * gain)
    sigma = gain * params.noise * subject.site.sequences[domain].signal(*subject.values(WM))
    coil = _coil(_rng(params.seed, subject.index, 3), rng, shape, params.bias)
    real, imaginary = rng.standard_normal((2, *shape), np.float32) * np.float32(sigma)
    return truth.with_voxels(np.hypot(truth.voxels * coil + real, imaginary)), truth


def _gain(site: Site, domain: str) -> float:
    """Return the stored value of unit signal at a site."""
    low, high, t2, pd, _ = TISSUE_VALUES["wm"]
    return float(site.level / site.sequences[domain].signal(low if site.field_t < 2 else high, t2, pd))


def _attributes(params: PhantomParams, subject: Subject, number: int, domain: str) -> dict[str, Any]:
    from medstyle.dicom.uids import uid_of

    same = {k: v for k, v in asdict(params).items() if k not in ("subjects", "domains", "labels", "artefacts")}
    study = uid_of("medstyle phantom", json.dumps(same, sort_keys=True), subject.index)
    site = subject.site
    attributes: dict[str, Any] = {
        "PatientName": f"Phantom^{subject.index:04d}",
        "PatientID": f"PHANTOM-{subject.index:04d}",
        "StudyInstanceUID": study,
        "StudyID": str(subject.index),
        "StudyDescription": "Digital brain phantom",
        "SeriesInstanceUID": uid_of(study, domain),
        "SeriesNumber": number,
        "FrameOfReferenceUID": uid_of(study, "frame of reference"),
        "BodyPartExamined": "HEAD",
        "Manufacturer": "medstyle phantom",
        "ManufacturerModelName": site.model,
        "InstitutionName": f"medstyle phantom {site.name}",
        "StationName": site.name,
        "QualityControlImage": "YES",
        "ImageComments": "Digital phantom, not a patient",
    }
    if domain == "ct":
        return attributes | {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "SeriesDescription": "CT HEAD",
                             "WindowCenter": "40", "WindowWidth": "80"}  # fmt: skip
    sequence = site.sequences[domain]
    fast = sequence.te > 50
    gradient = sequence.flip_deg is not None
    kind = "GR" if gradient else "IR" if sequence.ti else "SE"
    attributes |= {
        "ImageType": ["ORIGINAL", "PRIMARY", "M", kind],
        "SeriesDescription": sequence.description,
        "ScanningSequence": ["SE", "IR"] if sequence.ti else kind,
        "SequenceVariant": "SP" if gradient else "SK" if fast else "NONE",
        "MRAcquisitionType": "3D" if gradient else "2D",
        "RepetitionTime": f"{sequence.tr:g}",
        "EchoTime": f"{sequence.te:g}",
        "EchoTrainLength": 16 if fast else 1,
        "FlipAngle": f"{sequence.flip_deg or 90:g}",
        "MagneticFieldStrength": f"{site.field_t:g}",
        "WindowCenter": f"{site.level:g}",
        "WindowWidth": f"{2 * site.level:g}",
    }
    return attributes | ({"InversionTime": f"{sequence.ti:g}"} if sequence.ti else {})


def write_subject(out: Path, params: PhantomParams, index: int) -> str:
    """Write one study to ``out/studies`` and its truth to ``out/truth``; return the PatientID."""
    import SimpleITK as sitk

    from medstyle.dicom.acquired import write_series
    from medstyle.imaging.volume import write_volume

    subject = draw_subject(params, index)
    patient = f"PHANTOM-{index:04d}"
    truth_folder = out / "truth" / patient
    truth_folder.mkdir(parents=True)
    for number, domain in enumerate(params.domains, 1):
        scanned, truth = acquire(params, subject, domain)
        names = _rng(params.seed, index, 4).permutation(params.slices) + 1  # not in spatial order, as from an archive
        attributes = _attributes(params, subject, number, domain)
        write_series(out / "studies" / patient / f"{number:02d}_{domain}", scanned, attributes, names.tolist())
        write_volume(truth_folder / f"{domain}.nii.gz", truth)
        for other in SITES[: params.sites] if domain != "ct" else ():
            if other is not subject.site:  # the same head on the other scanner
                image = subject.image(domain, other)
                path = truth_folder / f"{domain}_{other.name}.nii.gz"
                write_volume(path, image.with_voxels(image.voxels * np.float32(_gain(other, domain))))
    labels = subject.fractions.argmax(axis=0).astype(np.uint8)
    labels[subject.lesion_ids > 0] = LESION
    for name, mask in (("labels", labels), ("lesions", subject.lesion_ids)):
        image = sitk.GetImageFromArray(mask)
        image.CopyInformation(truth.to_image())
        sitk.WriteImage(image, str(truth_folder / f"{name}.nii.gz"), useCompression=True)
    facts = {
        "site": subject.site.name,
        "labels": dict(enumerate(TISSUES)),
        "tissues": {name: subject.values(i) for i, name in enumerate(TISSUES)},
        "lesions": [{"id": i, **asdict(lesion)} for i, lesion in enumerate(subject.lesions, 1)],
    }
    (truth_folder / "subject.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return patient


def write_phantom(
    out: Path,
    params: PhantomParams,
    progress: Callable[[Iterable[str], str, int], Iterable[str]] | None = None,
    workers: int | None = None,
) -> None:
    """Write ``out/studies/<PatientID>/<nn_domain>/<nnnn>.dcm`` and ``out/truth/<PatientID>/``.

    The truth contains, on the grid of the series: ``<domain>.nii.gz`` without noise and bias in the
    stored unit, ``labels.nii.gz`` (index into TISSUES), ``lesions.nii.gz`` (component ids) and
    ``subject.json``. With two sites, it also contains ``<domain>_<site>.nii.gz``, the same head on
    the other scanner.

    Args:
        out: parent of both folders.
        params: parameters of the phantom.
        progress: wraps the loop over subjects, like :func:`medstyle.jobs.progress.track`.
        workers: number of processes, by default one per core; the bytes do not depend on it.
    """
    atlas_files()  # report a missing atlas before any process starts
    show = progress or (lambda items, description, total: items)
    workers = min(workers or os.cpu_count() or 1, params.subjects)
    work = partial(write_subject, out, params)
    if workers == 1:
        for _ in show(map(work, range(params.subjects)), "phantom", params.subjects):
            pass
        return
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Spawned, because a forked child of a process with running threads (ITK, torch) may deadlock.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for _ in show(pool.map(work, range(params.subjects)), "phantom", params.subjects):
            pass
