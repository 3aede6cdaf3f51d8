"""Define the section `train` of params.yaml: what to translate into what, and how to learn it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from medstyle.errors import ParamsError
from medstyle.imaging.modality import DOMAINS
from medstyle.networks.networks import Architecture
from medstyle.params import params
from medstyle.training.objectives.paired import PairedParams
from medstyle.training.objectives.table import OBJECTIVES, AnyObjective
from medstyle.transforms.augment import Augmentation


@params
class Training:
    """How long and how fast to train."""

    steps: Annotated[int, Field(ge=1)] = 1500
    """Optimiser steps of the generator."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Slices per step, over all processes."""
    window: Annotated[int, Field(ge=0)] = 0
    """Side in pixels of a random square of each image on which the networks are trained, for
    details at full resolution; 0: whole images."""
    depth: Annotated[int, Field(ge=1)] = 16
    """Number of slices in an example of a three-dimensional generator."""
    optimiser: Literal["auto", "muon", "adamw"] = "auto"
    """Of the generator: `muon` takes steps of equal size in every direction of the inner
    convolutions (Jordan 2024), and AdamW for the rest; `auto` is `muon` for paired objectives,
    which learn far more by it, and else `adamw`."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Peak learning rate of the generator: 5 % warm-up, then cosine to zero."""
    discriminator_learning_rate: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Peak learning rate of the discriminator (AdamW)."""
    ema: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """The exported weights are a moving average over about this share of the steps taken so far
    (Karras 2024)."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm of the generator; that of the discriminator is ten times as large."""
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Slices with a smaller share of body are left out of training."""
    seed: int = 0
    """Seed of the initial weights, the order of the images and their augmentation."""
    freeze_start: Annotated[int, Field(ge=0)] = 0
    """Steps at the beginning in which the encoder and the bottleneck taken from `train.start` are
    kept as they are."""
    threads: Annotated[int, Field(ge=1)] = 2
    """CPU threads of a process. It is a parameter because another number changes the bits of the
    result."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Number of processes (GPUs) that share each batch; it changes the bits of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on; `auto` uses a GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of forward passes; `auto` is bfloat16 on a GPU that supports it, otherwise
    float32."""
    compile: bool = False
    """Compile the networks on a GPU; it takes minutes, which pay off in long runs."""
    checkpoint_s: float = 60.0
    """Seconds between resumable states."""
    log_every: Annotated[int, Field(ge=1)] = 25
    """Steps between points of the curves."""
    validate_every: Annotated[int, Field(ge=1)] = 250
    """Steps between measurements on validation subjects."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Paired objectives: stop after this many measurements without improvement; 0 trains all
    steps."""
    keep: Literal["best", "last"] = "last"
    """Weights to export: `last`, or (paired objectives) the `best` on the validation subjects."""
    snapshots: Annotated[int, Field(ge=0)] = 0
    """Number of additional moving averages, from the last third of the steps, that are exported as
    members of an ensemble."""

    def __post_init__(self) -> None:
        if self.batch % self.processes:
            raise ParamsError(f"training.batch: {self.batch} is not divisible among {self.processes} processes")

    def muon(self, paired: bool) -> bool:
        """Return whether Muon steps the generator of an objective, ``paired`` or not."""
        return paired if self.optimiser == "auto" else self.optimiser == "muon"


@params
class Plan:
    """What to translate into what, and how to learn it."""

    source: str
    """Domain of the content images."""
    target: str
    """Domain whose style is learned."""
    contrasts: tuple[str, ...] = ()
    """Further domains of the same subject, given to the generator beside the source (T1 + T2 ->
    FLAIR)."""
    variants: tuple[str, ...] = ()
    """Paired objectives: further domains of the same subject that take turns with the source as the
    only input, such as other scans of it (`brain@2`)."""
    domains: tuple[str, ...] = ()
    """Further domains to learn: for multi_domain and harmonization, and further targets of a paired
    objective, each with its own style code and learned from the subjects that have it, such as the
    target by another protocol (`mr_flair@north`)."""
    start: str | None = None
    """Model whose weights the training starts from: `anybrain` (ready-made, for heads), a
    translator folder, or `models:/...`. Weights of equal name and shape are taken; the rest is
    named."""
    training: Training = Training()
    """Length, speed, seed and device."""
    objective: AnyObjective = PairedParams()
    """Losses and their weights."""
    network: Architecture = Architecture()
    """Generator and style."""
    augmentation: Augmentation = Augmentation()
    """Random changes to the training images."""

    def __post_init__(self) -> None:
        named = [("source", self.source), ("target", self.target)]
        named += [(role, name) for role in ("contrasts", "variants", "domains") for name in getattr(self, role)]
        for role, name in named:
            if name not in DOMAINS:
                raise ParamsError(f"train.{role}: unknown domain {name!r}; known: {', '.join(DOMAINS)}")
        every = (*self.learned, *self.variants)
        if len(set(every)) < len(every) or set(self.contrasts) & {self.source, self.target, *self.variants}:
            raise ParamsError("train: a domain appears twice among source, target, contrasts, variants and domains")
        kind = OBJECTIVES[self.objective.kind]
        kind.resolve(self.objective)
        if self.contrasts and not kind.several_contrasts:
            raise ParamsError(f"train.contrasts: {self.objective.kind} supports none; use a paired objective")
        if self.training.freeze_start and self.start is None:
            raise ParamsError("training.freeze_start: needs train.start, a model to start from")
        if self.variants and not kind.paired:
            raise ParamsError(f"train.variants: {self.objective.kind} supports none; use a paired objective")
        if not kind.error_decides and (self.training.patience or self.training.keep == "best"):
            raise ParamsError(
                f"training.patience, training.keep: with {self.objective.kind}, no error on pairs determines the best "
                "weights"
            )

    @property
    def learned(self) -> tuple[str, ...]:
        """The domains in the order of the style indices: source, target, further ones."""
        return (self.source, self.target, *self.domains)

    @property
    def volumetric(self) -> bool:
        """Whether the generator processes volumes instead of slices."""
        return self.network.dimensions == 3
