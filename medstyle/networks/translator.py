"""Load, save and apply a translator: the trained networks and everything needed to use them.

A translator is a folder: ``weights.safetensors`` (EMA weights; an ensemble also has
``weights-01.safetensors``...), ``translator.json`` (how to build and feed the network) and
``MODEL_CARD.md``. It contains no pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from medstyle.cohort.rules import Rule
from medstyle.errors import ModelError, ParamsError, UserError
from medstyle.imaging.modality import DOMAINS, Fingerprint
from medstyle.networks.conformal import Interval
from medstyle.networks.folder import ready_folder, weight_files
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.style import LATENT
from medstyle.params import params, parse
from medstyle.transforms.descriptors import Reference
from medstyle.transforms.prepare import Preparation

FORMAT = 3  # incremented whenever the layout of the folder changes; `_renewed` reads format 2


@params
class TranslatorConfig:
    """Everything but the weights.

    Attributes:
        architecture: parameters of the networks.
        domains: domain names; their order is the index of the style code.
        source, target: the domains that were trained; a source may be any of ``domains`` if the
            objective allows it.
        preparation: how scans and pictures are prepared.
        fingerprints: per domain, how outputs are mapped from network units (median over training
            volumes).
        rules: ingest rules that recognise the domain of an input.
        reference: per domain that may be an input, the statistics for the out-of-distribution
            check.
        facts: facts about data and training for the model card.
        contrasts: further domains of the same subject that are inputs beside the source.
        size: size of the training images, ``(H, W)`` or ``(D, H, W)``: the window for large inputs.
        alignment: how contrasts are aligned with the source: ``headers``, ``rigid`` or ``affine``.
        mirror: whether left and right may be exchanged.
        interval: calibration of the deviation of ``target`` from ``source``, in the default style.
    """

    architecture: Architecture
    domains: tuple[str, ...]
    source: str
    target: str
    preparation: Preparation
    fingerprints: dict[str, Fingerprint]
    rules: tuple[Rule, ...] = ()
    reference: dict[str, Reference] = field(default_factory=dict)
    facts: dict[str, str | int | float] = field(default_factory=dict)
    contrasts: tuple[str, ...] = ()
    size: tuple[int, ...] = ()
    alignment: str = "headers"
    mirror: bool = True
    interval: Interval = Interval()
    format: int = FORMAT

    def to_json(self) -> str:
        """Return the text of ``translator.json``."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def _renewed(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a configuration of format 2 to format 3: renamed keys, references by domain."""
    config = {**config, "format": FORMAT}
    config["alignment"] = config.pop("registration", "headers")
    config["architecture"]["levels_without_skip"] = config["architecture"].pop("repainted", 0)
    old = config.pop("reference", {})
    own = {config["source"]: {name: old[name] for name in ("volume", "slice")}} if "volume" in old else {}
    references = own | {name: values for name, values in old.items() if name not in ("volume", "slice")}
    order = ("centre", "spread", "largest")
    config["reference"] = {
        domain: {name: [values[name][key] for key in order] for name in ("volume", "slice")}
        for domain, values in references.items()
    }
    return config


class _NoDrawing(TorchFunctionMode):
    """Draw no weights from a normal distribution: on the meta device that imports the compiler."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return kwargs["tensor"] if function is torch.nn.init.normal_ else function(*args, **kwargs or {})


def _built(config: TranslatorConfig, content: bytes) -> Networks:
    """Build the networks of one weight file.

    Their shapes are compared first, because a configuration may ask for any amount of memory.
    """
    from safetensors.torch import load

    weights = load(content)
    with torch.device("meta"), _NoDrawing():
        claimed = Networks(config.architecture, config.domains, 1 + len(config.contrasts)).state_dict()
    if {name: value.shape for name, value in claimed.items()} != {name: value.shape for name, value in weights.items()}:
        raise ValueError
    networks = Networks(config.architecture, config.domains, 1 + len(config.contrasts))
    networks.load_state_dict(weights)
    return networks


@dataclass
class Translator:
    """A trained generator or an ensemble, with everything needed to apply it to slices.

    Attributes:
        config: everything but the weights.
        members: networks of one architecture; the output is the mean of their outputs.
        sha256: hash of the bytes of the weights.
    """

    config: TranslatorConfig
    members: list[Networks]
    sha256: str = ""

    def save(self, folder: Path) -> None:
        """Write the folder; the bytes of the weight files depend only on their values."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        for number, networks in enumerate(self.members):
            weights = {name: value.detach().cpu().contiguous() for name, value in networks.state_dict().items()}
            save_file(weights, folder / (f"weights-{number:02d}.safetensors" if number else "weights.safetensors"))
        (folder / "translator.json").write_text(self.config.to_json())

    @staticmethod
    def load(folder: Path | str, device: str | torch.device = "cpu") -> Translator:
        """Read a translator folder, or a model that comes with the package, by its name.

        Raise :class:`UserError` that names what is missing or does not fit.
        """
        folder = ready_folder(folder)
        try:
            config = json.loads((folder / "translator.json").read_text())
            files = weight_files(folder)
            data = [path.read_bytes() for path in files]
            if not data or not isinstance(config, dict):
                raise ValueError
        except (OSError, ValueError, RecursionError):
            raise ModelError(
                f"{folder}: not a translator folder (weights.safetensors and translator.json); train one with "
                "`dvc repro train`, or name a registered model such as models:/medstyle@champion or the ready anybrain"
            ) from None
        if config.get("format") == 2:
            try:
                config = _renewed(config)
            except (KeyError, TypeError, AttributeError):
                raise ModelError(f"{folder / 'translator.json'}: damaged; copy the folder again") from None
        if config.get("format") != FORMAT:
            raise ModelError(
                f"{folder}: translator format {config.get('format')} cannot be read; this version reads {FORMAT}"
            )
        parsed = parse(TranslatorConfig, config, f"{folder / 'translator.json'}")
        members = []
        for path, content in zip(files, data, strict=True):
            try:
                networks = _built(parsed, content)
            except UserError:
                raise
            except Exception:  # safetensors and torch raise many types of errors for a damaged file
                raise ModelError(f"{path}: damaged, or of another architecture") from None
            members.append(networks.to(device).eval().requires_grad_(False))
        return Translator(parsed, members, hashlib.sha256(b"".join(data)).hexdigest())

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.members[0].parameters()).device

    @property
    def multiple(self) -> int:
        """Sizes that are multiples of this need no padding."""
        return self.members[0].multiple

    def sharpened(self, sharpness: float | None) -> Translator:
        """Return the translator with another share of the refiner's detail; None changes nothing.

        The intervals were calibrated for one sharpness; another has none.

        Args:
            sharpness: 0 gives the smooth output with the smallest error, 1 the full detail.

        Raises:
            UserError: the share is not in [0, 1], or the model has no refiner.
        """
        if sharpness is None:
            return self
        if not 0 <= sharpness <= 1:
            raise ParamsError(f"sharpness: must lie in [0, 1], got {sharpness:g}")
        if not self.config.architecture.refiner:
            raise ModelError("sharpness: this model has no refiner; train one with recipes/paired_mr.yaml")
        if sharpness == self.config.architecture.sharpness:
            return self
        architecture = replace(self.config.architecture, sharpness=sharpness)
        return replace(self, config=replace(self.config, architecture=architecture, interval=Interval()))

    def index(self, domain: str) -> int:
        """Return the style index of ``domain``; raise :class:`UserError` if it was not trained."""
        if domain not in self.config.domains:
            raise ModelError(f"this translator knows {', '.join(self.config.domains)}, not {domain!r}")
        return self.config.domains.index(domain)

    def towards(self, domain: str) -> Translator:
        """Return the translator with another of its domains as the target.

        The intervals were calibrated for the trained target; another has none.

        Raises:
            UserError: the domain was not trained.
        """
        if domain == self.config.target:
            return self
        self.index(domain)
        return replace(self, config=replace(self.config, target=domain, interval=Interval()))

    def require_style(self, source: str) -> None:
        """Raise :class:`UserError` if no style can come from ``source``, a key of ``STYLES``."""
        self.members[0].style.require(source)

    @torch.inference_mode()
    def style(
        self, domain: str | None = None, reference: Tensor | None = None, seed: int | None = None
    ) -> list[Tensor]:
        """Return a style code ``(1, S)`` per member, from a reference, a seed or the domain.

        Args:
            domain: default: the trained target.
            reference: ``(R, C, ...)`` images in network units; their codes are averaged.
            seed: seed of a random latent, for diverse outputs.

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
                raise ModelError("this translator takes its style from a reference image: name one with --style")
            z = torch.zeros(n, LATENT, device=self.device)  # the same as in validation during training
        return [networks.style(which, z, image).mean(0, keepdim=True) for networks in self.members]

    def each(self, x: Tensor, style: list[Tensor]) -> Iterator[Tensor]:
        """Render ``x`` with each member in turn, in float32 on the device of ``x``.

        See :meth:`__call__`.
        """
        # half precision on a GPU; on a CPU it would be slower
        half = self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        inside, sharpness = x.to(self.device, non_blocking=True), self.config.architecture.sharpness
        for networks, code in zip(self.members, style, strict=True):
            with torch.inference_mode(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                y = networks.render(inside, code.expand(len(x), -1), sharpness).float().to(x.device)
            yield y

    def __call__(self, x: Tensor, domain: str | None = None, style: list[Tensor] | None = None) -> Tensor:
        """Render content ``(N, C_in, ...)`` of any size.

        Args:
            x: network units; ``C_in`` contains the contrasts (source first), each with its
                neighbours.
            domain: target; default: the trained one.
            style: codes from :meth:`style`; default: those of the domain.
        """
        total = torch.zeros(())
        for y in self.each(x, style or self.style(domain)):
            total = total + y
        return total / len(self.members)


def ensemble(folders: Sequence[Path], out: Path) -> Translator:
    """Write the members of several translators (different seeds of one training) as one ensemble.

    The folder is ``out``.

    Raises:
        UserError: they differ in more than their weights and facts.
    """
    parts = [Translator.load(folder) for folder in folders]
    first = parts[0].config
    for folder, part in zip(folders, parts, strict=True):
        if (part.config.architecture, part.config.domains, part.config.preparation, part.config.contrasts) != (
            first.architecture, first.domains, first.preparation, first.contrasts,
        ):  # fmt: skip
            raise ModelError(f"{folder}: of another architecture, preparation or domains than {folders[0]}")
    members = [networks for part in parts for networks in part.members]
    facts = {**first.facts, "ensemble members": len(members)}
    whole = Translator(replace(first, facts=facts, interval=Interval()), members)
    whole.save(out)
    whole = Translator.load(out)
    (out / "MODEL_CARD.md").write_text(model_card(whole.config, whole.sha256))
    return whole


def model_card(config: TranslatorConfig, sha256: str, metrics: dict[str, Any] | None = None) -> str:
    """Render the model card (fields of CHAI's applied model card and CLAIM 2024) as Markdown."""
    source, target = DOMAINS[config.source], DOMAINS[config.target]
    clinical = not target.picture
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
    if others := [name for name in config.domains if name not in (config.source, config.target)]:
        lines.append(f"- other targets (`--to`): {', '.join(others)}")
    lines += [f"- {key}: {value}" for key, value in config.facts.items()]
    if clinical:
        lines.append(f"- intervals: {config.interval}")
    lines += ["- outputs carry the marker SYNTHETIC; an out-of-distribution score travels with each", ""]
    if metrics:
        lines += ["## Evaluation on unseen subjects", "", "```json", json.dumps(metrics, indent=1), "```", ""]
    return "\n".join(lines)
