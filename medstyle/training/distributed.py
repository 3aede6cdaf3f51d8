"""Train in several processes: each takes its share of every batch, and gradients are averaged.

Gradients are averaged explicitly instead of by a DDP wrapper: a step runs the discriminator several
times and differentiates R1 twice, which the hooks of the wrapper do not support
(docs/decisions.md).
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn


@dataclass(frozen=True)
class World:
    """The rank of this process and the number of processes in the training."""

    rank: int = 0
    size: int = 1

    @staticmethod
    def join(device: torch.device) -> World:
        """Join the processes that ``torchrun`` started on ``device``.

        Without it, be the only one.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return World()
        if not dist.is_initialized():
            gpu = device.type == "cuda"
            if gpu:
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
            dist.init_process_group("nccl" if gpu else "gloo")
            atexit.register(dist.destroy_process_group)
        return World(dist.get_rank(), size)

    @torch.no_grad()
    def average(self, weights: Iterable[nn.Parameter]) -> None:
        """Replace the gradients by their mean over the processes, in one message."""
        if self.size == 1:
            return
        gradients = [p.grad for p in weights if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of ``values`` over the processes."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
            values /= self.size
        return values
