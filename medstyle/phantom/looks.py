"""Draw scans whose contrast is known by definition, and things that are no head, to learn from.

What a contrast is, is defined by the order of grey matter, white matter and fluid
(:func:`contrast_of_levels`), not by the name of a sequence: a spin echo of short TR and long TE is
none of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from medstyle.imaging.volume import Volume
from medstyle.phantom.anatomy import Array, smooth_noise
from medstyle.phantom.contrasts import (
    HU,
    LEVEL,
    PD,
    T1,
    Tissues,
    draw_tissues,
    free_contrast,
    hidden,
    hounsfield,
    image,
    random_levels,
    scanned,
    sequence,
    signal_of,
    windowed,
)
from medstyle.phantom.heads import INDEX, TISSUES, Head, LabelMap, draw_head

CONTRASTS = ("mr_t1", "mr_t2", "mr_flair", "mr_pd", "ct")
SPACING_MM = 3.0
SHAPE = (76, 80, 68)
OUTER = ("fat", "muscle", "skin", "marrow", "mucosa", "blood", "eye")  # whose signal varies most between protocols
SEQUENCES = {
    "mr_t1": ("T1 SE", "T1 MPRAGE", "T1 MPRAGE", "T1 GRE"),
    "mr_t2": ("T2 TSE",),
    "mr_flair": ("FLAIR",),
    "mr_pd": ("PD SE",),
}
TRIES = 40
OBJECTS = ("lumps", "shells", "texture", "noise", "boxes", "stack", "shuffled")


def contrast_of_levels(gm: float, wm: float, csf: float) -> str:
    """Name the contrast of an MR image from the signals of grey matter, white matter and CSF.

    Returns:
        A domain, or "" if they are in none of the orders that define one.
    """
    if wm > 1.04 * gm and gm > 1.3 * csf:
        return "mr_t1"
    if gm > 1.02 * wm and csf > 1.25 * gm:
        return "mr_t2"
    if gm > wm and csf < 0.7 * wm:
        return "mr_flair"
    return "mr_pd" if gm > 1.02 * wm and 0.75 * gm < csf < 1.2 * gm else ""


def draw_scans(rng: np.random.Generator, source: LabelMap) -> Iterator[tuple[str, Volume]]:
    """Draw a head and yield its scan of each contrast, then of a random one: ``(contrast, scan)``.

    The contrast of the last is "". Resolution, bias field, noise, motion, what is cut off, the
    lesions and the contrast agent (in a quarter of T1) are random; so are the signals of the
    tissues outside the brain.
    """
    head = draw_head(rng, source, SHAPE, (SPACING_MM,) * 3)
    tissues = draw_tissues(rng, head)
    gone = hidden(rng, head)
    for contrast in (*CONTRASTS, ""):
        found = _signal(rng, head, tissues, contrast)
        if found is None:
            continue
        top = float(np.percentile(found, 99)) - min(float(found.min()), 0)
        voxels = scanned(rng, head, found * np.float32(LEVEL / max(top, 1e-6)), 1.0)
        if gone is not None:
            voxels[gone] = 0
        yield contrast, Volume(voxels, head.affine, "brain")


def _signal(rng: np.random.Generator, head: Head, tissues: Tissues, contrast: str) -> Array | None:
    """Draw the signal of a contrast; None if no sequence gives it to the tissues of this head."""
    if contrast == "ct":
        return windowed(rng, image(head, tissues.at(1.0), tissues.lesions, hounsfield))
    values, lesions = tissues.at(rng.random()).copy(), tissues.lesions.copy()
    values[[INDEX[name] for name in OUTER], PD] *= np.exp(0.35 * rng.standard_normal(len(OUTER)))
    values[INDEX["blood"], PD] *= rng.random()
    order = [INDEX["gm"], INDEX["wm"], INDEX["csf"]]
    while contrast == "":
        levels = random_levels(rng)
        if not contrast_of_levels(*levels[order]):
            values[:, PD], values[:, HU] = levels, rng.normal(0, 0.04, len(TISSUES))
            return free_contrast(head, values, rng, np.zeros_like(lesions))
    if rng.random() < 0.3:  # fat saturation
        values[[INDEX["fat"], INDEX["marrow"]], PD] *= rng.uniform(0.05, 0.5, 2)
    if contrast == "mr_t1" and rng.random() < 0.25:  # a contrast agent shortens T1 where it goes
        values[[INDEX[name] for name in ("blood", "mucosa", "plexus")], T1] *= rng.uniform(0.1, 0.5)
        lesions[:, T1] *= rng.uniform(0.2, 1, len(lesions))
    for _ in range(TRIES):
        drawn = sequence(rng, str(rng.choice(SEQUENCES[contrast])), values[INDEX["csf"], T1])
        signal = partial(signal_of, sequence=drawn)
        if contrast_of_levels(*signal(values[order])) == contrast:
            return image(head, values, lesions, signal)
    return None


def draw_object(rng: np.random.Generator, head: Volume) -> Volume:
    """Draw something that is no head: lumps, limbs, textures, boxes, noise, a stack of one picture.

    ``head`` is a scan that may be cut into blocks and shuffled.
    """
    kind = OBJECTS[int(rng.integers(len(OBJECTS)))]
    if kind == "shuffled":
        return replace(head, voxels=_shuffled(rng, head.voxels))
    shape = tuple(int(n) for n in rng.integers(40, 80, 3))
    inside = np.ones(shape, bool) if rng.random() < 0.3 else _body(rng, shape) > 0
    if kind == "noise":
        voxels = np.abs(smooth_noise(rng, shape, rng.uniform(0, 1.5)))
    elif kind == "texture":
        voxels = smooth_noise(rng, shape, rng.uniform(1, 8)) + 3
    elif kind == "shells":
        voxels = rng.uniform(0, 1, 8).astype(np.float32)[
            np.clip(_body(rng, shape) * rng.uniform(3, 12), 0, 7).astype(int)
        ]
    elif kind == "boxes":
        voxels = np.zeros(shape, np.float32)
        for _ in range(int(rng.integers(1, 12))):
            ends = [np.sort(rng.integers(0, n + 1, 2)) for n in shape]
            voxels[tuple(slice(*pair) for pair in ends)] = rng.random()
    else:
        flat = (1, *shape[1:]) if kind == "stack" else shape
        count = int(rng.integers(2, 9))
        fields = np.stack([smooth_noise(rng, flat, rng.uniform(1.5, 7)) for _ in range(count)])
        voxels = rng.uniform(0, 1, count).astype(np.float32)[fields.argmax(0)] + np.zeros(shape, np.float32)
    values = np.where(inside, voxels, 0) * np.exp(0.3 * rng.random() * smooth_noise(rng, shape, 12))
    noise = rng.uniform(0, 0.08) * rng.standard_normal(shape)
    return Volume(np.abs(values + noise).astype(np.float32), np.diag([SPACING_MM] * 3 + [1.0]), "brain")


def _body(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return the depth of one to three warped ellipsoids, 0 at their surface, up to 1 inside."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    depth = np.full(shape, -np.inf)
    for _ in range(int(rng.integers(1, 4))):
        centre, axes = rng.uniform(-0.3, 0.3, 3), rng.uniform(0.3, 1.3, 3)
        away = np.sqrt((((grid - centre[:, None, None, None]) / axes[:, None, None, None]) ** 2).sum(0))
        depth = np.maximum(depth, 1 - away)
    return (depth + 0.08 * smooth_noise(rng, shape, rng.uniform(3, 10))).astype(np.float32)


def _shuffled(rng: np.random.Generator, voxels: Array) -> Array:
    """Cut a volume into 27 blocks and lay them together in another order."""
    cut = tuple(n // 3 for n in voxels.shape)
    places = [tuple(slice(i * n, (i + 1) * n) for i, n in zip(at, cut, strict=True)) for at in np.ndindex(3, 3, 3)]
    mixed = np.zeros_like(voxels)
    for place, other in zip(places, rng.permutation(27), strict=True):
        mixed[place] = voxels[places[other]]
    return mixed
