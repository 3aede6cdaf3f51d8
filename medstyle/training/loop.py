"""The training loop: turns of the players, moving average, guards, exact resume.

All randomness is a function of (seed, step), schedules are functions of step: nothing hidden is kept between steps, so
a run that was killed and started again ends in the same bits.
"""

from __future__ import annotations

import copy
import ctypes
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from medstyle.data.feed import Feed
from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.jobs.checkpoint import load_state, save_state
from medstyle.networks.networks import Architecture, Networks
from medstyle.params import params
from medstyle.training.distributed import World
from medstyle.training.guards import Guard, check_data
from medstyle.training.objectives.base import Recipe
from medstyle.training.objectives.table import RECIPES, Objective
from medstyle.training.preview import Preview
from medstyle.transforms.augment import Augmentation

# (step, values): a number is a point of a curve, a (H, W) or (H, W, 3) uint8 array is a picture
Log = Callable[[int, Mapping[str, Any]], None]


@params
class Training:
    """How long and how fast to train."""

    steps: int = 1500
    """Optimiser steps of the generator."""
    batch: int = 8
    """Slices per step, over all processes."""
    depth: int = 16
    """Slices of an example of a three-dimensional generator."""
    learning_rate: float = 5e-4
    """Peak learning rate of the generator (AdamW): 5 % warm-up, then cosine to zero."""
    discriminator_learning_rate: float = 5e-4
    """Peak learning rate of the discriminator."""
    ema: float = 0.05
    """The exported weights are a moving average over about this share of the steps taken so far (Karras 2024)."""
    clip: float = 1.0
    """Largest gradient norm of the generator; ten times that for the discriminator."""
    foreground: float = 0.1
    """Slices with a smaller share of body are left out of training."""
    seed: int = 0
    """Changes weights at the start, order and augmentation."""
    threads: int = 2
    """CPU threads of a process; a parameter because another number changes the bits of the result."""
    processes: int = 1
    """Processes (GPUs) that share each batch; changes the bits of the result."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU where there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Forward passes; auto is bfloat16 on a GPU that has it."""
    compile: bool = False
    """Compile the networks on a GPU; worth its minutes in long runs."""
    checkpoint_s: float = 60.0
    """Seconds between resumable states."""
    log_every: int = 25
    """Steps between points of the curves."""
    validate_every: int = 250
    """Steps between measurements on validation subjects."""
    patience: int = 0
    """Paired: stop after this many measurements without a better one; 0 trains all steps."""
    keep: Literal["best", "last"] = "last"
    """Weights that are exported: the last, or (paired) the best on validation subjects."""
    snapshots: int = 0
    """Further moving averages, from the last third of the steps, exported as members of an ensemble."""

    def __post_init__(self) -> None:
        least = {"steps": 1, "batch": 1, "threads": 1, "processes": 1, "depth": 1, "log_every": 1, "validate_every": 1}
        for name, low in {**least, "patience": 0, "snapshots": 0}.items():
            if getattr(self, name) < low:
                raise UserError(f"training.{name}: must be at least {low}, got {getattr(self, name)}")
        high = {"ema": 0.5, "foreground": 1.0, **dict.fromkeys(("learning_rate", "discriminator_learning_rate"), 1.0)}
        for name, most in high.items():
            if not 0 <= getattr(self, name) <= most:
                raise UserError(f"training.{name}: must lie in [0, {most}], got {getattr(self, name)}")
        if self.clip <= 0:
            raise UserError(f"training.clip: must be positive, got {self.clip}")
        if self.batch % self.processes:
            raise UserError(f"training.batch: {self.batch} is not divisible among {self.processes} processes")


def schedule(progress: float) -> float:
    """Return the factor of the learning rate: 5 % linear warm-up, then cosine to zero."""
    return min(1.0, progress / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))


def pick_device(name: str) -> torch.device:
    """Resolve ``auto``; raises :class:`UserError` for a GPU that is not there."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("training.device: cuda was asked for, but torch sees no GPU; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def _steady(threads: int) -> None:
    """Make CPU results a function of the inputs, and keep freed memory for the next step."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    if sys.platform == "linux":
        # glibc gives large blocks back to the kernel and faults them in again each step
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD


class Players:
    """Networks, their optimisers and the moving average: everything that a checkpoint holds."""

    def __init__(self, recipe: Recipe, settings: Training, device: torch.device, world: World) -> None:
        self.settings, self.world = settings, world
        self.networks = recipe.networks
        self.modules = nn.ModuleDict(recipe.players).to(device)
        if device.type == "cuda":  # on CPU the plain layout is faster: docs/benchmarks.md
            layout = torch.channels_last if self.networks.dimensions == 2 else torch.channels_last_3d
            self.modules.to(memory_format=layout)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.networks).requires_grad_(False).eval()
        self.optimisers = {  # the rate is set at every turn
            name: torch.optim.AdamW(module.parameters(), lr=1.0, betas=(0.5, 0.99), weight_decay=1e-4, fused=True)
            for name, module in self.modules.items()
        }

    def turn(self, names: Sequence[str], loss: Tensor, progress: float, guard: Guard, phase: str) -> float:
        """Take one optimiser step of the players ``names``; returns the gradient norm before clipping."""
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        critic = tuple(names) == ("discriminator",)
        weights = [p for name in names for p in self.modules[name].parameters()]
        self.world.average(weights)
        norm = nn.utils.clip_grad_norm_(weights, self.settings.clip * (10 if critic else 1), foreach=True)
        if guard.finite(phase, norm):
            peak = self.settings.discriminator_learning_rate if critic else self.settings.learning_rate
            for name in names:
                for group in self.optimisers[name].param_groups:
                    group["lr"] = peak * schedule(progress)
                self.optimisers[name].step()
        return float(norm)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the average towards the weights; its memory grows with training."""
        decay = 1 - 1 / (1 + self.settings.ema * step)
        pairs = list(zip(self.average.state_dict().values(), self.networks.state_dict().values(), strict=True))
        numbers = [(slow, fast) for slow, fast in pairs if slow.is_floating_point()]
        torch._foreach_lerp_([slow for slow, _ in numbers], [fast for _, fast in numbers], 1 - decay)

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take over a saved state."""
        self.modules.load_state_dict(state["modules"])
        self.average.load_state_dict(state["average"])
        for name, optimiser in self.optimisers.items():
            optimiser.load_state_dict(state["optimisers"][name])


def fit(
    store: SliceStore,
    source: str,
    target: str,
    *,
    contrasts: Sequence[str] = (),
    domains: Sequence[str] = (),
    settings: Training,
    objective: Objective,
    architecture: Architecture,
    augmentation: Augmentation,
    scratch: Path,
    log: Log,
    show: Callable[[int, dict[str, float]], None],
) -> tuple[list[Networks], list[dict[str, float]]]:
    """Train and return the averaged networks (several where there are snapshots) and the curve, a row per logged step.

    Args:
        store: slices with a train split.
        source, target: domains.
        contrasts: further domains of the same subject that the generator sees beside the source.
        domains: further domains that it learns to render.
        settings, objective, architecture, augmentation: sections of params.
        scratch: folder of resumable states; it must be keyed by everything that determines the run.
        log: receives curves and pictures.
        show: receives progress for a person: step and the latest values.

    Raises:
        UserError: the data, the parameters or the course of training make no model; the message names the cause.
    """
    device = pick_device(settings.device)
    world = World.join(device)
    if world.size != settings.processes:
        raise UserError(
            f"training.processes: {settings.processes} in params, {world.size} running; set it, and let "
            "`medstyle train` start them"
        )
    domains = [source, target, *domains]
    _steady(settings.threads)
    bf16 = settings.precision == "bfloat16" or (
        settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    kind = RECIPES[objective.kind]
    if contrasts and not kind.several_contrasts:
        raise UserError(f"train.contrasts: {objective.kind} takes none; use a paired recipe")
    volumetric = architecture.dimensions == 3
    size = [*([settings.depth] if volumetric else []), *store.array(domains[0], "train").shape[2:]]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        networks = Networks(architecture, domains, 1 + len(contrasts))
        channels = networks.colours * (1 + len(contrasts)) * architecture.neighbours, networks.colours
        recipe = kind(networks, objective, channels, len(domains))
    recipe.check(size)
    if not kind.paired and (settings.patience or settings.keep == "best"):
        raise UserError(f"training.patience, training.keep: {objective.kind} has no pairs that would tell what is best")
    players = Players(recipe, settings, device, world)
    if settings.compile and device.type == "cuda":
        networks.generator.compile(dynamic=True)  # boxes have many sizes
        if recipe.discriminator is not None:
            recipe.discriminator.compile(dynamic=True)

    def feed_of(split: str, **changes: Any) -> Feed:
        arguments: dict[str, Any] = {
            "contrasts": contrasts, "paired": kind.paired, "everywhere": kind.directions == "all",
            "batch": settings.batch, "seed": settings.seed, "foreground": settings.foreground,
            "depth": settings.depth if volumetric else architecture.neighbours, "volumetric": volumetric,
            "population": recipe.weights_now["population"] > 0, "augmentation": augmentation,
            "multiple": networks.generator.multiple, "rank": world.rank, "world": world.size,
        }  # fmt: skip
        return Feed(store, domains, split=split, **{**arguments, **changes})

    feed = feed_of("train")
    check_data(feed)
    preview = Preview(store, feed_of, domains, volumetric)
    guard = Guard(settings.steps // settings.log_every)
    curve: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    snapshots: list[dict[str, Tensor]] = []
    begin = 0
    if (state := load_state(scratch)) is not None:
        players.load(state)
        begin, curve, best, snapshots, guard.bad = (state[k] for k in ("step", "curve", "best", "snapshots", "bad"))
        show(begin, {"resumed": 1.0})
    snapshot_steps = _snapshot_steps(settings)
    saved = time.monotonic()
    for step in range(begin, settings.steps):
        batch = feed(step, settings.steps, device)
        values: dict[str, float] = {}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            played = recipe.play(batch)
        for phase in recipe.phases:
            if step % phase.every:
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16 and phase.name != "r1"):
                loss, terms = phase.loss(batch, played)
            norm = players.turn(phase.players, loss, batch.progress, guard, phase.name)
            if step % settings.log_every == 0:
                measured = world.mean(torch.stack([term.detach().float() for term in terms.values()]))
                values |= {f"{phase.name}/norm": norm}
                values |= {f"{phase.name}/{k}": float(v) for k, v in zip(terms, measured, strict=True)}
        players.follow(step)
        done = step + 1
        if step % settings.log_every == 0:
            values |= guard.outputs(played["fake"], batch.target, networks.content(batch.source), step)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                values |= recipe.heard(batch, played)
        if done in snapshot_steps:
            snapshots.append(_copy(players.average))
        if done % settings.validate_every == 0 or done == settings.steps:
            found, picture = preview(players.average, device)
            values |= found
            if world.rank == 0:
                log(done, {"validation/sample": picture})
            if kind.paired and found["validation/l1"] < best.get("l1", math.inf):
                best = {"l1": found["validation/l1"], "step": done, "weights": _copy(players.average)}
        if values:
            curve.append({"step": float(done), **values})
            if world.rank == 0:
                log(done, values)
            guard.curve(curve, kind.paired, batch.progress)
        show(done, values)
        if (
            kind.paired
            and settings.patience
            and done - best.get("step", done) >= settings.patience * settings.validate_every
        ):
            print(f"stopped early at step {done}: no better since step {best['step']}", file=sys.stderr, flush=True)
            break
        if world.rank == 0 and time.monotonic() - saved > settings.checkpoint_s and done < settings.steps:
            rest = {"step": done, "curve": curve, "best": best, "snapshots": snapshots, "bad": guard.bad}
            save_state(scratch, done, {**rest, **players.state()})
            saved = time.monotonic()
    members = []
    for weights in [best["weights"] if settings.keep == "best" and best else _copy(players.average), *snapshots]:
        member = copy.deepcopy(players.average)
        member.load_state_dict(weights)
        members.append(member)
    return members, curve


def _copy(networks: Networks) -> dict[str, Tensor]:
    return {name: value.detach().cpu().clone() for name, value in networks.state_dict().items()}


def _snapshot_steps(settings: Training) -> set[int]:
    """Return the steps after which an ensemble member is taken: evenly over the last third, before the end."""
    n = settings.snapshots
    return {round(settings.steps * (2 / 3 + i / (3 * n))) for i in range(n)} if n else set()
