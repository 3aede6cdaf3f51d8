"""Define the objectives for many domains, for exemplars and for harmonization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from medstyle.data.batch import Batch
from medstyle.errors import ParamsError
from medstyle.networks import imagenet
from medstyle.networks.style import LATENT
from medstyle.networks.texture import Texture
from medstyle.params import params
from medstyle.training.objectives.base import Images, Term, Weight, fade, reweighted
from medstyle.training.objectives.unpaired import UnpairedContrastive, UnpairedContrastiveParams

STROKE = 4  # pixels: side of the areas whose brightness is kept
SHIFT = 8  # pixels: the largest stride of the features, and more


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
    textures: Annotated[tuple[Literal["random", "imagenet"], ...], Field(min_length=1)] = ("random",)
    """Frozen features whose correlations `texture` compares: random filters, ImageNet's (needs
    `medstyle[art]`), or both."""


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
    """Translate between all domains with one generator (StarGAN v2, Choi 2020) that keeps anatomy.

    The network's sources of style alternate step by step. ``pair`` compares with the target if the
    subject has one. ``diversity`` rewards latents that give different images; it is 0 by default,
    compares blurred images only and fades out, because it would otherwise reward changes of
    anatomy.
    """

    terms: ClassVar = {
        "pair": Term(10.0, lambda self, batch, images: self.pair(batch, images["fake"])),
        "style": Term(1.0, lambda self, batch, images: self.found_again(batch, images), _with_references),
        "cycle": Term(1.0, lambda self, batch, images: self.cycle(batch, images["fake"])),
        "diversity": Term(0.0, lambda self, batch, images: self.diversity(batch), _with_latents),
        **{
            name: term
            for name, term in reweighted(UnpairedContrastive.terms, contrastive=0.5).items()
            if name != "identity"  # the cycle includes it
        },
    }
    directions = "all"

    @property
    def sources(self) -> tuple[str, ...]:
        """The network's sources of style."""
        return self.networks.style.sources

    def _code(self, batch: Batch, source: str, salt: int = 0) -> Tensor:
        """Return the style code of the target from one source of style."""
        reference = z = None
        if source == "latent":
            rngs = [torch.Generator().manual_seed(seed ^ (0x5EED + salt)) for seed in batch.seeds]
            z = torch.stack([torch.randn(LATENT, generator=rng) for rng in rngs]).to(batch.source.device)
        elif source == "reference":
            reference = batch.whole
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
        """Generate with the source of style for this step."""
        code = self._code(batch, self.sources[batch.step % len(self.sources)])
        return {"fake": self.networks.render(batch.source, code), "code": code}

    def pair(self, batch: Batch, fake: Tensor) -> Tensor:
        """Return the mean absolute difference from targets that show the same slice.

        0 for random styles.
        """
        random = self.sources[batch.step % len(self.sources)] == "latent"
        count = batch.paired.float() * (0.0 if random else 1.0)
        each = (fake.float() - batch.target).abs().flatten(1).mean(1)
        return (each * count).mean()

    def found_again(self, batch: Batch, images: Images) -> Tensor:
        """Return the distance between the style of an output and the requested style."""
        return (self.networks.style(batch.target_index, None, images["fake"]).float() - images["code"]).abs().mean()

    def cycle(self, batch: Batch, fake: Tensor) -> Tensor:
        """Return the distance between the source and its reconstruction from the output."""
        returned = self.networks.render(self.seen(fake), self._own_code(batch))
        return (returned.float() - self.content(batch)).abs().mean()

    def diversity(self, batch: Batch) -> Tensor:
        """Return the negative difference of two random styles of the same content."""
        one, other = (self.networks.render(batch.source, self._code(batch, "latent", salt)) for salt in (1, 2))
        return -(_blurred(one) - _blurred(other.detach())).abs().mean()


def _blurred(image: Tensor) -> Tensor:
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return pool(image.float(), 8 if min(image.shape[2:]) >= 8 else min(image.shape[2:]))


def _shifted(images: Images, batch: Batch) -> Tensor:
    """Cut off a few first rows and columns of the output: features see it at every phase.

    Strided features at one phase would reward a fine grid.
    """
    down, right = torch.randint(SHIFT, (2,), generator=torch.Generator().manual_seed(batch.step)).tolist()
    return images["fake"][..., down:, right:]


class Exemplar(MultiDomain):
    """Render one image in the style of another (AdaIN, Huang and Belongie 2017).

    The discriminator learns the collection. ``texture`` compares feature correlations with those of
    the reference (Gatys 2016), at every step; ``tone`` and ``anatomy`` preserve content and leave
    strokes free; ``self_reconstruction`` keeps an image in its own style unchanged.
    """

    terms: ClassVar = {
        **reweighted(MultiDomain.terms, pair=0.0, style=0.0, cycle=0.0, contrastive=0.5, anatomy=0.0, adversarial=0.2),
        "texture": Term(5.0, lambda self, batch, images: self.texture_distance(_shifted(images, batch), batch.whole)),
        "tone": Term(5.0, lambda self, batch, images: self.tone(batch, images)),
        "self_reconstruction": Term(0.0, lambda self, batch, images: self.self_reconstruction(batch)),
    }
    directions = "one"
    dimensions = (2,)

    def helpers(self) -> dict[str, nn.Module]:
        """Build the projections; raise :class:`UserError` without styles from references."""
        if "reference" not in self.sources:
            raise ParamsError("network.style: exemplar takes styles from reference images; add reference")
        helpers = super().helpers()
        known: dict[str, Callable[[], nn.Module]] = {
            "random": lambda: Texture(self.channels),
            "imagenet": imagenet.finest,
        }
        self.textures = [known[name]() for name in self.settings.textures]
        return helpers

    def tone(self, batch: Batch, images: Images) -> Tensor:
        """Return the difference in brightness from the content in the palette of the style.

        Areas of strokes are compared, so that the strokes themselves are free.
        """
        plain = self.networks.coloured(self.content(batch), images["code"])
        made, wanted = (F.avg_pool2d(one.float().mean(1, keepdim=True), STROKE) for one in (images["fake"], plain))
        return (made - wanted).abs().mean()

    def self_reconstruction(self, batch: Batch) -> Tensor:
        """Return the distance between a target and itself rendered in its own style."""
        same = self.networks.render(self.seen(batch.target), self._code(batch, "reference"))
        return (same.float() - batch.target).abs().mean()


class Harmonization(MultiDomain):
    """Render all sites or scanners like one of them, by small residual changes.

    Domains are sites (``mr_t1@site``). ``self_reconstruction`` keeps an image in its own style
    unchanged; ``spread`` keeps style codes small, so that they encode contrast and not biology
    (after HACA3, Zuo 2023).
    """

    terms: ClassVar = {
        **MultiDomain.terms,
        "self_reconstruction": Term(10.0, lambda self, batch, images: self.self_reconstruction(batch)),
        "spread": Term(1e-3, lambda self, batch, images: images["code"].float().square().mean()),
    }

    def helpers(self) -> dict[str, nn.Module]:
        """Build the projections; raise :class:`UserError` unless the network is residual."""
        if not self.networks.residual:
            raise ParamsError("network.residual: harmonization makes small changes to images; set it to true")
        return super().helpers()

    def self_reconstruction(self, batch: Batch) -> Tensor:
        """Return the distance between a source and itself rendered in its own style."""
        same = self.networks.render(batch.source, self._own_code(batch))
        return (same.float() - self.content(batch)).abs().mean()
