"""Measure the gain and the cost of each noise filter on the phantom, whose truth is noise-free.

Every filter of ``medstyle.transforms.intensity.FILTERS`` on T1 and T2 of the same subjects with
Rician noise, at the size of a usual scan; strength from the noise that the code measures, as in
use. Gains are 10 log10 of the ratio of mean squared errors before and after, in the body and
everywhere.
Usage: python benchmarks/denoise.py [--noise 0.05] [--matrix 256] [--slices 128] [--subjects 2]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from medstyle.phantom.studies import PhantomParams, acquire, draw_subject
from medstyle.transforms.intensity import FILTERS, Denoise, foreground_mask, noise_sigma


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.05, help="standard deviation over the signal of white matter")
    parser.add_argument("--matrix", type=int, default=256)
    parser.add_argument("--slices", type=int, default=128)
    parser.add_argument("--subjects", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    spacing = (230 / arguments.matrix, 230 / arguments.matrix, 150 / arguments.slices)
    settings = PhantomParams(
        noise=arguments.noise, bias=0.0, matrix=arguments.matrix, slices=arguments.slices, spacing_mm=spacing
    )
    gains: dict[str, list[tuple[float, float, float]]] = {name: [] for name in FILTERS}
    levels = []
    for index in range(arguments.subjects):
        subject = draw_subject(settings, index)
        for domain in ("mr_t1", "mr_t2"):
            noisy, clean = (volume.voxels.transpose(2, 1, 0) for volume in acquire(settings, subject, domain))
            body = foreground_mask(clean)
            air = noisy[~body]
            levels.append(noise_sigma(noisy) / float(np.sqrt(np.mean(air.astype(np.float64) ** 2) / 2)))
            for name in FILTERS:
                start = time.perf_counter()
                made = np.asarray(Denoise(name, rician=True)(torch.from_numpy(np.ascontiguousarray(noisy))[None])[0])
                seconds = time.perf_counter() - start
                before, after = (np.square(image - clean, dtype=np.float64) for image in (noisy, made))
                inside, everywhere = (10 * np.log10(before[m].mean() / after[m].mean()) for m in (body, ...))
                gains[name].append((inside, everywhere, seconds))
    size = f"{arguments.matrix} x {arguments.matrix} x {arguments.slices}"
    print(f"{2 * arguments.subjects} scans of {size}, noise {arguments.noise:.0%} of white matter, 1 thread")
    print(f"measured over true standard deviation of the noise: {np.mean(levels):.2f}\n")
    print("| filter | gain in the body, dB | gain everywhere, dB | s |\n|---|---|---|---|")
    for name, rows in gains.items():
        inside, everywhere, seconds = np.mean(rows, axis=0)
        print(f"| {name} | {inside:+.1f} | {everywhere:+.1f} | {seconds:.1f} |")


if __name__ == "__main__":
    main()
