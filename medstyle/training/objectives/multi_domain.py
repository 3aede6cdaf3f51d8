"""Objectives for many domains, for exemplars and for harmonization."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from medstyle.data.batch import Batch
from medstyle.errors import UserError
from medstyle.networks.mind import anatomy_loss
from medstyle.networks.networks import Networks
from medstyle.networks.style import LATENT
from medstyle.training.objectives.base import Played, Terms, Weight, fade
from medstyle.training.objectives.unpaired import UnpairedContrastive

if TYPE_CHECKING:
    from medstyle.training.objectives.table import Objective


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
