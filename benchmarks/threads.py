"""Measure training on two threads, alone and beside another job, with both OpenMP wait policies.

OpenMP's idle threads spin unless ``OMP_WAIT_POLICY`` is passive, which `medstyle` sets. The
other job is the same training. Usage: python benchmarks/threads.py [--steps 60] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--store", type=Path, help="train on it and print steps/s (the benchmark starts itself so)")
    arguments = parser.parse_args()
    if arguments.store is not None:
        train(arguments.store, arguments.steps, arguments.threads)
        return
    print("| threads that wait | alone, steps/s | beside another, steps/s each |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        from benchmarks.throughput import write_store

        write_store(Path(folder), 200)
        for words, policy in (("spin (OpenMP's default)", None), ("sleep (`OMP_WAIT_POLICY=passive`)", "passive")):
            [alone] = run(1, folder, policy, arguments)
            both = run(2, folder, policy, arguments)
            print(f"| {words} | {alone:.2f} | {' and '.join(f'{rate:.2f}' for rate in both)} |", flush=True)


def run(count: int, folder: str, policy: str | None, arguments: argparse.Namespace) -> list[float]:
    """Start ``count`` trainings at once; returns the steps/s of each."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")}
    environment |= {"OMP_WAIT_POLICY": policy} if policy else {}
    options = ("--steps", str(arguments.steps), "--threads", str(arguments.threads), "--store", folder)
    command = [sys.executable, __file__, *options]
    jobs = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return [float(job.communicate()[0].splitlines()[-1]) for job in jobs]


def train(store: Path, steps: int, threads: int) -> None:
    """Train and print the steps/s after the first ten."""
    from benchmarks.peers import ours
    from benchmarks.throughput import DOMAINS
    from medstyle.data.store import SliceStore

    moments: list[float] = []
    settings = {"training": {"batch": 2}, "network": {"widths": [16, 32, 64, 128], "bottleneck_blocks": 2}}
    ours.train(
        SliceStore.open(store), *DOMAINS, settings, steps, threads, tick=lambda: moments.append(time.perf_counter())
    )
    print((len(moments) - 11) / (moments[-1] - moments[10]))


if __name__ == "__main__":
    main()
