"""The translator: what training produces and everything after it loads. One folder:

``weights.safetensors`` (EMA weights; an ensemble has ``weights-01.safetensors``... beside it), ``translator.json`` (how
to build and feed the network), ``MODEL_CARD.md``. No pickle anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medstyle.errors import UserError
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.networks.generator import GENERATORS, build_generator
from medstyle.networks.style import LATENT, STYLES, Style
from medstyle.params import params, parse

MARGIN = 8  # pixels of air that the generator sees around a body, in training and in use
BOX = 16  # sides of the box around a body are multiples of this, or few of them would be alike
FORMAT = 2  # raised when a folder written before can no longer be read


def box_around(extent: Sequence[int], size: Sequence[int], multiple: int) -> tuple[slice, slice]:
    """Return the rows and columns that a generator sees of a slice, in training and in use.

    What it paints depends on the share of air that it sees, through the statistics of its normalisation.

    Args:
        extent: first and last row, first and last column of the body; whole slices where it is empty.
        size: of the slice, ``(H, W)``.
        multiple: of the generator: sides are multiples of it, as far as the slice is large enough.
    """
    top, bottom, left, right = extent
    if bottom < top:
        return slice(0, size[0]), slice(0, size[1])
    sides = []
    multiple = math.lcm(multiple, BOX)
    for low, high, length in ((top, bottom, size[0]), (left, right, size[1])):
        side = min(length, -(-(high - low + 1 + 2 * MARGIN) // multiple) * multiple)
        start = min(max(0, low - MARGIN), length - side)
        sides.append(slice(start, start + side))
    return sides[0], sides[1]


def extent_of(body: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the first and last row, first and last column of the body ``(..., H, W)``; an empty one ends before 0."""
    planes = body.reshape(-1, *body.shape[-2:])
    rows, columns = (np.flatnonzero(planes.any(axis=(0, axis))) for axis in (2, 1))
    if not len(rows):
        return body.shape[-2], -1, body.shape[-1], -1
    return int(rows[0]), int(rows[-1]), int(columns[0]), int(columns[-1])


@params
class Architecture:
    """The generator and where its style comes from."""

    generator: str = "medstyle"
    """medstyle, or a MONAI network in its place: unet, dynunet, swin_unetr."""
    widths: tuple[int, ...] = (16, 32, 64, 128)
    """Channels per resolution level, fine to coarse."""
    style: tuple[str, ...] = ("domain",)
    """Sources of the style code: domain (one per domain), latent (random, diverse), reference (from an image)."""
    style_size: int = 8
    """Length of the style code."""
    bottleneck_blocks: int = 4
    """Residual blocks at the coarsest level."""
    repainted: int = 0
    """Finest levels whose details the decoder paints by itself: 0 keeps anatomy, 1 or 2 give art room."""
    residual: bool = False
    """Predict the change instead of the image; source and target must share a unit."""
    dimensions: Literal[2, 3] = 2
    """2 renders slices, 3 renders volumes in windows."""
    neighbours: int = 1
    """Neighbouring slices that a two-dimensional generator sees, itself included: 1, or 3 or 5 (2.5-D)."""

    def __post_init__(self) -> None:
        if len(self.widths) < 2 or min(self.widths) < 1 or self.style_size < 1 or self.bottleneck_blocks < 0:
            raise UserError("network: needs at least two widths and positive sizes")
        if self.generator not in GENERATORS:
            raise UserError(f"network.generator: {self.generator!r} is none of {', '.join(GENERATORS)}")
        if self.repainted and self.generator != "medstyle":
            raise UserError("network.repainted: MONAI's networks have their own ways for details; set it to 0")
        if not self.style or not set(self.style) <= set(STYLES):
            raise UserError(f"network.style: {list(self.style)} must be some of {', '.join(STYLES)}")
        if not 0 <= self.repainted < len(self.widths):
            raise UserError(f"network.repainted: must lie in [0, {len(self.widths) - 1}]")
        if self.neighbours % 2 == 0 or (self.neighbours > 1 and self.dimensions == 3):
            raise UserError("network.neighbours: must be odd, and 1 where dimensions is 3")


class Networks(nn.Module):
    """Generator and style source, trained and saved as one.

    Args:
        architecture: of the generator and its style.
        domains: names; their order is the index of the style code.
        contrasts: number ``M`` of images of a subject that enter together.
    """

    def __init__(self, architecture: Architecture, domains: Sequence[str], contrasts: int = 1) -> None:
        super().__init__()
        channels = {DOMAINS[name].channels for name in domains}
        if len(channels) != 1:
            raise UserError(f"domains {', '.join(domains)} mix grey and colour images; train them apart")
        colours = max(channels)
        self.colours, self.neighbours = colours, architecture.neighbours
        self.residual, self.dimensions = architecture.residual, architecture.dimensions
        picture = DOMAINS[domains[0]].unit == "8-bit"
        self.generator = build_generator(
            architecture.generator,
            in_channels=colours * contrasts * architecture.neighbours,
            out_channels=colours,
            widths=architecture.widths,
            style_size=architecture.style_size,
            spatial_dims=architecture.dimensions,
            bottleneck_blocks=architecture.bottleneck_blocks,
            repainted=architecture.repainted,
            bounded=picture and not architecture.residual,
            border="replicate" if picture else "zeros",
        )
        self.style = Style(architecture.style, len(domains), architecture.style_size, colours, architecture.dimensions)

    def forward(self, x: Tensor, domain: Tensor, z: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
        """Render content ``(N, C_in, ...)`` in the style of domain indices ``(N,)``, a latent or a reference."""
        return self.render(x, self.style(domain, z, reference))

    def content(self, x: Tensor) -> Tensor:
        """Return the image ``(N, C, ...)`` that is rendered: the source's own slice among contrasts and neighbours."""
        return x[:, self.neighbours // 2 : self.colours * self.neighbours : self.neighbours]

    def render(self, x: Tensor, s: Tensor) -> Tensor:
        """Render content of any size in style ``(N, S)``: padded to the generator's multiple and cut again."""
        short = [-size % self.generator.multiple for size in x.shape[2:]]
        inside = nn.functional.pad(x, [n for size in reversed(short) for n in (0, size)], mode="replicate")
        y: Tensor = self.generator(inside, s)
        whole: list[Any] = [slice(size) for size in x.shape[2:]]
        y = y[(..., *whole)]
        return y + self.content(x) if self.residual else y


@dataclass(frozen=True)
class TranslatorConfig:
    """Everything but the weights.

    Attributes:
        architecture: size of the networks.
        domains: domain names; their order is the index of the style code.
        source, target: the roles that were trained; a source may be any of ``domains`` where the recipe allows it.
        contrasts: further domains of the same subject that enter beside the source.
        preparation: parameters of the preparation of scans (``transforms.prepare.Preparation``).
        fingerprints: per domain, how outputs leave network units (median over training volumes).
        rules: ingest rules that recognise an input's domain.
        reference: statistics of training sources that the out-of-distribution gate compares with.
        facts: what the model card tells of data and training.
        size: of the training images, ``(H, W)`` or ``(D, H, W)``: the window of large inputs.
        registration: how contrasts are brought onto the grid of the source: ``headers``, ``rigid`` or ``affine``.
        mirror: whether left and right may be exchanged.
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
    contrasts: list[str] = field(default_factory=list)
    size: list[int] = field(default_factory=list)
    registration: str = "headers"
    mirror: bool = True
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the text of ``translator.json``."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def weight_files(folder: Path) -> list[Path]:
    """List the weights in a translator folder: one file, or one for each member of an ensemble."""
    return sorted(folder.glob("weights*.safetensors"), key=lambda path: (len(path.name), path.name))


def weights_sha256(folder: Path) -> str:
    """Return the hash that names the model: of its weights alone."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in weight_files(folder))).hexdigest()


@dataclass
class Translator:
    """A trained generator, or an ensemble of them, with what is needed to use it: call it with network slices.

    Attributes:
        config: everything but the weights.
        members: networks of one architecture; the output is the mean of theirs.
        sha256: hash of the weights' bytes.
    """

    config: TranslatorConfig
    members: list[Networks]
    sha256: str = ""

    def save(self, folder: Path) -> None:
        """Write the folder; the weights' bytes depend on their values only."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        for number, networks in enumerate(self.members):
            weights = {name: value.detach().cpu().contiguous() for name, value in networks.state_dict().items()}
            save_file(weights, folder / (f"weights-{number:02d}.safetensors" if number else "weights.safetensors"))
        (folder / "translator.json").write_text(self.config.to_json())

    @staticmethod
    def load(folder: Path | str, device: str | torch.device = "cpu") -> Translator:
        """Read a translator folder; raises :class:`UserError` naming what is missing or does not fit."""
        from safetensors.torch import load

        folder = Path(folder)
        try:
            config = json.loads((folder / "translator.json").read_text())
            files = weight_files(folder)
            data = [path.read_bytes() for path in files]
            if not data:
                raise FileNotFoundError
        except (OSError, ValueError):
            raise UserError(
                f"{folder}: not a translator folder (weights.safetensors and translator.json); train one with "
                "`dvc repro train` or name a registered model such as models:/medstyle@champion"
            ) from None
        if config.get("format") != FORMAT:
            raise UserError(f"{folder}: translator format {config.get('format')} is not readable, this is {FORMAT}")
        parsed = parse(TranslatorConfig, config, f"{folder / 'translator.json'}")
        members = []
        for path, content in zip(files, data, strict=True):
            networks = Networks(parsed.architecture, parsed.domains, 1 + len(parsed.contrasts))
            try:
                networks.load_state_dict(load(content))
            except Exception:  # safetensors and torch raise many kinds for a damaged file
                raise UserError(f"{path}: damaged, or of another architecture") from None
            members.append(networks.to(device).eval().requires_grad_(False))
        return Translator(parsed, members, hashlib.sha256(b"".join(data)).hexdigest())

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.members[0].parameters()).device

    @property
    def multiple(self) -> int:
        """Sizes that need no padding are multiples of this."""
        return self.members[0].generator.multiple

    def index(self, domain: str) -> int:
        """Return the style index of ``domain``; raises :class:`UserError` if it was not trained."""
        if domain not in self.config.domains:
            raise UserError(f"this translator knows {', '.join(self.config.domains)}, not {domain!r}")
        return self.config.domains.index(domain)

    @torch.inference_mode()
    def style(
        self, domain: str | None = None, reference: Tensor | None = None, seed: int | None = None
    ) -> list[Tensor]:
        """Return a style code ``(1, S)`` per member: of a reference, else of a seed, else of the domain.

        Args:
            domain: default: the trained target.
            reference: ``(R, C, ...)`` images in network units; their codes are averaged.
            seed: draws a latent, for diverse outputs.

        Raises:
            UserError: the domain or the source of style was not trained.
        """
        n = 1 if reference is None else len(reference)
        which = torch.full((n,), self.index(domain or self.config.target), device=self.device)
        image = None if reference is None else reference.to(self.device)
        z = None
        if image is None and seed is not None:
            z = torch.randn(n, LATENT, generator=torch.Generator().manual_seed(seed)).to(self.device)
        elif image is None and "domain" not in self.config.architecture.style:
            if "latent" not in self.config.architecture.style:
                raise UserError("this translator takes its style from a reference image: name one with --style")
            z = torch.zeros(n, LATENT, device=self.device)  # as validation in training has it
        return [networks.style(which, z, image).mean(0, keepdim=True) for networks in self.members]

    def each(self, x: Tensor, style: list[Tensor]) -> Iterator[Tensor]:
        """Render ``x`` with one member after the other, in float32 on the device of ``x``; see :meth:`__call__`."""
        # half precision on a GPU; a CPU computes it more slowly
        half = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        inside = x.to(self.device, non_blocking=True)
        for networks, code in zip(self.members, style, strict=True):
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                y = networks.render(inside, code.expand(len(x), -1)).float().to(x.device)
            yield y

    def __call__(self, x: Tensor, domain: str | None = None, style: list[Tensor] | None = None) -> Tensor:
        """Render content ``(N, C_in, ...)`` of any size.

        Args:
            x: network units; ``C_in`` holds the contrasts (source first), each with its neighbours.
            domain: target; default: the trained one.
            style: of :meth:`style`; default: the domain's.
        """
        total = torch.zeros(())
        for y in self.each(x, style or self.style(domain)):
            total = total + y
        return total / len(self.members)


def join(folders: Sequence[Path], out: Path) -> Translator:
    """Write the members of several translators (other seeds of one training) as one ensemble folder ``out``.

    Raises:
        UserError: they differ in more than their weights and facts.
    """
    parts = [Translator.load(folder) for folder in folders]
    first = parts[0].config
    for folder, part in zip(folders, parts, strict=True):
        if (part.config.architecture, part.config.domains, part.config.preparation, part.config.contrasts) != (
            first.architecture, first.domains, first.preparation, first.contrasts,
        ):  # fmt: skip
            raise UserError(f"{folder}: of another architecture, preparation or domains than {folders[0]}")
    members = [networks for part in parts for networks in part.members]
    whole = Translator(replace(first, facts={**first.facts, "ensemble members": len(members)}), members)
    whole.save(out)
    whole = Translator.load(out)
    (out / "MODEL_CARD.md").write_text(model_card(whole.config, whole.sha256))
    return whole


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
    inputs = " + ".join([config.source, *config.contrasts])
    lines += [f"- input: {inputs}, {source.channels} channel(s); output: {config.target} in {target.unit}"]
    lines += [f"- {key}: {value}" for key, value in config.facts.items()]
    lines += ["- outputs carry the marker SYNTHETIC; an out-of-distribution score travels with each", ""]
    if metrics:
        lines += ["## Evaluation on unseen subjects", "", "```json", json.dumps(metrics, indent=1), "```", ""]
    return "\n".join(lines)
