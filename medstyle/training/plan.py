"""What to translate into what, and how to learn it: the section `train` of params.yaml."""

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
    depth: Annotated[int, Field(ge=1)] = 16
    """Slices of an example of a three-dimensional generator."""
    learning_rate: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Peak learning rate of the generator (AdamW): 5 % warm-up, then cosine to zero."""
    discriminator_learning_rate: Annotated[float, Field(ge=0, le=1)] = 5e-4
    """Peak learning rate of the discriminator."""
    ema: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """The exported weights are a moving average over about this share of the steps taken so far (Karras 2024)."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm of the generator; ten times that for the discriminator."""
    foreground: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Slices with a smaller share of body are left out of training."""
    seed: int = 0
    """Changes weights at the start, order and augmentation."""
    threads: Annotated[int, Field(ge=1)] = 2
    """CPU threads of a process; a parameter because another number changes the bits of the result."""
    processes: Annotated[int, Field(ge=1)] = 1
    """Processes (GPUs) that share each batch; changes the bits of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Forward passes; auto is bfloat16 on a GPU that has it."""
    compile: bool = False
    """Compile the networks on a GPU; worth its minutes in long runs."""
    checkpoint_s: float = 60.0
    """Seconds between resumable states."""
    log_every: Annotated[int, Field(ge=1)] = 25
    """Steps between points of the curves."""
    validate_every: Annotated[int, Field(ge=1)] = 250
    """Steps between measurements on validation subjects."""
    patience: Annotated[int, Field(ge=0)] = 0
    """Paired: stop after this many measurements without a better one; 0 trains all steps."""
    keep: Literal["best", "last"] = "last"
    """Weights that are exported: the last, or (paired) the best on validation subjects."""
    snapshots: Annotated[int, Field(ge=0)] = 0
    """Further moving averages, from the last third of the steps, exported as members of an ensemble."""

    def __post_init__(self) -> None:
        if self.batch % self.processes:
            raise ParamsError(f"training.batch: {self.batch} is not divisible among {self.processes} processes")


@params
class Plan:
    """What to translate into what, and how to learn it."""

    source: str
    """Domain of the content images."""
    target: str
    """Domain whose style is learned."""
    contrasts: tuple[str, ...] = ()
    """Further domains of the same subject that the generator sees beside the source (T1 + T2 -> FLAIR)."""
    domains: tuple[str, ...] = ()
    """Further domains that are learned, by multi_domain and harmonization."""
    training: Training = Training()
    """Length, speed, seed, device."""
    objective: AnyObjective = PairedParams()
    """Losses."""
    network: Architecture = Architecture()
    """Size of the generator."""
    augmentation: Augmentation = Augmentation()
    """Random changes of training images."""

    def __post_init__(self) -> None:
        named = [("source", self.source), ("target", self.target)]
        named += [("contrasts", name) for name in self.contrasts] + [("domains", name) for name in self.domains]
        for role, name in named:
            if name not in DOMAINS:
                raise ParamsError(f"train.{role}: unknown domain {name!r}; known: {', '.join(DOMAINS)}")
        if len(set(self.learned)) < len(self.learned) or set(self.contrasts) & {self.source, self.target}:
            raise ParamsError("train: a domain stands twice among source, target, contrasts and domains")
        kind = OBJECTIVES[self.objective.kind]
        kind.resolve(self.objective)
        if self.contrasts and not kind.several_contrasts:
            raise ParamsError(f"train.contrasts: {self.objective.kind} takes none; use a paired objective")
        if not kind.paired and (self.training.patience or self.training.keep == "best"):
            raise ParamsError(
                f"training.patience, training.keep: {self.objective.kind} has no pairs that would tell what is best"
            )

    @property
    def learned(self) -> tuple[str, ...]:
        """The domains in the order of the style indices: source, target, further ones."""
        return (self.source, self.target, *self.domains)

    @property
    def volumetric(self) -> bool:
        """Whether the generator sees volumes instead of slices."""
        return self.network.dimensions == 3
