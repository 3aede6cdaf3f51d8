"""What all objectives share: parameters, terms, phases, and the discriminator's side.

The loop knows no objective. At each step it calls :meth:`Objective.play` once, which generates the step's images, and
then takes the turn of every phase. A phase is data: players, terms with their weights, and how its turn is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from medstyle.data.batch import Batch
from medstyle.errors import ParamsError
from medstyle.networks.discriminator import Discriminator, probability
from medstyle.networks.networks import Networks
from medstyle.params import params
from medstyle.training.losses import (
    ADVERSARIAL,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    region_loss,
    slice_consistency,
)
from medstyle.training.motion import motion_loss, noisy, random_flow, warp

Losses = dict[str, Tensor]
Images = Mapping[str, Tensor]  # what `play` made: `fake`, its style `code`, and what an objective adds
Weight = float | Callable[[float], float]  # a number, or a schedule: a pure function of progress
RENAMED = {"own": "self_reconstruction", "population": "cross_subject"}  # weights by their former names
R1_EVERY = 16  # lazy regularisation (Karras 2020): the weight is multiplied by the interval


@params
class ObjectiveParams:
    """What training minimises: the parameters of every kind of objective."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    """Term -> weight, where it differs from the objective's default; 0 leaves the term out."""
    adversarial: Literal["minimax", "nonsaturating", "least_squares", "hinge"] = "nonsaturating"
    """Form of the adversarial loss."""
    adversarial_start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps after which the adversarial term sets in (linear ramp over a tenth of the steps)."""
    discriminator_width: Annotated[int, Field(ge=1)] = 32
    """Channels of the discriminator's first layer."""
    discriminator_layers: Annotated[int, Field(ge=1)] = 2
    """Strided layers of the discriminator: 2 sees 34 x 34 pixels, 3 sees 70 x 70."""
    discriminator_scales: Annotated[int, Field(ge=1)] = 1
    """Number of scales at which the discriminator looks at images."""


class Term(NamedTuple):
    """One summand of the generator's loss.

    Attributes:
        weight: by default; None for a diagnostic, which is logged and never minimised.
        loss: ``(objective, batch, images) -> scalar``.
        schedule: ``(objective, weight) -> weight or schedule`` where the weight is no constant.
    """

    weight: float | None
    loss: Callable[[Any, Batch, Images], Tensor]
    schedule: Callable[[Any, float], Weight] = lambda objective, weight: weight


def reweighted(terms: Mapping[str, Term], **weights: float) -> dict[str, Term]:
    """Return ``terms`` with other default weights."""
    return dict(terms) | {name: terms[name]._replace(weight=weight) for name, weight in weights.items()}


def ramp(start: float, weight: float) -> Weight:
    """Return a schedule: 0 until ``start``, then linear to ``weight`` over a tenth of the steps."""
    return (lambda progress: weight * min(1.0, max(0.0, (progress - start) / 0.1))) if start > 0 else weight


def fade(weight: float, last: float, start: float = 0.5) -> Weight:
    """Return a schedule: ``weight`` until ``start``, then linear to ``last`` at the end."""
    return lambda progress: weight + (last - weight) * max(0.0, (progress - start) / (1 - start))


@dataclass(frozen=True)
class Phase:
    """One turn of one or several players.

    Attributes:
        name: for the curves.
        players: whose weights the turn updates, keys of the objective's ``players``.
        weights: term -> weight, or a schedule of it.
        losses: ``(batch, images, active) -> named losses``; ``active`` names the terms that have a weight now. Others
            that it returns are logged.
        every: the turn is taken at steps that are divisible by this.
        rate: which of the two learning rates of ``training`` applies.
        clip: the gradient's norm is cut to this many times ``training.clip``.
        full_precision: computed in float32 where the rest is in bfloat16.
    """

    name: str
    players: tuple[str, ...]
    weights: Mapping[str, Weight]
    losses: Callable[[Batch, Images, frozenset[str]], Losses]
    every: int = 1
    rate: Literal["learning_rate", "discriminator_learning_rate"] = "learning_rate"
    clip: float = 1.0
    full_precision: bool = False

    def loss(self, batch: Batch, images: Images) -> tuple[Tensor, Losses]:
        """Return the weighted sum of the terms that count now, and all terms for the curves."""
        now = {name: w(batch.progress) if callable(w) else w for name, w in self.weights.items()}
        active = {name: weight for name, weight in now.items() if weight != 0}
        if not active:
            raise ParamsError(
                f"objective.weights: nothing counts for the {self.name} at step {batch.step}; raise a weight"
            )
        losses = self.losses(batch, images, frozenset(active))
        return torch.stack([weight * losses[name].float() for name, weight in active.items()]).sum(), losses


class Objective:
    """What training minimises: the generator's terms, and a discriminator where one of them is adversarial.

    Attributes:
        terms: name -> term of the generator's loss; common ones are those of :func:`common`.
        paired: whether source and target must show the same slice.
        conditional: whether the discriminator sees the source beside the image.
        directions: ``one`` trains source -> target, ``both`` also the way back, ``all`` every pair of the domains.
        several_contrasts: whether further images of the subject may enter beside the source.
        dimensions: the numbers of spatial dimensions for which it is made.
    """

    terms: ClassVar[Mapping[str, Term]] = {}
    paired: ClassVar[bool] = False
    conditional: ClassVar[bool] = False
    directions: ClassVar[str] = "one"
    several_contrasts: ClassVar[bool] = False
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(self, networks: Networks, settings: Any, channels: tuple[int, int], domains: int) -> None:
        """Build the players.

        Args:
            networks: generator and style.
            settings: the parameters of this kind of objective.
            channels: of what the generator sees and of an image.
            domains: number of domains.
        """
        self.networks, self.settings = networks, settings
        self.see, self.channels = channels
        self.weights = self.resolve(settings)
        self._check_networks()
        self.players: dict[str, nn.Module] = {"generator": networks}
        self.discriminator = self._discriminator(domains) if self.weights["adversarial"] > 0 else None
        if self.discriminator is not None:
            self.players["discriminator"] = self.discriminator
        elif not self.paired:
            raise ParamsError(f"objective: {settings.kind} needs an adversarial weight: nothing else teaches the style")
        helpers = self.helpers()
        self.players |= helpers
        self.phases = self._phases(("generator", *helpers))

    @classmethod
    def resolve(cls, settings: Any) -> dict[str, float]:
        """Return the weight of every term; :class:`UserError` for a term that this kind does not have."""
        known = {name: term.weight for name, term in cls.terms.items() if term.weight is not None} | {"r1": 0.02}
        for name in settings.weights:
            if name in RENAMED:
                raise ParamsError(f"objective.weights.{name}: is now called {RENAMED[name]}")
            if name not in known:
                raise ParamsError(f"objective.weights: {settings.kind} has no term {name!r}; it has {', '.join(known)}")
        return known | settings.weights

    def _check_networks(self) -> None:
        networks, kind = self.networks, self.settings.kind
        if networks.dimensions not in self.dimensions:
            raise ParamsError(f"network.dimensions: {kind} is for {self.dimensions[0]}")
        if self.weights["temporal"] and networks.dimensions == 3:
            raise ParamsError(
                "objective.weights.temporal: is for two dimensions; a volume holds its neighbours already"
            )
        if self.weights["through_plane"] and networks.neighbours < 3:
            raise ParamsError(
                "objective.weights.through_plane: the next slice must be seen; set network.neighbours to 3"
            )

    def _discriminator(self, domains: int) -> Discriminator:
        return Discriminator(
            in_channels=self.channels + (self.see if self.conditional else 0),
            domains=domains,
            width=self.settings.discriminator_width,
            layers=self.settings.discriminator_layers,
            scales=self.settings.discriminator_scales,
            spatial_dims=self.networks.dimensions,
        )

    def helpers(self) -> dict[str, nn.Module]:
        """Build the networks that are trained with the generator and dropped after training."""
        return {}

    def _phases(self, generators: tuple[str, ...]) -> list[Phase]:
        phases = []
        if self.discriminator is not None:
            # the discriminator plays from the first, easy fake pairs on; it would hardly learn on late ones
            teach = partial(Phase, players=("discriminator",), rate="discriminator_learning_rate", clip=10.0)
            phases.append(teach("discriminator", weights={"adversarial": 1.0}, losses=self._discriminate))
            if self.weights["r1"] > 0:
                weights: dict[str, Weight] = {"penalty": self.weights["r1"] * R1_EVERY}
                r1 = teach("r1", weights=weights, losses=self._penalise, every=R1_EVERY, full_precision=True)
                phases.append(r1)
        weighted = {name: term for name, term in self.terms.items() if term.weight is not None}
        weights = {name: term.schedule(self, self.weights[name]) for name, term in weighted.items()}
        phases.append(Phase("generator", generators, weights, self._generate))
        return phases

    def check(self, size: Sequence[int]) -> None:
        """Raise :class:`UserError` where images of ``size`` leave the discriminator no patch."""
        smallest = min(size) >> (self.settings.discriminator_scales - 1)
        if self.discriminator is not None and (smallest >> self.settings.discriminator_layers) < 3:
            raise ParamsError(
                f"objective: images of {tuple(size)} pixels leave the discriminator no patch; lower "
                "discriminator_layers or discriminator_scales, or raise denoise.size (3-D: training.depth)"
            )

    @property
    def cross_subject(self) -> bool:
        """Whether the batch must hold another subject's image of the same region."""
        return self.weights.get("cross_subject", 0.0) > 0

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate the step's images once, with gradients.

        ``fake`` is the batch's source in its target's style, ``code`` that style.
        """
        code = self.networks.style(batch.target_index)
        return {"fake": self.networks.render(batch.source, code), "code": code}

    def _generate(self, batch: Batch, images: Images, active: frozenset[str]) -> Losses:
        losses = {}
        for name, term in self.terms.items():
            if term.weight is None:
                with torch.no_grad():
                    losses[name] = term.loss(self, batch, images)
            elif name in active:
                losses[name] = term.loss(self, batch, images)
        return losses

    def content(self, batch: Batch) -> Tensor:
        """Return the slice or volume of the source that is rendered, ``(N, C, ...)``."""
        return self.networks.content(batch.source)

    def seen(self, image: Tensor) -> Tensor:
        """Return an image as the generator sees one: it is its own neighbour."""
        return (
            image if self.see == self.channels else image.repeat(1, self.see // self.channels, *[1] * (image.ndim - 2))
        )

    def following(self, source: Tensor) -> Tensor:
        """Return what the generator sees of the next slice; beyond the last neighbour that one is repeated."""
        stacks = source.unflatten(1, (-1, self.networks.neighbours))
        return torch.cat([stacks[:, :, 1:], stacks[:, :, -1:]], 2).flatten(1, 2)

    @torch.no_grad()
    def diagnostics(self, batch: Batch, images: Images) -> dict[str, float]:
        """Return ``guard/styles_apart``: how far images move where each takes the style of the next."""
        other = images["code"].roll(1, 0)
        if torch.equal(other, images["code"]):
            return {}
        moved = self.networks.render(batch.source, other).float() - images["fake"].float()
        return {"guard/styles_apart": float(moved.abs().mean())}

    @torch.no_grad()
    def probabilities(self, batch: Batch, output: Tensor) -> dict[str, float]:
        """Return how real the discriminator takes targets and outputs to be; where they are equal it is at chance."""
        if self.discriminator is None:
            return {}
        self.discriminator.eval()  # spectral normalisation moves on at every pass in training
        try:
            real, fake = (
                float(probability(self.discriminator(self._shown(batch, image), batch.target_index)).mean())
                for image in (batch.target, output)
            )
        finally:
            self.discriminator.train()
        return {"validation/probability_of_targets": real, "validation/probability_of_outputs": fake}

    def fake_pairs(self, batch: Batch, images: Images) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return what the discriminator compares: ``(real, fake, domain index)``."""
        return [(batch.target, images["fake"], batch.target_index)]

    def _shown(self, batch: Batch, image: Tensor) -> Tensor:
        return torch.cat([batch.source, image], 1) if self.conditional else image

    def _discriminate(self, batch: Batch, images: Images, active: frozenset[str]) -> Losses:
        assert self.discriminator is not None
        losses, right = [], []
        boundary = ADVERSARIAL[self.settings.adversarial].boundary
        for real_image, fake_image, index in self.fake_pairs(batch, images):
            both = torch.cat([self._shown(batch, real_image), self._shown(batch, fake_image.detach())])
            logits = self.discriminator(both, index.repeat(2))
            real, fake = [level.chunk(2)[0] for level in logits], [level.chunk(2)[1] for level in logits]
            losses.append(discriminator_loss(self.settings.adversarial, real, fake))
            right += [(r > boundary).float().mean() for r in real] + [(f < boundary).float().mean() for f in fake]
        return {"adversarial": torch.stack(losses).mean(), "share_right": torch.stack(right).mean()}

    def _penalise(self, batch: Batch, images: Images, active: frozenset[str]) -> Losses:
        assert self.discriminator is not None
        shown = self._shown(batch, batch.target).detach().requires_grad_()
        # forward itself, never compiled: the compiler cannot differentiate twice
        return {"penalty": r1_penalty(shown, self.discriminator.forward(shown, batch.target_index))}

    def adversarial(self, batch: Batch, images: Images) -> Tensor:
        """Return the generator's adversarial loss; no gradient reaches the discriminator's weights."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        try:
            losses = [
                generator_loss(self.settings.adversarial, self.discriminator(self._shown(batch, fake), index))
                for _, fake, index in self.fake_pairs(batch, images)
            ]
        finally:
            self.discriminator.requires_grad_(True)
        return torch.stack(losses).mean()

    def temporal(self, batch: Batch, images: Images) -> Tensor:
        """A moved image gives the moved output, so that video does not flicker."""
        flow = random_flow(batch.seeds, batch.source.shape[2:]).to(batch.source.device)
        moved = noisy(warp(batch.source, flow), batch.seeds)
        return motion_loss(self.networks.render(moved, images["code"]), images["fake"], flow)

    def through_plane(self, batch: Batch, images: Images) -> Tensor:
        """Give the next slice much the same output where its source is much the same."""
        after = self.following(batch.source)
        output = self.networks.render(after, images["code"])
        return slice_consistency(images["fake"], output, self.content(batch), self.networks.content(after))


def common(adversarial: float) -> dict[str, Term]:
    """Return the terms that every objective has, with the default weight of the adversarial one."""
    return {
        "temporal": Term(0.0, Objective.temporal),
        "through_plane": Term(0.0, Objective.through_plane),
        "adversarial": Term(
            adversarial,
            lambda objective, batch, images: objective.adversarial(batch, images),
            lambda objective, weight: ramp(objective.settings.adversarial_start, weight),
        ),
    }


def cross_subject(objective: Any, batch: Batch, images: Images) -> Tensor:
    """Compare regions with those of another subject, where objectives have no pairs."""
    assert batch.matched is not None
    image, seen, voxel_mm = batch.matched
    sides = [round(objective.settings.region_mm / mm) for mm in voxel_mm[-objective.networks.dimensions :]]
    return region_loss(images["fake"], image, seen > 0, sides)
