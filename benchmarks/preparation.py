"""Measure what preparing a scan and returning to its grid cost, against the network's time.

A T1 scan of the phantom with noise and shading goes through the parts of `translate` in turns;
the best time of each counts. The network is the default one, untrained.
Usage: python benchmarks/preparation.py [--matrix 256] [--slices 256] [--repeats 2] [--threads 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch

from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.inference.synthesise import synthesise
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.translator import Translator, TranslatorConfig
from medstyle.phantom.studies import PhantomParams, acquire, draw_subject
from medstyle.transforms.intensity import CorrectBias, Denoise, foreground_mask, noise_sigma
from medstyle.transforms.prepare import Preparation, prepare

NAMES = ("mr_t1", "mr_t2")


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("matrix", 256), ("slices", 256), ("repeats", 2), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    spacing = (230 / arguments.matrix, 230 / arguments.matrix, 180 / arguments.slices)
    settings = PhantomParams(matrix=arguments.matrix, slices=arguments.slices, spacing_mm=spacing)
    volume, _ = acquire(settings, draw_subject(settings, 0), "mr_t1")
    values = volume.voxels.astype(np.float32).transpose(2, 1, 0)  # as scans lie in memory
    tensor, body = torch.from_numpy(values)[None], foreground_mask(values)
    preparation = Preparation()
    prepared = prepare(volume, preparation)
    torch.manual_seed(0)
    networks = Networks(Architecture(), NAMES).eval().requires_grad_(False)
    translator = Translator(TranslatorConfig(Architecture(), NAMES, *NAMES, preparation, {}), [networks])
    made = torch.full_like(prepared.slices, -1.0)
    parts: dict[str, Callable[[], object]] = {
        "network": lambda: synthesise(translator, prepared.slices, body=prepared.foreground, out=made),
        "**preparation**, whole": lambda: prepare(volume, preparation),
        "mask of the body": lambda: foreground_mask(values),
        "level of the noise": lambda: noise_sigma(values, body),
        "noise filter, with its level": lambda: Denoise("nlm", rician=True)(tensor, body),
        "bias field": lambda: CorrectBias()(tensor, body),
        "**back to the scan's grid**": lambda: prepared.restore(made, "mr_t2", Fingerprint(DOMAINS["mr_t2"].range)),
    }
    seconds = dict.fromkeys(parts, float("inf"))
    for _ in range(arguments.repeats):
        for name, part in parts.items():
            start = time.perf_counter()
            part()
            seconds[name] = min(seconds[name], time.perf_counter() - start)
    print(f"{arguments.matrix}² x {arguments.slices}, {arguments.threads} thread(s)\n")
    print("| part | s | of the network's time |\n|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {value:.2f} | {value / seconds['network']:.1%} |")


if __name__ == "__main__":
    main()
