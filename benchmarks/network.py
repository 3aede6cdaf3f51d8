"""Compare shapes of the generator and optimisers after the same number of steps, and their times.

Brain T1 -> FLAIR with pairs by the settings of `ours_paired` of training.py, by the protocol
`plain` on three held-out training subjects: a choice among shapes must not see the test subjects.
Times are medians over the shapes in turn, on one thread: of a plain training step of one slice, and
of rendering one, both of 192 x 192 pixels with five neighbours.
`--recipe ours_unpaired --repeats 0` compares them by another recipe of that benchmark; a plain step
of it is not timed.
Usage: python benchmarks/network.py [--steps 1500] [--seeds 0 1] [--shapes NAME ...] [--repeats 15]
       [--recipe ours_paired]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peers import ours
from peers.data import BRAIN, DOMAINS, store_of, unit, unseen
from training import FOLDED, NETWORK, OURS, STRIDE

ADAMW, MUON = ({"training": {"optimiser": name}} for name in ("adamw", "muon"))
LEVELS, FOLD = {"network": {**NETWORK, "fold": 1}}, {"network": FOLDED}
SHAPES: dict[str, dict[str, dict[str, Any]]] = {
    "levels-adamw": {**LEVELS, **ADAMW},
    "folded-adamw": {**FOLD, **ADAMW},
    "levels": {**LEVELS, **MUON},
    "folded": {**FOLD, **MUON},
}
SIDE = 192
SHOWN = {"psnr": 2, "ssim": 3, "mae": 4, "edges": 3}


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500, help="of training; 0: times alone")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--repeats", type=int, default=15, help="of each time; 0: scores alone")
    parser.add_argument("--recipe", choices=OURS, default="ours_paired")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    plans = {name: settings(name, arguments.recipe) for name in arguments.shapes}
    untimed = dict.fromkeys(plans, (float("nan"), float("nan")))
    seconds = times(plans, arguments.repeats) if arguments.repeats else untimed
    first = seconds[arguments.shapes[0]]
    print("| shape | weights | ms a step | of the first | ms a slice | of the first", *SHOWN, "", sep=" | ")
    print("|---" * (6 + len(SHOWN)) + "|", flush=True)
    for name, plan in plans.items():
        scores = [trained(plan, arguments.steps, seed) for seed in arguments.seeds if arguments.steps]
        means = [f"{np.mean([one[key] for one in scores]):.{digits}f}" for key, digits in SHOWN.items() if scores]
        weights = sum(p.numel() for p in ours.OurNetwork(plan, DOMAINS["brain"]).parameters())
        shown = [f"{1000 * now:.0f} | {now / before:.2f}" for now, before in zip(seconds[name], first, strict=True)]
        print(f"| {name}", f"{weights / 1e6:.2f} M", *shown, *means, "", sep=" | ", flush=True)


def settings(shape: str, recipe: str) -> dict[str, Any]:
    """Return the sections of ``train`` for a shape."""
    sections: dict[str, Any] = OURS[recipe]
    return sections | {name: {**sections[name], **change} for name, change in SHAPES[shape].items()}


def times(plans: dict[str, dict[str, Any]], repeats: int) -> dict[str, tuple[float, float]]:
    """Return the median seconds of a training step and of rendering a slice, shape by shape."""
    x, y = (torch.randn(1, channels, SIDE, SIDE).clamp(-1, 1) for channels in (5, 1))
    index = torch.ones(1, dtype=torch.long)
    runs: dict[str, tuple[Callable[[int], Any], Callable[[int], Any]]] = {}
    for name, plan in plans.items():
        networks = ours.OurNetwork(plan, DOMAINS["brain"]).networks.eval()
        step = ours.textbook_step(DOMAINS["brain"], plan, x, y, lambda module: module)
        runs[name] = step, torch.inference_mode()(lambda number, networks=networks: networks(x, index))
    taken: dict[str, list[list[float]]] = {name: [[], []] for name in plans}
    for number in range(2 + repeats):
        for name, both in runs.items():
            for kind, run in enumerate(both):
                start = time.perf_counter()
                run(number)
                if number >= 2:
                    taken[name][kind].append(time.perf_counter() - start)
    return {name: (statistics.median(a), statistics.median(b)) for name, (a, b) in taken.items()}


def trained(plan: dict[str, Any], steps: int, seed: int) -> dict[str, float]:
    """Train by a plan, and return its mean scores over the held-out subjects."""
    if not BRAIN.is_dir():
        raise SystemExit(f"{BRAIN}: is absent; use --steps 0")
    store, (source, target) = store_of("brain", "nyul", True), DOMAINS["brain"]
    generate, _ = ours.train(store, source, target, plan, steps, 1, seed)
    rows = []
    for subject in unseen(store, source, target, STRIDE, "validation"):
        made = torch.cat([generate(part) for part in subject.source(5).split(4)])[:, 0]
        rows.append(subject.measure(unit(made.numpy())))
    return {key: float(np.mean([row[key] for row in rows])) for key in SHOWN}


if __name__ == "__main__":
    main()
