"""Damage files, and read them in a process with little memory of its own."""

from __future__ import annotations

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np

MEMORY = 512 << 20  # bytes that a process may ask for beyond what it holds when it starts
Fuzz = Callable[[int, int, Path], object]  # number of cases, seed, folder


def damage(rng: np.random.Generator, files: list[bytes]) -> bytes:
    """Flip bytes, cut, splice two files, repeat a part, or overwrite a length with a huge one."""
    data = bytearray(files[rng.integers(len(files))])
    for _ in range(int(rng.integers(1, 4))):
        where = (
            int(rng.integers(max(len(data), 1))) if rng.random() < 0.5 else int(rng.integers(min(len(data), 1200) or 1))
        )
        match int(rng.integers(5)):
            case 0:
                for position in rng.integers(0, min(len(data), 1500) or 1, int(rng.integers(1, 30))):
                    if data:
                        data[position] = int(rng.integers(256))
            case 1:
                del data[where:]
            case 2:
                other = files[rng.integers(len(files))]
                data[where:] = other[int(rng.integers(len(other))) :]
            case 3:
                data[where:where] = data[where : where + int(rng.integers(400))]
            case 4:
                data[where : where + 4] = [b"\xff\xff\xff\xff", b"\xfe\xff\xff\x7f", bytes(4)][rng.integers(3)]
    return bytes(data)


def _limited(fuzz: Fuzz, cases: int, seed: int, folder: Path, reserved: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY + reserved,) * 2)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fuzz(cases, seed, folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY >> 10  # kB


def within_limits(fuzz: Fuzz, cases: int, seed: int, folder: Path, reserved: int = 0) -> None:
    """Run ``fuzz``, which writes the number of each case: a codec may end the process.

    ``reserved`` are bytes of addresses that threads reserve and do not use.
    """
    process = multiprocessing.get_context("spawn").Process(target=_limited, args=(fuzz, cases, seed, folder, reserved))
    process.start()
    process.join(500)
    if process.exitcode is None:
        process.kill()
        process.join()
    number = (folder / "number").read_text()
    assert process.exitcode == 0, f"case {number} of seed {seed} ended with {process.exitcode}; it is in {folder}"
