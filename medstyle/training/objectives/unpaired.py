"""Define the objectives without pairs: contrastive (CUT) and cycle-consistent (CycleGAN)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from medstyle.data.batch import Batch
from medstyle.errors import ParamsError
from medstyle.networks.generator import Generator
from medstyle.networks.mind import anatomy_loss
from medstyle.networks.texture import Texture, correlations, style_distance
from medstyle.params import params
from medstyle.training.losses import contrastive_loss
from medstyle.training.objectives.base import Images, Objective, ObjectiveParams, Term, common, cross_subject, fade
from medstyle.transforms.body import is_body


@params
class UnpairedParams(ObjectiveParams):
    """Parameters of all objectives without pairs."""

    region_mm: Annotated[float, Field(ge=0)] = 16.0
    """Side in mm of the squares (3-D: cubes) whose means `cross_subject` compares; about the
    anatomical difference that remains after an affine alignment of two subjects."""


@params
class UnpairedContrastiveParams(UnpairedParams):
    """Parameters of ``unpaired_contrastive``."""

    kind: Literal["unpaired_contrastive"] = "unpaired_contrastive"
    """The kind of objective."""
    patches: Annotated[int, Field(ge=1)] = 128
    """Number of locations per image and level that the contrastive term compares."""


@params
class UnpairedCycleParams(UnpairedParams):
    """Parameters of ``unpaired_cycle``."""

    kind: Literal["unpaired_cycle"] = "unpaired_cycle"
    """The kind of objective."""


class Projectors(nn.Module):
    """Two-layer projections of generator features to unit vectors, one per level.

    They are built from the known widths, so that they exist (and are checkpointed) before the first
    batch.
    """

    def __init__(self, widths: Sequence[int], size: int = 128) -> None:
        super().__init__()
        self.levels = nn.ModuleList(nn.Sequential(nn.Linear(w, size), nn.ReLU(), nn.Linear(size, size)) for w in widths)

    def forward(self, maps: list[Tensor], places: list[Tensor]) -> list[Tensor]:
        """Project maps ``(N, C, ...)`` at ``places (N, P)`` to unit vectors ``(N, P, size)``."""
        found = []
        for network, level, where in zip(self.levels, maps, places, strict=True):
            vectors = level.flatten(2).gather(2, where[:, None].expand(-1, level.shape[1], -1)).transpose(1, 2)
            found.append(F.normalize(network(vectors).float(), dim=-1))
        return found


class UnpairedContrastive(Objective):
    """Contrastive unpaired translation (CUT, Park 2020): one direction.

    Content is kept patch by patch.

    ``anatomy`` keeps edges in place, using a descriptor that is invariant to contrast. ``texture``,
    for art, compares feature correlations with those of the target (Gatys 2016); it teaches brush
    strokes before the discriminator has learned to detect them.
    """

    terms: ClassVar = {
        "contrastive": Term(1.0, lambda self, batch, images: self.kept(batch, images["fake"])),
        "identity": Term(1.0, lambda self, batch, images: self.identity(batch)),
        "anatomy": Term(1.0, lambda self, batch, images: anatomy_loss(images["fake"], self.content(batch))),
        "texture": Term(0.0, lambda self, batch, images: self.texture_distance(images["fake"], batch.whole)),
        "cross_subject": Term(0.0, cross_subject),
        **common(adversarial=1.0),
    }

    def helpers(self) -> dict[str, nn.Module]:
        """Build the projections of the generator's features."""
        if not isinstance(self.networks.generator, Generator):
            raise ParamsError(f"network.generator: {self.settings.kind} needs the features of `medstyle`; choose it")
        if self.weights["texture"] and self.networks.dimensions == 3:
            raise ParamsError("objective.weights.texture: is for two dimensions")
        self.generator = self.networks.generator
        self.projectors = Projectors(self.generator.widths)
        self.textures: list[nn.Module] = [Texture(self.channels)]
        return {"projectors": self.projectors}

    def nce(self, content: Tensor, output: Tensor, seeds: Sequence[int]) -> Tensor:
        """Return the patchwise contrastive loss; locations are drawn in the body first."""
        encode = self.generator.features
        of_output = encode(self.seen(output))
        with torch.no_grad():
            of_content = encode(self.seen(content))
            body = (is_body(content)).any(1, keepdim=True).float().cpu()
        rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
        places = []
        for level in of_output:
            inside = (
                F.adaptive_max_pool2d(body, level.shape[2:])
                if body.ndim == 4
                else F.adaptive_max_pool3d(body, level.shape[2:])
            )
            draws = torch.stack([torch.rand(level[0, 0].numel(), generator=rng) for rng in rngs])
            count = min(self.settings.patches, draws.shape[1])
            places.append((draws + inside.flatten(1)).topk(count, dim=1, sorted=False).indices.to(level.device))
        return contrastive_loss(self.projectors(of_output, places), self.projectors(of_content, places))

    def kept(self, batch: Batch, image: Tensor) -> Tensor:
        """Return the patchwise distance between ``image`` and the content at the same locations."""
        return self.nce(self.content(batch), image, batch.seeds)

    def identity(self, batch: Batch) -> Tensor:
        """Return the patchwise distance between a target and itself rendered as a target."""
        same = self.networks(self.seen(batch.target), batch.target_index)
        return self.nce(batch.target, same, batch.seeds)

    def texture_distance(self, image: Tensor, target: Tensor) -> Tensor:
        """Return the distance between the feature correlations of two images."""
        distances = []
        for features in self.textures:
            output, wanted = (correlations(features.to(image.device)(one)) for one in (image, target))
            distances.append(style_distance(output, wanted).mean())
        return torch.stack(distances).sum()


class UnpairedCycle(Objective):
    """Train both directions with one generator of two styles and a cycle loss (CycleGAN, Zhu 2017).

    There is no buffer of earlier fake images, because it would be hidden state; R1, spectral
    normalisation and the moving average replace it.
    """

    terms: ClassVar = {
        "cycle": Term(
            10.0, lambda self, batch, images: self.cycle(batch, images), lambda self, weight: fade(weight, weight / 10)
        ),
        "identity": Term(5.0, lambda self, batch, images: self.identity(batch)),
        "anatomy": Term(1.0, lambda self, batch, images: anatomy_loss(images["both"], self.real(batch))),
        "cross_subject": Term(0.0, cross_subject),
        **common(adversarial=1.0),
    }
    directions = "both"

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate ``fake`` and, in the source's style, ``back``; ``both`` holds the two."""
        contents = torch.cat([batch.source, self.seen(batch.target)])
        codes = self.networks.style(torch.cat([batch.target_index, batch.source_index]))
        both = self.networks.render(contents, codes)
        fake, back = both.chunk(2)
        return {"fake": fake, "back": back, "both": both, "code": codes.chunk(2)[0]}

    def fake_pairs(self, batch: Batch, images: Images) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Return the fake pairs of both directions."""
        return [
            (batch.target, images["fake"], batch.target_index),
            (self.content(batch), images["back"], batch.source_index),
        ]

    def real(self, batch: Batch) -> Tensor:
        """Return the real images of both domains, ``(2 N, C, ...)``: sources first."""
        return torch.cat([self.content(batch), batch.target])

    def _rendered(self, images: Tensor, batch: Batch) -> Tensor:
        """Render the first half in the source's style and the second half in the target's."""
        rendered: Tensor = self.networks(self.seen(images), torch.cat([batch.source_index, batch.target_index]))
        return rendered.float()

    def cycle(self, batch: Batch, images: Images) -> Tensor:
        """Return the distance between the images and their reconstructions."""
        return (self._rendered(images["both"], batch) - self.real(batch)).abs().mean()

    def identity(self, batch: Batch) -> Tensor:
        """Return the distance between the images and themselves rendered in their own style."""
        real = self.real(batch)
        return (self._rendered(real, batch) - real).abs().mean()
