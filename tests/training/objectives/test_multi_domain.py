"""One network, several looks."""

import torch

from medstyle.training.objectives.table import OBJECTIVES
from tests.training.conftest import train


def test_styles_are_those_of_their_domains(store, tmp_path):
    """One network renders the same content in three looks, each the known map of it."""
    weights = dict.fromkeys(
        (name for name, term in OBJECTIVES["multi_domain"].terms.items() if term.weight is not None), 0.0
    ) | {"adversarial": 1e-3, "pair": 1.0}
    [networks], _ = train(
        store, tmp_path / "a", "multi_domain", steps=90, batch=6, learning_rate=5e-3, log_every=50,
        objective={"weights": weights}, architecture={"style": ("domain",), "widths": (8, 12, 16)},
    )  # fmt: skip
    content = torch.from_numpy(store.array("mr_t1", "validation")[:6].astype("float32"))
    with torch.inference_mode():
        for index, domain in enumerate(("mr_t2", "mr_flair"), start=1):
            wanted = torch.from_numpy(store.array(domain, "validation")[:6].astype("float32"))
            made = networks(content, torch.full((6,), index))
            assert (made - wanted).abs().mean() < 0.5 * (content - wanted).abs().mean()
