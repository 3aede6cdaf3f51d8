"""Translators of random weights and scans that are drawn: nothing here needs a training."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from medstyle.cohort.rules import Rule
from medstyle.imaging.modality import Fingerprint
from medstyle.imaging.volume import Volume
from medstyle.networks.networks import Architecture, Networks
from medstyle.networks.translator import Translator, TranslatorConfig
from medstyle.transforms.descriptors import FeatureStatistics, Reference
from medstyle.transforms.prepare import Preparation
from tests.conftest import affine

RULES = tuple(
    Rule(domain, {"Modality": "MR", "SeriesDescription": f"*{name}*"})
    for domain, name in (("mr_t1", "T1"), ("mr_t2", "T2"), ("mr_flair", "FLAIR"))
)
ANYTHING = FeatureStatistics((0.0,) * 21, (1.0,) * 21, 100.0)  # every image is like the training images


def make_translator(
    domains: tuple[str, ...] = ("mr_t1", "mr_t2"),
    *,
    members: int = 1,
    generator: nn.Module | None = None,
    **config: Any,
) -> Translator:
    """Make a translator from the first to the last of ``domains`` whose styles differ.

    Keywords are configuration.

    ``generator`` takes the place of the network.
    """
    names = Architecture.__dataclass_fields__
    settings = {"widths": (4, 6), "bottleneck_blocks": 2, **{k: v for k, v in config.items() if k in names}}
    architecture = Architecture(**settings)
    whole = TranslatorConfig(
        architecture,
        tuple(domains),
        source=domains[0],
        target=domains[-1],
        **{
            "preparation": Preparation(denoise="none", bias_field=False),
            "fingerprints": {name: Fingerprint((0.0, 800.0)) for name in domains},
            "rules": RULES,
            "reference": {domains[0]: Reference(ANYTHING, ANYTHING)},
            **{k: v for k, v in config.items() if k not in names},
        },
    )
    networks = []
    for seed in range(members):
        torch.manual_seed(seed)
        one = Networks(architecture, domains, 1 + len(whole.contrasts))
        for module in one.generator.modules():
            if isinstance(getattr(module, "style", None), nn.Linear):
                nn.init.normal_(module.style.weight, 0, 0.3)
        one.generator = generator or one.generator
        networks.append(one.eval().requires_grad_(False))
    return Translator(whole, networks, "0" * 64)


class Plain(nn.Module):
    """A generator without statistics over the image, so that every pixel depends on its own
    neighbourhood alone."""

    multiple = 1

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Apply the function to the content."""
        return self.function(x)


def head(domain: str = "mr_t1", shape: tuple[int, int, int] = (10, 48, 40), seed: int = 0) -> Volume:
    """Draw a textured ellipsoid with a core; domains differ in its contrast."""
    rng = np.random.default_rng([seed, len(domain)])
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    body = (x / 0.7) ** 2 + (y / 0.8) ** 2 + (z / 1.3) ** 2 < 1
    core = (x / 0.3) ** 2 + (y / 0.35) ** 2 + (z / 0.7) ** 2 < 1
    values = (300 + 60 * np.sin(5 * x) + rng.normal(0, 8, shape)) * body + {"mr_t1": -150}.get(domain, 250) * core
    return Volume(values.astype(np.float32), affine((4.0, 4.0, 8.0), (0, 0, 0)), domain)


@pytest.fixture
def source() -> Volume:
    """Return a T1 head."""
    return head()
