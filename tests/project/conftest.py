"""Small data sets, each as a user may have it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medstyle import Volume, write_picture, write_volume

Make = Callable[[Path], Path]
SIZE = (12, 40, 36)


def head(subject: int, contrast: int) -> np.ndarray:
    """Return a ball with structure ``(D, H, W)``, the same for all contrasts of a subject."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    ball = z**2 + (y * 1.2) ** 2 + (x * 1.3) ** 2 < 0.8
    inner = np.sin(6 * x + subject) * np.cos(5 * y) + np.random.default_rng(subject).normal(0, 0.05, SIZE)
    curve = (inner + 2) ** (1 + contrast) if contrast % 2 == 0 else 9 / (inner + 3)
    return (np.where(ball, 100 * curve, 0)).astype(np.float32)


def scan(path: Path, subject: int, contrast: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_volume(path, Volume(head(subject, contrast), np.diag([2.0, 2.0, 2.5, 1.0]), "mr_t1"))


def labels(path: Path, subject: int) -> None:
    levels = np.digitize(head(subject, 0), [100, 300, 500]).astype(np.float32)
    write_volume(path, Volume(levels, np.diag([2.0, 2.0, 2.5, 1.0]), "mr_t1"))


def bids(folder: Path) -> Path:
    for k in range(6):
        for contrast, name in enumerate(("T1w", "T2w")):
            scan(folder / f"sub-{k:02d}/anat/sub-{k:02d}_{name}.nii.gz", k, contrast)
        labels(folder / f"sub-{k:02d}/anat/sub-{k:02d}_dseg.nii.gz", k)
    return folder


def loose(folder: Path) -> Path:
    """Write volume files with odd names in one folder, and an atlas whose name says nothing."""
    for k in range(5):
        scan(folder / f"case{k}-T1 final.nii.gz", k, 0)
        scan(folder / f"case{k}_FLAIR(2).nii", k, 1)
        labels(folder / f"case{k}_zz.nii.gz", k)
    return folder


def protocols(folder: Path) -> Path:
    """Write pairs whose targets were acquired on two scanners, three on the second."""
    from tests.dicom.conftest import write_series as series

    for k in range(8):
        for contrast, said in enumerate(("T1 SE", "FLAIR")):
            scanner = "Vida" if contrast and k % 3 == 0 else "Prisma fit"
            stored = np.clip(head(k, contrast), 0, 60000).astype(np.uint16)
            series(
                folder / f"{k}/{contrast}", stored, np.diag([2.0, 2.0, 2.5, 1.0]), PatientID=f"P{k}",
                StudyInstanceUID=f"2.25.5{k}", SeriesInstanceUID=f"2.25.6{k}{contrast}", SeriesDescription=said,
                ManufacturerModelName=scanner,
                change=lambda i, dataset, k=k, c=contrast: setattr(dataset, "SOPInstanceUID", f"2.25.7{k}{c}{i}"),
            )  # fmt: skip
    return folder


def sites(folder: Path) -> Path:
    for k in range(6):
        scan(folder / ("north" if k % 2 else "south") / f"p{k}/t1.nii.gz", k, k % 2)
    return folder


def unpaired(folder: Path) -> Path:
    for k in range(8):
        scan(folder / f"p{k}" / ("t1.nii.gz" if k % 2 else "flair.nii.gz"), k, k % 2)
    return folder


def shifted(folder: Path) -> Path:
    """Write scans of a subject whose headers are of different examinations."""
    for k in range(4):
        scan(folder / f"p{k}/t1.nii.gz", k, 0)
        moved = Volume(head(k, 1), np.diag([2.0, 2.0, 2.5, 1.0]) + np.eye(4, k=3) * 500, "mr_t1")
        write_volume(folder / f"p{k}/t2.nii.gz", moved)
    return folder


def dicom(folder: Path) -> Path:
    from tests.dicom.conftest import write_series as series

    for k in range(4):
        for contrast, said in enumerate(("AX T1 SE", "AX T2 TSE")):
            stored = np.clip(head(k, contrast), 0, 60000).astype(np.uint16)
            series(
                folder / f"{k}/{contrast}", stored, np.diag([2.0, 2.0, 2.5, 1.0]), PatientID=f"P{k}",
                StudyInstanceUID=f"2.25.5{k}", SeriesInstanceUID=f"2.25.6{k}{contrast}", SeriesDescription=said,
                change=lambda i, dataset, k=k, c=contrast: setattr(dataset, "SOPInstanceUID", f"2.25.7{k}{c}{i}"),
            )  # fmt: skip
    return folder


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture(path, np.random.default_rng(seed).integers(0, 255, (80, 96, 3), np.uint8))


def paintings(folder: Path) -> Path:
    for k in range(9):
        picture(folder / f"photos/{k * 7919:05d}.jpg", k)
        picture(folder / f"monet/{k * 104729:06d}.jpg", 100 + k)
    return folder


def views(folder: Path) -> Path:
    """Write pairs of pictures, of several views, with masks."""
    for k in range(5):
        for v, view in enumerate(("axial", "coronal")):
            for c, name in enumerate(("mri", "ct")):
                picture(folder / f"P{k}/{name}_{view}.png", 1000 * k + 10 * v + c)
            write_picture(folder / f"P{k}/mask_{view}.png", np.full((80, 96, 3), 255 * (v % 2), np.uint8))
    return folder


def classes(folder: Path) -> Path:
    for k in range(6):
        for c, name in enumerate(("summer", "winter")):
            picture(folder / f"{name}/{(k + 1) * (31 + c)}.png", 10 * k + c)
    return folder


def mess(folder: Path) -> Path:
    bids(folder / "nested/bids")
    for k in range(3):
        picture(folder / f"holiday{k}.jpg", k)
    (folder / "notes.txt").write_text("hello")
    (folder / "broken.nii.gz").write_bytes(b"junk")
    return folder


DATA: dict[
    str, tuple[Make, str, str, str]
] = {  # how to make it, and the job, source and target that an expert would take
    "bids": (bids, "paired_mr", "mr_t1", "mr_t2"),
    "loose": (loose, "paired_mr", "mr_t1", "mr_flair"),
    "sites": (sites, "harmonization", "mr_t1@north", "mr_t1@south"),
    "unpaired": (unpaired, "unpaired_mr", "mr_t1", "mr_flair"),
    "shifted": (shifted, "paired_mr", "mr_t1", "mr_t2"),
    "dicom": (dicom, "paired_mr", "mr_t1", "mr_t2"),
    "paintings": (paintings, "paintings", "photo", "painting"),
    "views": (views, "paired_pictures", "photo@mri", "photo@ct"),
    "classes": (classes, "paintings", "photo@summer", "photo@winter"),
    "mess": (mess, "paired_mr", "mr_t1", "mr_t2"),
}


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name) / name
            folder.mkdir()
            made[name] = DATA[name][0](folder)
        return made[name]

    return get
