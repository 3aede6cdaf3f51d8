"""Draw heads from label maps: deformed, flipped, sampled on an acquisition grid, with lesions.

A label map (Billot et al., Medical Image Analysis 86:102789, 2023) names the tissue of each voxel
of a real head, and holds no image. One map yields any number of heads that differ in pose, shape,
tissue and disease. The numbers of the random changes are those of that paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.errors import DataError
from medstyle.phantom.anatomy import Array, Grid, _lesion_shape, rotation, sample, smooth_noise, texture

# Labels of FreeSurfer's table, then those of the head around the brain, which the maps' authors
# numbered and README files describe by looking. Left and right have the same tissue.
KINDS: dict[str, tuple[int, ...]] = {
    "air": (0,),
    "csf": (4, 43, 5, 44, 14, 15, 24, 72),
    "gm": (3, 42, 8, 47, 17, 53, 18, 54),
    "wm": (2, 41, 7, 46, 85, 530),  # with chiasm and optic nerves
    "thalamus": (10, 49),
    "caudate": (11, 50, 26, 58),  # with the accumbens
    "putamen": (12, 51),
    "pallidum": (13, 52),
    "brain_stem": (16, 28, 60),
    "cord": (512,),
    "plexus": (136, 163, 137, 164),
    "lesion": (25, 57),
    "blood": (30, 62, 514),
    "bone": (515,),
    "marrow": (516,),
    "skin": (511,),
    "muscle": (507, 508, 502),
    "mucosa": (509,),
    "eye": (506,),
}
PAIRS = (
    (2, 41), (3, 42), (4, 43), (5, 44), (7, 46), (8, 47), (10, 49), (11, 50), (12, 51), (13, 52), (17, 53), (18, 54),
    (25, 57), (26, 58), (28, 60), (30, 62), (136, 163), (137, 164),
)  # fmt: skip
BRAIN = ("gm", "wm", "thalamus", "caudate", "putamen", "pallidum", "brain_stem", "plexus", "lesion")
# Tissues in the order of their index in `Head.tissues`. White matter has layers, because it
# differs from the cortex inwards; fat is what a subject has inside skin and muscle.
LAYERS_MM = (0.0, 3.0, 7.0)
TISSUES = (*KINDS, "fat", "wm_middle", "wm_deep")
INDEX = {name: number for number, name in enumerate(TISSUES)}
SKIN_MM = 2.5  # deeper parts of the scalp are fat
NODE_MM = 8.0  # spacing of the nodes of the deformation
ELASTIC_MM = 4.0  # its standard deviation in each direction
MARGIN_MM = 15.0  # largest shift of the field of view
LESION_KINDS = ("plaque", "tumour", "cavity")


class LabelMap(NamedTuple):
    """One head: ``labels (D, H, W)`` int16 and ``tissues (D, H, W)`` uint8, LPS, with its grid.

    ``brain_mm`` is the centre of the cerebral white matter, ``(x, y, z)``.
    """

    labels: NDArray[np.int16]
    tissues: NDArray[np.uint8]
    spacing_mm: NDArray[np.float64]
    brain_mm: NDArray[np.float64]


def label_files(folder: Path) -> list[Path]:
    """List the label maps of a folder by name; raise :class:`UserError` if it holds none."""
    files = sorted([*folder.glob("*.nii.gz"), *folder.glob("*.nii")])
    if not files:
        raise DataError(f"{folder}: holds no label map (*.nii.gz); acquire.labels names a folder of them, or null")
    return files


@lru_cache(maxsize=32)
def load_labels(path: Path) -> LabelMap:
    """Read a label map; unknown labels are muscle.

    Raises:
        UserError: the file cannot be read, or shows no cerebral white matter (2, 41).
    """
    import SimpleITK as sitk

    try:
        image = sitk.DICOMOrient(sitk.ReadImage(str(path)), "LPS")
    except RuntimeError:
        raise DataError(f"{path}: cannot be read as a label map; remove it from acquire.labels") from None
    return label_map(sitk.GetArrayFromImage(image), np.array(image.GetSpacing()), str(path))


def label_map(values: NDArray, spacing_mm: NDArray[np.float64], name: str = "label map") -> LabelMap:
    """Return the map of ``values (D, H, W)``, LPS, cropped to the head, with its tissues.

    ``spacing_mm`` is ``(x, y, z)``.
    """
    labels = np.rint(values).astype(np.int16)
    inside = tuple(slice(max(w.min() - 2, 0), w.max() + 3) for w in np.nonzero(labels))
    labels = np.ascontiguousarray(labels[inside])
    table = np.full(max(1024, labels.max() + 1), INDEX["muscle"], np.uint8)
    for tissue, members in KINDS.items():
        table[list(members)] = INDEX[tissue]
    tissues = table[labels]
    white = np.isin(labels, (2, 41))
    if not white.any():
        raise DataError(f"{name}: shows no cerebral white matter (labels 2 and 41); remove it from acquire.labels")
    depth = _depth_mm(tissues == INDEX["wm"], spacing_mm)
    for start, layer in zip(LAYERS_MM[1:], ("wm_middle", "wm_deep"), strict=True):
        tissues[depth > start] = INDEX[layer]
    scalp = tissues == INDEX["skin"]
    tissues[scalp & (_depth_mm(labels != 0, spacing_mm) > SKIN_MM)] = INDEX["fat"]
    centre = np.array([w.mean() for w in np.nonzero(white)])[::-1] * spacing_mm
    return LabelMap(labels, tissues, spacing_mm, centre)


def _depth_mm(mask: NDArray[np.bool_], spacing_mm: NDArray[np.float64]) -> Array:
    """Return the distance from the border of a mask to the voxels inside, 0 outside."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(mask.astype(np.uint8))
    image.SetSpacing(spacing_mm.tolist())
    signed = sitk.SignedMaurerDistanceMap(image, squaredDistance=False, useImageSpacing=True, insideIsPositive=True)
    depth: Array = np.maximum(sitk.GetArrayViewFromImage(signed), 0)
    return depth


def flipped(head: LabelMap) -> LabelMap:
    """Mirror left and right: the labels of the two sides are exchanged, so both stay true."""
    swap = np.arange(max(1024, head.labels.max() + 1), dtype=np.int16)
    for left, right in PAIRS:
        swap[left], swap[right] = right, left
    width = (head.labels.shape[2] - 1) * head.spacing_mm[0]
    brain = np.array([width - head.brain_mm[0], *head.brain_mm[1:]])
    labels, tissues = (np.ascontiguousarray(a[..., ::-1]) for a in (swap[head.labels], head.tissues))
    return LabelMap(labels, tissues, head.spacing_mm, brain)


@dataclass(frozen=True, eq=False)
class Head:
    """One simulated head on its acquisition grid.

    Attributes:
        affine: of the grid, LPS mm.
        shape: ``(D, H, W)``.
        inside: ``(N,)`` flat indices of the voxels that hold anything but air.
        tissues: ``(S, N)`` uint8, the tissue of ``S`` points in each of these voxels: their mean is
            the partial volume.
        labels: ``(D, H, W)`` int16, the label at the centre of each voxel.
        water: ``(N,)`` relative deviation of the water content, of unit variance: the texture.
        lesions: ``(K, N)`` share of each voxel that each lesion fills.
        lesion_kinds: name of each lesion's kind, see ``LESION_KINDS``.
        brain: ``(N,)`` share of brain and of the fluid inside it.
    """

    affine: NDArray[np.float64]
    shape: tuple[int, int, int]
    inside: NDArray[np.int64]
    tissues: NDArray[np.uint8]
    labels: NDArray[np.int16]
    water: Array
    lesions: Array
    lesion_kinds: tuple[str, ...]

    def volume(self, values: NDArray, outside: float = 0.0) -> Array:
        """Return ``(D, H, W)`` of the values ``(N,)`` inside."""
        whole = np.full(int(np.prod(self.shape)), outside, np.float32)
        whole[self.inside] = values
        return whole.reshape(self.shape)

    def mean(self, table: NDArray) -> Array:
        """Return the mean over each voxel of a value of its tissues, ``(len(TISSUES),) -> (N,)``.

        What lies between two tissues lies between their values: partial volume.
        """
        means: Array = np.take(table.astype(np.float32), self.tissues).mean(axis=0)
        return means

    def share(self, *names: str) -> Array:
        """Return the share ``(N,)`` of each voxel that the named tissues fill, without lesions."""
        table = np.zeros(len(TISSUES))
        table[[INDEX[name] for name in names]] = 1
        return self.mean(table)


def _displacement(rng: np.random.Generator, size_mm: NDArray[np.float64]) -> tuple[Array, Grid]:
    """Draw a diffeomorphism of a box about the origin: displacement ``(3, D, H, W)`` and its grid.

    It is the exponential of a smooth stationary velocity field (Arsigny et al., MICCAI 2006).
    """
    shape = tuple(np.ceil(size_mm / NODE_MM).astype(int)[::-1] + 3)
    grid = Grid(np.full(3, 1 / NODE_MM, np.float32), ((np.array(shape[::-1]) - 1) / 2).astype(np.float32))
    nodes = grid.points(shape)
    smooth = rng.uniform(1.5, 4)  # nodes
    velocity = np.stack([rng.uniform(0.3, 1) * ELASTIC_MM * smooth_noise(rng, shape, smooth) for _ in range(3)])
    moved = velocity.reshape(3, -1) / 16
    for _ in range(4):
        moved = moved + np.stack([sample(one.reshape(shape), grid, nodes + moved) for one in moved])
    return moved.reshape(3, *shape).astype(np.float32), grid


def draw_head(
    rng: np.random.Generator, source: LabelMap, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> Head:
    """Draw a head from a label map: scale 0.8 to 1.2, rotation of 15 degrees, elastic, flipped.

    Args:
        rng: generator of random numbers, which alone determines the head.
        source: label map.
        shape: of the grid, ``(D, H, W)``; the head may be larger than its field of view.
        spacing_mm: of the grid, ``(x, y, z)``.
    """
    source = flipped(source) if rng.random() < 0.5 else source
    spacing = np.array(spacing_mm)
    size = spacing * shape[::-1]
    scale = np.clip(rng.normal(1, 0.07) * rng.normal(1, 0.03, 3), 0.8, 1.2)
    pose = rotation(np.clip(rng.normal(0, 7, 3), -15, 15)) / scale  # from the grid to the map
    affine = np.diag([*spacing, 1.0])
    # in the slab of a few slices any part of the brain may be, in a whole head it is in the middle
    spare = np.maximum(np.array([0, 0, 150]) - size, 0) / 2
    centre = rng.uniform(-MARGIN_MM, MARGIN_MM, 3) * (0.5, 1, 1) + rng.uniform(-spare, spare)
    affine[:3, 3] = centre - spacing * (np.array(shape[::-1]) - 1) / 2

    index = np.indices(shape, np.float32)[::-1].reshape(3, -1)
    points = index * spacing[:, None].astype(np.float32) + affine[:3, 3:].astype(np.float32)
    field, grid = _displacement(rng, size + 2 * np.abs(centre))
    coarse = np.stack([sample(one, grid, points[:, ::1]) for one in field])
    voxel = (pose / source.spacing_mm[:, None]).astype(np.float32)
    at = voxel @ (points + coarse) + (source.brain_mm / source.spacing_mm)[:, None].astype(np.float32)
    labels = _lookup(source.labels, at, 0).reshape(shape)
    reach = 3 * max(spacing_mm) / 2 / source.spacing_mm.min()
    near = np.flatnonzero(_dilated(labels != 0, reach).ravel())
    offsets = _offsets(rng, spacing_mm)
    tissues = np.stack([_lookup(source.tissues, at[:, near] + (voxel @ o)[:, None], 0) for o in offsets])
    tissues = _with_fat(rng, tissues, near, shape, spacing)
    water = texture(rng, shape, spacing, rng.dirichlet((4, 3, 3))).ravel()[near]
    head = Head(affine, shape, near, tissues, labels, water, np.zeros((0, len(near)), np.float32), ())
    return _with_lesions(rng, head)


def _dilated(mask: NDArray[np.bool_], reach: float) -> NDArray[np.bool_]:
    from scipy.ndimage import maximum_filter

    grown: NDArray[np.bool_] = maximum_filter(mask, 3 if reach < 4 else 5)
    return grown


def _offsets(rng: np.random.Generator, spacing_mm: tuple[float, float, float]) -> NDArray[np.float32]:
    """Draw points in a voxel, about one in a cubic millimetre: ``(S, 3)`` in mm, stratified."""
    counts = [int(np.clip(round(mm), 1, 5)) for mm in spacing_mm]
    steps = [(np.arange(n) + 0.5) / n - 0.5 for n in counts]
    grid = np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3)
    jitter = rng.uniform(-0.5, 0.5, grid.shape) / counts
    return ((grid + jitter) * spacing_mm).astype(np.float32)


def _lookup(values: NDArray, at: Array, outside: int) -> NDArray:
    """Return the nearest of ``values (D, H, W)`` to voxels ``at (3, N)``, given as x, y, z."""
    x, y, z = np.rint(at).astype(np.int32)
    depth, height, width = values.shape
    within = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z >= 0) & (z < depth)
    flat = np.where(within, (z * height + y) * width + x, 0)
    return np.where(within, values.ravel()[flat], values.dtype.type(outside))


def _with_fat(
    rng: np.random.Generator,
    tissues: NDArray[np.uint8],
    near: NDArray[np.int64],
    shape: tuple[int, int, int],
    spacing: NDArray[np.float64],
) -> NDArray[np.uint8]:
    """Set fat apart from muscle, and bone trabeculae from marrow, where the map has one label."""
    lobes = smooth_noise(rng, shape, tuple(rng.uniform(2.5, 6) / spacing[::-1])).ravel()[near]
    share, spongy = rng.uniform(-0.6, 0.6), rng.uniform(0.8, 1.8)
    edges = 0.25 * (np.arange(len(tissues)) / len(tissues) - 0.5)[:, None].astype(np.float32)
    fatty = lobes + edges > share
    tissues[(tissues == INDEX["muscle"]) & fatty] = INDEX["fat"]
    tissues[(tissues == INDEX["marrow"]) & (-lobes + edges > spongy)] = INDEX["bone"]
    return tissues


def _with_lesions(rng: np.random.Generator, head: Head) -> Head:
    """Add lesions to the cerebrum: none in a third of the heads, else up to 12, mostly small ones.

    Plaques of 1.5 to 7 mm, tumours with their oedema of 8 to 22 mm, cavities of 2 to 12 mm.
    """
    if rng.random() < 1 / 3:
        return head
    from dataclasses import replace

    white = np.argwhere(np.isin(head.labels, (2, 41, 10, 49, 12, 51)))
    shares, kinds = [], []
    spacing = np.linalg.norm(head.affine[:3, :3], axis=0)
    brain = head.share(*BRAIN, "wm_middle", "wm_deep")
    for _ in range(int(rng.integers(1, 13)) if len(white) else 0):
        kind = LESION_KINDS[int(rng.choice(3, p=(0.78, 0.1, 0.12)))]
        low, high = {"plaque": (1.5, 7.0), "tumour": (8.0, 22.0), "cavity": (2.0, 12.0)}[kind]
        radius = low * (high / low) ** rng.random() ** 1.3
        voxel = white[rng.integers(len(white))]
        axes = rng.uniform(0.7, 1.4, 3)
        axes *= radius / np.cbrt(axes.prod())
        turn = rotation(rng.uniform(0, 180, 3))
        form = (axes, turn, turn @ rng.standard_normal((3, 3)))
        box, shape = _lesion_shape(voxel[::-1].astype(float), voxel, radius, form, spacing, head.shape)
        whole = np.zeros(head.shape, np.float32)
        whole[box] = shape
        shares.append(whole.ravel()[head.inside] * brain)
        kinds.append(kind)
    if not shares:
        return head
    return replace(head, lesions=np.stack(shares), lesion_kinds=tuple(kinds))
