"""Compare inference with the bare network, and our windows with MONAI's SlidingWindowInferer.

Every row of a table in the same process and run, in turns, the best time of each. The bare loop
calls the generator on batches and throws the output away; `synthesise` is what `translate` runs:
style, chunks, blending, assembly.
Usage: python benchmarks/inference.py [--repeats 3] [--threads N]
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Mapping
from functools import partial

import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor

from medstyle.inference.synthesise import CHUNK, WINDOW, synthesise
from medstyle.inference.windows import blend, shares
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.translator import Translator, TranslatorConfig

BATCHES = (1, 2, 4, 8, 32)
SLICES = {128: 32, 256: 32}
DOMAINS = ["mr_t1", "mr_t2"]


def main() -> None:
    """Print the tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    name = torch.cuda.get_device_name() if cuda else platform.machine()
    print(f"torch {torch.__version__}, {device.type} ({name}), {arguments.threads} threads\n")
    translator = _translator(Architecture(), device)
    print("| size | what | slices/s | of the best bare loop |\n|---|---|---|---|")
    for size, count in SLICES.items():
        content = torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(0))
        rows: dict[str, Callable[[], object]] = {}
        for half in (False, True) if cuda else (False,):
            for batch in BATCHES:
                title = f"bare loop, {'bfloat16, ' if half else ''}batch {batch}"
                rows[title] = partial(_bare, translator, content, batch, half)
        chosen = min(count, max(1, CHUNK[device.type] // size**2))
        rows[f"**synthesise**, chunks of {chosen}"] = partial(synthesise, translator, content)
        seconds = _best(rows, arguments.repeats, device)
        best = min(seconds[title] for title in rows if title.startswith("bare"))
        for title, value in seconds.items():
            print(f"| {size}² | {title} | {count / value:.1f} | {best / value:.2f} |")
    print("\n| image | what | s | border / inside gradient |\n|---|---|---|---|")
    for title, shape, window in (("picture", (2048, 2048), (WINDOW,) * 2), ("volume", (48, 96, 96), (32, 64, 64))):
        _windows(title, shape, window, arguments.repeats, device)


def _translator(architecture: Architecture, device: torch.device) -> Translator:
    torch.manual_seed(0)
    networks = Networks(architecture, DOMAINS).eval().requires_grad_(False).to(device)
    return Translator(TranslatorConfig(architecture, DOMAINS, *DOMAINS, {}, {}), [networks])


@torch.inference_mode()
def _bare(translator: Translator, content: Tensor, batch: int, half: bool) -> None:
    [networks] = translator.members
    [code] = translator.style()
    for x in content.split(batch):
        with torch.autocast(translator.device.type, torch.bfloat16, enabled=half):
            networks.generator(x.to(translator.device), code.expand(len(x), -1))


def _best(rows: Mapping[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    seconds = dict.fromkeys(rows, float("inf"))
    for _ in range(repeats):
        for title, row in rows.items():
            start = time.perf_counter()
            row()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds[title] = min(seconds[title], time.perf_counter() - start)
    return seconds


def _windows(title: str, shape: tuple[int, ...], window: tuple[int, ...], repeats: int, device: torch.device) -> None:
    """A small network, so that blending is a large part of the work."""
    translator = _translator(Architecture(widths=(4, 8), bottleneck_blocks=0, dimensions=len(shape)), device)  # type: ignore[arg-type]
    x, style = _textured(shape), translator.style()
    out = torch.empty_like(x)
    monai = SlidingWindowInferer(window, 1, overlap=0.5, mode="gaussian", sigma_scale=0.125)
    made = {}

    @torch.inference_mode()
    def ours() -> None:
        blend(lambda part: [translator(part, style=style)], x, window, [out])
        made["medstyle"] = out

    @torch.inference_mode()
    def theirs() -> None:
        made["MONAI"] = monai(x, lambda part: translator(part, style=style))

    seconds = _best({"medstyle": ours, "MONAI": theirs}, repeats, device)
    size = " x ".join(map(str, shape))
    for name, value in seconds.items():
        print(f"| {title} {size} | {name} | {value:.2f} | {_seam(made[name], window):.3f} |")
    apart = (made["medstyle"] - made["MONAI"]).abs()
    inner = apart[(..., *(slice(n // 2, -n // 2) for n in window))].max()
    print(f"| {title} {size} | largest difference: {apart.max():.3f}; inside, without half a window: {inner:.3f} | | |")


def _textured(shape: tuple[int, ...]) -> Tensor:
    """Return noise on two scales and a slope, ``(1, 1, ...)``: windows differ in their
    statistics."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 1, *(n // 8 for n in shape), generator=generator)
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    image = torch.nn.functional.interpolate(coarse, shape, mode=mode) + torch.linspace(-1, 1, shape[-1])
    return 0.4 * image + 0.1 * torch.randn(1, 1, *shape, generator=generator)


def _seam(image: Tensor, window: tuple[int, ...]) -> float:
    """Return the mean gradient across borders of windows divided by the mean gradient elsewhere."""
    across, inside = [], []
    for axis, size in enumerate(window, 2):
        length = image.shape[axis]
        gradient = image.diff(dim=axis).abs().movedim(axis, 0).flatten(1).mean(1)
        edges = {place.start - 1 for place, _ in shares(length, size)} | {p.stop - 1 for p, _ in shares(length, size)}
        at = torch.tensor([i in edges for i in range(length - 1)])
        across.append(gradient[at].mean())
        inside.append(gradient[~at].mean())
    return float(sum(across) / sum(inside))


if __name__ == "__main__":
    main()
