"""Define what all objectives share: parameters, terms, phases and the discriminator's losses.

The loop is independent of the objective. At each step it calls :meth:`Objective.play` once, which
generates the images of the step, and then takes the turn of every phase. A phase is data: its
players, its weighted terms, and how its turn is computed.
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
Images = Mapping[str, Tensor]  # what `play` returns: `fake`, its style `code`, and what an objective adds
Weight = float | Callable[[float], float]  # a number, or a schedule: a pure function of progress
RENAMED = {"own": "self_reconstruction", "population": "cross_subject"}  # former names of weights
AdversarialForm = Literal["minimax", "nonsaturating", "least_squares", "relativistic", "hinge"]  # of ADVERSARIAL
R1_EVERY = 16  # lazy regularisation (Karras 2020): the weight is multiplied by the interval


@params
class ObjectiveParams:
    """What training minimises: the parameters of every kind of objective."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = field(default_factory=dict)
    """Term -> weight, for weights that differ from the objective's defaults; 0 leaves the term
    out."""
    adversarial: AdversarialForm = "nonsaturating"
    """Form of the adversarial loss."""
    adversarial_start: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps after which the adversarial term starts (with a linear ramp over a tenth
    of the steps)."""
    discriminator_width: Annotated[int, Field(ge=1)] = 32
    """Channels of the discriminator's first layer."""
    discriminator_layers: Annotated[int, Field(ge=1)] = 2
    """Strided layers of the discriminator: 2 give a receptive field of 34 x 34 pixels, 3 give 70 x
    70."""
    discriminator_scales: Annotated[int, Field(ge=1)] = 1
    """Number of scales at which the discriminator assesses images."""


class Term(NamedTuple):
    """One summand of the generator's loss.

    Attributes:
        weight: the default weight; None for a diagnostic, which is logged but never minimised.
        loss: ``(objective, batch, images) -> scalar``.
        schedule: ``(objective, weight) -> weight or schedule``, for weights that are not constant.
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
        name: name in the curves.
        players: keys of the objective's ``players`` whose weights the turn updates.
        weights: term -> weight, or a schedule of it.
        losses: ``(batch, images, active) -> named losses``; ``active`` names the terms with a
            nonzero weight at this step. Other losses that it returns are only logged.
        every: the turn is taken at steps that are divisible by this.
        rate: which of the two learning rates of ``training`` applies.
        clip: the gradient norm is clipped to this multiple of ``training.clip``.
        full_precision: compute this phase in float32 even if the others use bfloat16.
        start, end: the shares of the steps between which the turn is taken. The learning rate
            rises and falls within them.
    """

    name: str
    players: tuple[str, ...]
    weights: Mapping[str, Weight]
    losses: Callable[[Batch, Images, frozenset[str]], Losses]
    every: int = 1
    rate: Literal["learning_rate", "discriminator_learning_rate"] = "learning_rate"
    clip: float = 1.0
    full_precision: bool = False
    start: float = 0.0
    end: float = 1.0

    def due(self, batch: Batch) -> bool:
        """Return whether the turn is taken at the step of ``batch``."""
        return batch.step % self.every == 0 and self.start <= batch.progress < self.end

    def progress(self, batch: Batch) -> float:
        """Return the progress within the phase, in [0, 1)."""
        return (batch.progress - self.start) / (self.end - self.start)

    def loss(self, batch: Batch, images: Images) -> tuple[Tensor, Losses]:
        """Return the weighted sum of the active terms, and all terms for the curves."""
        now = {name: w(batch.progress) if callable(w) else w for name, w in self.weights.items()}
        active = {name: weight for name, weight in now.items() if weight != 0}
        if not active:
            raise ParamsError(
                f"objective.weights: no term is active for the {self.name} at step {batch.step}; raise a weight"
            )
        losses = self.losses(batch, images, frozenset(active))
        return torch.stack([weight * losses[name].float() for name, weight in active.items()]).sum(), losses


class Objective:
    """What training minimises: the generator's terms, and a discriminator if one is adversarial.

    Attributes:
        terms: name -> term of the generator's loss; :func:`common` returns those that all
            objectives share.
        paired: whether source and target must show the same slice.
        error_decides: whether the weights with the smallest error on pairs are the best.
        conditional: whether the discriminator sees the source beside the image.
        directions: ``one`` trains source -> target, ``both`` also the reverse, ``all`` every pair
            of domains.
        penalty: default weight of the discriminator's gradient penalty, ``r1``.
        several_contrasts: whether further images of the subject may be inputs beside the source.
        dimensions: the numbers of spatial dimensions that are supported.
    """

    terms: ClassVar[Mapping[str, Term]] = {}
    paired: ClassVar[bool] = False
    error_decides: ClassVar[bool] = False
    conditional: ClassVar[bool] = False
    directions: ClassVar[str] = "one"
    penalty: ClassVar[float] = 0.02
    several_contrasts: ClassVar[bool] = False
    dimensions: ClassVar[tuple[int, ...]] = (2, 3)

    def __init__(self, networks: Networks, settings: Any, channels: tuple[int, int], domains: int) -> None:
        """Build the players.

        Args:
            networks: generator and style.
            settings: the parameters of this kind of objective.
            channels: number of channels of the generator's input and of an image.
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
            raise ParamsError(
                f"objective: {settings.kind} needs an adversarial weight: no other term teaches the style"
            )
        helpers = self.helpers()
        self.players |= helpers
        self.phases = self._phases(("generator", *helpers))

    @classmethod
    def resolve(cls, settings: Any) -> dict[str, float]:
        """Return the weight of every term; raise :class:`UserError` for an unknown term."""
        known = {name: term.weight for name, term in cls.terms.items() if term.weight is not None}
        known["r1"] = cls.penalty
        for name in settings.weights:
            if name in RENAMED:
                raise ParamsError(f"objective.weights.{name}: has been renamed to {RENAMED[name]}")
            if name not in known:
                raise ParamsError(f"objective.weights: {settings.kind} has no term {name!r}; it has {', '.join(known)}")
        return known | settings.weights

    def _check_networks(self) -> None:
        networks, kind = self.networks, self.settings.kind
        if networks.dimensions not in self.dimensions:
            raise ParamsError(f"network.dimensions: {kind} supports only {self.dimensions[0]}")
        if self.weights["temporal"] and networks.dimensions == 3:
            raise ParamsError(
                "objective.weights.temporal: is for two dimensions; a volume already contains its neighbours"
            )
        if self.weights["through_plane"] and networks.neighbours < 3:
            raise ParamsError("objective.weights.through_plane: needs the next slice; set network.neighbours to 3")

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
        """Build the networks that are trained with the generator and discarded after training."""
        return {}

    def _phases(self, generators: tuple[str, ...]) -> list[Phase]:
        phases = []
        if self.discriminator is not None:
            # the discriminator starts with the first, easy fake pairs; it would hardly learn from
            # late ones
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
        """Raise :class:`UserError` if images of ``size`` are too small for the discriminator."""
        smallest = min(size) >> (self.settings.discriminator_scales - 1)
        if self.discriminator is not None and (smallest >> self.settings.discriminator_layers) < 3:
            raise ParamsError(
                f"objective: images of {tuple(size)} pixels are too small for the discriminator; lower "
                "discriminator_layers or discriminator_scales, or raise denoise.size (3-D: training.depth)"
            )

    @property
    def relative(self) -> bool:
        """Whether the discriminator compares each generated image with a real one."""
        return ADVERSARIAL[self.settings.adversarial].relative

    @property
    def cross_subject(self) -> bool:
        """Whether the batch must contain another subject's image of the same region."""
        return self.weights.get("cross_subject", 0.0) > 0

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate the images of the step once, with gradients.

        ``fake`` is the source in the style of the target; ``code`` is that style.
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
        """Return an image as an input of the generator.

        The image takes the place of its neighbours.
        """
        return (
            image if self.see == self.channels else image.repeat(1, self.see // self.channels, *[1] * (image.ndim - 2))
        )

    def following(self, source: Tensor) -> Tensor:
        """Return the generator's input for the next slice; the last neighbour is repeated."""
        stacks = source.unflatten(1, (-1, self.networks.neighbours))
        return torch.cat([stacks[:, :, 1:], stacks[:, :, -1:]], 2).flatten(1, 2)

    @torch.no_grad()
    def diagnostics(self, batch: Batch, images: Images) -> dict[str, float]:
        """Return ``guard/styles_apart``: the mean change when images swap their styles."""
        other = images["code"].roll(1, 0)
        if torch.equal(other, images["code"]):
            return {}
        moved = self.networks.render(batch.source, other).float() - images["fake"].float()
        return {"guard/styles_apart": float(moved.abs().mean())}

    @torch.no_grad()
    def judged(self, batch: Batch, output: Tensor) -> dict[str, float]:
        """Return what the discriminator makes of targets and outputs that it was not trained on.

        How probably real it takes each to be, and the share of patches that it classifies correctly
        (balanced; .5 is chance). It is at chance where the two are equal.
        """
        if self.discriminator is None:
            return {}
        self.discriminator.eval()  # in training mode, spectral normalisation changes at every pass
        try:
            real, fake = (
                self.discriminator(self._shown(batch, image), batch.target_index)
                for image in (self.real_for(batch, output), output)
            )
        finally:
            self.discriminator.train()
        return {
            "validation/probability_of_targets": float(probability(real).mean()),
            "validation/probability_of_outputs": float(probability(fake).mean()),
            "validation/share_right": float(self._share_right(real, fake)),
        }

    def real_for(self, batch: Batch, output: Tensor) -> Tensor:
        """Return the real image with which the discriminator compares ``output``."""
        return batch.target

    def fake_pairs(self, batch: Batch, images: Images) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the pairs that the discriminator compares: ``(real, fake, domain index)``."""
        return [(batch.target, images["fake"], batch.target_index)]

    def _shown(self, batch: Batch, image: Tensor) -> Tensor:
        return torch.cat([batch.source, image], 1) if self.conditional else image

    def _discriminate(self, batch: Batch, images: Images, active: frozenset[str]) -> Losses:
        assert self.discriminator is not None
        losses, right = [], []
        for real_image, fake_image, index in self.fake_pairs(batch, images):
            both = torch.cat([self._shown(batch, real_image), self._shown(batch, fake_image.detach())])
            logits = self.discriminator(both, index.repeat(2))
            real, fake = [level.chunk(2)[0] for level in logits], [level.chunk(2)[1] for level in logits]
            losses.append(discriminator_loss(self.settings.adversarial, real, fake))
            right.append(self._share_right(real, fake))
        return {"adversarial": torch.stack(losses).mean(), "share_right": torch.stack(right).mean()}

    def _share_right(self, real: list[Tensor], fake: list[Tensor]) -> Tensor:
        """Return the share of patches that are classified correctly; equal ones are half right."""
        boundary = ADVERSARIAL[self.settings.adversarial].boundary
        if self.relative:
            right = [((r > f).float() + 0.5 * (r == f)).mean() for r, f in zip(real, fake, strict=True)]
        else:
            right = [(r > boundary).float().mean() for r in real] + [(f < boundary).float().mean() for f in fake]
        return torch.stack(right).mean()

    def _penalise(self, batch: Batch, images: Images, active: frozenset[str]) -> Losses:
        assert self.discriminator is not None
        real, fake, index = self.fake_pairs(batch, images)[0]
        penalties = []
        for image in (real, fake) if self.relative else (real,):
            shown = self._shown(batch, image).detach().requires_grad_()
            # calls forward directly, which is never compiled: the compiler cannot differentiate
            # twice
            penalties.append(r1_penalty(shown, self.discriminator.forward(shown, index)))
        return {"penalty": torch.stack(penalties).sum()}

    def adversarial(self, batch: Batch, images: Images) -> Tensor:
        """Return the generator's adversarial loss; the discriminator gets no gradient."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(False)
        try:
            losses = []
            for real, fake, index in self.fake_pairs(batch, images):
                beside = self.discriminator(self._shown(batch, real), index) if self.relative else []
                made = self.discriminator(self._shown(batch, fake), index)
                losses.append(generator_loss(self.settings.adversarial, beside, made))
        finally:
            self.discriminator.requires_grad_(True)
        return torch.stack(losses).mean()

    def temporal(self, batch: Batch, images: Images) -> Tensor:
        """Compare the moved output with the output of the moved image, against flicker."""
        flow = random_flow(batch.seeds, batch.source.shape[2:]).to(batch.source.device)
        moved = noisy(warp(batch.source, flow), batch.seeds)
        return motion_loss(self.networks.render(moved, images["code"]), images["fake"], flow)

    def through_plane(self, batch: Batch, images: Images) -> Tensor:
        """Return the difference of the outputs of neighbouring slices whose sources are similar."""
        after = self.following(batch.source)
        output = self.networks.render(after, images["code"])
        return slice_consistency(images["fake"], output, self.content(batch), self.networks.content(after))


def common(adversarial: float) -> dict[str, Term]:
    """Return the terms that every objective has.

    ``adversarial`` is the default weight of that term.
    """
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
    """Compare regions with those of another subject, for objectives without pairs."""
    assert batch.matched is not None
    image, seen, voxel_mm = batch.matched
    sides = [round(objective.settings.region_mm / mm) for mm in voxel_mm[-objective.networks.dimensions :]]
    return region_loss(images["fake"], image, seen > 0, sides)
