import numpy as np
import pytest
import torch

from medstyle.networks.deformation import Registrar
from medstyle.networks.networks import Architecture, Networks
from medstyle.training.objectives.base import EVERY, fade, ramp
from medstyle.training.objectives.table import RECIPES, Objective
from tests.data.conftest import SLICES
from tests.training.conftest import NEEDS, train


def test_schedules_at_known_points():
    late, falling = ramp(0.5, 0.2), fade(10.0, 1.0)
    assert [late(p) for p in (0.0, 0.5, 0.55, 0.6, 1.0)] == pytest.approx([0, 0, 0.1, 0.2, 0.2])
    assert [falling(p) for p in (0.0, 0.5, 0.75, 1.0)] == pytest.approx([10, 10, 5.5, 1])
    assert ramp(0.0, 0.2) == 0.2


@pytest.mark.parametrize("kind", RECIPES)
def test_every_term_counts_and_can_be_left_out(kind, store, tmp_path):
    """Each term of a recipe appears in the curves with its default weight, and not with the weight 0."""
    every = RECIPES[kind].weights | EVERY
    without = {"perceptual", *(["population"] if RECIPES[kind].paired else [])}
    weights = {name: value or 1.0 for name, value in every.items() if name not in without}
    settings = {"log_every": 1, "architecture": {**NEEDS[kind].get("architecture", {}), "neighbours": 3}}
    _, curve = train(store, tmp_path / "all", kind, steps=8, objective={"weights": weights}, **settings)
    seen = {name.rpartition("/")[2] for row in curve for name in row}
    missing = set(weights) - seen - {"r1"}
    # without styles of references there is nothing to find again, without those of latents nothing to vary
    assert missing <= {"harmonization": {"style", "diversity"}, "exemplar": {"diversity"}}.get(kind, set())
    optional = [name for name in weights if name not in ("adversarial", "r1", "l1", "spread", "smooth")]
    off = {"weights": {**weights, **dict.fromkeys(optional, 0.0)}}
    _, curve = train(store, tmp_path / "few", kind, steps=2, objective=off, **settings)
    assert not {name.rpartition("/")[2] for row in curve for name in row} & set(optional)


def test_the_next_slice_is_what_a_step_through_the_stack_shows():
    networks = Networks(Architecture(widths=(4, 6), neighbours=3), ["mr_t1", "mr_t2"], 2)
    recipe = RECIPES["paired"](networks, Objective(weights={"through_plane": 1.0}), (6, 1), 2)
    stack = torch.arange(8.0)[:, None, None] + torch.zeros(8, 4, 4)  # slices of one contrast; the other is 100 more
    here, there = (torch.cat([stack[z - 1 : z + 2], 100 + stack[z - 1 : z + 2]])[None] for z in (3, 4))
    after = recipe.following(here)
    assert torch.equal(networks.content(after), networks.content(there))
    assert torch.equal(after[:, [0, 1, 3, 4]], there[:, [0, 1, 3, 4]])
    assert torch.equal(after[:, [2, 5]], here[:, [2, 5]])


def test_outputs_follow_each_other_through_the_plane_if_asked(store, tmp_path):
    """Slices that are much alike, whose targets differ a little: less of that is followed."""
    for domain in ("mr_t1", "mr_t2"):
        path = tmp_path / f"store/train/{domain}.npy"
        array = np.load(path)
        np.save(path, (0.8 * array[::SLICES].repeat(SLICES, 0) + 0.15 * array).astype(np.float16))
    stack = torch.from_numpy(np.load(tmp_path / "store/train/mr_t1.npy")[:SLICES, 0].astype(np.float32))
    blocks = torch.stack([stack[z - 1 : z + 2] for z in range(1, SLICES - 1)])
    apart = {}
    for weight in (0.0, 20.0):
        settings = {"steps": 40, "batch": 4, "learning_rate": 3e-3, "architecture": {"neighbours": 3}}
        objective = {"weights": {"adversarial": 0.0, "through_plane": weight}}
        [network], _ = train(store, tmp_path / f"{weight}", objective=objective, **settings)
        with torch.no_grad():
            apart[weight] = float(network(blocks, torch.ones(len(blocks), dtype=torch.long)).diff(dim=0).abs().mean())
    assert apart[20.0] < 0.7 * apart[0.0]


def test_the_registrar_finds_a_known_shift_and_keeps_its_limit():
    torch.manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(2, 1, 8, 8), size=(40, 36), mode="bicubic")
    target = torch.roll(image, (2, -1), (2, 3))
    registrar = Registrar(limit=3.0)
    optimiser = torch.optim.Adam(registrar.parameters(), 5e-3)
    for _ in range(120):
        warped, field = registrar(image, target)
        loss = (warped - target)[..., 4:-4, 4:-4].abs().mean() + 0.05 * field.diff(dim=2).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    inside = field[..., 8:-8, 8:-8].mean((0, 2, 3))
    torch.testing.assert_close(inside, torch.tensor([-2.0, 1.0]), atol=0.4, rtol=0)
    assert field.abs().max() <= 3
    with torch.no_grad():
        for parameter in registrar.head.parameters():
            parameter.mul_(1e4)
    assert registrar(image, target)[1].abs().max() <= 3


def test_styles_are_those_of_their_domains(store, tmp_path):
    """One network renders the same content in three looks, each the known map of it."""
    weights = dict.fromkeys(RECIPES["multi_domain"].weights, 0.0) | {"adversarial": 1e-3, "pair": 1.0}
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


@pytest.mark.parametrize("kind", [kind for kind in NEEDS if "domains" not in NEEDS[kind]])
def test_the_critic_sees_the_source_only_where_pairs_are_aligned(kind):
    architecture = Architecture(widths=(4, 6), bottleneck_blocks=1, **NEEDS[kind].get("architecture", {}))
    recipe = RECIPES[kind](
        Networks(architecture, ["mr_t1", "mr_t2"]), Objective(kind=kind, discriminator_width=4), (1, 1), 2
    )
    first = recipe.discriminator.scales[0].initial_conv.conv
    assert first.weight.shape[1] == (2 if kind == "paired" else 1)
