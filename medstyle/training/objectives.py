"""Training recipes. An objective says which networks play, in which phases, and what each phase minimises.

The loop knows no recipe: per step it calls :meth:`play` once (the generator's images) and then each phase's loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medstyle.errors import UserError
from medstyle.networks.discriminator import Discriminator
from medstyle.networks.translator import Networks
from medstyle.params import params
from medstyle.training.losses import (
    ADVERSARIAL,
    contrastive_loss,
    detail_loss,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    structure_loss,
)


@params
class Objective:
    """What training minimises."""

    kind: Literal["paired", "unpaired_contrastive"] = "paired"
    """Recipe: paired needs the same slice in both domains, unpaired_contrastive (CUT) does not."""
    adversarial: str = "nonsaturating"
    """Form of the adversarial loss: minimax, nonsaturating, least_squares or hinge."""
    adversarial_weight: float = 0.02
    """Weight of the adversarial term for the generator; 0 trains without a discriminator."""
    adversarial_start: float = 0.1
    """Share of the steps after which the adversarial term sets in (linear ramp over a tenth of the steps)."""
    r1: float = 1.0
    """Weight of the R1 gradient penalty on real images; 0 switches it off."""
    l1: float = 1.0
    """Paired: weight of the absolute difference."""
    detail: float = 4.0
    """Paired: extra weight of pixels that differ from their surroundings, such as small lesions; 0 is plain L1."""
    structure: float = 0.2
    """Paired: weight of 1 - SSIM."""
    contrastive: float = 1.0
    """Unpaired: weight of the patchwise contrastive term on source images."""
    identity: float = 1.0
    """Unpaired: weight of the contrastive term on target images, which must stay as they are."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    discriminator_layers: int = 2
    """Strided layers of the discriminator: 2 sees 34 x 34 pixels, 3 sees 70 x 70."""
    discriminator_scales: int = 1
    """Scales that the discriminator judges."""

    def __post_init__(self) -> None:
        if self.adversarial not in ADVERSARIAL:
            raise UserError(f"objective.adversarial: {self.adversarial!r} is none of {', '.join(ADVERSARIAL)}")


@dataclass(frozen=True)
class Batch:
    """One step's images in network units and their style indices.

    ``source (N, C, H, W)``, ``target (N, C, H, W)``; index tensors ``(N,)``; ``rng`` draws whatever a loss samples.
    """

    source: Tensor
    target: Tensor
    source_index: Tensor
    target_index: Tensor
    rng: torch.Generator


@dataclass(frozen=True)
class Phase:
    """One turn of one player.

    Attributes:
        name: for curves.
        player: whose weights the turn updates, a key of the recipe's ``players``.
        loss: ``(batch, fake, progress) -> (loss, named terms)``; ``progress`` in [0, 1) is the share of steps done.
        every: the turn is taken at steps divisible by this.
    """

    name: str
    player: str
    loss: Callable[[Batch, Tensor, float], tuple[Tensor, dict[str, Tensor]]]
    every: int = 1


class Recipe(Protocol):
    """What the loop needs of an objective."""

    players: dict[str, nn.Module]
    phases: list[Phase]

    def play(self, batch: Batch) -> Tensor:
        """Generate the step's images once, with gradients."""


R1_EVERY = 16  # lazy regularisation (Karras 2020): weight times the interval


class _Adversarial:
    """The discriminator's side, which every recipe shares; ``paired`` shows it the source beside the image."""

    def __init__(self, networks: Networks, settings: Objective, channels: int, domains: int, paired: bool) -> None:
        self.networks, self.settings, self.paired = networks, settings, paired
        self.players: dict[str, nn.Module] = {"generator": networks}
        self.phases: list[Phase] = []
        self.discriminator: Discriminator | None = None
        if settings.adversarial_weight > 0:
            self.discriminator = Discriminator(
                in_channels=channels * (2 if paired else 1),
                domains=domains,
                width=settings.discriminator_width,
                layers=settings.discriminator_layers,
                scales=settings.discriminator_scales,
            )
            self.players["discriminator"] = self.discriminator
            # the critic plays from the first, easy forgeries on; it would hardly learn on late ones
            self.phases.append(Phase("discriminator", "discriminator", self._judge))
            if settings.r1 > 0:
                self.phases.append(Phase("r1", "discriminator", self._penalise, every=R1_EVERY))

    def play(self, batch: Batch) -> Tensor:
        smallest = min(batch.source.shape[2:]) >> (self.settings.discriminator_scales - 1)
        if self.discriminator is not None and (smallest >> self.settings.discriminator_layers) < 3:
            raise UserError(
                f"objective: images of {tuple(batch.source.shape[2:])} pixels leave the discriminator no patch; "
                "lower discriminator_layers or discriminator_scales, or raise denoise.size"
            )
        output: Tensor = self.networks(batch.source, batch.target_index)
        return output

    def _shown(self, batch: Batch, images: Tensor) -> Tensor:
        return torch.cat([batch.source, images], 1) if self.paired else images

    def _judge(self, batch: Batch, fake: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.discriminator is not None
        both = torch.cat([self._shown(batch, batch.target), self._shown(batch, fake.detach())])
        logits = self.discriminator(both, batch.target_index.repeat(2))
        real, made = [level.chunk(2)[0] for level in logits], [level.chunk(2)[1] for level in logits]
        limit = ADVERSARIAL[self.settings.adversarial].boundary
        right = (
            torch.cat([*((r > limit).flatten() for r in real), *((m < limit).flatten() for m in made)]).float().mean()
        )
        return discriminator_loss(self.settings.adversarial, real, made), {"share_right": right}

    def _penalise(self, batch: Batch, fake: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        assert self.discriminator is not None
        images = self._shown(batch, batch.target).detach().requires_grad_()
        penalty = r1_penalty(images, self.discriminator(images, batch.target_index))
        return self.settings.r1 * R1_EVERY * penalty, {"penalty": penalty}

    def _fool(self, batch: Batch, fake: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's adversarial term, zero before its start."""
        ramp = min(1.0, max(0.0, (progress - self.settings.adversarial_start) / 0.1))
        if self.discriminator is None or ramp == 0:
            return fake.new_zeros(()), {}
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(False)
        loss = generator_loss(
            self.settings.adversarial, self.discriminator(self._shown(batch, fake), batch.target_index)
        )
        for parameter in self.discriminator.parameters():
            parameter.requires_grad_(True)
        return ramp * self.settings.adversarial_weight * loss, {"adversarial": loss}


class Paired(_Adversarial):
    """``l1 |G(x) - y| + structure (1 - SSIM) + adversarial`` (pix2pix, Isola 2017, with a late weak critic).

    No mask is needed: outside the body both images are the constant -1.
    """

    def __init__(self, networks: Networks, settings: Objective, channels: int, domains: int) -> None:
        super().__init__(networks, settings, channels, domains, paired=True)
        self.phases.append(Phase("generator", "generator", self._generate))

    def _generate(self, batch: Batch, fake: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        fool, terms = self._fool(batch, fake, progress)
        l1 = detail_loss(fake, batch.target, self.settings.detail)
        loss = self.settings.l1 * l1 + fool
        if self.settings.structure > 0:
            structure = structure_loss(fake, batch.target)
            loss = loss + self.settings.structure * structure
            terms["structure"] = structure
        return loss, {"l1": l1, **terms}


class Projectors(nn.Module):
    """Two-layer projections of generator features to unit vectors, one per level.

    Built from the known widths, so that they exist (and are checkpointed) before the first batch.
    """

    def __init__(self, widths: tuple[int, ...], size: int = 128) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(nn.Linear(w, size), nn.ReLU(), nn.Linear(size, size)) for w in widths)

    def forward(self, maps: list[Tensor], places: list[Tensor]) -> list[Tensor]:
        """Project maps ``(N, C, H, W)`` at flat ``places (P,)`` to ``(N, P, size)`` per level."""
        vectors = [level.flatten(2)[:, :, where].transpose(1, 2) for level, where in zip(maps, places, strict=True)]
        return [F.normalize(net(v).float(), dim=-1) for net, v in zip(self.levels, vectors, strict=True)]


class UnpairedContrastive(_Adversarial):
    """Contrastive unpaired translation (CUT, Park 2020): one-sided, content is kept patch by patch."""

    PATCHES = 128

    def __init__(self, networks: Networks, settings: Objective, channels: int, domains: int) -> None:
        super().__init__(networks, settings, channels, domains, paired=False)
        if self.discriminator is None:
            raise UserError(
                "objective: unpaired_contrastive needs adversarial_weight > 0: nothing else teaches the style"
            )
        widths = tuple(level[0].conv.out_channels for level in networks.generator.encoder)  # type: ignore[index]
        self.projectors = Projectors(widths)
        self.players["projectors"] = self.projectors
        self.phases.append(Phase("generator", "generator+projectors", self._generate))

    def _nce(self, content: Tensor, output: Tensor, rng: torch.Generator) -> Tensor:
        encode = self.networks.generator.features
        of_output = encode(output)
        with torch.no_grad():
            of_content = encode(content)
        places = []
        for level in of_output:
            size = level.shape[2] * level.shape[3]
            places.append(torch.randperm(size, generator=rng)[: self.PATCHES].to(level.device))
        return contrastive_loss(self.projectors(of_output, places), self.projectors(of_content, places))

    def _generate(self, batch: Batch, fake: Tensor, progress: float) -> tuple[Tensor, dict[str, Tensor]]:
        fool, terms = self._fool(batch, fake, progress)
        contrastive = self._nce(batch.source, fake, batch.rng)
        loss = fool + self.settings.contrastive * contrastive
        terms = {"contrastive": contrastive, **terms}
        if self.settings.identity > 0:
            same = self.networks(batch.target, batch.target_index)
            terms["identity"] = self._nce(batch.target, same, batch.rng)
            loss = loss + self.settings.identity * terms["identity"]
        return loss, terms


RECIPES: dict[str, Callable[[Networks, Objective, int, int], Recipe]] = {
    "paired": Paired,
    "unpaired_contrastive": UnpairedContrastive,
}
