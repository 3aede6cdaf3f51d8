"""Every objective has its terms, each of which can be left out."""

import pytest

from medstyle.networks.networks import Architecture, Networks
from medstyle.params import parse
from medstyle.training.objectives.table import OBJECTIVES, AnyObjective
from tests.training.conftest import NEEDS, train


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_term_counts_and_can_be_left_out(kind, store, tmp_path):
    """Each term of a recipe appears in the curves with its default weight, and not with the weight
    0."""
    every = {name: term.weight for name, term in OBJECTIVES[kind].terms.items() if term.weight is not None}
    weights = {name: value or 1.0 for name, value in every.items() if name != "perceptual"} | {"r1": 0.02}
    settings = {"log_every": 1, "architecture": {**NEEDS[kind].get("architecture", {}), "neighbours": 3}}
    _, curve = train(store, tmp_path / "all", kind, steps=8, objective={"weights": weights}, **settings)
    seen = {name.rpartition("/")[2] for row in curve for name in row}
    missing = set(weights) - seen - {"r1"}
    # without styles of references there is nothing to find again, without those of latents nothing
    # to vary
    assert missing <= {"harmonization": {"style", "diversity"}, "exemplar": {"diversity"}}.get(kind, set())
    optional = [name for name in weights if name not in ("adversarial", "r1", "l1", "spread", "smooth")]
    off = {"weights": {**weights, **dict.fromkeys(optional, 0.0)}}
    _, curve = train(store, tmp_path / "few", kind, steps=2, objective=off, **settings)
    assert not {name.rpartition("/")[2] for row in curve for name in row} & set(optional)


@pytest.mark.parametrize("kind", [kind for kind in NEEDS if "domains" not in NEEDS[kind]])
def test_the_discriminator_sees_the_source_only_where_pairs_are_aligned(kind):
    architecture = Architecture(widths=(4, 6), bottleneck_blocks=1, **NEEDS[kind].get("architecture", {}))
    objective = OBJECTIVES[kind](
        Networks(architecture, ["mr_t1", "mr_t2"]),
        parse(AnyObjective, {"kind": kind, "discriminator_width": 4}, "objective"),
        (1, 1),
        2,
    )
    first = objective.discriminator.scales[0].initial_conv.conv
    assert first.weight.shape[1] == (2 if kind == "paired" else 1)
