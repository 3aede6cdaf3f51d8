"""Run the training loop: turns of the players, moving average, guards, exact resume.

All randomness is a function of (seed, step), and schedules are functions of the step. No hidden
state is kept between steps, so a run that was killed and resumed gives bit-identical results.
"""

from __future__ import annotations

import copy
import ctypes
import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medstyle.data.sampler import BatchSampler, Sampling
from medstyle.data.store import SliceStore
from medstyle.errors import ParamsError
from medstyle.jobs.checkpoint import load_state, save_state
from medstyle.networks.networks import Networks
from medstyle.networks.translator import Translator
from medstyle.training.distributed import World
from medstyle.training.guards import Guard, check_data
from medstyle.training.objectives.table import OBJECTIVES
from medstyle.training.plan import Plan, Training
from medstyle.training.players import Players
from medstyle.training.preview import Preview
from medstyle.training.start import Taken, hold, take_weights

# (step, values): a number is a point of a curve; a (H, W) or (H, W, 3) uint8 array is an image
Log = Callable[[int, Mapping[str, Any]], None]
Show = Callable[[int, dict[str, float]], None]
Weights = dict[str, Tensor]


def pick_device(name: str) -> torch.device:
    """Resolve ``auto``; raise :class:`UserError` for a GPU that does not exist."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ParamsError("training.device: cuda was requested, but torch sees no GPU; use auto or cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def make_deterministic(threads: int, device: torch.device) -> None:
    """Make results on a CPU a function of the inputs, and keep freed memory for the next step."""
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(device.type == "cpu")
    if sys.platform == "linux":
        # glibc returns large blocks to the kernel, which has to map them again at every step
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):
            libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 2**30)  # M_MMAP_THRESHOLD


@dataclass
class Course:
    """The state of a resumable run besides the players: its progress and its history."""

    step: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=dict)
    snapshots: list[Weights] = field(default_factory=list)
    bad: dict[str, int] = field(default_factory=dict)


class Session:
    """The objects that a training builds once: networks, objective, players, sampler and guards.

    Args:
        plan: what to translate into what, and how to learn it.
        store: slices with a train split.
        start: the translator to start from.

    Raises:
        UserError: plan, store, start and this machine do not fit together.
    """

    def __init__(self, plan: Plan, store: SliceStore, start: Translator | None = None) -> None:
        self.plan, settings = plan, plan.training
        self.device = pick_device(settings.device)
        self.world = World.join(self.device)
        if self.world.size != settings.processes:
            raise ParamsError(
                f"training.processes: params ask for {settings.processes}, {self.world.size} are running; "
                "set it, and let `medstyle train` start them"
            )
        make_deterministic(settings.threads, self.device)
        self.bfloat16 = settings.precision == "bfloat16" or (
            settings.precision == "auto" and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        )
        kind = OBJECTIVES[plan.objective.kind]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            networks = Networks(plan.network, plan.learned, 1 + len(plan.contrasts))
            self.taken = take_weights(networks, plan.learned, start) if start is not None else Taken((), ())
            channels = networks.colours * (1 + len(plan.contrasts)) * networks.neighbours, networks.colours
            self.objective = kind(networks, plan.objective, channels, len(plan.learned))
        depth = [settings.depth] if plan.volumetric else []
        self.objective.check([*depth, *store.array(plan.source, "train").shape[2:]])
        self.players = Players(self.objective, settings, self.device, self.world)
        if settings.compile and self.device.type == "cuda":
            networks.generator.compile(dynamic=True)  # boxes have many sizes
            if self.objective.discriminator is not None:
                self.objective.discriminator.compile(dynamic=True)
        sampling = self._sampling(networks.multiple)
        self.sampler = BatchSampler(store, sampling)
        check_data(self.sampler)
        self.preview = Preview(store, sampling)
        self.guard = Guard(settings.steps // settings.log_every)

    def _sampling(self, multiple: int) -> Sampling:
        plan, settings = self.plan, self.plan.training
        return Sampling(
            plan.learned,
            settings.batch,
            settings.seed,
            plan.augmentation,
            contrasts=plan.contrasts,
            variants=plan.variants,
            paired=self.objective.paired,
            all_directions=self.objective.directions == "all",
            foreground=settings.foreground,
            depth=settings.depth if plan.volumetric else plan.network.neighbours,
            volumetric=plan.volumetric,
            cross_subject=self.objective.cross_subject,
            multiple=multiple,
            window=settings.window,
            rank=self.world.rank,
            world=self.world.size,
        )

    def autocast(self, full_precision: bool = False) -> torch.autocast:
        """Return the context of forward passes."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16 and not full_precision)

    def step(self, step: int) -> dict[str, float]:
        """Take the turn of every phase; return values for the curve at steps that are logged."""
        settings, objective = self.plan.training, self.objective
        if settings.freeze_start:
            hold(objective.networks, self.taken, step < settings.freeze_start)
        logged = step % settings.log_every == 0
        batch = self.sampler(step, settings.steps, self.device)
        values: dict[str, float] = {}
        with self.autocast():
            images = objective.play(batch)
        for phase in objective.phases:
            if not phase.due(batch):
                continue
            with self.autocast(phase.full_precision):
                loss, losses = phase.loss(batch, images)
            norm = self.players.turn(phase, loss, phase.progress(batch), self.guard)
            if logged:
                measured = self.world.mean(torch.stack([term.detach().float() for term in losses.values()]))
                values |= {f"{phase.name}/norm": norm}
                values |= {f"{phase.name}/{k}": float(v) for k, v in zip(losses, measured, strict=True)}
        self.players.follow(step)
        if logged:
            content = objective.content(batch)
            values |= self.guard.outputs(images["fake"], batch.target, content, step)
            with self.autocast():
                values |= objective.diagnostics(batch, images)
        return values

    def validate(self, course: Course, log: Log) -> dict[str, float]:
        """Render the preview with the moving average.

        Keep its weights if they are the best so far.
        """
        batch, output, values, picture = self.preview(self.players.average, self.device)
        with self.autocast():
            values |= self.objective.judged(batch, output)
        if self.world.rank == 0:
            log(course.step, {"validation/sample": picture})
        if self.objective.paired and values["validation/l1"] < course.best.get("l1", math.inf):
            best = {"l1": values["validation/l1"], "step": course.step}
            course.best = {**best, "weights": copy_weights(self.players.average)}
        return values

    def members(self, course: Course) -> list[Networks]:
        """Return the networks to export: the last or the best weights, then the snapshots."""
        keep_best = self.plan.training.keep == "best" and course.best
        exported = []
        for weights in (course.best["weights"] if keep_best else copy_weights(self.players.average), *course.snapshots):
            member = copy.deepcopy(self.players.average)
            member.load_state_dict(weights)
            exported.append(member)
        return exported


def fit(
    plan: Plan, store: SliceStore, scratch: Path, log: Log, show: Show, start: Translator | None = None
) -> tuple[list[Networks], list[dict[str, float]]]:
    """Train; return the averaged networks and the curve.

    There is one network, and one more for each snapshot. The curve has a row for each logged step.

    Args:
        plan: what to translate into what, and how to learn it.
        store: slices with a train split.
        scratch: folder of resumable states; its name must depend on everything that determines the
            run.
        log: receives curves and images.
        show: receives progress for display: the step and the latest values.
        start: the translator to start from; it must be part of what the name of ``scratch`` depends
            on.

    Raises:
        UserError: the data, the parameters or the course of training do not yield a model; the
            message names the cause.
    """
    settings = plan.training
    session = Session(plan, store, start)
    if start is not None and session.world.rank == 0:
        print(f"start {start.sha256[:16]}: {session.taken.line()}", file=sys.stderr, flush=True)
    course = Course()
    if (state := load_state(scratch)) is not None:
        session.players.load(state["players"])
        course = Course(**state["course"])
        session.guard.bad = course.bad
        show(course.step, {"resumed": 1.0})
    snapshot_steps = _snapshot_steps(settings)
    saved = time.monotonic()
    while course.step < settings.steps:
        values = session.step(course.step)
        course.step += 1
        if course.step in snapshot_steps:
            course.snapshots.append(copy_weights(session.players.average))
        if course.step % settings.validate_every == 0 or course.step == settings.steps:
            values |= session.validate(course, log)
        if values:
            course.curve.append({"step": float(course.step), **values})
            if session.world.rank == 0:
                log(course.step, values)
            session.guard.curve(course.curve, session.objective.paired, (course.step - 1) / settings.steps)
        show(course.step, values)
        if _out_of_patience(course, settings):
            best = course.best["step"]
            print(f"stopped early at step {course.step}: no improvement since step {best}", file=sys.stderr, flush=True)
            break
        due = time.monotonic() - saved > settings.checkpoint_s and course.step < settings.steps
        if session.world.rank == 0 and due:
            course.bad = session.guard.bad
            save_state(scratch, course.step, {"course": vars(course), "players": session.players.state()})
            saved = time.monotonic()
    return session.members(course), course.curve


def copy_weights(networks: Networks) -> Weights:
    """Return a copy of the weights in CPU memory."""
    return {name: value.detach().cpu().clone() for name, value in networks.state_dict().items()}


def _out_of_patience(course: Course, settings: Training) -> bool:
    since = course.step - course.best.get("step", course.step)
    return settings.patience > 0 and since >= settings.patience * settings.validate_every


def _snapshot_steps(settings: Training) -> set[int]:
    """Return the steps of the snapshots: evenly over the last third, before the end."""
    n = settings.snapshots
    return {round(settings.steps * (2 / 3 + i / (3 * n))) for i in range(n)} if n else set()
