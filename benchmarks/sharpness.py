"""Measure distortion and realism at once: error against the pair, likeness to other real images.

Every method trains for the same steps on the same slices (`benchmarks/peers/data.py`) and is
measured on unseen subjects. Realism is measured without pairs, by the spectrum and the gradients
of each slice: how far their distribution is from that of unseen real images (Frechet distance, in
multiples of the distance between training and unseen targets, the floor), and how often a logistic
regression, tested on a subject that it did not see, tells real from synthetic (0.5 is chance).

    python benchmarks/sharpness.py [--data brain|phantom] [--steps 4000] [--seeds 0 1 2] [--tuning]
        [--figure FILE] [--change JSON] [--methods l1 adversarial refined]
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peers import ours
from peers.data import DOMAINS, Subject, classical, store_of, target_values, unit, unseen
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from training import FOLDED

from medstyle.data.store import SliceStore
from medstyle.evaluation.distances import frechet
from medstyle.evaluation.protocols import through_plane

Volume = NDArray[np.float32]
COMMON: dict[str, Any] = {
    "training": {"batch": 1, "learning_rate": 1e-3, "discriminator_learning_rate": 1e-3},
    "network": {**FOLDED, "neighbours": 5},
}
L1 = {"l1": 1.0, "structure": 0.0}
METHODS: dict[str, dict[str, Any]] = {
    "l1": {"objective": {"kind": "paired", "weights": {**L1, "adversarial": 0.0}, "detail": 0.0}},
    "adversarial": {"objective": {"kind": "paired", "weights": {**L1, "adversarial": 0.05}, "detail": 0.0}},
    "refined": {
        "objective": {"kind": "paired_refined", "weights": {"l1": 1.0}, "detail": 0.0},
        "network": {"refiner": 16},
    },
}
DIAL = (0.0, 0.5, 0.8, 1.0)
UNSHARP = (0.25, 0.5)  # shares of the detail above 1.5 pixels that sharpening adds
BANDS = np.geomspace(0.03, 0.5, 11)  # cycles per pixel
SHOWN = (0.35, 0.5, 0.65)
COLUMNS = ("psnr", "ssim", "mae", "edges", "sharpness", "through_plane", "high", "set", "told")


def describe(volume: Volume, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Describe each slice that shows the body by the log power in 10 bands and 4 quantiles of
    gradients."""
    shown = mask.mean(axis=(1, 2)) > 0.5 * mask.mean(axis=(1, 2)).max()
    size = volume.shape[1:]
    window = np.outer(*(np.hanning(n) for n in size))
    radius = np.hypot(*np.meshgrid(*(np.fft.fftfreq(n) for n in size), indexing="ij"))
    rows = []
    for image, body in zip(volume[shown], mask[shown], strict=True):
        power = np.abs(np.fft.fft2((image - image[body].mean()) * body * window)) ** 2
        bands = [power[(radius >= low) & (radius < high)].mean() for low, high in pairwise(BANDS)]
        steep = np.hypot(*np.gradient(image.astype(np.float64)))[body]
        rows.append([*np.log(np.array(bands) + 1e-9), *np.log(np.quantile(steep, (0.5, 0.75, 0.9, 0.97)) + 1e-6)])
    return np.array(rows)


def signed(output: Volume, subject: Subject) -> dict[str, float]:
    """Return the measures of ``plain``, the last two with their sign, and that of fine detail."""
    found = subject.measure(output)

    def energy(image: Volume) -> float:
        return float(np.square(np.gradient(image.astype(np.float64), axis=(1, 2)))[:, subject.mask].sum())

    found["sharpness"] = float(np.log(energy(output) / energy(subject.real)))
    found["through_plane"] = float(np.log(through_plane(output, subject.real, subject.mask)))
    apart = describe(output, subject.mask) - describe(subject.real, subject.mask)
    found["high"] = float(apart[:, 7:10].mean())  # log power above 0.21 cycles per pixel
    return found


def told(real: list[NDArray[np.float64]], made: list[NDArray[np.float64]]) -> list[float]:
    """Return the balanced accuracy of a classifier on each subject; it learned on the others."""
    found = []
    for left in range(len(real)):
        others = [k for k in range(len(real)) if k != left]
        x = np.concatenate([one[k] for one in (real, made) for k in others])
        y = np.repeat([1, 0], [sum(len(one[k]) for k in others) for one in (real, made)])
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000, class_weight="balanced")).fit(x, y)
        found.append(float((model.predict(real[left]).mean() + 1 - model.predict(made[left]).mean()) / 2))
    return found


def floor_of(store: SliceStore, target: str, subjects: list[Subject], scale: NDArray[np.float64]) -> float:
    """Return the distance of the training targets to the unseen ones."""
    array, rows = store.array(target, "train"), store.rows(target, "train")
    sets = []
    for name in store.subjects("train"):
        volume = unit(array[[i for i, row in enumerate(rows) if row.subject == name], 0].astype(np.float32))[::2]
        sets.append(describe(volume, volume > 0))
    real = [describe(one.real, one.mask) for one in subjects]
    return frechet(np.concatenate(sets) / scale, np.concatenate(real) / scale)


def outputs(
    method: str, arguments: argparse.Namespace, seed: int, store: SliceStore, subjects: list[Subject]
) -> Iterator[tuple[str, list[Volume], float]]:
    """Train one method; yield its name, the volumes of all subjects, and seconds per step."""
    settings: dict[str, Any] = {}
    for section in ("training", "network", "objective"):
        settings[section] = {
            **COMMON.get(section, {}), **METHODS[method].get(section, {}), **arguments.change.get(section, {}),
        }  # fmt: skip
    if arguments.data == "brain":
        settings["start"] = "anybrain"
    start = time.process_time()
    generate, _ = ours.train(store, *DOMAINS[arguments.data], settings, arguments.steps, 1, seed)
    seconds = (time.process_time() - start) / arguments.steps

    def made(sharpness: float | None) -> list[Volume]:
        return [_volume(lambda x: generate(x, sharpness), subject) for subject in subjects]

    if method == "refined":
        for sharpness in DIAL:
            yield f"refined, sharpness {sharpness:g}", made(sharpness), seconds
        return
    plain = made(None)
    yield method, plain, seconds
    if method == "l1":
        for share in UNSHARP:
            yield f"l1, unsharp mask {share:g}", [_unsharp(one, share) for one in plain], seconds


def _volume(generate: Callable[[torch.Tensor], torch.Tensor], subject: Subject) -> Volume:
    return unit(torch.cat([generate(part) for part in subject.source(5).split(4)])[:, 0].numpy())


def _unsharp(volume: Volume, share: float) -> Volume:
    return np.clip(volume + share * (volume - gaussian_filter(volume, (0, 1.5, 1.5))), 0, 1)


def main() -> None:
    """Train, measure, and print a table: means over subjects, then over seeds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(DOMAINS), default="brain")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--tuning", action="store_true", help="measure held-out training subjects instead")
    parser.add_argument("--change", type=json.loads, default={}, help="JSON over the settings, to compare while tuning")
    parser.add_argument("--figure", type=Path, help="PNG of slices: source, methods, real")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    store = store_of(arguments.data, "nyul", arguments.tuning)
    source, target = DOMAINS[arguments.data]
    subjects = unseen(store, source, target, 1, "validation" if arguments.tuning else "test")
    real = [describe(one.real, one.mask) for one in subjects]
    scale = np.concatenate(real).std(axis=0)
    floor = floor_of(store, target, subjects, scale)
    values: dict[str, list[dict[str, float]]] = defaultdict(list)
    pictures: dict[str, Volume] = {}

    def note(name: str, volumes: list[Volume], seconds: float) -> None:
        made = [describe(volume, one.mask) for volume, one in zip(volumes, subjects, strict=True)]
        apart = frechet(np.concatenate(made) / scale, np.concatenate(real) / scale) / floor
        for volume, one, share in zip(volumes, subjects, told(real, made), strict=True):
            values[name].append({**signed(volume, one), "set": apart, "told": share, "ms": 1000 * seconds})
        pictures.setdefault(name, volumes[0])
        print(name, {k: round(float(np.mean([v[k] for v in values[name]])), 4) for k in COLUMNS}, file=sys.stderr)

    grey = target_values(store, target)
    note("copy", [classical("identity", one, grey) for one in subjects], 0.0)
    for seed in arguments.seeds:
        for method in arguments.methods:
            for found in outputs(method, arguments, seed, store, subjects):
                note(*found)
        print(table(values), flush=True)
    if arguments.figure:
        draw(arguments.figure, subjects[0], pictures)


def table(values: dict[str, list[dict[str, float]]]) -> str:
    """Format the means as a Markdown table."""
    names = ["PSNR", "SSIM", "MAE", "edges", "ln sharpness", "ln through plane", "ln fine detail"]
    names += ["set distance / floor", "told apart", "ms/step"]
    lines = [" | ".join(["method", *names]), " | ".join(["---"] * (len(names) + 1))]
    for method, rows in values.items():
        mean = {key: float(np.mean([row[key] for row in rows])) for key in (*COLUMNS, "ms")}
        cells = [f"{mean['psnr']:.2f}", f"{mean['ssim']:.3f}", f"{mean['mae']:.4f}", f"{mean['edges']:.3f}"]
        cells += [f"{mean[key]:+.2f}" for key in ("sharpness", "through_plane", "high")]
        cells += [f"{mean['set']:.1f}", f"{mean['told']:.2f}", f"{mean['ms']:.0f}" if mean["ms"] else ""]
        lines.append(" | ".join([method, *cells]))
    return "\n".join(f"| {line} |" for line in lines)


def draw(path: Path, subject: Subject, pictures: dict[str, Volume]) -> None:
    """Write slices side by side: source, each method in the order of the table, real."""
    from PIL import Image

    source = unit(subject.source()[:, 0].numpy())
    places = [round(share * (len(source) - 1)) for share in SHOWN]
    columns = [source, *(volume for name, volume in pictures.items() if name != "copy"), subject.real]
    grid = np.concatenate([np.concatenate([column[k] for column in columns], 1) for k in places], 0)
    picture = Image.fromarray((255 * grid).round().astype(np.uint8))
    picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path)


if __name__ == "__main__":
    main()
