"""Training recipes. A recipe says which networks play, in which phases, and what each phase minimises.

The loop knows no recipe: per step it calls :meth:`Recipe.play` once (the generator's images) and then takes each
phase's turn. A phase is data: a player, terms and their weights, which may be schedules.
"""

from __future__ import annotations

from dataclasses import field

from medstyle.errors import UserError
from medstyle.params import params
from medstyle.training.losses import (
    ADVERSARIAL,
)
from medstyle.training.objectives.base import EVERY, Recipe
from medstyle.training.objectives.multi_domain import Exemplar, Harmonization, MultiDomain
from medstyle.training.objectives.paired import Paired, PairedRegistered
from medstyle.training.objectives.unpaired import UnpairedContrastive, UnpairedCycle

RECIPES: dict[str, type[Recipe]] = {
    "paired": Paired,
    "paired_registered": PairedRegistered,
    "unpaired_contrastive": UnpairedContrastive,
    "unpaired_cycle": UnpairedCycle,
    "multi_domain": MultiDomain,
    "exemplar": Exemplar,
    "harmonization": Harmonization,
}


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
