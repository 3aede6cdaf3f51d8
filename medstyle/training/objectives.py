"""Training recipes. A recipe says which networks play, in which phases, and what each phase minimises.

The loop knows no recipe: per step it calls :meth:`Recipe.play` once (the generator's images) and then takes each
phase's turn. A phase is data: a player, terms and their weights, which may be schedules.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medstyle.errors import UserError
from medstyle.networks.discriminator import Discriminator
from medstyle.networks.generator import Generator
from medstyle.networks.registrar import Registrar
from medstyle.networks.style import LATENT
from medstyle.networks.texture import Texture, correlations, style_distance
from medstyle.networks.translator import Networks, Translator
from medstyle.params import params
from medstyle.training.losses import (
    ADVERSARIAL,
    anatomy_loss,
    contrastive_loss,
    detail_loss,
    discriminator_loss,
    folded,
    generator_loss,
    perceptual_loss,
    r1_penalty,
    region_loss,
    slice_consistency,
    smoothness,
    structure_loss,
)
from medstyle.training.motion import motion_loss, noisy, random_flow, warp

Terms = dict[str, Tensor]
Weight = float | Callable[[float], float]


@params
class Objective:
    """What training minimises."""

    kind: str = "paired"
    """Recipe: a key of RECIPES."""
    weights: dict[str, float] = field(default_factory=dict)
    """Term -> weight, where it differs from the recipe's own; 0 leaves the term out."""
    adversarial: str = "nonsaturating"
    """Form of the adversarial loss: minimax, nonsaturating, least_squares or hinge."""
    adversarial_start: float = 0.0
    """Share of the steps after which the adversarial term sets in (linear ramp over a tenth of the steps)."""
    detail: float = 4.0
    """Extra weight, in the l1 term, of pixels that differ from their surroundings, such as small lesions."""
    features: str | None = None
    """Frozen features of the perceptual term: a translator folder, or a network that MONAI's PerceptualLoss fetches."""
    region_mm: float = 16.0
    """Side of the squares (3-D: cubes) whose means `population` compares: what people still differ by in the atlas."""
    patches: int = 128
    """Places per image and level that the contrastive term compares."""
    shift_limit: float = 5.0
    """paired_registered: largest displacement, pixels."""
    discriminator_width: int = 32
    """Channels of the discriminator's first layer."""
    discriminator_layers: int = 2
    """Strided layers of the discriminator: 2 sees 34 x 34 pixels, 3 sees 70 x 70."""
    discriminator_scales: int = 1
    """Scales that the discriminator judges."""

    def __post_init__(self) -> None:
        if self.kind not in RECIPES:
            raise UserError(f"objective.kind: {self.kind!r} is none of {', '.join(RECIPES)}")
        known = RECIPES[self.kind].weights | EVERY
        if unknown := sorted(set(self.weights) - set(known)):
            raise UserError(f"objective.weights: {self.kind} has no term {unknown[0]!r}; it has {', '.join(known)}")
        if negative := [name for name, weight in self.weights.items() if weight < 0]:
            raise UserError(f"objective.weights.{negative[0]}: must not be negative")
        least = {
            "region_mm": 0,
            "patches": 1,
            "discriminator_width": 1,
            "discriminator_layers": 1,
            "discriminator_scales": 1,
            "detail": 0,
        }
        for name, low in {**least, "shift_limit": 0, "adversarial_start": 0}.items():
            if getattr(self, name) < low:
                raise UserError(f"objective.{name}: must be at least {low}, got {getattr(self, name)}")
        if self.adversarial_start >= 1:
            raise UserError("objective.adversarial_start: is a share of the steps below 1")
        if self.adversarial not in ADVERSARIAL:
            raise UserError(f"objective.adversarial: {self.adversarial!r} is none of {', '.join(ADVERSARIAL)}")


class Alike(NamedTuple):
    """Another person at the same place of the body, by the atlas.

    ``image`` as the batch's target; ``seen (N, 1, ...)`` above 0 where the scan reaches; size of a voxel, z first.
    """

    image: Tensor
    seen: Tensor
    voxel_mm: tuple[float, ...]


@dataclass(frozen=True)
class Batch:
    """One step's images in network units; ``N`` examples.

    Attributes:
        source: ``(N, C_in, ...)``, what the generator sees: contrasts (the source first), each with its neighbours.
        target: ``(N, C, ...)`` an image of the target domain.
        source_index, target_index: ``(N,)`` style indices.
        paired: ``(N,)`` bool: the target shows the same place of the same subject.
        seeds: one for each example, for whatever a loss samples.
        step: number of the step.
        progress: share of the steps that are done, in [0, 1).
        alike: what the target's scan shows where the source is; only for ``population``.
    """

    source: Tensor
    target: Tensor
    source_index: Tensor
    target_index: Tensor
    paired: Tensor
    seeds: Sequence[int]
    step: int
    progress: float
    alike: Alike | None = None


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


class Paired(Recipe):
    """``l1 |G(x) - y| + structure (1 - SSIM) + perceptual + adversarial`` (pix2pix, Isola 2017, with a weak critic).

    No mask is needed: outside the body both images are the constant -1.
    """

    weights: ClassVar = {"l1": 1.0, "structure": 0.2, "perceptual": 0.0, "adversarial": 0.02, "r1": 0.02}
    paired = True
    conditional = True
    several_contrasts = True

    def __init__(self, networks: Networks, settings: Objective, channels: tuple[int, int], domains: int) -> None:
        super().__init__(networks, settings, channels, domains)
        self.perceptual = _perceptual(settings.features, networks) if self.weights_now["perceptual"] else None
        weights = self.schedule("l1", "structure", "perceptual")
        self.phases.append(Phase("generator", ("generator",), weights, self.generate))

    def _generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        return self.similarity(batch, played["fake"], played, wanted)

    def similarity(self, batch: Batch, image: Tensor, played: Played, wanted: frozenset[str]) -> Terms:
        """Compare ``image`` with the target."""
        terms = {"l1": detail_loss(image, batch.target, self.settings.detail)}
        if "structure" in wanted:
            terms["structure"] = structure_loss(image, batch.target)
        if self.perceptual is not None and "perceptual" in wanted:
            terms["perceptual"] = self.perceptual(image, batch.target)
        if "adversarial" in wanted:
            terms["adversarial"] = self.fool(batch, played)
        return terms


class PairedRegistered(Paired):
    """Pairs that do not line up: the output is warped onto the target before they are compared (RegGAN, Kong 2021).

    The registrar is dropped after training. Its displacement is bounded, and the share of folded space is logged,
    because it could otherwise hide wrong anatomy. The critic is shown no source: the pair is not aligned.
    """

    weights: ClassVar = {**Paired.weights, "smooth": 0.5}
    conditional = False

    def __init__(self, networks: Networks, settings: Objective, channels: tuple[int, int], domains: int) -> None:
        super().__init__(networks, settings, channels, domains)
        self.registrar = Registrar(self.channels, settings.shift_limit, networks.dimensions)
        self.players["registrar"] = self.registrar
        weights = {**self.schedule("l1", "structure", "perceptual"), "smooth": self.weights_now["smooth"]}
        self.phases[-1] = Phase("generator", ("generator", "registrar"), weights, self.generate)

    def _generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        warped, displacement = self.registrar(played["fake"], batch.target)
        terms = self.similarity(batch, warped, played, wanted)
        terms["smooth"] = smoothness(displacement)
        with torch.no_grad():
            terms["unwarped_l1"] = detail_loss(played["fake"], batch.target, self.settings.detail)
            terms["displacement"] = displacement.abs().mean()
            terms["folded"] = folded(displacement)
        return terms


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


class MultiDomain(UnpairedContrastive):
    """Every domain into every other by one generator (StarGAN v2, Choi 2020), with guards of anatomy.

    The sources of style that the network has take turns, step by step. ``pair`` compares with the target where the
    subject has it. ``diversity`` rewards latents that look different, on blurred images only, and fades: it would pay
    for changes of anatomy otherwise. It is 0 unless asked for.
    """

    weights: ClassVar = {
        "adversarial": 1.0, "r1": 0.02, "pair": 10.0, "cycle": 1.0, "style": 1.0, "diversity": 0.0,
        "contrastive": 0.5, "anatomy": 1.0, "texture": 0.0,
    }  # fmt: skip
    directions = "all"

    def schedule(self, *names: str) -> dict[str, Weight]:
        """Return the weights of this recipe's terms."""
        weights = super().schedule(*[n for n in self.weights if n not in ("adversarial", "r1")])
        if "reference" not in self.networks.style.sources:
            weights["style"] = 0.0
        weights["diversity"] = fade(self.weights_now["diversity"] * ("latent" in self.networks.style.sources), 0.0, 0.0)
        return weights

    def _style(self, batch: Batch, kind: str, salt: int = 0) -> Tensor:
        reference = z = None
        if kind == "latent":
            rngs = [torch.Generator().manual_seed(seed ^ (0x5EED + salt)) for seed in batch.seeds]
            z = torch.stack([torch.randn(LATENT, generator=rng) for rng in rngs]).to(batch.source.device)
        elif kind == "reference":
            reference = batch.target
        code: Tensor = self.networks.style(batch.target_index, z, reference)
        return code

    def _own_style(self, batch: Batch) -> Tensor:
        own = self.content(batch)
        style = self.networks.style
        code: Tensor = (
            style(batch.source_index, None, own)
            if "reference" in style.sources
            else style.usual(batch.source_index, own)
        )
        return code

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate with the style source whose turn it is."""
        sources = self.networks.style.sources
        code = self._style(batch, sources[batch.step % len(sources)])
        return {"fake": self.networks.render(batch.source, code), "code": code}

    def _generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        fake, code = played["fake"], played["code"]
        sources = self.networks.style.sources
        terms = {}
        if "pair" in wanted:  # a random style has no one right answer
            random = sources[batch.step % len(sources)] == "latent"
            count = batch.paired.float() * (0.0 if random else 1.0)
            each = (fake.float() - batch.target).abs().flatten(1).mean(1)
            terms["pair"] = (each * count).mean()
        if "style" in wanted:
            terms["style"] = (self.networks.style(batch.target_index, None, fake).float() - code).abs().mean()
        if "cycle" in wanted:
            returned = self.networks.render(self.seen(fake), self._own_style(batch))
            terms["cycle"] = (returned.float() - self.content(batch)).abs().mean()
        if "diversity" in wanted:
            one, other = (self.networks.render(batch.source, self._style(batch, "latent", salt)) for salt in (1, 2))
            terms["diversity"] = -(_blurred(one) - _blurred(other.detach())).abs().mean()
        if "contrastive" in wanted:
            terms["contrastive"] = self.nce(self.content(batch), fake, batch.seeds)
        if "anatomy" in wanted:
            terms["anatomy"] = anatomy_loss(fake, self.content(batch))
        if "texture" in wanted:
            terms["texture"] = self.unlike(fake, batch.target)
        if "adversarial" in wanted:
            terms["adversarial"] = self.fool(batch, played)
        return terms


def _blurred(image: Tensor) -> Tensor:
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pool(image.float(), 8 if min(image.shape[2:]) >= 8 else min(image.shape[2:]))


class Exemplar(MultiDomain):
    """One picture in the style of another (AdaIN, Huang and Belongie 2017, with a critic of the whole collection).

    ``texture`` asks for the reference's correlations of features (Gatys 2016), ``own`` that a picture in its own style
    stays what it is; content is kept patch by patch.
    """

    weights: ClassVar = {
        **dict.fromkeys(MultiDomain.weights, 0.0),
        "adversarial": 0.2, "r1": 0.02, "texture": 5.0, "own": 2.0, "style": 1.0, "contrastive": 1.0,
    }  # fmt: skip
    directions = "one"
    dimensions = (2,)

    def __init__(self, networks: Networks, settings: Objective, channels: tuple[int, int], domains: int) -> None:
        super().__init__(networks, settings, channels, domains)
        if "reference" not in networks.style.sources:
            raise UserError("network.style: exemplar takes styles from pictures; add reference")

    def _generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        terms = super()._generate(batch, played, wanted)
        if "own" in wanted:
            same = self.networks.render(self.seen(batch.target), self._style(batch, "reference"))
            terms["own"] = (same.float() - batch.target).abs().mean()
        return terms


class Harmonization(MultiDomain):
    """Sites or scanners into the look of one of them: small, residual changes, styles that stay close together.

    Domains are sites (``mr_t1@site``). ``own`` asks that an image in its own style stays what it is; ``spread``
    keeps style codes small, so that they carry contrast and not biology (after HACA3, Zuo 2023).
    """

    weights: ClassVar = {**MultiDomain.weights, "contrastive": 0.5, "own": 10.0, "spread": 1e-3}

    def __init__(self, networks: Networks, settings: Objective, channels: tuple[int, int], domains: int) -> None:
        super().__init__(networks, settings, channels, domains)
        if not networks.residual:
            raise UserError("network.residual: harmonization changes images a little; set it to true")

    def _generate(self, batch: Batch, played: Played, wanted: frozenset[str]) -> Terms:
        terms = super()._generate(batch, played, wanted)
        if "own" in wanted:
            same = self.networks.render(batch.source, self._own_style(batch))
            terms["own"] = (same.float() - self.content(batch)).abs().mean()
        terms["spread"] = played["code"].float().square().mean()
        return terms


RECIPES: dict[str, type[Recipe]] = {
    "paired": Paired,
    "paired_registered": PairedRegistered,
    "unpaired_contrastive": UnpairedContrastive,
    "unpaired_cycle": UnpairedCycle,
    "multi_domain": MultiDomain,
    "exemplar": Exemplar,
    "harmonization": Harmonization,
}


def _perceptual(name: str | None, networks: Networks) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the perceptual term ``(output, target) -> loss`` of frozen features, for images as ``networks`` makes.

    Raises:
        UserError: none were named, they cannot be fetched here, or are of images of another kind.
    """
    if name is None:
        raise UserError("objective.features: name a translator folder or a network of MONAI's PerceptualLoss")
    if Path(name).is_dir():
        translator = Translator.load(name)
        [other, *_], count = translator.members, 1 + len(translator.config.contrasts)
        encoder, kind = other.generator, (other.dimensions, other.colours)
        if not isinstance(encoder, Generator):
            raise UserError(f"objective.features: {name} holds a generator that shows no features")
        if kind != (networks.dimensions, networks.colours):
            raise UserError(f"objective.features: {name} is for images of {kind[0]} dimensions and {kind[1]} channels")
        several = [1, count * other.neighbours, *[1] * kind[0]]  # an image is its own neighbour and contrast

        def features(image: Tensor) -> list[Tensor]:
            maps: list[Tensor] = encoder.to(image.device).features(image.repeat(several))
            return maps

        return lambda output, target: perceptual_loss(features, output, target)
    if networks.dimensions == 3:
        raise UserError(f"objective.features: {name!r} is for two dimensions; name a translator folder")
    from monai.losses import PerceptualLoss

    try:
        network = PerceptualLoss(spatial_dims=2, network_type=name, is_fake_3d=False).eval().requires_grad_(False)
    except Exception as error:  # no network, no optional package, no such name
        raise UserError(
            f"objective.features: {name!r} is no translator folder, and MONAI cannot load a network of this name here "
            f"({type(error).__name__})"
        ) from None
    return lambda output, target: network.to(output.device)(output.float(), target.float())
