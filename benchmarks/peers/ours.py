"""Provide the only interface of the benchmarks to medstyle's training loop.

If the signature of the loop changes, only this file has to be changed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medstyle.data.batch import Batch
from medstyle.data.store import SliceStore
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.translator import Translator
from medstyle.params import parse
from medstyle.training.loop import fit
from medstyle.training.muon import Muon, divided
from medstyle.training.objectives.table import OBJECTIVES
from medstyle.training.plan import Plan
from medstyle.transforms.body import AIR, box_around, extent_of, is_body

Settings = dict[str, Any]  # sections of params.yaml's `train`: training, objective, network, augmentation


def train(
    store: SliceStore,
    source: str,
    target: str,
    settings: Settings,
    steps: int,
    threads: int,
    seed: int = 0,
    tick: Callable[[], object] = lambda: None,
) -> tuple[Callable[..., Tensor], int]:
    """Train by the product's loop for ``steps``.

    Return ``(source (N, K, H, W), sharpness=None) -> target`` and its number of weights.

    ``tick`` is called after every step. Nothing is validated or saved on the way: the references do
    neither.
    """
    own = {"steps": steps, "threads": threads, "seed": seed, "validate_every": steps, "checkpoint_s": 1e9}
    plain = {**settings, "training": {**settings.get("training", {}), **own}, "source": source, "target": target}
    plan = parse(Plan, plain, "benchmark")
    start = Translator.load(plan.start) if plan.start else None
    with tempfile.TemporaryDirectory() as scratch:
        [networks], _ = fit(
            plan, store, Path(scratch), log=lambda step, values: None, show=lambda step, values: tick(), start=start
        )
    device = next(networks.parameters()).device

    @torch.inference_mode()
    def generate(x: Tensor, sharpness: float | None = None) -> Tensor:
        middle = networks.content(x)
        out = torch.full_like(middle, AIR)
        code = networks.style(torch.ones(1, dtype=torch.long, device=device))  # the target is the second domain
        for number, one in enumerate(x):  # each in the box around its body, as `medstyle translate` does
            box = (..., *box_around(extent_of(is_body(one).numpy()), x.shape[2:], networks.multiple))
            seen = x[number : number + 1][box].to(device)
            out[number : number + 1][box] = networks.render(seen, code, sharpness).float().cpu()
        return out

    return generate, sum(p.numel() for p in networks.parameters())


class OurNetwork(nn.Module):
    """Our generator with the target's style, as a module that another objective can train."""

    def __init__(self, settings: Settings, domains: tuple[str, str]) -> None:
        super().__init__()
        self.networks = Networks(parse(Architecture, settings.get("network", {}), "benchmark"), list(domains))

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` to the same shape."""
        output: Tensor = self.networks(x, torch.ones(len(x), dtype=torch.long, device=x.device))
        return output


def textbook_step(
    domains: tuple[str, str],
    settings: Settings,
    x: Tensor,
    y: Tensor,
    change: Callable[[nn.Module], nn.Module],
    autocast: torch.autocast | None = None,
    compiled: bool = False,
) -> Callable[[int], None]:
    """Return a full training step ``step(number)`` of our networks and losses, written plainly.

    One optimiser step per player as in the loop, by plain Adam without fusing or lists of tensors
    (and Muon where the loop has it), and the moving average parameter by parameter; no
    augmentation. ``change`` is applied to each network: another layout or normalisation. ``x``,
    ``y``: ``(N, C, H, W)`` on the device.
    """
    import copy
    from contextlib import nullcontext

    plan = parse(Plan, {**settings, "source": domains[0], "target": domains[1]}, "benchmark")
    networks = Networks(plan.network, plan.learned)
    objective = OBJECTIVES[plan.objective.kind](networks, plan.objective, (x.shape[1], x.shape[1]), 2)
    modules = {name: change(module).to(x.device) for name, module in objective.players.items()}
    average = copy.deepcopy(networks)
    muon = plan.training.muon(objective.paired)
    optimisers = {n: _plain_optimisers(m, muon and n == "generator") for n, m in modules.items()}
    if compiled:
        networks.generator.compile(dynamic=True)
        if objective.discriminator is not None:
            objective.discriminator.compile(dynamic=True)
    index = torch.zeros(len(x), dtype=torch.long, device=x.device)

    def step(number: int) -> None:
        paired = torch.ones(len(x), dtype=torch.bool, device=x.device)
        batch = Batch(x, y, index, index + 1, paired, range(number, number + len(x)), number, 0.5, y)
        with autocast or nullcontext():
            images = objective.play(batch)
        for phase in objective.phases:
            if not phase.due(batch):
                continue
            for module in modules.values():
                module.zero_grad()
            with (None if phase.full_precision else autocast) or nullcontext():
                loss, _ = phase.loss(batch, images)
            loss.backward()
            for name in phase.players:
                nn.utils.clip_grad_norm_(modules[name].parameters(), 1.0, foreach=False)
                for optimiser in optimisers[name]:
                    optimiser.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), networks.parameters(), strict=True):
                slow.lerp_(fast, 0.005)

    return step


def _plain_optimisers(module: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    inner, rest = divided(module, muon)
    return [torch.optim.Adam(rest, foreach=False, fused=False), *([Muon(inner)] if inner else [])]
