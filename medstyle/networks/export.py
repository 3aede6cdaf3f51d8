"""Export a translator to one file for other runtimes: ONNX, ``torch.export`` or TorchScript."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from medstyle.errors import MissingPackage, ModelError
from medstyle.networks.translator import Translator

SUFFIXES = {".onnx": "ONNX", ".pt2": "torch.export", ".ts": "TorchScript"}


class Rendering(nn.Module):
    """Render content in one style: the mean over the members, with fixed codes."""

    def __init__(self, translator: Translator, style: Sequence[Tensor]) -> None:
        super().__init__()
        self.members = translator.members
        self.networks = nn.ModuleList(self.members)  # so that the exporters see their weights
        self.sharpness = translator.config.architecture.sharpness
        for number, code in enumerate(style):
            self.register_buffer(f"code_{number}", code.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Render ``(N, C_in, ...)``, whose sizes must be multiples of the networks'."""
        total = torch.zeros((), device=x.device)
        for number, networks in enumerate(self.members):
            code = getattr(self, f"code_{number}").expand(x.shape[0], -1)
            total = total + networks.padded(x, code, self.sharpness)
        return total / len(self.members)


def export(
    translator: Translator, path: Path, domain: str | None = None, style: Sequence[Tensor] | None = None
) -> None:
    """Write the inference path to ``path``, in the format of its suffix, for any size.

    ONNX carries the configuration, ``translator.json``, and the target as its metadata: what has to
    be done before and after the network. Any batch size works, too. The input is
    ``(N, C_in, H, W)`` or ``(N, C_in, D, H, W)`` in network units; sizes are multiples of
    ``translator.multiple``. The style is ``style``, the codes of a reference, or the default one of
    ``domain``.

    Raises:
        UserError: the suffix is unknown, or the package for ONNX is not installed.
    """
    if path.suffix not in SUFFIXES:
        known = ", ".join(f"{suffix} ({name})" for suffix, name in SUFFIXES.items())
        raise ModelError(f"{path}: the suffix must be one of {known}")
    rendering = Rendering(translator, style or translator.style(domain)).cpu().eval().requires_grad_(False)
    first = translator.members[0]
    multiple, dims = translator.multiple, first.dimensions
    channels = first.colours * first.neighbours * (1 + len(translator.config.contrasts))
    example = torch.zeros(2, channels, *[4 * multiple] * dims)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of the exporters about their own code
        if path.suffix == ".ts":
            torch.jit.save(torch.jit.trace(rendering, example), path)
            return
        names = ("d", "h", "w")[-dims:]
        sizes = {i + 2: multiple * torch.export.Dim(name, min=2, max=4096) for i, name in enumerate(names)}
        shapes = ({0: torch.export.Dim("n", min=1, max=4096), **sizes},)
        program = torch.export.export(rendering, (example,), dynamic_shapes=shapes)
        if path.suffix == ".pt2":
            torch.export.save(program, path)
            return
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it reports every package that is not installed
        try:
            made = torch.onnx.export(program, (), input_names=["content"], output_names=["image"], verbose=False)
        except ImportError as error:
            raise MissingPackage(f"{path}: needs `pip install onnx onnxscript` ({error.name} is missing)") from None
        assert made is not None
        config = translator.config
        made.model.metadata_props.update(medstyle=config.to_json(), target=domain or config.target)
        made.save(path)
