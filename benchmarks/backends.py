"""Time ways to run one generator on a CPU, and how far each is from float32 of PyTorch.

Weights are those of the ready model or of a translator folder; inputs are slices of noise blurred
like a head, of the size that `translate` renders. A way is usable where the 99.9th percentile of
the difference is at most 1/255 of the range. OpenVINO and ONNX Runtime are measured if installed.
Usage: python benchmarks/backends.py [--model anybrain] [--size 192] [--threads 1] [--repeats 7]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medstyle.networks.export import Rendering, export
from medstyle.networks.translator import Translator

Run = Callable[[Tensor], Tensor]


def main() -> None:
    """Print the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="anybrain")
    for name, value in (("size", 192), ("threads", 1), ("repeats", 7)):
        parser.add_argument(f"--{name}", type=int, default=value)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    translator = Translator.load(arguments.model)
    networks = translator.members[0]
    channels = networks.colours * networks.neighbours * (1 + len(translator.config.contrasts))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, channels, arguments.size // 8, arguments.size // 8, generator=generator)
    x = torch.nn.functional.interpolate(noise, (arguments.size,) * 2, mode="bicubic").clamp(-1, 1)
    with tempfile.TemporaryDirectory() as folder:
        ways = {**torch_ways(translator), **exported_ways(translator, Path(folder), arguments.threads)}
        with torch.inference_mode():
            known = ways["PyTorch, float32"](x)
            found = {name: run(x).float() for name, run in ways.items()}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(arguments.repeats):
                for name, run in ways.items():
                    start = time.perf_counter()
                    run(x)
                    seconds[name].append(time.perf_counter() - start)
    reference = statistics.median(seconds["PyTorch, float32"])
    print(f"{arguments.model}, 2 slices of {arguments.size}², {arguments.threads} thread(s)\n")
    print("| way | ms a slice | times as fast | 99.9 % of differences below, of 1/255 |\n|---|---|---|---|")
    for name, values in seconds.items():
        apart = np.percentile((found[name] - known).abs().numpy(), 99.9) / (2 / 255)
        taken = statistics.median(values)
        print(f"| {name} | {500 * taken:.0f} | {reference / taken:.2f} | {apart:.2f} |")


def torch_ways(translator: Translator) -> dict[str, Run]:
    """Return the ways of PyTorch."""
    rendering = Rendering(translator, translator.style()).eval()
    wide = Rendering(translator, translator.style()).eval().to(memory_format=torch.channels_last)

    def half(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return rendering(x)

    def half_wide(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return wide(x.to(memory_format=torch.channels_last))

    return {
        "PyTorch, float32": rendering,
        "PyTorch, float32, channels last": lambda x: wide(x.to(memory_format=torch.channels_last)),
        "PyTorch, bfloat16": half,
        "PyTorch, bfloat16, channels last": half_wide,
    }


def exported_ways(translator: Translator, folder: Path, threads: int) -> dict[str, Run]:
    """Return the ways of the runtimes that are installed, from the ONNX export."""
    ways: dict[str, Run] = {}
    file = folder / "model.onnx"
    export(translator, file)
    try:
        import onnxruntime
    except ImportError:
        print("ONNX Runtime is not installed")
    else:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name

        def with_onnx(x: Tensor) -> Tensor:
            made: NDArray[np.float32] = session.run(None, {name: x.numpy()})[0]
            return torch.from_numpy(made)

        ways["ONNX Runtime, float32"] = with_onnx
    try:
        import openvino
    except ImportError:
        print("OpenVINO is not installed")
        return ways
    for kind in ("f32", "bf16"):
        hints = {"INFERENCE_PRECISION_HINT": kind, "INFERENCE_NUM_THREADS": threads}
        compiled = openvino.compile_model(str(file), "CPU", hints)
        ways[f"OpenVINO, {kind}"] = lambda x, compiled=compiled: torch.from_numpy(compiled(x.numpy())[0].copy())
    return ways


if __name__ == "__main__":
    main()
