"""Objectives for pairs: the same slice of the same subject in source and target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from medstyle.data.batch import Batch
from medstyle.errors import UserError
from medstyle.networks.deformation import Registrar
from medstyle.networks.generator import Generator
from medstyle.networks.networks import Networks
from medstyle.networks.translator import Translator
from medstyle.training.losses import (
    detail_loss,
    folded,
    perceptual_loss,
    smoothness,
    structure_loss,
)
from medstyle.training.objectives.base import Phase, Played, Recipe, Terms

if TYPE_CHECKING:
    from medstyle.training.objectives.table import Objective


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
