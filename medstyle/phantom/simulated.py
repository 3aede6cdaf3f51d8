"""Write simulated subjects: the scans of heads that are drawn from a folder of label maps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from medstyle.errors import ParamsError
from medstyle.imaging.volume import Volume, write_volume
from medstyle.phantom.contrasts import PROTOCOLS, any_contrast, draw_tissues, hidden, target
from medstyle.phantom.heads import TISSUES, Head, draw_head, label_files, load_labels
from medstyle.phantom.studies import PhantomParams, _rng

HEAD_MM = 190.0  # height that thick slices cover
AIR = {"ct": -1024.0}


def draw_subject(params: PhantomParams, index: int) -> tuple[Head, dict[str, Volume]]:
    """Draw subject ``index``: the head, and its scans by domain, on one grid.

    Half of the heads have slices of the thickness that is asked for; in the others it is drawn from
    half to two and a half times of it. All scans of a head lack the same parts, if any.

    Args:
        params: ``labels`` names the folder of label maps.
        index: number of the subject, which with the seed determines all of it.
    """
    rng = _rng(params.seed, index, 5)
    files = label_files(Path(params.labels or ""))
    depth, (x, y, z) = params.slices, params.spacing_mm
    if rng.random() < 0.5:
        z *= float(0.5 * 5 ** rng.random())
        depth = min(depth, round(HEAD_MM / z))
    head = draw_head(rng, load_labels(files[index % len(files)]), (depth, params.matrix, params.matrix), (x, y, z))
    tissues, gone = draw_tissues(rng, head), hidden(rng, head)
    scans = {}
    for number, domain in enumerate(params.domains):
        own = _rng(params.seed, index, 6, number)  # another list of domains draws the same head
        fixed = domain in PROTOCOLS or domain == "ct"
        voxels = target(head, tissues, domain) if fixed else any_contrast(own, head, tissues, params.artefacts)
        if gone is not None:
            voxels[gone] = AIR.get(domain, 0.0)
        scans[domain] = Volume(np.rint(voxels), head.affine, domain)  # integers, as scanners store
    return head, scans


def write_subject(out: Path, params: PhantomParams, index: int) -> None:
    """Write ``out/sub-<number>/<domain>.nii.gz``, and the truth below ``out/truth``."""
    head, scans = draw_subject(params, index)
    name = f"sub-{index:04d}"
    truth = out / "truth" / name
    for folder in (out / name, truth):
        folder.mkdir(parents=True)
    for domain, scan in scans.items():
        write_volume(out / name / f"{domain}.nii.gz", scan)
    lesions = np.zeros(head.shape, np.float32)
    for number, share in enumerate(head.lesions, 1):
        lesions[head.volume(share) >= 0.5] = number
    tissues = head.volume(head.tissues[len(head.tissues) // 2])  # at a point near the middle of the voxel
    for what, voxels in (("labels", tissues), ("regions", head.labels.astype(np.float32)), ("lesions", lesions)):
        write_volume(truth / f"{what}.nii.gz", Volume(voxels, head.affine, "mr_t1"))
    facts = {
        "labels": dict(enumerate(TISSUES)),
        "lesions": [{"id": i, "kind": kind} for i, kind in enumerate(head.lesion_kinds, 1)],
    }
    (truth / "subject.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def write_heads(
    out: Path,
    params: PhantomParams,
    progress: Callable[[Iterable[int], str, int], Iterable[int]] | None = None,
) -> None:
    """Write every subject.

    The truth contains, on the grid of the scans, ``labels.nii.gz`` (the tissues that
    ``subject.json`` names), ``regions.nii.gz`` (the labels of the map) and ``lesions.nii.gz``
    (numbers from 1).

    Args:
        out: folder.
        params: parameters of the phantom, with ``labels``.
        progress: wraps the loop over subjects, like :func:`medstyle.jobs.progress.track`.

    Raises:
        UserError: the folder holds no label maps, or one is not readable.
    """
    if params.sites > 1:
        raise ParamsError("acquire.sites: heads from label maps have a random scanner each; set it to 1")
    label_files(Path(params.labels or ""))
    show = progress or (lambda items, description, total: items)
    for index in show(range(params.subjects), "heads", params.subjects):
        write_subject(out, params, index)
