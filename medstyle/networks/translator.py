"""The translator: what training produces and everything after it loads. One folder:

``weights.safetensors`` (EMA weights), ``translator.json`` (how to build and feed the network), ``MODEL_CARD.md``.
No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medstyle.errors import UserError
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.networks.generator import Generator
from medstyle.networks.style import DomainStyle
from medstyle.params import params, parse

FORMAT = 1  # raised when a folder written before can no longer be read


@params
class Architecture:
    """Size of the generator."""

    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels per resolution level, fine to coarse."""
    style_size: int = 8
    """Length of the style code."""
    bottleneck_blocks: int = 4
    """Residual blocks at the coarsest level."""
    residual: bool = False
    """Predict the change instead of the image; source and target must share a unit."""

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1 or self.style_size < 1 or self.bottleneck_blocks < 0:
            raise UserError("network: needs at least two widths and positive sizes")


class Networks(nn.Module):
    """Generator and style source, trained and saved as one."""

    def __init__(self, architecture: Architecture, domains: list[str]) -> None:
        super().__init__()
        channels = {DOMAINS[name].channels for name in domains}
        if len(channels) != 1:
            raise UserError(f"domains {', '.join(domains)} mix grey and colour images; train them apart")
        self.generator = Generator(
            in_channels=max(channels),
            out_channels=max(channels),
            widths=architecture.widths,
            style_size=architecture.style_size,
            bottleneck_blocks=architecture.bottleneck_blocks,
            residual=architecture.residual,
            bounded=DOMAINS[domains[0]].unit == "8-bit",
        )
        self.style = DomainStyle(len(domains), architecture.style_size)

    def forward(self, x: Tensor, domain: Tensor) -> Tensor:
        """Render content ``(N, C, H, W)`` in the style of domain indices ``(N,)``."""
        output: Tensor = self.generator(x, self.style(domain))
        return output


@dataclass(frozen=True)
class TranslatorConfig:
    """Everything but the weights.

    Attributes:
        architecture: size of the networks.
        domains: domain names; their order is the index of the style code.
        source, target: the roles that were trained.
        preparation: parameters of the preparation of scans (``transforms.prepare.Preparation``).
        fingerprints: per domain, what -1 and +1 stand for in outputs (median over training volumes).
        rules: ingest rules that recognise an input's domain.
        reference: statistics of training sources that the out-of-distribution gate compares with.
        facts: what the model card tells of data and training.
        style: source of the style code that was trained; others are refused.
    """

    architecture: Architecture
    domains: list[str]
    source: str
    target: str
    preparation: dict[str, Any]
    fingerprints: dict[str, Fingerprint]
    rules: list[dict[str, Any]] = field(default_factory=list)
    reference: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    style: str = "domain"
    format: int = FORMAT


@dataclass
class Translator:
    """A trained generator with what it needs to be used: call it with network slices."""

    config: TranslatorConfig
    networks: Networks
    sha256: str = ""

    def save(self, folder: Path) -> None:
        """Write the folder; the weights' bytes depend on their values only."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.networks.state_dict().items()}
        save_file(weights, folder / "weights.safetensors")
        (folder / "translator.json").write_text(json.dumps(asdict(self.config), indent=1, sort_keys=True) + "\n")

    @staticmethod
    def load(folder: Path | str, device: str | torch.device = "cpu") -> Translator:
        """Read a translator folder; raises :class:`UserError` naming what is missing or does not fit."""
        from safetensors.torch import load

        folder = Path(folder)
        try:
            config = json.loads((folder / "translator.json").read_text())
            data = (folder / "weights.safetensors").read_bytes()
        except (OSError, ValueError):
            raise UserError(
                f"{folder}: not a translator folder (weights.safetensors and translator.json); train one with "
                "`dvc repro train` or name a registered model such as models:/medstyle@champion"
            ) from None
        if config.get("format") != FORMAT:
            raise UserError(f"{folder}: translator format {config.get('format')} is not readable, this is {FORMAT}")
        parsed = parse(TranslatorConfig, config, f"{folder / 'translator.json'}")
        networks = Networks(parsed.architecture, parsed.domains)
        try:
            networks.load_state_dict(load(data))
        except Exception:  # safetensors and torch raise many kinds for a damaged file
            raise UserError(f"{folder / 'weights.safetensors'}: damaged, or of another architecture") from None
        networks = networks.to(device).eval().requires_grad_(False)
        return Translator(parsed, networks, hashlib.sha256(data).hexdigest())

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.networks.parameters()).device

    def index(self, domain: str) -> int:
        """Return the style index of ``domain``; raises :class:`UserError` if it was not trained."""
        if domain not in self.config.domains:
            raise UserError(f"this translator knows {', '.join(self.config.domains)}, not {domain!r}")
        return self.config.domains.index(domain)

    @torch.inference_mode()
    def __call__(self, slices: Tensor, domain: str | None = None) -> Tensor:
        """Render slices ``(N, C, H, W)``, any size, in ``domain`` (default: the trained target), on their device."""
        n, _, height, width = slices.shape
        multiple = self.networks.generator.multiple
        bottom, right = -height % multiple, -width % multiple
        x = torch.nn.functional.pad(slices.to(self.device), (0, right, 0, bottom), mode="replicate")
        which = torch.full((n,), self.index(domain or self.config.target), device=self.device)
        y: Tensor = self.networks(x, which)
        return y[..., :height, :width].to(slices.device)


def model_card(config: TranslatorConfig, sha256: str, metrics: dict[str, Any] | None = None) -> str:
    """Render the model card (fields of CHAI's applied model card and CLAIM 2024) as Markdown."""
    source, target = DOMAINS[config.source], DOMAINS[config.target]
    clinical = target.dicom is not None
    lines = [
        f"# medstyle {source.label} -> {target.label}",
        "",
        f"- weights sha256: `{sha256}`",
        "- release stage: research only, not a medical device" if clinical else "- release stage: research",
        f"- intended use: synthetic {target.label} images from {source.label} images like those it was trained on",
    ]
    if clinical:
        lines.append(
            "- out of scope: primary diagnosis, dose calculation, quantitative measurement, lesion detection, and any "
            "scanner, sequence, body part or age group that is absent from the training data below"
        )
    lines += [f"- input: {config.source}, {source.channels} channel(s); output: {config.target} in {target.unit}"]
    lines += [f"- {key}: {value}" for key, value in config.facts.items()]
    lines += ["- outputs carry the marker SYNTHETIC; an out-of-distribution score travels with each", ""]
    if metrics:
        lines += ["## Evaluation on unseen subjects", "", "```json", json.dumps(metrics, indent=1), "```", ""]
    return "\n".join(lines)
