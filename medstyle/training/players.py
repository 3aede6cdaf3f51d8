"""Hold the networks in training, their optimisers and the moving average."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from medstyle.training.distributed import World
from medstyle.training.guards import Guard
from medstyle.training.muon import optimisers_of
from medstyle.training.objectives.base import Objective, Phase
from medstyle.training.plan import Training


def schedule(progress: float) -> float:
    """Return the factor of the learning rate: 5 % linear warm-up, then cosine to zero."""
    return min(1.0, progress / 0.05) * 0.5 * (1 + math.cos(math.pi * progress))


class Players:
    """The networks, their optimisers and the moving average: everything that a checkpoint holds."""

    def __init__(self, objective: Objective, settings: Training, device: torch.device, world: World) -> None:
        self.settings, self.world = settings, world
        self.networks = objective.networks
        self.modules = nn.ModuleDict(objective.players).to(device)
        if device.type == "cuda":  # on a CPU the default layout is faster: docs/benchmarks.md
            layout = torch.channels_last if self.networks.dimensions == 2 else torch.channels_last_3d
            self.modules.to(memory_format=layout)  # type: ignore[call-overload]
        self.average = copy.deepcopy(self.networks).requires_grad_(False).eval()
        muon = settings.muon(objective.paired)
        self.optimisers = {
            name: optimisers_of(module, muon and name == "generator") for name, module in self.modules.items()
        }

    def turn(self, phase: Phase, loss: Tensor, progress: float, guard: Guard) -> float:
        """Take one optimiser step of the phase's players at ``progress`` within the phase.

        Return the gradient norm before clipping.
        """
        self.modules.zero_grad(set_to_none=True)
        loss.backward()
        weights = [p for name in phase.players for p in self.modules[name].parameters()]
        self.world.average(weights)
        norm = nn.utils.clip_grad_norm_(weights, self.settings.clip * phase.clip, foreach=True)
        if guard.finite(phase.name, norm):
            rate = getattr(self.settings, phase.rate) * schedule(progress)
            for optimiser in (one for name in phase.players for one in self.optimisers[name]):
                for group in optimiser.param_groups:
                    group["lr"] = rate
                optimiser.step()
        return float(norm)

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the average towards the current weights.

        Its window grows with the number of steps.
        """
        decay = 1 - 1 / (1 + self.settings.ema * step)
        pairs = list(zip(self.average.state_dict().values(), self.networks.state_dict().values(), strict=True))
        numbers = [(slow, fast) for slow, fast in pairs if slow.is_floating_point()]
        torch._foreach_lerp_([slow for slow, _ in numbers], [fast for _, fast in numbers], 1 - decay)

    def state(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {
            "modules": self.modules.state_dict(),
            "average": self.average.state_dict(),
            "optimisers": {name: [one.state_dict() for one in own] for name, own in self.optimisers.items()},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.modules.load_state_dict(state["modules"])
        self.average.load_state_dict(state["average"])
        for name, own in self.optimisers.items():
            for one, saved in zip(own, state["optimisers"][name], strict=True):
                one.load_state_dict(saved)
