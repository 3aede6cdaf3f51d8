"""Measure speed and memory of training.

1. Images per second of a full training step, same networks, losses and batch: the product's loop
   beside the same step written plainly (eager, float32, NCHW, instance normalisation, Adam tensor
   by tensor), and on a GPU beside what each switch brings, with memory and the share of the card's
   own bfloat16 matmul rate. Every measurement is a process of its own, and the rows take turns, so
   that a busy moment of the machine hits every row alike.
2. Peak memory of training when the data set grows tenfold.

Usage: python benchmarks/throughput.py [--repeats 3] [--steps 48] [--batch 2] [--threads N]
       [--slices 500]
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import ours
from torch import nn

from medstyle.data.store import Row, SliceStore, StoreIndex
from medstyle.transforms.body import extent_of, is_body
from medstyle.transforms.prepare import Preparation

SIZE, DOMAINS = (120, 104), ("mr_t1", "mr_t2")
SETTINGS: dict[str, Any] = {  # as params.yaml has them
    "objective": {"kind": "paired", "weights": {"structure": 0.1}, "detail": 4.0, "discriminator_width": 16},
    "network": {"widths": [16, 32, 64, 128], "bottleneck_blocks": 2},
}
OURS = "medstyle's loop"
# row -> (bfloat16 autocast, channels_last, compiled); the first is the reference
PLAIN = {"plain float32": (False, False, False)}
ON_GPU = {
    "plain + bfloat16": (True, False, False),
    "plain + bfloat16 + channels_last": (True, True, False),
    "plain + bfloat16 + channels_last + compile": (True, True, True),
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=48, help="timed steps of one measurement, in whole turns of 16")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--slices", type=int, default=500, help="slices of the smaller store")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # row, or store folder, in the measurement's own process
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.measure:
        path = Path(arguments.measure)
        result = memory(path, arguments) if path.is_dir() else speed(arguments.measure, arguments)
        print(json.dumps(result))
        return
    gpu = torch.cuda.is_available()
    name = torch.cuda.get_device_name() if gpu else f"{platform.machine()}, {arguments.threads} threads"
    print(f"torch {torch.__version__}, {name}, batch {arguments.batch}, {SIZE[0]} x {SIZE[1]}\n")
    rows = [*PLAIN, *(ON_GPU if gpu else {}), OURS]
    found: dict[str, list[dict[str, float]]] = {row: [] for row in rows}
    for _ in range(arguments.repeats):
        for row in rows:
            found[row].append(_measured(row, arguments.steps, arguments))
    print_speed(found, _matmul_rate() if gpu else None)
    with tempfile.TemporaryDirectory() as folder:
        peaks = []
        epoch = -(-arguments.slices // arguments.batch)  # of the smaller store; as many steps on the larger
        for slices in (arguments.slices, 10 * arguments.slices):
            store = Path(folder) / str(slices)
            write_store(store, slices)
            peaks.append((slices, _measured(str(store), epoch, arguments)))
    print_memory(peaks)


def _measured(what: str, steps: int, arguments: argparse.Namespace) -> dict[str, float]:
    own = ["--measure", what, "--steps", steps, "--batch", arguments.batch, "--threads", arguments.threads]
    command = [sys.executable, __file__, *map(str, own)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def speed(row: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Time ``--steps`` steps of one row after a warm-up of 16.

    R1 falls on every 16th, so turns of 16 are whole.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    steps = arguments.steps // 16 * 16
    if row == OURS:
        with tempfile.TemporaryDirectory() as folder:
            write_store(Path(folder), 64)
            seconds = _loop_seconds(Path(folder), steps, arguments)
        flops = 0.0
    else:
        half, channels_last, compiled = (PLAIN | ON_GPU)[row]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        x, y = (
            torch.rand(arguments.batch, 1, *SIZE, device=device).mul(2).sub(1).contiguous(memory_format=layout)
            for _ in range(2)
        )

        def change(network: nn.Module) -> nn.Module:
            return (network if channels_last else with_instance_norm(network)).to(memory_format=layout)  # type: ignore[call-overload]

        autocast = torch.autocast(device.type, torch.bfloat16) if half else None
        step = ours.textbook_step(DOMAINS, SETTINGS, x, y, change, autocast, compiled)
        flops = _flops(step) if device.type == "cuda" and not compiled else 0.0
        for number in range(16):
            step(number)
        _wait(device)
        start = time.perf_counter()
        for number in range(steps):
            step(number)
        _wait(device)
        seconds = (time.perf_counter() - start) / steps
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident_mib() * 2**20
    return {"images_per_s": arguments.batch / seconds, "gib": peak / 2**30, "flops": flops / arguments.batch}


def _loop_seconds(folder: Path, steps: int, arguments: argparse.Namespace) -> float:
    """Return seconds per step of the product's loop from the 17th step on, including the data."""
    times: list[float] = []

    def tick() -> None:
        if len(times) in (15, 15 + steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    settings = {**SETTINGS, "training": {"batch": arguments.batch}}
    total = 16 + steps + 1  # one more, because the last one validates
    ours.train(SliceStore.open(folder), *DOMAINS, settings, total, arguments.threads, tick=tick)
    return (times[15 + steps] - times[15]) / steps


def with_instance_norm(network: nn.Module) -> nn.Module:
    """Replace group normalisation with one group per channel by instance normalisation of the same
    values."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm) and child.num_groups == child.num_channels:
                setattr(module, name, nn.InstanceNorm2d(child.num_channels, eps=child.eps, affine=child.affine))
    return network


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _flops(step: Callable[[int], None]) -> float:
    """Count the floating-point operations of an ordinary step, without R1."""
    from torch.utils.flop_counter import FlopCounterMode

    step(1)
    with FlopCounterMode(display=False) as counter:
        step(1)
    return float(counter.get_total_flops())


def _matmul_rate() -> float:
    """Measure operations per second of a bfloat16 product of 8192 x 8192 on this card."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for _ in range(5):
        a @ a
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(20):
        a @ a
    torch.cuda.synchronize()
    return 20 * 2 * 8192**3 / (time.perf_counter() - start)


def print_speed(found: dict[str, list[dict[str, float]]], matmul_rate: float | None) -> None:
    """Print medians, the ratio to the plain row taken repeat by repeat, and on a GPU the share of
    its matmul rate."""
    print("| row | images/s | ratio | GiB |" + (" share of bfloat16 matmul |" if matmul_rate else ""))
    print("|---|---|---|---|" + ("---|" if matmul_rate else ""))
    reference = found[next(iter(PLAIN))]
    flops = reference[0]["flops"]
    for row, values in found.items():
        rate = statistics.median(value["images_per_s"] for value in values)
        ratios = [a["images_per_s"] / b["images_per_s"] for a, b in zip(values, reference, strict=True)]
        line = f"| {row} | {rate:.1f} | {statistics.median(ratios):.2f} | {max(v['gib'] for v in values):.2f} |"
        print(line + (f" {rate * flops / matmul_rate:.1%} |" if matmul_rate else ""))


def write_store(folder: Path, slices: int) -> None:
    """Write a store of ``slices`` noisy ellipses per domain, one the other's negative, 50 to a
    subject, to train on."""
    h, w = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    (folder / "train").mkdir(parents=True)
    for sign, domain in zip((1, -1), DOMAINS, strict=True):
        rng = np.random.default_rng(0)
        array = np.lib.format.open_memmap(folder / f"train/{domain}.npy", "w+", np.float16, (slices, 1, *SIZE))
        for i in range(slices):
            array[i, 0] = np.where(h**2 + w**2 < 0.7, sign * rng.normal(0, 0.2, SIZE), -1)
        array.flush()
    extents = [extent_of(is_body(image[0])) for image in array]  # both domains show the same ellipse
    rows = tuple(Row(f"sub-{i // 50:05}", i % 50, i % 50 / 49, 0.5, extent) for i, extent in enumerate(extents))
    index = StoreIndex(
        SIZE, Preparation(), "headers", (), {row.subject: "train" for row in rows},
        {"train": dict.fromkeys(DOMAINS, rows)}, {},
    )  # fmt: skip
    (folder / "index.json").write_text(index.to_json())


def memory(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Return the peak resident memory of training on a store, and its largest part that is not a
    file's pages, MiB."""
    peak = 0

    def tick() -> None:
        nonlocal peak
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]))

    settings = {**SETTINGS, "training": {"batch": arguments.batch}}
    ours.train(SliceStore.open(folder), *DOMAINS, settings, arguments.steps, arguments.threads, tick=tick)
    return {"peak": _resident_mib(), "own": peak / 1024}


def _resident_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_memory(peaks: list[tuple[int, dict[str, float]]]) -> None:
    """Print the memory of both stores and the ratio."""
    print("\n| slices per domain | on disk, MiB | peak, MiB | of it not the store's pages, MiB |\n|---|---|---|---|")
    for slices, found in peaks:
        print(f"| {slices} | {slices * 4 * SIZE[0] * SIZE[1] / 2**20:.0f} | {found['peak']:.0f} | {found['own']:.0f} |")
    small, large = (found for _, found in peaks)
    ratios = large["peak"] / small["peak"], large["own"] / small["own"]
    print(f"\n10 x the data: {ratios[0]:.2f} x the peak memory, {ratios[1]:.2f} x without its pages")


if __name__ == "__main__":
    main()
