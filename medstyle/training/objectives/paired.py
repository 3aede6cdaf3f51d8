"""Define the objectives for pairs: the same slice of the same subject in source and target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from medstyle.data.batch import Batch
from medstyle.errors import ParamsError
from medstyle.networks.deformation import DeformationFieldNetwork
from medstyle.networks.generator import Generator
from medstyle.networks.imagenet import ImageNet
from medstyle.networks.networks import Networks
from medstyle.networks.refiner import SEEN, detail_of
from medstyle.networks.translator import Translator
from medstyle.params import params
from medstyle.training.losses import detail_loss, folded, perceptual_loss, smoothness, structure_loss
from medstyle.training.objectives.base import (
    AdversarialForm,
    Images,
    Objective,
    ObjectiveParams,
    Phase,
    Term,
    common,
    reweighted,
)
from medstyle.transforms.body import is_body

CONTRAST = 3.0  # detail is small: this brings it to the range for which a network is initialised


@params
class PairedParams(ObjectiveParams):
    """Parameters of ``paired``."""

    kind: Literal["paired"] = "paired"
    """The kind of objective."""
    detail: Annotated[float, Field(ge=0)] = 4.0
    """Extra weight, in the l1 term, of pixels that differ from their surroundings, such as small
    lesions."""
    features: str | None = None
    """Frozen features of the perceptual term: `imagenet` (needs `medstyle[art]`), a translator
    folder, or the name of a network that MONAI's PerceptualLoss downloads."""


@params
class PairedRegisteredParams(PairedParams):
    """Parameters of ``paired_registered``."""

    kind: Literal["paired_registered"] = "paired_registered"  # type: ignore[assignment]
    """The kind of objective."""
    shift_limit: Annotated[float, Field(ge=0)] = 5.0
    """Largest displacement in pixels."""


@params
class PairedRefinedParams(PairedParams):
    """Parameters of ``paired_refined``."""

    kind: Literal["paired_refined"] = "paired_refined"  # type: ignore[assignment]
    """The kind of objective."""
    refine_from: Annotated[float, Field(gt=0, lt=1)] = 0.75
    """Share of the steps after which the generator stays as it is and the refiner learns."""
    adversarial: AdversarialForm = "relativistic"
    """Form of the adversarial loss."""
    discriminator_layers: Annotated[int, Field(ge=1)] = 3
    """Strided layers of the discriminator: 2 give a receptive field of 34 x 34 pixels, 3 give 70 x
    70."""


class Paired(Objective):
    """``l1 |G(x) - y| + structure (1 - SSIM) + perceptual + adversarial`` (pix2pix, Isola 2017).

    No mask is needed: outside the body, both images have the constant value -1.
    """

    terms: ClassVar = {
        "l1": Term(1.0, lambda self, batch, images: self.l1(images["compared"], batch)),
        "structure": Term(0.2, lambda self, batch, images: structure_loss(images["compared"], batch.target)),
        "perceptual": Term(0.0, lambda self, batch, images: self.perceptual(images["compared"], batch.target)),
        **common(adversarial=0.02),
    }
    paired = True
    error_decides = True
    conditional = True
    several_contrasts = True

    def helpers(self) -> dict[str, nn.Module]:
        """Load the frozen features if the perceptual term is used.

        Only the generator is trained.
        """
        self.perceptual = _perceptual(self.settings.features, self.networks) if self.weights["perceptual"] else None
        return {}

    def l1(self, image: Tensor, batch: Batch) -> Tensor:
        """Return the mean absolute difference from the target, weighted towards small details."""
        return detail_loss(image, batch.target, self.settings.detail)

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate ``fake``, which is also the image ``compared`` with the target."""
        images = super().play(batch)
        return {**images, "compared": images["fake"]}


class PairedRegistered(Paired):
    """Learn from misaligned pairs: the output is warped onto the target first (RegGAN, Kong 2021).

    The deformation field network is discarded after training. Its displacement is bounded and the
    share of folded space is logged, because it could otherwise hide wrong anatomy. The
    discriminator does not see the source, because the pair is misaligned.
    """

    terms: ClassVar = {
        **Paired.terms,
        "smooth": Term(0.5, lambda self, batch, images: smoothness(images["displacement"])),
        "unwarped_l1": Term(None, lambda self, batch, images: self.l1(images["fake"], batch)),
        "displacement": Term(None, lambda self, batch, images: images["displacement"].abs().mean()),
        "folded": Term(None, lambda self, batch, images: folded(images["displacement"])),
    }
    conditional = False

    def helpers(self) -> dict[str, nn.Module]:
        """Build the deformation field network."""
        super().helpers()
        dimensions = self.networks.dimensions
        self.deformation = DeformationFieldNetwork(self.channels, self.settings.shift_limit, dimensions)
        return {"deformation": self.deformation}

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate ``fake`` and warp it towards the target by ``displacement``."""
        images = super().play(batch)
        warped, displacement = self.deformation(images["fake"], batch.target)
        return {**images, "compared": warped, "displacement": displacement}


class PairedRefined(Paired):
    """Learn the image first, without an adversary, and then the detail that it lacks, from one.

    In the second part the generator stays as it is. The refiner (:class:`Refiner`) adds detail to
    its output, and the discriminator compares the detail of output and target alone: it can neither
    learn from grey levels nor change them. One model thus has both ends: without the refiner the
    smallest error, with it the texture of real images. Outside the source's body nothing is judged.
    """

    terms: ClassVar = {
        **reweighted(Paired.terms, structure=0.0, adversarial=0.05),
        "refined_l1": Term(1.0, lambda self, batch, images: self.l1(images["fake"], batch)),
    }
    error_decides = False  # it would choose the image before it was refined
    conditional = False
    penalty = 0.1

    def helpers(self) -> dict[str, nn.Module]:
        """Name the refiner as a player of its own; raise :class:`UserError` without one."""
        super().helpers()
        if self.networks.refiner is None:
            raise ParamsError("network.refiner: paired_refined trains a refiner; set its channels, for example to 16")
        if self.discriminator is None:
            raise ParamsError("objective.weights.adversarial: without it nothing teaches the refiner; use kind paired")
        return {"refiner": self.networks.refiner}

    def _phases(self, generators: tuple[str, ...]) -> list[Phase]:
        start = self.settings.refine_from
        *judging, whole = super()._phases(generators)
        of_refiner = ("refined_l1", "adversarial")
        mean = {name: weight for name, weight in whole.weights.items() if name not in of_refiner}
        added = {name: whole.weights[name] for name in of_refiner}
        return [
            replace(whole, players=("generator",), weights=mean, end=start),
            *(replace(phase, start=start) for phase in judging),
            replace(whole, name="refiner", players=("refiner",), weights=added, start=start),
        ]

    def play(self, batch: Batch) -> dict[str, Tensor]:
        """Generate the image ``compared`` with the target; later ``fake`` is that image refined."""
        networks = self.networks
        with torch.set_grad_enabled(batch.progress < self.settings.refine_from):
            code = networks.style(batch.target_index)
            mean = networks.render(batch.source, code, sharpness=0)
        if batch.progress < self.settings.refine_from:
            return {"fake": mean, "compared": mean, "code": code}
        return {"fake": networks.refined(batch.source, code, mean), "compared": mean, "code": code}

    def fake_pairs(self, batch: Batch, images: Images) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Compare the refined image with the target and, outside the body, the mean one."""
        return [(self.real_for(batch, images["compared"]), images["fake"], batch.target_index)]

    def real_for(self, batch: Batch, output: Tensor) -> Tensor:
        """Return the target where the source shows the body, and ``output`` elsewhere."""
        return torch.where(is_body(self.content(batch)), batch.target, output.to(batch.target.dtype))

    def _shown(self, batch: Batch, image: Tensor) -> Tensor:
        return CONTRAST * detail_of(image, SEEN)


def _perceptual(name: str | None, networks: Networks) -> Callable[[Tensor, Tensor], Tensor]:
    """Build the perceptual term ``(output, target) -> loss`` for images of ``networks``.

    Raises:
        UserError: no features are named, they cannot be downloaded here, or they are for images of
            another kind.
    """
    if name is None:
        raise ParamsError(
            "objective.features: name imagenet, a translator folder or a network of MONAI's PerceptualLoss"
        )
    if Path(name).is_dir():
        return _features_of(name, networks)
    if networks.dimensions == 3:
        raise ParamsError(f"objective.features: {name!r} is for two dimensions; name a translator folder")
    if name == "imagenet":
        features = ImageNet()
        return lambda output, target: perceptual_loss(features.to(output.device), output, target)
    from monai.losses import PerceptualLoss

    try:
        network = PerceptualLoss(spatial_dims=2, network_type=name, is_fake_3d=False).eval().requires_grad_(False)
    except Exception as error:  # no internet, a missing optional package, or an unknown name
        raise ParamsError(
            f"objective.features: {name!r} is not a translator folder, and MONAI cannot load a network of that name "
            f"({type(error).__name__})"
        ) from None
    return lambda output, target: network.to(output.device)(output.float(), target.float())


def _features_of(folder: str, networks: Networks) -> Callable[[Tensor, Tensor], Tensor]:
    """Build a perceptual loss from the features of the generator in a translator folder."""
    translator = Translator.load(folder)
    [other, *_], count = translator.members, 1 + len(translator.config.contrasts)
    encoder, kind = other.generator, (other.dimensions, other.colours)
    if not isinstance(encoder, Generator):
        raise ParamsError(f"objective.features: the generator in {folder} does not expose features")
    if kind != (networks.dimensions, networks.colours):
        raise ParamsError(f"objective.features: {folder} is for images of {kind[0]} dimensions and {kind[1]} channels")
    several = [1, count * other.neighbours, *[1] * kind[0]]  # the image takes the place of neighbours and contrasts

    def features(image: Tensor) -> list[Tensor]:
        maps: list[Tensor] = encoder.to(image.device).features(image.repeat(several))
        return maps

    return lambda output, target: perceptual_loss(features, output, target)
