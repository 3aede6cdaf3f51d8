"""What all objectives share: settings, phases, the discriminator's side and the terms that any may have."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from medstyle.data.batch import Batch
from medstyle.errors import UserError
from medstyle.networks.discriminator import Discriminator
from medstyle.networks.networks import Networks
from medstyle.training.losses import (
    ADVERSARIAL,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    region_loss,
    slice_consistency,
)
from medstyle.training.motion import motion_loss, noisy, random_flow, warp

if TYPE_CHECKING:
    from medstyle.training.objectives.table import Objective


Terms = dict[str, Tensor]


Weight = float | Callable[[float], float]


Played = Mapping[str, Tensor]


# terms of every recipe: a moved image gives the moved output, so that video does not flicker; the next slice of a scan
# gives much the same output where its source is much the same; a region looks as it does in other people
EVERY: dict[str, float] = {"temporal": 0.0, "through_plane": 0.0, "population": 0.0}


@dataclass(frozen=True)
class Phase:
    """One turn of one or several players.

    Attributes:
        name: for curves.
        players: whose weights the turn updates, keys of the recipe's ``players``.
        weights: term -> weight, or a schedule of it: a pure function of progress.
        terms: ``(batch, played, wanted) -> named terms``; ``wanted`` are those with a weight now. Others are logged.
        every: the turn is taken at steps divisible by this.
    """

    name: str
    players: tuple[str, ...]
    weights: Mapping[str, Weight]
    terms: Callable[[Batch, Played, frozenset[str]], Terms]
    every: int = 1

    def loss(self, batch: Batch, played: Played) -> tuple[Tensor, Terms]:
        """Return the weighted sum of the terms that count now, and all terms for the curves."""
        now = {name: w(batch.progress) if callable(w) else w for name, w in self.weights.items()}
        active = {name: weight for name, weight in now.items() if weight != 0}
        if not active:
            raise UserError(
                f"objective.weights: nothing counts for the {self.name} at step {batch.step}; raise a weight"
            )
        terms = self.terms(batch, played, frozenset(active))
        return torch.stack([weight * terms[name].float() for name, weight in active.items()]).sum(), terms


def ramp(start: float, weight: float) -> Weight:
    """Return a schedule: 0 until ``start``, then linear to ``weight`` over a tenth of the steps."""
    return (lambda progress: weight * min(1.0, max(0.0, (progress - start) / 0.1))) if start > 0 else weight


def fade(weight: float, last: float, start: float = 0.5) -> Weight:
    """Return a schedule: ``weight`` until ``start``, then linear to ``last`` at the end."""
    return lambda progress: weight + (last - weight) * max(0.0, (progress - start) / (1 - start))


R1_EVERY = 16  # lazy regularisation (Karras 2020): weight times the interval


class Recipe(ABC):
    """What all recipes share: the generator, and the discriminator's side.

    Attributes:
        weights: the terms of the recipe with their default weights.
        paired: whether it needs the same slice in source and target.
        conditional: whether the discriminator sees the source beside the image.
        directions: ``one`` trains source -> target, ``both`` also the way back, ``all`` every pair of the domains.
        several_contrasts: whether further images of the subject may enter beside the source.
        dimensions: for which it is made.
    """

    weights: ClassVar[dict[str, float]] = {}
    paired: ClassVar[bool] = False
    conditional: ClassVar[bool] = False
    directions: ClassVar[str] = "one"
    several_contrasts: ClassVar[bool] = False
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(self, networks: Networks, settings: Objective, channels: tuple[int, int], domains: int) -> None:
        """Build the players.

        Args:
            networks: generator and style.
            settings: of the objective.
            channels: of what the generator sees and of an image.
            domains: number of domains.
        """
        self.networks, self.settings = networks, settings
        self.weights_now = {**EVERY, **self.weights, **settings.weights}
        if networks.dimensions not in self.dimensions:
            raise UserError(f"network.dimensions: {settings.kind} is for {self.dimensions[0]}")
        if self.weights_now["temporal"] and networks.dimensions == 3:
            raise UserError("objective.weights.temporal: is for two dimensions; a volume holds its neighbours already")
        if self.weights_now["through_plane"] and networks.neighbours < 3:
            raise UserError("objective.weights.through_plane: the next slice must be seen; set network.neighbours to 3")
        if self.weights_now["population"] and self.paired:
            raise UserError(f"objective.weights.population: {settings.kind} has pairs; it is for recipes without")
        self.see, self.channels = channels
        self.players: dict[str, nn.Module] = {"generator": networks}
        self.phases: list[Phase] = []
        self.discriminator: Discriminator | None = None
        if self.weights_now["adversarial"] > 0:
            self.discriminator = Discriminator(
                in_channels=self.channels + (self.see if self.conditional else 0),
                domains=domains,
                width=settings.discriminator_width,
                layers=settings.discriminator_layers,
                scales=settings.discriminator_scales,
                spatial_dims=networks.dimensions,
            )
            self.players["discriminator"] = self.discriminator
            # the critic plays from the first, easy forgeries on; it would hardly learn on late ones
            self.phases.append(Phase("discriminator", ("discriminator",), {"judge": 1.0}, self._judge))
            if self.weights_now["r1"] > 0:
                weight = {"penalty": self.weights_now["r1"] * R1_EVERY}
                self.phases.append(Phase("r1", ("discriminator",), weight, self._penalise, every=R1_EVERY))
        elif not self.paired:
            raise UserError(f"objective: {settings.kind} needs an adversarial weight: nothing else teaches the style")

    def check(self, size: Sequence[int]) -> None:
        """Raise :class:`UserError` where images of ``size`` leave the discriminator no patch."""
        smallest = min(size) >> (self.settings.discriminator_scales - 1)
        if self.discriminator is not None and (smallest >> self.settings.discriminator_layers) < 3:
            raise UserError(
                f"objective: images of {tuple(size)} pixels leave the discriminator no patch; lower "
                "discriminator_layers or discriminator_scales, or raise denoise.size (3-D: training.depth)"
            )

    def schedule(self, *names: str) -> dict[str, Weight]:
        """Return the weights of the generator's terms; the adversarial one sets in at its start."""
        weights: dict[str, Weight] = {name: self.weights_now[name] for name in (*names, *EVERY)}
        weights["adversarial"] = ramp(self.settings.adversarial_start, self.weights_now["adversarial"])
        return weights

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate the step's images once, with gradients.

        ``fake`` is the batch's source in its target's style, ``code`` that style.
        """
        code = self.networks.style(batch.target_index)
        return {"fake": self.networks.render(batch.source, code), "code": code}

    def generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        """Return the generator's terms: those of the recipe, and those that every recipe may have."""
        terms = self._generate(batch, played, wanted)
        if "temporal" in wanted:
            flow = random_flow(batch.seeds, batch.source.shape[2:]).to(batch.source.device)
            moved = noisy(warp(batch.source, flow), batch.seeds)
            terms["temporal"] = motion_loss(self.networks.render(moved, played["code"]), played["fake"], flow)
        if "through_plane" in wanted:
            after = self.following(batch.source)
            made, seen = self.networks.render(after, played["code"]), self.networks.content(after)
            terms["through_plane"] = slice_consistency(played["fake"], made, self.content(batch), seen)
        if "population" in wanted:
            assert batch.alike is not None
            image, seen, voxel_mm = batch.alike
            sides = [round(self.settings.region_mm / mm) for mm in voxel_mm[-self.networks.dimensions :]]
            terms["population"] = region_loss(played["fake"], image, seen > 0, sides)
        return terms

    def following(self, source: Tensor) -> Tensor:
        """Return what the generator sees of the next slice: beyond the last neighbour that one stands again."""
        stacks = source.unflatten(1, (-1, self.networks.neighbours))
        return torch.cat([stacks[:, :, 1:], stacks[:, :, -1:]], 2).flatten(1, 2)

    @abstractmethod
    def _generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        """Return the recipe's own terms."""

    @torch.no_grad()
    def heard(self, batch: Batch, played: Played) -> dict[str, float]:
        """Return ``guard/styles_apart``: how far images move where each takes the style of the next."""
        other = played["code"].roll(1, 0)
        if torch.equal(other, played["code"]):
            return {}
        moved = self.networks.render(batch.source, other).float() - played["fake"].float()
        return {"guard/styles_apart": float(moved.abs().mean())}

    def content(self, batch: Batch) -> Tensor:
        """Return the slice or volume of the source that is rendered, ``(N, C, ...)``."""
        return self.networks.content(batch.source)

    def seen(self, image: Tensor) -> Tensor:
        """Return an image as the generator sees one: it is its own neighbour."""
        return (
            image if self.see == self.channels else image.repeat(1, self.see // self.channels, *[1] * (image.ndim - 2))
        )

    def forgeries(self, batch: Batch, played: Played) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return what the discriminator judges: ``(real, fake, index)``."""
        return [(batch.target, played["fake"], batch.target_index)]

    def _shown(self, batch: Batch, images: Tensor) -> Tensor:
        return torch.cat([batch.source, images], 1) if self.conditional else images

    def _judge(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        assert self.discriminator is not None
        losses, right = [], []
        boundary = ADVERSARIAL[self.settings.adversarial].boundary
        for real_image, fake_image, index in self.forgeries(batch, played):
            both = torch.cat([self._shown(batch, real_image), self._shown(batch, fake_image.detach())])
            logits = self.discriminator(both, index.repeat(2))
            real, fake = [level.chunk(2)[0] for level in logits], [level.chunk(2)[1] for level in logits]
            losses.append(discriminator_loss(self.settings.adversarial, real, fake))
            right += [(r > boundary).float().mean() for r in real] + [(f < boundary).float().mean() for f in fake]
        return {"judge": torch.stack(losses).mean(), "share_right": torch.stack(right).mean()}

    def _penalise(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        assert self.discriminator is not None
        images = self._shown(batch, batch.target).detach().requires_grad_()
        # forward itself, never compiled: the compiler cannot differentiate twice
        return {"penalty": r1_penalty(images, self.discriminator.forward(images, batch.target_index))}

    def fool(self, batch: Batch, played: Played) -> Tensor:
        """Return the generator's adversarial term."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        losses = [
            generator_loss(self.settings.adversarial, self.discriminator(self._shown(batch, fake), index))
            for _, fake, index in self.forgeries(batch, played)
        ]
        self.discriminator.requires_grad_(True)
        return torch.stack(losses).mean()
