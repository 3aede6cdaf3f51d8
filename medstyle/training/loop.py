"""The training loop: turns of the players, moving average, guards, exact resume.

All randomness is a function of (seed, step), schedules are functions of step: nothing hidden is kept between steps, so
a run that was killed and started again ends in the same bits.
"""

from __future__ import annotations

import copy
import ctypes
import hashlib
import math
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from medstyle.errors import UserError
from medstyle.imaging.store import SliceStore
from medstyle.networks.translator import Architecture, Networks
from medstyle.params import params
from medstyle.training.checkpoint import load_state, save_state
from medstyle.training.objectives import RECIPES, Batch, Objective, Recipe
from medstyle.transforms.augment import Augmentation, augment

# (step, values): a number is a point of a curve, a (H, W) or (H, W, 3) uint8 array is a picture
Log = Callable[[int, Mapping[str, Any]], None]


@params
class Training:
    """How long and how fast to train."""

    steps: int = 1500
    """Optimiser steps of the generator."""
    batch: int = 8
    """Slices per step."""
    learning_rate: float = 5e-4
    """Peak learning rate of the generator (AdamW): 5 % warm-up, then cosine to zero."""
    discriminator_learning_rate: float = 5e-4
    """Peak learning rate of the discriminator."""
    ema: float = 0.995
    """Decay per step of the moving average of the weights, which is what is exported."""
    clip: float = 1.0
    """Largest gradient norm of the generator; ten times that for the discriminator."""
    foreground: float = 0.1
    """Slices with a smaller share of body are left out of training."""
    seed: int = 0
    """Changes weights at the start, order and augmentation."""
    threads: int = 2
    """CPU threads; a parameter because another number changes the bits of the result."""
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

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "threads", "log_every", "validate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name}: must be at least 1, got {getattr(self, name)}")


def seeded(seed: int, step: int, purpose: str) -> torch.Generator:
    """Return a CPU generator that is a function of its arguments."""
    digest = hashlib.sha256(f"{seed}/{step}/{purpose}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def schedule(progress: float) -> float:
    """Return the factor of the learning rate: 5 % linear warm-up, then cosine to zero."""
    return min(1.0, progress / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))


class Sampler:
    """Which rows of the store step ``t`` sees: a new permutation per epoch, positioned by ``t`` alone."""

    def __init__(self, rows: np.ndarray, batch: int, seed: int, purpose: str) -> None:
        self.rows, self.batch, self.seed, self.purpose = rows, batch, seed, purpose

    def __call__(self, step: int) -> np.ndarray:
        """Return ``batch`` rows."""
        places = np.arange(step * self.batch, (step + 1) * self.batch)
        epochs, within = places // len(self.rows), places % len(self.rows)
        orders = {int(e): self._order(int(e)) for e in np.unique(epochs)}
        return np.stack([self.rows[orders[int(e)][w]] for e, w in zip(epochs, within, strict=True)])

    def _order(self, epoch: int) -> np.ndarray:
        return torch.randperm(len(self.rows), generator=seeded(self.seed, epoch, self.purpose)).numpy()


class Feed:
    """Batches from the slice store: paired rows, or rows of each domain drawn apart."""

    def __init__(
        self, store: SliceStore, source: str, target: str, paired: bool, settings: Training, augmentation: Augmentation
    ) -> None:
        self.settings, self.augmentation = settings, augmentation
        self.arrays = store.array(source, "train"), store.array(target, "train")
        rows = store.rows(source, "train"), store.rows(target, "train")
        seen = [np.array([i for i, row in enumerate(r) if row.foreground >= settings.foreground]) for r in rows]
        if paired:
            pairs = store.pairs(source, target, "train")
            pairs = pairs[np.isin(pairs[:, 0], seen[0])]
            draws = [Sampler(pairs, settings.batch, settings.seed, "pairs")]
        else:
            draws = [
                Sampler(r[:, None], settings.batch, settings.seed, n)
                for r, n in zip(seen, (source, target), strict=True)
            ]
        if any(len(draw.rows) == 0 for draw in draws):
            kind = "paired slices: no training subject has both" if paired else "slices: no training subject has one of"
            raise UserError(f"no {kind} {source} and {target} with enough foreground; check ingest.rules and the split")
        self.draws = draws

    def __call__(self, step: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return source and target ``(N, C, H, W)`` float32 of ``step``, augmented."""
        rows = np.concatenate([draw(step) for draw in self.draws], axis=1)  # (N, 2)
        source, target = (
            torch.from_numpy(array[rows[:, i]].astype(np.float32)).to(device, non_blocking=True)
            for i, array in enumerate(self.arrays)
        )
        return augment(source, target, self.augmentation, seeded(self.settings.seed, step, "augment"))


class Guard:
    """Stop with a named cause instead of training on silently."""

    def __init__(self) -> None:
        self.bad = 0
        self.right: deque[float] = deque(maxlen=40)

    def finite(self, phase: str, norm: Tensor) -> bool:
        """Tell whether the gradient is usable: skip one or two bad updates, stop at the third in a row."""
        if bool(torch.isfinite(norm)):
            self.bad = 0
            return True
        self.bad += 1
        if self.bad == 3:
            raise UserError(
                f"training stopped: the gradient of the {phase} is not finite three times in a row; look for flat or "
                "damaged images in reports/ingest.json, or lower training.learning_rate"
            )
        return False

    def output(self, fake: Tensor, step: int) -> None:
        """Stop where the generator paints one constant."""
        if step > 20 and float(fake.detach().float().flatten(1).std(1).max()) < 1e-3:
            raise UserError(
                f"training stopped at step {step}: the generator's images are constant; lower training.learning_rate "
                "or objective.adversarial_weight, and check that the training images are not flat"
            )

    def critic(self, share: float, step: int) -> None:
        """Stop where the discriminator has won: its gradient then teaches nothing."""
        self.right.append(share)
        if len(self.right) == self.right.maxlen and min(self.right) > 0.995:
            raise UserError(
                f"training stopped at step {step}: the discriminator tells every image apart; raise objective.r1 or "
                "lower training.discriminator_learning_rate"
            )


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

    def __init__(self, recipe: Recipe, networks: Networks, settings: Training, device: torch.device) -> None:
        self.settings = settings
        self.networks = networks
        self.modules = nn.ModuleDict(recipe.players).to(device)
        if device.type == "cuda":  # on CPU the plain layout is faster: docs/benchmarks.md
            self.modules.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(networks).requires_grad_(False).eval()
        self.optimisers = {  # the rate is set at every turn
            name: torch.optim.AdamW(module.parameters(), lr=1.0, betas=(0.5, 0.99), weight_decay=1e-4)
            for name, module in self.modules.items()
        }

    def turn(self, player: str, loss: Tensor, progress: float, guard: Guard, phase: str) -> float:
        """Take one optimiser step of ``player`` (several joined by ``+``); returns the gradient norm."""
        names = player.split("+")
        for optimiser in self.optimisers.values():
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        critic = names == ["discriminator"]
        limit = self.settings.clip * (10 if critic else 1)
        weights = [p for name in names for p in self.modules[name].parameters()]
        norm = nn.utils.clip_grad_norm_(weights, limit, foreach=True)
        if guard.finite(phase, norm):
            peak = self.settings.discriminator_learning_rate if critic else self.settings.learning_rate
            for name in names:
                for group in self.optimisers[name].param_groups:
                    group["lr"] = peak * schedule(progress)
                self.optimisers[name].step()
        return float(norm)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the average towards the weights, faster at first."""
        decay = min(self.settings.ema, (1 + step) / (10 + step))
        for slow, fast in zip(self.average.state_dict().values(), self.networks.state_dict().values(), strict=True):
            slow.lerp_(fast, 1 - decay)

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
    settings: Training,
    objective: Objective,
    architecture: Architecture,
    augmentation: Augmentation,
    scratch: Path,
    log: Log,
    show: Callable[[int, dict[str, float]], None],
) -> tuple[Networks, list[dict[str, float]]]:
    """Train and return the averaged networks and the curve, one row per logged step.

    Args:
        store: slices with a train split.
        source, target: domains.
        scratch: folder of resumable states; it must be keyed by everything that determines the run.
        log: receives curves and pictures.
        show: receives progress for a person: step and the latest values.
    """
    device = pick_device(settings.device)
    _steady(settings.threads)
    bf16 = settings.precision == "bfloat16" or (
        settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    domains = [source, target]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        networks = Networks(architecture, domains)
        channels = store.array(source, "train").shape[1]
        recipe = RECIPES[objective.kind](networks, objective, channels, len(domains))
    players = Players(recipe, networks, settings, device)
    if settings.compile and device.type == "cuda":
        networks.compile()
    feed = Feed(store, source, target, objective.kind == "paired", settings, augmentation)
    preview = _preview(store, source, target, objective.kind == "paired")
    guard = Guard()
    curve: list[dict[str, float]] = []
    begin = 0
    if (state := load_state(scratch)) is not None:
        players.load(state)
        begin, curve = state["step"], state["curve"]
        show(begin, {"resumed": 1.0})
    source_index = torch.zeros(settings.batch, dtype=torch.long, device=device)
    saved = time.monotonic()
    for step in range(begin, settings.steps):
        progress = step / settings.steps
        x, y = feed(step, device)
        batch = Batch(x, y, source_index, source_index + 1, seeded(settings.seed, step, "loss"))
        values: dict[str, float] = {}
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            fake = recipe.play(batch)
        for phase in recipe.phases:
            if step % phase.every:
                continue
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16 and phase.name != "r1"):
                loss, terms = phase.loss(batch, fake, progress)
            norm = players.turn(phase.player, loss, progress, guard, phase.name)
            if step % settings.log_every == 0:
                values |= {f"{phase.name}/norm": norm} | {
                    f"{phase.name}/{k}": float(v.detach()) for k, v in terms.items()
                }
        players.follow(step)
        done = step + 1
        if step % settings.log_every == 0:
            guard.output(fake, step)
            if "discriminator/share_right" in values:
                guard.critic(values["discriminator/share_right"], step)
        if done % settings.validate_every == 0 or done == settings.steps:
            error, picture = _validate(players.average, *preview, device)
            values["validation/l1"] = error
            log(done, {"validation/sample": picture})
        if values:
            log(done, values)
            curve.append({"step": float(done), **values})
        show(done, values)
        if time.monotonic() - saved > settings.checkpoint_s and done < settings.steps:
            save_state(scratch, done, {"step": done, "curve": curve, **players.state()})
            saved = time.monotonic()
    return players.average, curve


def _preview(store: SliceStore, source: str, target: str, paired: bool) -> tuple[Tensor, Tensor | None]:
    """Choose a few validation slices (training ones where there are none), the same throughout the run."""
    split = "validation" if store.rows(source, "validation") else "train"
    rows = store.pairs(source, target, split) if paired else np.arange(len(store.rows(source, split)))[:, None]
    body = [store.rows(source, split)[i].foreground for i in rows[:, 0]]
    rows = rows[[i for i, share in enumerate(body) if share >= 0.1]] if max(body) >= 0.1 else rows
    rows = rows[np.linspace(0, len(rows) - 1, min(32, len(rows))).round().astype(int)]
    x = torch.from_numpy(store.array(source, split)[rows[:, 0]].astype(np.float32))
    y = torch.from_numpy(store.array(target, split)[rows[:, 1]].astype(np.float32)) if paired else None
    return x, y


@torch.inference_mode()
def _validate(networks: Networks, x: Tensor, y: Tensor | None, device: torch.device) -> tuple[float, np.ndarray]:
    """Return the mean absolute error (change of the source where unpaired) and a strip of examples."""
    which = torch.ones(len(x), dtype=torch.long, device=device)
    out = torch.cat([networks(a.to(device), k).cpu() for a, k in zip(x.split(8), which.split(8), strict=True)])
    error = float((out - (y if y is not None else x)).abs().mean())
    some = torch.linspace(0, len(x) - 1, min(6, len(x))).round().long()
    rows = [x[some], out[some], *([y[some]] if y is not None else [])]
    grid = torch.cat([torch.cat(list(row), -1) for row in rows], -2)  # (C, rows * H, columns * W)
    pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    return error, pixels[..., 0] if pixels.shape[-1] == 1 else pixels
