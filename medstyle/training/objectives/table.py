"""List all objectives by kind, with their parameters."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from medstyle.training.objectives.base import Objective
from medstyle.training.objectives.multi_domain import (
    Exemplar,
    ExemplarParams,
    Harmonization,
    HarmonizationParams,
    MultiDomain,
    MultiDomainParams,
)
from medstyle.training.objectives.paired import (
    Paired,
    PairedParams,
    PairedRefined,
    PairedRefinedParams,
    PairedRegistered,
    PairedRegisteredParams,
)
from medstyle.training.objectives.unpaired import (
    UnpairedContrastive,
    UnpairedContrastiveParams,
    UnpairedCycle,
    UnpairedCycleParams,
)

OBJECTIVES: dict[str, type[Objective]] = {
    "paired": Paired,
    "paired_registered": PairedRegistered,
    "paired_refined": PairedRefined,
    "unpaired_contrastive": UnpairedContrastive,
    "unpaired_cycle": UnpairedCycle,
    "multi_domain": MultiDomain,
    "exemplar": Exemplar,
    "harmonization": Harmonization,
}


def _kind(values: Any) -> str:
    return str(values.get("kind", "paired") if isinstance(values, dict) else values.kind)


AnyObjective = Annotated[
    Annotated[PairedParams, Tag("paired")]
    | Annotated[PairedRegisteredParams, Tag("paired_registered")]
    | Annotated[PairedRefinedParams, Tag("paired_refined")]
    | Annotated[UnpairedContrastiveParams, Tag("unpaired_contrastive")]
    | Annotated[UnpairedCycleParams, Tag("unpaired_cycle")]
    | Annotated[MultiDomainParams, Tag("multi_domain")]
    | Annotated[ExemplarParams, Tag("exemplar")]
    | Annotated[HarmonizationParams, Tag("harmonization")],
    Discriminator(_kind),
]
