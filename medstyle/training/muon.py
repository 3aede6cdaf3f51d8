"""Take steps of equal size in every direction of a convolution: Muon, beside AdamW for the rest.

The gradient of a convolution as a matrix ``(out, in * kernel)`` has a few large singular values,
and steps along it leave most directions nearly unlearned. Muon (Jordan 2024) replaces the momentum
by the orthogonal matrix nearest to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# The odd polynomial whose iteration takes singular values of 0.001 to 1 near to 1 (Jordan 2024)
POLYNOMIAL, ITERATIONS = (3.4445, -4.7750, 2.0315), 5
INNER = 16  # channels on both sides from which a convolution is an inner one
ALIKE = 0.2  # root mean square of a step of AdamW, so that one rate fits both (Liu 2025)


def orthogonal(matrix: Tensor) -> Tensor:
    """Return about the orthogonal matrix ``(M, N)`` nearest to a matrix of that shape.

    Its singular values lie between 0.7 and 1.2 where those of the matrix are above a thousandth of
    its norm. The iteration of Newton and Schulz is a polynomial in ``X X^T`` times ``X``, so that
    all but the first and the last product are of small squares.
    """
    x = matrix if len(matrix) <= matrix.shape[1] else matrix.T  # (M, N), M <= N
    norm = x.norm() + 1e-12
    gram = (x / norm) @ (x / norm).T  # (M, M)
    a, b, c = POLYNOMIAL
    whole = torch.eye(len(x), dtype=x.dtype, device=x.device)
    for _ in range(ITERATIONS):
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        whole = factor @ whole
        gram = factor @ gram @ factor
    nearest = whole @ x / norm
    return nearest if len(matrix) <= matrix.shape[1] else nearest.T


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's momentum and decoupled weight decay.

    Args:
        weights: of convolutions, ``(out, in, ...)``.
        lr: size of a step, as that of AdamW.
        momentum: of the gradients.
        weight_decay: relative to ``lr``.
    """

    def __init__(
        self, weights: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 1e-4
    ) -> None:
        super().__init__(list(weights), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step along the gradients."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                held = state["momentum"] if state else state.setdefault("momentum", torch.zeros_like(weight))
                held.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(held, group["momentum"]).flatten(1)  # (out, in * kernel)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                size = group["lr"] * ALIKE * math.sqrt(max(ahead.shape))
                weight.add_(orthogonal(ahead).view_as(weight), alpha=-size)


def divided(module: nn.Module, muon: bool) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the weights that Muon steps, those of inner convolutions, and all others.

    Without ``muon`` there are others alone.
    """
    inner: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for weight in module.parameters():
        steppable = muon and weight.ndim >= 4 and min(weight.shape[:2]) >= INNER
        (inner if steppable else rest).append(weight)
    return inner, rest


def optimisers_of(module: nn.Module, muon: bool) -> list[torch.optim.Optimizer]:
    """Return the optimisers of a player: AdamW, and with ``muon`` that for inner convolutions."""
    inner, rest = divided(module, muon)
    settings: dict[str, Any] = {"lr": 1.0, "weight_decay": 1e-4}  # the rate is set at every turn
    adamw = torch.optim.AdamW(rest, betas=(0.5, 0.99), fused=True, **settings)
    return [adamw, *([Muon(inner, **settings)] if inner else [])]
