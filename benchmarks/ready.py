"""Measure the ready-made model on real scans that it never saw, and as a start for trainings.

``zero-shot``: each direction on every subject of ``../shared/data``, as the package is installed,
beside copying and histogram matching; with one example of the target, from another subject of the
same protocol, and without. Sources are given as a user gives them; the real target is registered
onto the source's grid. Without an example, output and target are scaled by their own percentiles
(0.5 and 99.5 in the body); with one, the output by those of the example. ``lesions``: the
contrast of real MS lesions that is kept. ``fine-tuning``: `ours_paired` of benchmarks/training.py
from scratch and from the model, by steps and by number of training subjects. Results are kept as
JSON; a table is printed.

Usage: python benchmarks/ready.py zero-shot|fine-tuning [--model anybrain] [--out FOLDER]
       [--subjects 2 11] [--steps 300 1000] [--seeds 0] [--starts scratch anybrain]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from peers.data import CACHE, REACH, ROOT, Subject, store_of, unit, unseen

from medstyle import Translator, Volume, histogram_matching, read_picture, read_volume, translate_volume
from medstyle.data.store import SliceStore
from medstyle.evaluation.protocols import plain
from medstyle.inference.translate import levels_of
from medstyle.transforms.align import onto_grid
from medstyle.transforms.intensity import foreground_mask

DATA = ROOT / "../shared/data"
PROTOCOL_B = ("sub-05", "sub-06", "sub-23")
MEASURES = {"psnr": 2, "ssim": 3, "mae": 4, "edges": 3}
Image = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """One translation to measure: the source, the real target on its grid, an example of it."""

    data: str
    subject: str
    source: Volume
    real: Volume
    example: Volume
    lesions: NDArray[np.bool_] | None = None


def brain_cases() -> Iterator[Case]:
    """Yield T1 -> FLAIR and back of the 16 adults; the example is of the same protocol."""
    folder = DATA / "brain_t1_flair"
    names = sorted(path.name for path in folder.iterdir())
    for name in names:
        alike = [other for other in names if other != name and (other in PROTOCOL_B) == (name in PROTOCOL_B)]
        t1, flair = (read_volume(folder / name / f"{d[3:]}.nii.gz", d) for d in ("mr_t1", "mr_flair"))
        for source, target in ((t1, flair), (flair, t1)):
            example = read_volume(folder / alike[0] / f"{target.domain[3:]}.nii.gz", target.domain)
            yield Case("whole heads, 2 mm", name, source, onto_grid(target, source, "rigid"), example)


def lesion_cases() -> Iterator[Case]:
    """Yield T1, T2 and FLAIR of two patients, in all directions; each is the other's example."""
    folder = DATA / "ms_lesion_mr"
    names = sorted(path.name for path in folder.iterdir())
    for name, other in zip(names, names[::-1], strict=True):
        scans = {d: read_volume(folder / name / f"{d[3:]}.nii.gz", d) for d in ("mr_t1", "mr_t2", "mr_flair")}
        mask = read_volume(folder / name / "lesion.nii.gz", "mr_t1").voxels > 0
        for source in scans.values():
            for target in scans.values():
                if source is not target:
                    example = read_volume(folder / other / f"{target.domain[3:]}.nii.gz", target.domain)
                    yield Case("MS patients, 1 mm", name, source, target, example, mask)


def body(voxels: Image) -> NDArray[np.bool_]:
    """Return the body ``(D, H, W)`` of a scan."""
    found: NDArray[np.bool_] = foreground_mask(np.ascontiguousarray(voxels.transpose(2, 1, 0))).transpose(2, 1, 0)
    return found


def scaled(voxels: Image, by: Image) -> Image:
    """Scale to [0, 1] by the percentiles of ``by`` in its body, as the product does for MR."""
    low, high = np.percentile(by[body(by)], (0.5, 99.5))
    made: Image = np.clip((voxels - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)
    return made


def outputs(case: Case, translator: Translator) -> Iterator[tuple[str, Image, float]]:
    """Yield each method's output in [0, 1] and its seconds."""
    target, source, example = case.real.domain, case.source.voxels, case.example.voxels
    yield "copy", scaled(source, source), 0.0
    own, inside = scaled(source, source), body(source)
    values = scaled(example, example)[body(example)]
    own[inside] = histogram_matching(own[inside][:, None], values[:: max(1, len(values) // 200_000), None])[:, 0]
    yield "histogram matching to the example", own, 0.0
    start = time.perf_counter()
    plainly = translate_volume(case.source, translator, target).image.voxels
    yield "anybrain", scaled(plainly, plainly), time.perf_counter() - start
    # what --style does, without rendering again: the scale of the output is linear in network units
    levels = levels_of(case.example, torch.from_numpy(plainly)[:, None])
    alike = np.where(plainly > 0, np.maximum(levels.backward(plainly), 0), 0).astype(np.float32)
    yield "anybrain with the example", scaled(alike, example), 0.0


def contrast(image: Image, lesions: NDArray[np.bool_]) -> float:
    """Return the mean of the lesions less that of the 4 mm around them."""
    from scipy.ndimage import binary_dilation

    near = binary_dilation(lesions, iterations=5) & ~binary_dilation(lesions, iterations=1)
    return float(image[lesions].mean() - image[near].mean())


def zero_shot(model: str, out: Path) -> None:
    """Measure every case and print a table per direction: means, and on how many ours is better."""
    translator = Translator.load(model)
    rows = defaultdict(lambda: defaultdict(dict))
    out.mkdir(parents=True, exist_ok=True)
    for case in chain(lesion_cases(), brain_cases()):
        real, inside = scaled(case.real.voxels, case.real.voxels), body(case.real.voxels)
        direction = f"{case.source.domain[3:].upper()} -> {case.real.domain[3:].upper()}"
        for method, made, seconds in outputs(case, translator):
            measured = plain(made, real, inside)
            found = {**{name: measured[name] for name in MEASURES}, "seconds": seconds}
            if case.lesions is not None:
                found |= {"lesions": contrast(made, case.lesions), "real_lesions": contrast(real, case.lesions)}
            rows[f"{case.data}, {direction}"][method][case.subject] = found
        (out / "zero-shot.json").write_text(json.dumps({"sha256": translator.sha256, "rows": rows}, indent=1) + "\n")
        print(f"{time.strftime('%H:%M:%S')} {case.data} {case.subject} {direction}", flush=True)
    print(zero_shot_table(rows))


def zero_shot_table(rows: dict) -> str:
    """Format the results; wins are over copying and histogram matching, in MAE and in edges."""
    lines = ["| data and direction | method | PSNR | SSIM | MAE | edges | better than copying, matching (MAE; edges) "
             "| lesion contrast (real) | s |", "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for place, methods in rows.items():
        for method, subjects in methods.items():
            cells = [f"{np.mean([s[n] for s in subjects.values()]):.{digits}f}" for n, digits in MEASURES.items()]
            wins = []
            for name, sign in (("mae", -1), ("edges", 1)):
                for other in ("copy", "histogram matching to the example"):
                    beside = methods[other]
                    wins.append(sum(sign * (subjects[s][name] - beside[s][name]) > 0 for s in subjects))
            won = f"{wins[0]}, {wins[1]}; {wins[2]}, {wins[3]} of {len(subjects)}" if "anybrain" in method else ""
            kept = [f"{s['lesions']:+.2f} ({s['real_lesions']:+.2f})" for s in subjects.values() if "lesions" in s]
            seconds = np.mean([s["seconds"] for s in subjects.values()])
            took = f"{seconds:.1f}" if seconds else ""
            lines.append(f"| {place} | {method} | {' | '.join(cells)} | {won} | {', '.join(kept)} | {took} |")
    return "\n".join(lines)


def bones(model: str, out: Path) -> None:
    """Measure the Dice of bone in CT made from the axial MR pictures, which have no unit.

    Bone of a real picture: the brightest part, by Otsu's threshold above soft tissue. Bone of an
    output: above 300 HU. Copying: the threshold of the MR that is best for the picture.
    """
    from skimage.filters import threshold_multiotsu

    translator = Translator.load(model)
    found = {}
    for folder in sorted((DATA / "brain_mr_ct_png").iterdir()):
        mr, ct = (read_picture(folder / f"{kind}_axial.png").astype(np.float32)[..., 0] for kind in ("mri", "ct"))
        real = ct > threshold_multiotsu(ct, 3)[-1]
        volume = Volume(np.repeat(mr[None], 3, 0), np.eye(4), "brain")
        made = translate_volume(volume, translator, "ct").image.voxels[1] > 300
        dark = (mr < threshold_multiotsu(mr, 3)[0]) & body(np.repeat(mr[None], 3, 0))[1]

        def dice(a: NDArray[np.bool_], b: NDArray[np.bool_] = real) -> float:
            return float(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))

        found[folder.name] = {"anybrain": dice(made), "dark in MR": dice(dark)}
    (out / "bones.json").write_text(json.dumps(found, indent=1) + "\n")
    for method in ("anybrain", "dark in MR"):
        values = [one[method] for one in found.values()]
        print(f"bone Dice, {method}: {np.mean(values):.3f} ± {np.std(values):.3f} of {len(values)} patients")


def fewer(store: SliceStore, count: int, out: Path) -> SliceStore:
    """Return the store with the first ``count`` training subjects alone."""
    keep = set(sorted(store.subjects("train"))[:count])
    folder = out / f"store-{count}"
    if not (folder / "index.json").is_file():
        (folder / "train").mkdir(parents=True, exist_ok=True)
        index = json.loads((store.folder / "index.json").read_text())
        for domain, rows in index["rows"]["train"].items():
            chosen = [i for i, row in enumerate(rows) if row[0] in keep]
            np.save(folder / f"train/{domain}.npy", store.array(domain, "train")[chosen])
            index["rows"]["train"][domain] = [rows[i] for i in chosen]
        index["subjects"] = {s: where for s, where in index["subjects"].items() if where != "train" or s in keep}
        (folder / "index.json").write_text(json.dumps(index))
    return SliceStore.open(folder)


def fine_tuning(arguments: argparse.Namespace) -> None:
    """Train T1 -> FLAIR from scratch and from the model; measure the five unseen subjects."""
    from peers import ours
    from training import OURS

    whole = store_of("brain")
    subjects: list[Subject] = unseen(whole, "mr_t1", "mr_flair", 2)
    file = arguments.out / "fine-tuning.json"
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = json.loads(file.read_text()) if file.is_file() else {}
    for seed in arguments.seeds:
        for count in arguments.subjects:
            for steps in arguments.steps:
                for name in arguments.starts:
                    key = f"{count} {steps} {name} {seed}"
                    if key in results:
                        continue
                    settings = {**OURS["ours_paired"], "start": None if name == "scratch" else name}
                    store = fewer(whole, count, arguments.out)
                    generate, _ = ours.train(store, "mr_t1", "mr_flair", settings, steps, 1, seed)
                    made = [generate(subject.source(2 * REACH + 1))[:, 0].numpy() for subject in subjects]
                    rows = [subject.measure(unit(one)) for subject, one in zip(subjects, made, strict=True)]
                    results[key] = {n: float(np.mean([row[n] for row in rows])) for n in MEASURES}
                    file.write_text(json.dumps(results, indent=1) + "\n")
                    print(time.strftime("%H:%M:%S"), key, {k: round(v, 4) for k, v in results[key].items()}, flush=True)
    print(fine_tuning_table(results))


def fine_tuning_table(results: dict[str, dict[str, float]]) -> str:
    """Format the results: the mean over seeds of PSNR / SSIM / MAE."""
    groups: dict[tuple[str, str], dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for key, values in results.items():
        count, steps, name, _ = key.split()
        groups[count, steps][name].append(values)
    names = sorted({name for of in groups.values() for name in of}, key=lambda n: n != "scratch")
    lines = [f"| subjects, steps | seeds | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for (count, steps), of in sorted(groups.items(), key=lambda g: (int(g[0][0]), int(g[0][1]))):
        cells = []
        for name in names:
            mean = {n: np.mean([v[n] for v in of[name]]) for n in MEASURES} if name in of else {}
            cells.append(f"{mean['psnr']:.2f} / {mean['ssim']:.3f} / {mean['mae']:.4f}" if mean else "")
        lines.append(f"| {count}, {steps} | {max(map(len, of.values()))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Run one of the two measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("zero-shot", "bones", "fine-tuning"))
    parser.add_argument("--model", default="anybrain")
    parser.add_argument("--out", type=Path, default=CACHE / "ready")
    parser.add_argument("--subjects", type=int, nargs="+", default=[2, 11])
    parser.add_argument("--steps", type=int, nargs="+", default=[300, 1000])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--starts", nargs="+", default=["scratch", "anybrain"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "fine-tuning":
        fine_tuning(arguments)
    else:
        (zero_shot if arguments.what == "zero-shot" else bones)(arguments.model, arguments.out)


if __name__ == "__main__":
    main()
