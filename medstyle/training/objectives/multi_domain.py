"""Objectives for many domains, for exemplars and for harmonization."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medstyle.data.batch import Batch
from medstyle.errors import ParamsError
from medstyle.networks.style import LATENT
from medstyle.params import params
from medstyle.training.objectives.base import Images, Term, Weight, fade, reweighted
from medstyle.training.objectives.unpaired import UnpairedContrastive, UnpairedContrastiveParams


@params
class MultiDomainParams(UnpairedContrastiveParams):
    """Parameters of ``multi_domain``."""

    kind: Literal["multi_domain"] = "multi_domain"  # type: ignore[assignment]
    """The kind of objective."""


@params
class ExemplarParams(UnpairedContrastiveParams):
    """Parameters of ``exemplar``."""

    kind: Literal["exemplar"] = "exemplar"  # type: ignore[assignment]
    """The kind of objective."""


@params
class HarmonizationParams(UnpairedContrastiveParams):
    """Parameters of ``harmonization``."""

    kind: Literal["harmonization"] = "harmonization"  # type: ignore[assignment]
    """The kind of objective."""


def _with_references(objective: Any, weight: float) -> Weight:
    return weight if "reference" in objective.networks.style.sources else 0.0


def _with_latents(objective: Any, weight: float) -> Weight:
    return fade(weight if "latent" in objective.networks.style.sources else 0.0, 0.0, 0.0)


class MultiDomain(UnpairedContrastive):
    """Every domain into every other by one generator (StarGAN v2, Choi 2020), with guards of anatomy.

    The sources of style that the network has take turns, step by step. ``pair`` compares with the target where the
    subject has it. ``diversity`` rewards latents that look different, on blurred images only, and fades: it would pay
    for changes of anatomy otherwise. It is 0 unless asked for.
    """

    terms: ClassVar = {
        "pair": Term(10.0, lambda self, batch, images: self.pair(batch, images["fake"])),
        "style": Term(1.0, lambda self, batch, images: self.found_again(batch, images), _with_references),
        "cycle": Term(1.0, lambda self, batch, images: self.cycle(batch, images["fake"])),
        "diversity": Term(0.0, lambda self, batch, images: self.diversity(batch), _with_latents),
        **{
            name: term
            for name, term in reweighted(UnpairedContrastive.terms, contrastive=0.5).items()
            if name != "identity"  # the cycle asks for it
        },
    }
    directions = "all"

    @property
    def sources(self) -> tuple[str, ...]:
        """The sources of style that the network has."""
        return self.networks.style.sources

    def _code(self, batch: Batch, source: str, salt: int = 0) -> Tensor:
        """Return the style code of the target from one source of style."""
        reference = z = None
        if source == "latent":
            rngs = [torch.Generator().manual_seed(seed ^ (0x5EED + salt)) for seed in batch.seeds]
            z = torch.stack([torch.randn(LATENT, generator=rng) for rng in rngs]).to(batch.source.device)
        elif source == "reference":
            reference = batch.target
        code: Tensor = self.networks.style(batch.target_index, z, reference)
        return code

    def _own_code(self, batch: Batch) -> Tensor:
        """Return the style code of the source."""
        own, style = self.content(batch), self.networks.style
        code: Tensor = (
            style(batch.source_index, None, own)
            if "reference" in style.sources
            else style.default(batch.source_index, own)
        )
        return code

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate with the source of style whose turn it is."""
        code = self._code(batch, self.sources[batch.step % len(self.sources)])
        return {"fake": self.networks.render(batch.source, code), "code": code}

    def pair(self, batch: Batch, fake: Tensor) -> Tensor:
        """Return the mean absolute difference from targets that show the same slice; a random style has none."""
        random = self.sources[batch.step % len(self.sources)] == "latent"
        count = batch.paired.float() * (0.0 if random else 1.0)
        each = (fake.float() - batch.target).abs().flatten(1).mean(1)
        return (each * count).mean()

    def found_again(self, batch: Batch, images: Images) -> Tensor:
        """Return how far the style that an output shows is from the one that was asked for."""
        return (self.networks.style(batch.target_index, None, images["fake"]).float() - images["code"]).abs().mean()

    def cycle(self, batch: Batch, fake: Tensor) -> Tensor:
        """Return how far the source is from itself after the way there and back."""
        returned = self.networks.render(self.seen(fake), self._own_code(batch))
        return (returned.float() - self.content(batch)).abs().mean()

    def diversity(self, batch: Batch) -> Tensor:
        """Return minus the difference of two random styles of the same content."""
        one, other = (self.networks.render(batch.source, self._code(batch, "latent", salt)) for salt in (1, 2))
        return -(_blurred(one) - _blurred(other.detach())).abs().mean()


def _blurred(image: Tensor) -> Tensor:
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pool(image.float(), 8 if min(image.shape[2:]) >= 8 else min(image.shape[2:]))


class Exemplar(MultiDomain):
    """One picture in the style of another (AdaIN, Huang and Belongie 2017), with a discriminator of the collection.

    ``texture`` asks for the reference's correlations of features (Gatys 2016), ``self_reconstruction`` that a picture
    in its own style stays what it is; content is kept patch by patch.
    """

    terms: ClassVar = {
        **reweighted(
            MultiDomain.terms, pair=0.0, cycle=0.0, anatomy=0.0, adversarial=0.2, texture=5.0, contrastive=1.0
        ),
        "self_reconstruction": Term(2.0, lambda self, batch, images: self.self_reconstruction(batch)),
    }  # fmt: skip
    directions = "one"
    dimensions = (2,)

    def helpers(self) -> dict[str, nn.Module]:
        """Build the projections; :class:`UserError` without styles from references."""
        if "reference" not in self.sources:
            raise ParamsError("network.style: exemplar takes styles from pictures; add reference")
        return super().helpers()

    def self_reconstruction(self, batch: Batch) -> Tensor:
        """Return how far a target in its own style is from itself."""
        same = self.networks.render(self.seen(batch.target), self._code(batch, "reference"))
        return (same.float() - batch.target).abs().mean()


class Harmonization(MultiDomain):
    """Render all sites or scanners like one of them, by small, residual changes and styles that stay close together.

    Domains are sites (``mr_t1@site``). ``self_reconstruction`` asks that an image in its own style stays what it is;
    ``spread`` keeps style codes small, so that they carry contrast and not biology (after HACA3, Zuo 2023).
    """

    terms: ClassVar = {
        **MultiDomain.terms,
        "self_reconstruction": Term(10.0, lambda self, batch, images: self.self_reconstruction(batch)),
        "spread": Term(1e-3, lambda self, batch, images: images["code"].float().square().mean()),
    }

    def helpers(self) -> dict[str, nn.Module]:
        """Build the projections; :class:`UserError` unless the network is residual."""
        if not self.networks.residual:
            raise ParamsError("network.residual: harmonization changes images a little; set it to true")
        return super().helpers()

    def self_reconstruction(self, batch: Batch) -> Tensor:
        """Return how far a source in its own style is from itself."""
        same = self.networks.render(batch.source, self._own_code(batch))
        return (same.float() - self.content(batch)).abs().mean()
