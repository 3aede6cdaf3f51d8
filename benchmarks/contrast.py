"""Count what the recogniser of contrasts finds in real scans, none of which it was trained on.

Every scan is looked at as it is, skull-stripped (where it comes with labels), in slices of 5 mm,
and with noise and a bias field. ``swaps caught``: of the scan under the names of other contrasts,
the share that is noticed; ``flips caught``: of the scan laid upside down, front to back and with
axes exchanged beneath an unchanged header; ``false alarms``: scans under their own name, upright,
that are noticed. The three middle slices of 120 patients (PNG of 8 bits) are laid in a cube by the
network's own path. Then: things that are no head of a person, and heads of the digital phantom.
The mean over a subject's scans is one value; intervals are of Wilson, over subjects.

Usage: python benchmarks/contrast.py
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom

from medstyle.cohort.inventory import inventory
from medstyle.errors import Refusal
from medstyle.imaging.picture import read_picture, to_unit
from medstyle.imaging.volume import Volume, read_volume
from medstyle.networks.recogniser import Look, look, look_at_slices, slices_of
from medstyle.phantom.studies import PhantomParams, acquire, draw_subject
from medstyle.training.recogniser import BY_ORIENTATION
from medstyle.transforms.align import onto_grid
from medstyle.transforms.cube import SIDE, cube

DATA = Path(__file__).parents[1] / "../shared/data"
NAMES = ("mr_t1", "mr_t2", "mr_flair", "mr_pd", "ct")
ENHANCED = {"BRTUM005": "mr_t1", "BRTUM004": "mr_t2", "BRTUM003": "mr_flair", "BRTUM008": "mr_t1"}
APART = ("sub-05", "sub-06", "sub-15", "sub-23")  # whose FLAIR does not lie on the labels
OFFSETS, OF_SLICES = (0,), "3 slices"


@dataclass(frozen=True)
class Scan:
    """A scan and what it is; ``brain`` is where it is skull-stripped, on its grid."""

    data: str
    subject: str
    domain: str
    volume: Volume
    brain: NDArray[np.bool_] | None = None


def scans() -> Iterator[Scan]:
    """Yield the whole heads, the patients with multiple sclerosis, and the enhanced DICOM."""
    for folder in sorted((DATA / "brain_t1_flair").iterdir()):
        regions = read_volume(folder / "t1_regions.nii.gz", "mr_t1")
        for domain in ("mr_t1", "mr_flair"):
            volume = read_volume(folder / f"{domain[3:]}.nii.gz", domain)
            fits = domain == "mr_t1" or folder.name not in APART
            brain = onto_grid(regions, volume, "headers").voxels > 0 if fits else None
            yield Scan(f"16 heads, {domain}", folder.name, domain, volume, brain)
    for folder in sorted((DATA / "ms_lesion_mr").iterdir()):
        for domain in ("mr_t1", "mr_t2", "mr_flair"):
            yield Scan(
                f"2 stripped, {domain}", folder.name, domain, read_volume(folder / f"{domain[3:]}.nii.gz", domain)
            )
    for item in inventory([DATA / "enhanced_mr_dicom"]).volumes:
        domain = ENHANCED[item.path.name]
        yield Scan("1 tumour, T1, T1 + agent, T2, FLAIR", "tumour", domain, item.load(domain))


def along(volume: Volume, world: int) -> int:
    """Return the axis of the voxels that runs most along x (0), y (1) or z (2) of the patient."""
    return 2 - int(np.abs(volume.affine[world, :3] / volume.spacing_mm).argmax())


def thick(volume: Volume) -> Volume:
    """Average the slices along z to about 5 mm, and repeat them."""
    axis = along(volume, 2)
    n = max(round(5 / volume.spacing_mm[2 - axis]), 1)
    moved = np.moveaxis(volume.voxels, axis, 0)
    blocks = [
        np.repeat(moved[i : i + n].mean(0, keepdims=True), len(moved[i : i + n]), 0) for i in range(0, len(moved), n)
    ]
    return volume.with_voxels(np.moveaxis(np.concatenate(blocks), 0, axis))


def noisy(volume: Volume) -> Volume:
    """Add 5 % of noise and a bias field that doubles from one corner to the other."""
    rng = np.random.default_rng(0)
    ramp = sum(
        np.linspace(-1, 1, n).reshape([-1 if a == axis else 1 for a in range(3)])
        for axis, n in enumerate(volume.voxels.shape)
    )
    sigma = 0.05 * np.percentile(volume.voxels, 99)
    field = volume.voxels * np.exp(np.log(2) / 6 * ramp)
    return volume.with_voxels(np.hypot(field + rng.normal(0, sigma, ramp.shape), rng.normal(0, sigma, ramp.shape)))


def conditions(scan: Scan) -> dict[str, Volume]:
    """Return the scan as it is, and changed."""
    found = {"as it is": scan.volume, "slices of 5 mm": thick(scan.volume), "noise, bias": noisy(scan.volume)}
    if scan.brain is not None:
        found["skull-stripped"] = scan.volume.with_voxels(np.where(scan.brain, scan.volume.voxels, 0))
    return found


def cube_of_slices(folder: Path, what: str) -> NDArray[np.uint8]:
    """Lay the middle slices of a patient in an empty cube."""
    planes = {}
    for name in ("axial", "coronal", "sagittal"):
        grey = to_unit(read_picture(folder / f"{what}_{name}.png")).mean(2).T
        planes[name] = zoom(grey, 1 / 3, order=1, grid_mode=True, mode="nearest")
    values = np.concatenate([plane.ravel() for plane in planes.values()])
    low, high = np.percentile(values, (1, 99.5))
    top = np.percentile(values[values > low + 0.15 * (high - low)], 99)
    levels = {name: np.clip((plane - low) / (top - low) / 1.25, 0, 1) * 255 for name, plane in planes.items()}
    (z, y), (_, x) = (np.argwhere(levels[n] > 30).mean(0) for n in ("sagittal", "axial"))
    found = np.zeros((SIDE,) * 3, np.uint8)
    middle = SIDE // 2
    for name, centre, place in (
        ("axial", (y, x), (middle, slice(None), slice(None))),
        ("coronal", (z, x), (slice(None), middle, slice(None))),
        ("sagittal", (z, y), (slice(None), slice(None), middle)),
    ):
        found[place] = _framed(levels[name], centre)
    return found


def _framed(plane: NDArray, centre: tuple[float, float]) -> NDArray[np.uint8]:
    padded = np.pad(np.rint(plane).astype(np.uint8), SIDE)
    row, column = (round(at) + SIDE - SIDE // 2 for at in centre)
    return padded[row : row + SIDE, column : column + SIDE]


def flips(small: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    """Return a cube upside down, front to back, and with axes exchanged (four of them)."""
    turned = [BY_ORIENTATION[1][0], BY_ORIENTATION[2][0], *BY_ORIENTATION[3][::7]]
    return [np.ascontiguousarray(turn(small)) for turn in turned]


class Table:
    """Counts by data and condition, per subject."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, str], dict[str, dict[str, list[float]]]] = defaultdict(
            lambda: defaultdict(lambda: defaultdict(list))
        )

    def enter(
        self,
        data: str,
        condition: str,
        subject: str,
        domain: str,
        small: NDArray[np.uint8],
        offsets: tuple[int, ...] | None = None,
    ) -> None:
        """Look at a scan of ``domain`` upright and turned, and count."""

        def seen(one: NDArray[np.uint8]) -> Look:
            return look_at_slices(slices_of(one, offsets) if offsets else slices_of(one))

        right, turned = seen(small), [seen(one) for one in flips(small)]
        row = self.rows[data, condition]
        row["right"][subject].append(right.contrast == domain)
        row["wrong"][subject].append(right.contradicts(domain))
        row["swaps"][subject] += [right.contradicts(other) for other in NAMES if other != domain]
        row["upside down"][subject].append(turned[0].turned)
        row["front to back"][subject].append(turned[1].turned)
        row["axes"][subject] += [one.turned for one in turned[2:]]
        row["alarms"][subject].append(right.contradicts(domain) or right.turned)

    def print(self) -> None:
        """Print it in Markdown, with totals over all whole scans by condition."""
        names = ("right", "wrong", "swaps", "upside down", "front to back", "axes", "alarms")
        head = ("right", "wrong", "swaps caught", "upside down", "front to back", "axes", "false alarms")
        print(f"| data | condition | subjects | {' | '.join(head)} |")
        print("|---" * 10 + "|")
        for (data, condition), row in self.rows.items():
            cells = " | ".join(f"{np.mean([np.mean(v) for v in row[name].values()]):.1%}" for name in names)
            print(f"| {data} | {condition} | {len(row['right'])} | {cells} |")
        for condition in dict.fromkeys(condition for _, condition in self.rows):
            together: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
            for (data, other), row in self.rows.items():
                for name in names if other == condition and OF_SLICES not in data else ():
                    for subject, values in row[name].items():
                        together[name][f"{data.split(',')[0]}/{subject}"] += values
            cells = " | ".join(_interval([float(np.mean(v)) for v in together[name].values()]) for name in names)
            print(f"| **all scans** | {condition} | {len(together['right'])} | {cells} |")


def _interval(shares: list[float]) -> str:
    """Return the mean over subjects and its 95 % interval (Wilson 1927)."""
    n, p, z = len(shares), float(np.mean(shares)), 1.96
    middle, half = (
        (p + z * z / 2 / n) / (1 + z * z / n),
        z * np.sqrt(p * (1 - p) / n + (z / 2 / n) ** 2) / (1 + z * z / n),
    )
    return f"{p:.1%} ({max(middle - half, 0):.1%} to {min(middle + half, 1):.1%})"


def others() -> Iterator[tuple[str, Volume]]:
    """Yield scans and stacks that show no head of a person, or none that could be judged."""
    photographs = sorted((DATA / "photo_painting/photo").iterdir())
    for path in photographs[:60]:
        grey = 255 * to_unit(read_picture(path)).mean(2)
        yield "photographs, each a stack", Volume(np.repeat(grey[None], 160, 0).astype(np.float32), np.eye(4), "mr_t1")
    for start in range(0, 300, 100):
        pages = [255 * to_unit(read_picture(path)).mean(2) for path in photographs[start : start + 100]]
        yield (
            "100 photographs in a stack",
            Volume(np.stack(pages).astype(np.float32), np.diag([1.0, 1.0, 2.0, 1.0]), "mr_t1"),
        )
    for item in inventory([DATA / "dicom_corpus"]).volumes:
        if item.usable and item.source == "dicom":
            try:
                volume = item.load("ct" if item.attributes.get("Modality") == "CT" else "mr_t1")
            except Refusal:
                continue
            yield "the DICOM corpus", volume


def main() -> None:
    """Print the tables."""
    table = Table()
    for scan in scans():
        for condition, volume in conditions(scan).items():
            small = cube(volume)
            assert small is not None
            table.enter(scan.data, condition, scan.subject, scan.domain, small)
    for folder in sorted((DATA / "brain_mr_ct_png").iterdir()):
        for what, domain in (("mri", "mr_t1"), ("ct", "ct")):
            table.enter(
                f"120 patients, {domain}, {OF_SLICES}",
                "as it is",
                folder.name,
                domain,
                cube_of_slices(folder, what),
                OFFSETS,
            )
    table.print()
    counts: dict[str, list[tuple[bool, bool]]] = defaultdict(list)
    for name, volume in others():
        seen = look(volume)
        counts[name].append((bool(seen.contrast), seen.turned))
    params = PhantomParams(domains=NAMES[:4])
    wrong: list[bool] = []
    sure: list[bool] = []
    for index in range(12):
        head = draw_subject(params, index)
        for domain in params.domains:
            seen = look(acquire(params, head, domain)[0])
            wrong.append(seen.contradicts(domain) or seen.turned)
            sure.append(bool(seen.contrast))
    print("\n| no head, or hardly one | n | called a contrast | called turned |\n|---|---|---|---|")
    for name, found in counts.items():
        print(f"| {name} | {len(found)} | {sum(a for a, _ in found)} | {sum(b for _, b in found)} |")
    print(f"\nPhantom: {len(wrong)} scans of 12 heads, {sum(sure)} answered, {sum(wrong)} false alarms")


if __name__ == "__main__":
    main()
