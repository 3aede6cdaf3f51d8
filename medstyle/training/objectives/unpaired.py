"""Objectives without pairs: contrastive (CUT) and cycle-consistent (CycleGAN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medstyle.data.batch import Batch
from medstyle.errors import UserError
from medstyle.networks.generator import Generator
from medstyle.networks.mind import anatomy_loss
from medstyle.networks.networks import Networks
from medstyle.networks.texture import Texture, correlations, style_distance
from medstyle.training.losses import (
    contrastive_loss,
)
from medstyle.training.objectives.base import Phase, Played, Recipe, Terms, fade

if TYPE_CHECKING:
    from medstyle.training.objectives.table import Objective


class Projectors(nn.Module):
    """Two-layer projections of generator features to unit vectors, one per level.

    Built from the known widths, so that they exist (and are checkpointed) before the first batch.
    """

    def __init__(self, widths: Sequence[int], size: int = 128) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(nn.Linear(w, size), nn.ReLU(), nn.Linear(size, size)) for w in widths)

    def forward(self, maps: list[Tensor], places: list[Tensor]) -> list[Tensor]:
        """Project maps ``(N, C, ...)`` at flat ``places (N, P)`` to unit vectors ``(N, P, size)`` per level."""
        found = []
        for network, level, where in zip(self.levels, maps, places, strict=True):
            vectors = level.flatten(2).gather(2, where[:, None].expand(-1, level.shape[1], -1)).transpose(1, 2)
            found.append(F.normalize(network(vectors).float(), dim=-1))
        return found


class UnpairedContrastive(Recipe):
    """Contrastive unpaired translation (CUT, Park 2020): one-sided, content is kept patch by patch.

    ``anatomy`` ties edges to their places by a descriptor that no contrast changes. ``texture``, for art, asks for the
    correlations of features that a target has (Gatys 2016): brush strokes, before a critic has learned to see them.
    """

    weights: ClassVar = {
        "adversarial": 1.0, "r1": 0.02, "contrastive": 1.0, "identity": 1.0, "anatomy": 1.0, "texture": 0.0,
    }  # fmt: skip

    def __init__(self, networks: Networks, settings: Objective, channels: tuple[int, int], domains: int) -> None:
        super().__init__(networks, settings, channels, domains)
        if not isinstance(networks.generator, Generator):
            raise UserError(f"network.generator: {settings.kind} compares features of `medstyle`; choose it")
        self.generator = networks.generator
        self.projectors = Projectors(self.generator.widths)
        self.players["projectors"] = self.projectors
        self.texture = Texture(self.channels)
        if self.weights_now["texture"] and networks.dimensions == 3:
            raise UserError("objective.weights.texture: is for two dimensions")
        weights = self.schedule("contrastive", "identity", "anatomy", "texture")
        self.phases.append(Phase("generator", ("generator", "projectors"), weights, self.generate))

    def nce(self, content: Tensor, output: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the patchwise contrastive loss; places lie in the body as far as there is one."""
        encode = self.generator.features
        of_output = encode(self.seen(output))
        with torch.no_grad():
            of_content = encode(self.seen(content))
            body = (content > -0.999).any(1, keepdim=True).float().cpu()
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        places = []
        for level in of_output:
            inside = (
                F.adaptive_max_pool2d(body, level.shape[2:])
                if body.ndim == 4
                else F.adaptive_max_pool3d(body, level.shape[2:])
            )
            lots = torch.stack([torch.rand(level[0, 0].numel(), generator=rng) for rng in rngs])
            count = min(self.settings.patches, lots.shape[1])
            places.append((lots + inside.flatten(1)).topk(count, dim=1, sorted=False).indices.to(level.device))
        return contrastive_loss(self.projectors(of_output, places), self.projectors(of_content, places))

    def _generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        terms = {}
        if "contrastive" in wanted:
            terms["contrastive"] = self.nce(self.content(batch), played["fake"], batch.seeds)
        if "identity" in wanted:
            same = self.networks(self.seen(batch.target), batch.target_index)
            terms["identity"] = self.nce(batch.target, same, batch.seeds)
        if "anatomy" in wanted:
            terms["anatomy"] = anatomy_loss(played["fake"], self.content(batch))
        if "texture" in wanted:
            terms["texture"] = self.unlike(played["fake"], batch.target)
        if "adversarial" in wanted:
            terms["adversarial"] = self.fool(batch, played)
        return terms

    def unlike(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the distance of their textures."""
        made, wish = (correlations(self.texture(one)) for one in (image, target))
        return style_distance(made, wish).mean()


class UnpairedCycle(Recipe):
    """Both directions by one generator with two styles, tied by the way there and back (CycleGAN, Zhu 2017).

    No buffer of old forgeries: it would be hidden state; R1, spectral normalisation and the moving average replace it.
    """

    weights: ClassVar = {"adversarial": 1.0, "r1": 0.02, "cycle": 10.0, "identity": 5.0, "anatomy": 1.0}
    directions = "both"

    def __init__(self, networks: Networks, settings: Objective, channels: tuple[int, int], domains: int) -> None:
        super().__init__(networks, settings, channels, domains)
        weights = self.schedule("identity", "anatomy")
        weights["cycle"] = fade(self.weights_now["cycle"], self.weights_now["cycle"] / 10)
        self.phases.append(Phase("generator", ("generator",), weights, self.generate))

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate both ways in one pass."""
        both = torch.cat([batch.source, self.seen(batch.target)])
        codes = self.networks.style(torch.cat([batch.target_index, batch.source_index]))
        fake, back = self.networks.render(both, codes).chunk(2)
        return {"fake": fake, "back": back, "code": codes.chunk(2)[0]}

    def forgeries(self, batch: Batch, played: Played) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Judge both ways."""
        return [
            (batch.target, played["fake"], batch.target_index),
            (self.content(batch), played["back"], batch.source_index),
        ]

    def _generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        real = torch.cat([self.content(batch), batch.target])
        made = torch.cat([played["fake"], played["back"]])
        terms = {}
        if "cycle" in wanted:
            returned = self.networks(self.seen(made), torch.cat([batch.source_index, batch.target_index]))
            terms["cycle"] = (returned.float() - real).abs().mean()
        if "identity" in wanted:
            same = self.networks(self.seen(real), torch.cat([batch.source_index, batch.target_index]))
            terms["identity"] = (same.float() - real).abs().mean()
        if "anatomy" in wanted:
            terms["anatomy"] = anatomy_loss(made, real)
        if "adversarial" in wanted:
            terms["adversarial"] = self.fool(batch, played)
        return terms
