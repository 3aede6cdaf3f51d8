"""Images per second of one generator step: ours beside the same network with other layouts and normalisations.

One table, every row in the same process and run; the reference is the textbook form, instance normalisation on plain
NCHW. Usage: python benchmarks/training.py [--repeats 10] [--threads N]
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from medstyle.networks.generator import Generator
from medstyle.training.loop import pick_device

SIZE, BATCH, WIDTHS = (120, 104), 4, (16, 32, 64, 128)


def with_instance_norm(network: nn.Module) -> nn.Module:
    """Replace every group normalisation by instance normalisation of the same values."""
    for module in network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GroupNorm):
                setattr(module, name, nn.InstanceNorm2d(child.num_channels, eps=child.eps, affine=child.affine))
    return network


VARIANTS: dict[str, tuple[Callable[[nn.Module], nn.Module], torch.memory_format, bool]] = {
    "instance norm, NCHW (reference)": (with_instance_norm, torch.contiguous_format, False),
    "group norm, NCHW": (lambda n: n, torch.contiguous_format, False),
    "instance norm, channels_last": (with_instance_norm, torch.channels_last, False),
    "group norm, channels_last": (lambda n: n, torch.channels_last, False),
    "group norm, channels_last, bfloat16": (lambda n: n, torch.channels_last, True),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = pick_device("auto")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()
    print(f"torch {torch.__version__}, {device.type} ({name}), {arguments.threads} threads, batch {BATCH}, {SIZE}")
    steps = {}
    for title, (change, layout, half) in VARIANTS.items():
        if half and device.type == "cpu":
            continue  # without hardware for it, a CPU emulates bfloat16 many times slower
        torch.manual_seed(0)
        network = change(Generator(widths=WIDTHS, bottleneck_blocks=2)).to(device).to(memory_format=layout)
        x = torch.randn(BATCH, 1, *SIZE, device=device).contiguous(memory_format=layout)
        steps[title] = _step(network, x, torch.randn(BATCH, 8, device=device), half)
    times: dict[str, list[float]] = {title: [] for title in steps}
    for _ in range(arguments.repeats):  # in turns, so that a busy moment of the machine hits every row alike
        for title, step in steps.items():
            step()
            start = time.perf_counter()
            step()
            times[title].append(time.perf_counter() - start)
    reference = statistics.median(times[next(iter(times))])
    for title, values in times.items():
        median = statistics.median(values)
        print(f"{title:40s} {BATCH / median:8.1f} images/s   {reference / median:5.2f} x")


def _step(network: nn.Module, x: torch.Tensor, s: torch.Tensor, half: bool) -> Callable[[], None]:
    def step() -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            loss = network(x, s).abs().mean()
        loss.backward()
        if x.device.type == "cuda":
            torch.cuda.synchronize()

    return step


if __name__ == "__main__":
    main()
