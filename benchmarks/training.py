"""Compare quality per training time with pix2pix, CycleGAN, CUT and FastCUT on the same slices.

Every method trains for the same seconds (evaluation is not counted) in a process of its own and is
measured on unseen subjects by the protocol ``plain``. Ours has a schedule over its steps, so its
rate is measured first, its number of steps follows from the seconds, and shorter budgets are runs
of their own. Results are kept as JSON, one per method.

Usage: python benchmarks/training.py [--minutes 8] [--threads 2] [--data brain|phantom]
       [--methods ours_paired ...] [--resume] [--figure [FILE]] [--out FOLDER] [--seed 0]
       [--normalisation nyul] [--tuning [--change JSON]]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import ours
from peers.data import (
    BRAIN,
    CACHE,
    DOMAINS,
    ROOT,
    Feed,
    Subject,
    atlas_seconds,
    classical,
    store_of,
    target_values,
    unit,
    unseen,
)
from peers.methods import METHODS, Pix2Pix
from torch import Tensor

from medstyle.data.store import SliceStore
from medstyle.imaging.modality import NORMALISATIONS

# Ours: the sections of params.yaml's `train` that differ from the defaults.
NETWORK = {"widths": [16, 32, 64, 128], "bottleneck_blocks": 2}
FOLDED = {"widths": [32, 64, 128], "fold": 2, "bottleneck_blocks": 2}
OURS: dict[str, dict[str, Any]] = {
    "ours_paired": {
        "training": {"batch": 1, "learning_rate": 1e-3},
        "objective": {
            "kind": "paired", "weights": {"l1": 1.0, "structure": 0.0, "adversarial": 0.0}, "detail": 0.0,
        },
        "network": {**FOLDED, "neighbours": 5},
    },
    "ours_unpaired": {  # recipes/unpaired_mr.yaml
        "training": {"batch": 1, "learning_rate": 1e-3},
        "objective": {
            "kind": "unpaired_contrastive", "adversarial": "least_squares",
            "weights": {"contrastive": 0.0, "identity": 0.0, "anatomy": 1.0, "cross_subject": 5.0},
            "discriminator_layers": 3,
        },
        "network": {**NETWORK, "neighbours": 5, "residual": True},
        "augmentation": {"bias": 0.3, "noise": 0.05, "elastic": 0.03},
    },
}  # fmt: skip
OURS["ours_paired_one_slice"] = {
    **OURS["ours_paired"],
    "network": {**OURS["ours_paired"]["network"], "neighbours": 1},
}
# row -> (recipe of ours, share of the seconds)
OWN_RUNS = {
    "ours_paired": ("ours_paired", 1.0),
    "ours_paired_one_slice": ("ours_paired_one_slice", 1.0),
    "ours_paired_tenth": ("ours_paired", 0.1),
    "ours_unpaired": ("ours_unpaired", 1.0),
    "ours_unpaired_third": ("ours_unpaired", 1 / 3),
}
UNTRAINED = {"copy": "identity", "histogram_matching": "histogram_matching"}
ROWS = [*UNTRAINED, "pix2pix", "pix2pix_l1", "pix2pix_our_network", "cyclegan", "cut", "fastcut", *OWN_RUNS]
TIMES = (30, 60, 100, 150, 240, 360, 480)  # seconds of training at which a reference is measured
STRIDE, CURVE_STRIDE = 2, 3  # measured: every 2nd slice at the end, every 3rd of those on the way
SHOWN = (0.3, 0.5, 0.7)  # slices in the figure, as shares of the first unseen subject's extent
MEASURES = {"psnr": 1, "ssim": 1, "mae": -1}  # which way is better
# Our loop keeps glibc from giving freed memory back at every step. The references get the same, or
# they would lose up to a quarter of their time to page faults.
KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": str(2**31 - 1), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
Generate = Callable[[Tensor], Tensor]


def main() -> None:
    """Run the requested rows, each in a separate process, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", choices=list(DOMAINS), default="brain" if BRAIN.is_dir() else "phantom")
    parser.add_argument("--methods", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--normalisation", choices=list(NORMALISATIONS), default="nyul")
    parser.add_argument("--tuning", action="store_true", help="hold out training subjects and measure those instead")
    parser.add_argument("--change", type=json.loads, default={}, help="JSON over our settings, to compare while tuning")
    parser.add_argument("--out", type=Path, help="folder of results (default: one in .medstyle/bench for each setting)")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are done")
    parser.add_argument("--figure", nargs="?", const="", help="draw the outputs (default: docs/figures, see figure())")
    parser.add_argument("--row", choices=ROWS, help=argparse.SUPPRESS)  # in the row's own process
    arguments = parser.parse_args()
    run_name = ["training", arguments.data, f"{arguments.minutes:g}", arguments.normalisation, str(arguments.seed)]
    out = arguments.out or CACHE / "-".join([*run_name, *["tuning"] * arguments.tuning])
    if arguments.row:
        run(arguments.row, arguments, out)
        return
    _store(arguments)
    out.mkdir(parents=True, exist_ok=True)
    for row in arguments.methods:
        if arguments.resume and (out / f"{row}.json").is_file():
            continue
        print(f"{time.strftime('%H:%M:%S')} {row}", file=sys.stderr, flush=True)
        own = [
            "--row", row, "--out", out, "--data", arguments.data, "--minutes", arguments.minutes,
            "--threads", arguments.threads, "--seed", arguments.seed, "--normalisation", arguments.normalisation,
            "--change", json.dumps(arguments.change), *["--tuning"] * arguments.tuning,
        ]  # fmt: skip
        subprocess.run([sys.executable, __file__, *map(str, own)], check=True, env={**os.environ, **KEEP_MEMORY})
    results = {row: json.loads((out / f"{row}.json").read_text()) for row in ROWS if (out / f"{row}.json").is_file()}
    print(table(results))
    if arguments.figure is not None:
        figure(results, arguments, out)


def run(row: str, arguments: argparse.Namespace, out: Path) -> None:
    """Train and measure one row.

    Write ``<row>.json``, and ``<row>.npy`` with the slices of the figure.
    """
    torch.set_num_threads(arguments.threads)
    store = _store(arguments)
    source, target = DOMAINS[arguments.data]
    subjects = _measured(arguments)
    seconds = arguments.minutes * 60
    result: dict[str, Any] = {"row": row, "batch": 1, "curve": []}
    if row in UNTRAINED:
        targets = target_values(store, target)
        outputs = [classical(UNTRAINED[row], subject, targets) for subject in subjects]
    else:
        if row in OWN_RUNS:
            recipe, share = OWN_RUNS[row]
            generate, facts = _train_ours(recipe, share * seconds, store, source, target, arguments)
        else:
            generate, facts = _train_reference(row, seconds, store, source, target, arguments, subjects)
        result |= facts
        result["s_per_step"] = (facts["seconds"] - facts.get("atlas_s", 0.0)) / facts["steps"]
        result["images_per_s"] = result["batch"] / result["s_per_step"]
        outputs = [_volume(generate, subject.source(result.get("neighbours", 1))) for subject in subjects]
    result["subjects"] = {s.name: s.measure(o) for s, o in zip(subjects, outputs, strict=True)}
    result["curve"].append(
        {"seconds": result.get("seconds", 0.0), **_coarse(subjects, [o[::CURVE_STRIDE] for o in outputs])}
    )
    result["machine"] = f"{platform.machine()}, {arguments.threads} threads, torch {torch.__version__}"
    np.save(out / f"{row}.npy", _shown(outputs[0]))
    part = out / f".part-{row}.json"
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(out / f"{row}.json")


def _train_ours(
    recipe: str, seconds: float, store: Any, source: str, target: str, arguments: argparse.Namespace
) -> tuple[Generate, dict[str, Any]]:
    """Measure the time of a step and of everything else in a short run.

    Then train as many steps as ``seconds`` hold.

    An atlas that the recipe needs is part of the seconds.
    """
    settings = _changed(OURS[recipe], arguments.change)
    atlas = 0.0
    if settings["objective"]["weights"].get("cross_subject"):  # made for this method alone, so it pays
        atlas = atlas_seconds(arguments.data, store, arguments.threads)

    def timed(steps: int) -> tuple[Generate, int, list[float], float]:
        start, ticks = time.perf_counter(), []
        trained = ours.train(
            store, source, target, settings, steps, arguments.threads, arguments.seed,
            tick=lambda: ticks.append(time.perf_counter()),
        )  # fmt: skip
        return *trained, ticks, time.perf_counter() - start

    timed(4)  # warm
    *_, ticks, _ = timed(16)
    per_step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    *_, ticks, taken = timed(max(32, round(min(15.0, seconds / 4) / per_step)))
    per_step = (ticks[-1] - ticks[0]) / (len(ticks) - 1)
    rest = atlas + taken - per_step * len(ticks)
    steps = max(1, round((seconds - rest) / per_step))
    generate, parameters, _, taken = timed(steps)
    return generate, {
        "parameters": parameters,
        "steps": steps,
        "seconds": atlas + taken,
        "atlas_s": atlas,
        "asked_s": seconds,
        "peak_mib": _peak_mib(),
        "batch": settings["training"]["batch"],
        "neighbours": settings["network"].get("neighbours", 1),
    }


def _changed(settings: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Merge ``change`` into ``settings``, section by section."""
    sections = {*settings, *change}
    return {name: {**settings.get(name, {}), **change.get(name, {})} for name in sections}


def _store(arguments: argparse.Namespace) -> SliceStore:
    return store_of(arguments.data, arguments.normalisation, arguments.tuning)


def _measured(arguments: argparse.Namespace) -> list[Subject]:
    split = "validation" if arguments.tuning else "test"
    return unseen(_store(arguments), *DOMAINS[arguments.data], STRIDE, split)


def _train_reference(
    row: str,
    seconds: float,
    store: Any,
    source: str,
    target: str,
    arguments: argparse.Namespace,
    subjects: list[Subject],
) -> tuple[Generate, dict[str, Any]]:
    """Train for ``seconds`` of steps, stopping the clock for measurements on the way."""
    if row == "pix2pix_our_network":
        alike = {"network": NETWORK}  # of one slice, as pix2pix sees it
        method = Pix2Pix(arguments.seed, generator=lambda: ours.OurNetwork(alike, (source, target)))
    else:
        method = METHODS[row](arguments.seed)
    feed = Feed(store, source, target, method.paired, arguments.seed)
    due = [t for t in TIMES if t < seconds]
    spent, steps, curve, peak = 0.0, 0, [], 0.0
    while spent < seconds:
        start = time.perf_counter()
        method.step(*feed(), progress=spent / seconds)
        spent += time.perf_counter() - start
        steps += 1
        if due and spent >= due[0]:
            peak = peak or _peak_mib()  # before the first measurement adds its own
            due = [t for t in due if t > spent]
            outputs = [_volume(method.generate, subject.source()[::CURVE_STRIDE]) for subject in subjects]
            point = {"seconds": spent, "step": steps, **_coarse(subjects, outputs)}
            curve.append(point)
            print(row, {k: round(v, 4) for k, v in point.items()}, file=sys.stderr, flush=True)
    facts = {"parameters": sum(p.numel() for p in method.generator.parameters()), "steps": steps, "seconds": spent}
    return method.generate, facts | {"peak_mib": peak or _peak_mib(), "curve": curve, "asked_s": seconds}


def _volume(generate: Generate, source: Tensor) -> np.ndarray:
    """Translate ``(D, 1, H, W)`` in network units to ``(D, H, W)`` in [0, 1], a few slices at a
    time."""
    return unit(torch.cat([generate(part) for part in source.split(4)])[:, 0].numpy())


def _coarse(subjects: list[Subject], outputs: list[np.ndarray]) -> dict[str, float]:
    """Return the mean over subjects.

    ``outputs`` hold every ``CURVE_STRIDE``-th slice of ``subjects``.
    """
    rows = []
    for subject, output in zip(subjects, outputs, strict=True):
        part = replace(subject, real=subject.real[::CURVE_STRIDE], mask=subject.mask[::CURVE_STRIDE])
        rows.append(part.measure(output))
    return {name: float(np.mean([row[name] for row in rows])) for name in MEASURES}


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _shown(volume: np.ndarray) -> np.ndarray:
    return volume[[round(share * (len(volume) - 1)) for share in SHOWN]]


def table(results: dict[str, dict[str, Any]]) -> str:
    """Format the results as a Markdown table.

    The last columns set each row beside ours: on how many subjects ours (the full run) is better in
    PSNR / SSIM / MAE, and after how many seconds ours, in a run of its own, had at least the row's
    final PSNR.
    """
    kinds = ["ours_paired", "ours_unpaired"]
    head = ["method", "parameters", "s/step", "images/s", "peak MiB", "s", "PSNR", "SSIM", "MAE", *kinds]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for row, result in results.items():
        cells = [row]
        cells += [
            f"{result['parameters'] / 1e6:.2f} M", f"{result['s_per_step']:.3f}", f"{result['images_per_s']:.2f}",
            f"{result['peak_mib']:.0f}", f"{result['seconds']:.0f}",
        ] if "steps" in result else [""] * 5  # fmt: skip
        for name, digits in (("psnr", 2), ("ssim", 3), ("mae", 4)):
            values = [subject[name] for subject in result["subjects"].values()]
            cells.append(f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}")
        cells += ["" if row in OWN_RUNS else _beside(result, results, kind) for kind in kinds]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def _beside(result: dict[str, Any], results: dict[str, dict[str, Any]], kind: str) -> str:
    """Return the wins of the full run of ``kind`` over a row, and the seconds after which ours was
    as good."""
    if kind not in results:
        return ""
    best = results[kind]["subjects"]
    wins = [
        sum(sign * (best[subject][name] - theirs[name]) > 0 for subject, theirs in result["subjects"].items())
        for name, sign in MEASURES.items()
    ]

    def psnr(one: dict[str, Any]) -> float:
        return float(np.mean([subject["psnr"] for subject in one["subjects"].values()]))

    runs = [results[row] for row, (recipe, _) in OWN_RUNS.items() if recipe == kind and row in results]
    reached = [run["seconds"] for run in runs if psnr(run) >= psnr(result)]
    return f"{wins[0]} / {wins[1]} / {wins[2]} of {len(best)}, " + (
        f"{min(reached):.0f} s" if reached else "not reached"
    )


def figure(results: dict[str, dict[str, Any]], arguments: argparse.Namespace, out: Path) -> None:
    """Draw source, real and each method's output for three slices of one unseen subject in one
    window.

    The phantom's figure goes to ``docs/figures``. The brain's goes to ``out`` unless a file is
    named: the scans are lent for research only, so their pictures are no part of the product until
    a person decides so.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    data, path, subject = arguments.data, arguments.figure, _measured(arguments)[0]
    columns = {"source": _shown(unit(subject.source()[:, 0].numpy())), "real": _shown(subject.real)}
    columns |= {row: np.load(out / f"{row}.npy") for row in results if row not in UNTRAINED}
    drawing, axes = plt.subplots(len(SHOWN), len(columns), figsize=(1.5 * len(columns), 1.6 * len(SHOWN)))
    for place, (name, images) in enumerate(columns.items()):
        axes[0, place].set_title(name.replace("_", "\n", 1).replace("_", " "), fontsize=7)
        for axis, image in zip(axes[:, place], images, strict=True):
            axis.imshow(image[8:-8, 12:-12], cmap="gray", vmin=0, vmax=1)
            axis.axis("off")
    drawing.tight_layout(pad=0.2)
    file = Path(path) if path else (ROOT / "docs/figures" if data == "phantom" else out) / f"training-{data}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(file, dpi=130)
    print(f"figure in {file}", file=sys.stderr)


if __name__ == "__main__":
    main()
