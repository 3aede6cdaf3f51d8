"""A training of a second on the small slice store of the tests of `data`."""

from __future__ import annotations

from pathlib import Path

import pytest

from medstyle.data.store import SliceStore
from medstyle.networks import imagenet
from medstyle.params import parse
from medstyle.training.loop import fit
from medstyle.training.plan import Plan
from tests.data.conftest import make_store

FEATURES = "imagenet" if imagenet.available() else None
# recipe -> what it needs beyond the defaults
NEEDS = {
    "paired": {},
    "paired_registered": {},
    "paired_refined": {"architecture": {"refiner": 4}},
    "unpaired_contrastive": {},
    "unpaired_cycle": {},
    "multi_domain": {"domains": ["mr_flair"], "architecture": {"style": ("domain", "latent", "reference")}},
    "exemplar": {
        "architecture": {"style": ("reference",), "palette": 4, "style_features": FEATURES or "learned"},
        "objective": {"textures": ["random", *([FEATURES] if FEATURES else [])]},
    },
    "harmonization": {"domains": ["mr_flair"], "architecture": {"residual": True}},
}


def train(
    store: SliceStore,
    scratch: Path,
    kind: str = "paired",
    show=lambda step, values: None,
    objective: dict | None = None,
    architecture: dict | None = None,
    contrasts=(),
    augmentation: dict | None = None,
    **settings,
):
    """Train ``kind`` for a few steps; returns (members, curve)."""
    needs = NEEDS[kind]
    defaults = {"steps": 8, "batch": 2, "threads": 1, "device": "cpu", "checkpoint_s": 0.0, "log_every": 2,
                "validate_every": 4, "depth": 8}  # fmt: skip
    plan = {
        "source": "mr_t1", "target": "mr_t2", "contrasts": contrasts, "domains": needs.get("domains", []),
        "training": {**defaults, **settings},
        "objective": {
            "kind": kind, "discriminator_width": 4, "discriminator_layers": 1,
            **needs.get("objective", {}), **(objective or {}),
        },
        "network": {
            "widths": [4, 6, 16], "bottleneck_blocks": 2, **needs.get("architecture", {}), **(architecture or {}),
        },
        "augmentation": augmentation or {},
    }  # fmt: skip
    return fit(parse(Plan, plan, "train"), store, scratch, log=lambda step, values: None, show=show)


@pytest.fixture(name="store")
def small_store(tmp_path: Path) -> SliceStore:
    return make_store(tmp_path / "store")
