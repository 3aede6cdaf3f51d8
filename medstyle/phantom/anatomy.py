"""Draw the anatomy of a phantom: one subject's tissue fractions, from the MNI152 atlas."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import MissingPackage
from medstyle.imaging.volume import read_volume

Array = NDArray[np.float32]

TISSUES = ("air", "csf", "gm", "wm", "fat", "muscle", "bone", "lesion")  # index = label value
AIR, CSF, GM, WM, FAT, MUSCLE, BONE, LESION = range(len(TISSUES))

COARSE_MM = 2.0  # the shells around the brain are smooth, so half the resolution of the atlas is enough
NODE_MM = 5.0  # spacing of the nodes of the deformation
LOW, HIGH = np.array([-110.0, -125.0, -90.0]), np.array([110.0, 145.0, 120.0])  # bounding box of the head, mm, LPS


@dataclass(frozen=True, eq=False)
class Grid:
    """Axis-aligned grid: index (column, row, slice) = (x, y, z) in mm * ``per_mm`` + ``offset``."""

    per_mm: Array
    offset: Array

    def points(self, shape: tuple[int, ...]) -> Array:
        """Return the ``(3, D * H * W)`` positions of a grid of ``shape (D, H, W)`` in mm."""
        index = np.indices(shape, np.float32)[::-1].reshape(3, -1)
        return (index - self.offset[:, None]) / self.per_mm[:, None]


@dataclass(frozen=True, eq=False)
class Atlas:
    """MNI152 (2009a, nonlinear, symmetric.

    Fonov 2011) and the distances that define the shells around it.

    Attributes:
        gm, wm: ``(D, H, W)`` uint8, probability x 255.
        grid: grid of ``gm`` and ``wm``.
        cavity: signed distance to the surface of the fluid around the brain in mm, negative inside,
            on the coarse grid.
        hull: signed distance to the nearly convex hull of the brain, which skull and scalp follow.
        ventricle: distance to the lateral ventricles in mm.
        coarse: grid of the three distances.
    """

    gm: NDArray[np.uint8]
    wm: NDArray[np.uint8]
    grid: Grid
    cavity: Array
    hull: Array
    ventricle: Array
    coarse: Grid

    def at(self, field: NDArray, points: NDArray) -> Array:
        """Sample ``field`` linearly at ``(3, N)`` atlas points (LPS, mm).

        Border values extend outside.
        """
        return sample(field, self.grid if field.shape == self.gm.shape else self.coarse, points)


def sample(field: NDArray, grid: Grid, points: NDArray) -> Array:
    """Sample ``field (D, H, W)`` linearly at ``points (3, N)``, given as x, y, z in mm."""
    from scipy.ndimage import map_coordinates

    index = points * grid.per_mm[:, None] + grid.offset[:, None]
    return map_coordinates(field, index[::-1], np.float32, order=1, mode="nearest")


def atlas_files() -> dict[str, Path]:
    """Find the maps in nilearn's wheel without importing nilearn, which takes seconds."""
    spec = importlib.util.find_spec("nilearn")
    folder = Path(spec.origin).parent / "datasets" / "data" if spec and spec.origin else Path()
    files = {k: folder / f"mni_icbm152_{k}_tal_nlin_sym_09a_converted.nii.gz" for k in ("t1", "gm", "wm")}
    if not all(file.is_file() for file in files.values()):
        raise MissingPackage("the brain phantom needs the atlas that nilearn ships: pip install medstyle[phantom]")
    return files


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """Read the atlas and compute its distances.

    This takes about three seconds, once per process.
    """
    import SimpleITK as sitk
    from scipy.ndimage import binary_fill_holes, gaussian_filter, label

    files = atlas_files()
    volumes = {k: read_volume(file, "mr_t1") for k, file in files.items()}
    t1, gm, wm = (volumes[k].voxels for k in ("t1", "gm", "wm"))

    def distance(mask: NDArray[np.bool_]) -> Array:
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing((COARSE_MM,) * 3)
        signed = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True)
        return sitk.GetArrayFromImage(signed).astype(np.float32)

    def closed(mask: NDArray[np.bool_], radius_mm: float, grow_mm: float = 0.0) -> Array:
        dilated = distance(mask) <= radius_mm
        return gaussian_filter(distance(distance(dilated) < grow_mm - radius_mm), 1.0)

    pad = 20  # coarse voxels; the brain touches the lower border of the atlas
    brain = np.pad(t1[::2, ::2, ::2] > 0, pad)
    brain = binary_fill_holes(brain)
    cavity, hull = closed(brain, 7.0, 1.5), closed(brain, 28.0)
    affine: Array = volumes["t1"].affine.astype(np.float32)  # diagonal
    per_mm: Array = (1 / affine.diagonal()[:3]).astype(np.float32)
    grid = Grid(per_mm, (-affine[:3, 3] * per_mm).astype(np.float32))
    coarse = Grid((per_mm / 2).astype(np.float32), (grid.offset / 2 + pad).astype(np.float32))

    fluid = np.pad((gm + wm < 110)[::2, ::2, ::2], pad) & (cavity < -16)
    x, _, z = coarse.points(fluid.shape).reshape(3, *fluid.shape)
    fluid &= (np.abs(x) < 38) & (z > -15) & (z < 40)
    parts, _ = label(fluid)
    sizes = np.bincount(parts.ravel())
    ventricles = np.isin(parts, np.flatnonzero(sizes > 60)[1:])
    ventricle = np.maximum(distance(ventricles), 0)
    return Atlas(gm.astype(np.uint8), wm.astype(np.uint8), grid, cavity, hull, ventricle, coarse)


def rotation(degrees: NDArray) -> NDArray[np.float64]:
    """Return the rotation matrix of three Euler angles."""
    (a, b, c), (d, e, f) = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    rx = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    ry = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    rz = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    matrix: NDArray[np.float64] = rz @ ry @ rx
    return matrix


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], sigma: tuple[float, ...] | float) -> Array:
    """Draw a Gaussian field of zero mean and unit variance, smooth over ``sigma`` voxels."""
    from scipy.ndimage import gaussian_filter

    field = gaussian_filter(rng.standard_normal(shape, np.float32), sigma, mode="wrap", truncate=3)
    return (field - field.mean()) / field.std()


def texture(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    spacing_mm: NDArray[np.float64],
    shares: NDArray,
) -> Array:
    """Draw the water content ``(D, H, W)`` of tissue about its mean, of unit variance.

    Args:
        rng: generator of random numbers.
        shape: ``(D, H, W)``.
        spacing_mm: ``(x, y, z)``.
        shares: ``(3,)``, of the variance: of a fine, a middle and a coarse part.
    """
    parts = [
        share**0.5 * smooth_noise(rng, shape, tuple(mm / spacing_mm[::-1]))
        for share, mm in zip(shares, (1.2, 4.0, 14.0), strict=True)
    ]
    return np.clip(sum(parts), -3, 3).astype(np.float32)


def deformation(rng: np.random.Generator, atlas: Atlas) -> tuple[Array, Grid]:
    """Draw a diffeomorphism of the head: displacement ``(3, D, H, W)`` in mm, and its grid.

    The components are x, y, z. It is the exponential of a stationary velocity field by scaling and
    squaring (Arsigny et al., MICCAI 2006), so it cannot fold. The velocity varies the shape of the
    head (3.5 mm over 45 mm), that of the folds (2 mm over 11 mm), and the size of the ventricles.
    """
    shape = tuple(np.ceil((HIGH - LOW) / NODE_MM).astype(int)[::-1] + 1)
    grid = Grid(np.full(3, 1 / NODE_MM, np.float32), (-LOW / NODE_MM).astype(np.float32))
    nodes = grid.points(shape)
    folds = 2.0 * np.clip(-atlas.at(atlas.cavity, nodes).reshape(shape) / 15, 0.05, 1)  # skull and scalp have no folds
    velocity = np.stack(
        [
            3.5 * smooth_noise(rng, shape, 45 / NODE_MM) + folds * smooth_noise(rng, shape, 11 / NODE_MM)
            for _ in range(3)
        ]
    )
    mirrored = velocity[..., ::-1] * np.array([-1, 1, 1], np.float32).reshape(3, 1, 1, 1)
    velocity = 0.86 * velocity + 0.5 * mirrored  # left and right vary together
    # Sampling closer to the ventricles enlarges them.
    distance = atlas.at(atlas.ventricle, nodes).reshape(shape)
    toward: Array = np.stack(list(np.gradient(-distance, NODE_MM))[::-1])
    velocity += rng.uniform(-1.5, 5.0) * toward * np.exp(-0.5 * (distance / 12) ** 2) * np.clip(distance / 4, 0, 1)
    displacement = velocity.reshape(3, -1) / 64
    for _ in range(6):
        moved = nodes + displacement
        displacement = displacement + np.stack([sample(d.reshape(shape), grid, moved) for d in displacement])
    return displacement.reshape(3, *shape).astype(np.float32), grid


def _ball(points: NDArray, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    """Return the approximate signed distance to a pair of ellipsoids in mm.

    ``points`` has ``|x|``.
    """
    scaled = np.sqrt(sum(((p - c) / r) ** 2 for p, c, r in zip(points, centre, radii, strict=True)))
    return ((scaled - 1) * min(radii)).astype(np.float32)


def _face(points: Array) -> Array:
    """Signed distance in mm to the face, ``|x|`` first."""
    x, y, z = points
    face = 68 * (((x / 69) ** 2.5 + (np.abs(y + 16) / 72) ** 2.5) ** 0.4 - 1)
    below: Array = np.maximum(np.minimum(face, _ball(points, (0, -84, -56), (19, 19, 30))), 0.8 * (z + 22))
    return below


def tissue_fractions(points: Array, atlas: Atlas, noise: Array, blur_mm: float, habitus: NDArray[np.float64]) -> Array:
    """Return the tissue fractions at each point.

    Args:
        points: ``(3, N)`` in atlas space, LPS mm.
        atlas: the atlas.
        noise: ``(3, N)`` smooth unit noise of cortex, sulci, and thickness of skull and scalp.
        blur_mm: width of the edges between tissues, about one voxel.
        habitus: ``(4,)`` mean thickness of skull, scalp fat and muscle in mm, and width of the
            fluid around the brain.

    Returns:
        ``(len(TISSUES), N)``, summing to one.
    """
    cortex, sulci, thickness = noise
    skull_mm, fat_mm, muscle_mm, fluid = habitus.tolist()  # float64 scalars would widen the arrays
    x, y, z = np.abs(points[0]), points[1], points[2]

    def inside(distance: NDArray) -> Array:
        return np.clip(0.5 - distance / blur_mm, 0, 1).astype(np.float32)

    # Brain: the probabilities over many brains, sharpened to a single brain.
    gm, wm = atlas.at(atlas.gm, points) / 255, atlas.at(atlas.wm, points) / 255
    cavity, hull = atlas.at(atlas.cavity, points), atlas.at(atlas.hull, points)
    csf = np.clip(1 - gm - wm, 0, 1)
    gm, wm, csf = (p**2 for p in (gm, wm, csf))
    gm *= np.exp(0.35 * cortex)
    csf *= np.exp(0.5 * sulci + fluid)
    scale = inside(cavity) / np.maximum(gm + wm + csf, 1e-6)
    gm, wm = gm * scale, wm * scale

    # Shells: skull with marrow, temporal muscle, fat, skin.
    skull = (2.5 + skull_mm * (1 + 0.12 * thickness)) - 0.04 * np.clip(-z - 5, 0, 50)
    temporal = muscle_mm * np.exp(-(((y + 12) / 32) ** 2) - ((z + 12) / 30) ** 2) * np.clip(x / 40 - 0.5, 0, 1)
    nape = 14 * np.clip((-z - 25) / 25, 0, 1) * np.clip((y - 10) / 40, 0, 1)
    fat = fat_mm * (1 + 0.25 * thickness)
    head = np.minimum(hull - skull - temporal - nape - fat - 1.8, _face(np.stack([x, y, z])))
    in_cavity, in_skull, in_head = inside(cavity), inside(hull - skull), inside(head)
    in_skull = np.maximum(in_skull, in_cavity)
    in_head = np.maximum(in_head, in_skull)
    under_skin, under_fat = inside(head + 1.8), inside(head + 1.8 + fat)

    f = np.zeros((len(TISSUES), x.size), np.float32)
    bone = in_skull - in_cavity
    scalp_fat = np.maximum(under_skin - np.maximum(under_fat, in_skull), 0)
    depth = (hull - 2.5) / (skull - 2.5)  # 0 inner, 1 outer table
    marrow = 0.55 * np.exp(-(((depth - 0.5) / 0.22) ** 2)) * np.clip(0.8 + 0.4 * thickness, 0, 1)
    base = np.clip((cavity - 1.5) / 1.5, 0, 1) * np.clip((skull - hull - 4) / 2, 0, 1) * np.clip((-z - 10) / 8, 0, 1)
    marrow = np.maximum(marrow, base * np.clip(0.45 + 0.25 * cortex, 0, 0.8))
    f[GM], f[WM], f[CSF] = gm, wm, in_cavity - gm - wm
    f[FAT] = scalp_fat + bone * marrow
    f[BONE] = bone * (1 - marrow)
    f[MUSCLE] = in_head - in_skull - scalp_fat

    low = np.flatnonzero(z < 0)
    if low.size:
        solid = (1 - in_cavity[low]) * in_head[low]
        f[:, low] = _with_orbits(f[:, low], np.stack([x, y, z])[:, low], cortex[low], solid, inside)
    f[AIR] += 1 - f.sum(axis=0)
    return np.clip(f, 0, 1)


def _with_orbits(f: Array, points: Array, cortex: Array, solid: Array, inside: Callable[[NDArray], Array]) -> Array:
    """Add what lies below the frontal lobes: orbits with eyes, nasal cavity, mastoid air cells.

    Args:
        f: ``(len(TISSUES), N)``.
        points: ``(3, N)``, those below the level of the eyes, ``|x|`` first.
        cortex: ``(N,)`` smooth unit noise.
        solid: ``(N,)`` share of the head that is not its cavity.
        inside: signed distance in mm -> share of the voxel.
    """
    x, y, z = points

    def put(tissue: int, distance: NDArray, amount: float | Array = 1.0) -> None:
        mask = amount * inside(distance) * solid
        f[:] *= 1 - mask
        f[tissue] += mask

    along = np.clip((y + 72) / 50, 0, 1)  # 0 at the eye, 1 at the apex of the orbit
    orbit = np.hypot(x - (32 - 18 * along), z + 33) - 18.5 * np.sqrt(1 - 0.97 * along)
    orbit = np.maximum(orbit, np.maximum(-78 - y, y + 24))
    put(BONE, orbit - 1.5)
    put(MUSCLE, orbit)
    put(FAT, orbit, 0.75)
    put(MUSCLE, np.maximum(np.hypot(x - (32 - 18 * along), z + 33) - 2.2, np.maximum(-62 - y, y + 24)))
    eye = _ball(points, (32, -69, -33), (12.2, 12.2, 12.2))
    put(MUSCLE, eye)
    put(CSF, eye + 1.6)
    put(MUSCLE, _ball(points, (32, -78, -33), (4.5, 2.2, 4.5)))
    nose = np.maximum(np.maximum(x - 11, np.abs(y + 48) - 26), z + 30)
    put(BONE, nose - 1.5)
    put(AIR, nose)
    put(MUSCLE, np.maximum(np.abs(x - 5) - 1.4 - 0.8 * cortex, nose))
    put(AIR, _ball(points, (56, 32, -44), (9, 14, 16)), np.clip(0.5 + 0.6 * cortex, 0, 1))
    return f


@dataclass(frozen=True)
class Lesion:
    """An ellipsoid in white matter: mean radius in mm, centre in patient space (LPS, mm)."""

    radius_mm: float
    centre_mm: tuple[float, float, float]


def _lesion_shape(
    centre: NDArray[np.float64],
    voxel: NDArray[np.int64],
    radius: float,
    form: tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]],
    spacing: NDArray[np.float64],
    size: tuple[int, ...],
) -> tuple[tuple[slice, ...], Array]:
    """Return the box around a lesion, and the share of each of its voxels that the lesion fills.

    Args:
        centre: in voxels, ``(x, y, z)``.
        voxel: that it lies in, ``(z, y, x)``.
        radius: mm.
        form: the axes of the ellipsoid ``(3,)``, its rotation ``(3, 3)``, and the directions
            ``(3, 3)`` of its bumps.
        spacing: mm, ``(x, y, z)``.
        size: of the volume, ``(D, H, W)``.
    """
    axes, turn, lobes = form
    reach = np.ceil(1.8 * radius / spacing).astype(int) + 1
    low = np.maximum(voxel[::-1] - reach, 0)
    high = np.minimum(voxel[::-1] + reach + 1, size[::-1])
    box = tuple(slice(a, b) for a, b in zip(low[::-1], high[::-1], strict=True))
    steps = [(np.arange(3 * (b - a)) + 0.5) / 3 - 0.5 + a - c for a, b, c in zip(low, high, centre, strict=True)]
    z, y, x = np.meshgrid(*[s * mm for s, mm in zip(steps, spacing, strict=True)][::-1], indexing="ij")
    points = np.stack([x, y, z])
    unit = points / np.maximum(np.sqrt((points**2).sum(axis=0)), 1e-6)
    bumps = 1 + 0.12 * np.tanh(np.prod([np.tensordot(lobe, unit, 1) for lobe in lobes], axis=0))
    reach_mm = np.sqrt((np.tensordot((turn / axes).T, points, 1) ** 2).sum(axis=0)) / bumps
    soft = np.clip(0.5 - (reach_mm - 1) * radius / 1.2, 0, 1)
    d, h, w = (part.stop - part.start for part in box)
    return box, soft.reshape(d, 3, h, 3, w, 3).mean(axis=(1, 3, 5)).astype(np.float32)


def add_lesions(
    rng: np.random.Generator, most: int, fractions: Array, affine: NDArray[np.float64], distance: Array
) -> tuple[tuple[Lesion, ...], NDArray[np.uint8]]:
    """Replace white (and bordering grey) matter by up to ``most`` lesions.

    A quarter of the heads get none.

    Args:
        rng: generator of random numbers.
        most: largest number of lesions.
        fractions: ``(len(TISSUES), D, H, W)``, changed in place.
        affine: of the grid.
        distance: ``(D, H, W)`` to the ventricles in mm, infinite where no lesion may start. Most
            start near them, like those of multiple sclerosis.

    Returns:
        The lesions, and their numbers (from 1) in the voxels that they fill, ``(D, H, W)``.
    """
    ids = np.zeros(distance.shape, np.uint8)
    white = np.argwhere(np.isfinite(distance))
    count = int(rng.integers(1, most + 1)) if most and rng.random() > 0.25 and len(white) else 0
    found: list[Lesion] = []
    if not count:
        return (), ids
    near = 0.03 + np.exp(-np.abs(distance[tuple(white.T)] - 4) / 8)
    weights = np.cumsum(near / near.sum(dtype=np.float64), dtype=np.float64)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for _ in range(40 * count):
        if len(found) == count:
            break
        radius = float(2 * 4 ** rng.random() ** 1.2)  # 2 to 8 mm; small ones are more frequent
        voxel = white[min(int(np.searchsorted(weights, rng.random())), len(white) - 1)]
        centre = voxel[::-1] + rng.uniform(-0.5, 0.5, 3)
        axes = rng.uniform(0.75, 1.3, 3)
        axes *= radius / np.cbrt(axes.prod())
        turn = rotation(rng.uniform(0, 180, 3))
        lobes = turn @ rng.standard_normal((3, 3))
        severity = rng.uniform(0.75, 1.0)
        place = affine[:3, :3] @ centre + affine[:3, 3]
        if any(np.hypot.reduce(np.subtract(place, other.centre_mm)) < radius + other.radius_mm + 3 for other in found):
            continue

        box, shape = _lesion_shape(centre, voxel, radius, (axes, turn, lobes), spacing, ids.shape)
        local = fractions[(slice(None), *box)]
        brain = local[GM] + local[WM]
        if (shape * local[WM]).sum() < 0.7 * shape.sum():
            continue  # mostly outside white matter
        core = ((shape >= 0.5) & (brain >= 0.5)) | (shape * brain == (shape * brain).max())
        found.append(Lesion(radius, (float(place[0]), float(place[1]), float(place[2]))))
        ids[box][core] = len(found)
        for tissue in (GM, WM):
            moved = local[tissue] * shape * np.float32(severity)
            local[tissue] -= moved
            local[LESION] += moved
    return tuple(found), ids
