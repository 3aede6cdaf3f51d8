"""The reference methods are what their papers say, and learn."""

import copy

import pytest
import torch

from benchmarks.peers.methods import METHODS, Pool
from benchmarks.peers.networks import Blur, PatchGAN, ResNet, UNet

# in millions, as the papers' own code counts them for colour images
PUBLISHED = {
    "U-Net of pix2pix, 256 pixels": (UNet(3, downs=8), 54.414),
    "U-Net of pix2pix, 128 pixels": (UNet(3, downs=7), 41.829),
    "PatchGAN of pix2pix": (PatchGAN(6, instance=False), 2.769),
    "PatchGAN of CycleGAN and CUT": (PatchGAN(3), 2.765),
    "ResNet of CycleGAN": (ResNet(3), 11.378),
    "ResNet of CUT": (ResNet(3, antialias=True), 11.378),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_number_of_weights(name):
    network, millions = PUBLISHED[name]
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-4)


def test_a_patch_is_70_pixels_wide():
    network = PatchGAN(1, width=2, instance=False).eval()
    image = torch.zeros(1, 1, 128, 128, requires_grad=True)
    network(image)[0, 0, 7, 7].backward()
    rows = image.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


def test_blurred_halving_keeps_a_constant_and_removes_a_checkerboard():
    assert torch.allclose(Blur(3)(torch.full((2, 3, 8, 8), 0.7)), torch.full((2, 3, 4, 4), 0.7))
    board = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    assert Blur(1)(board[None, None]).abs().max() < 1e-6


def test_cut_compares_five_maps_of_its_generator():
    network = ResNet(1, width=4, antialias=True)
    shapes = [tuple(level.shape[1:]) for level in network.features(torch.zeros(1, 1, 32, 32))]
    assert shapes == [(1, 38, 38), (8, 32, 32), (16, 16, 16), (16, 8, 8), (16, 8, 8)]


def test_the_pool_keeps_fifty_and_gives_back_old_ones():
    pool = Pool(50)
    answers = [float(pool(torch.tensor(float(i)))) for i in range(400)]
    assert answers[:50] == list(range(50))
    assert len(pool.images) == 50
    late = answers[50:]
    assert 0.3 < sum(answer == i for i, answer in enumerate(late, 50)) / len(late) < 0.7


# term that must fall when the target is always the negative of the same source
FALLS = {"pix2pix": "l1", "pix2pix_l1": "l1", "cyclegan": "identity", "cut": "contrast", "fastcut": "contrast"}


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_learns_a_trivial_task(name):
    method = METHODS[name](seed=0, width=8)
    coarse = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 1.6 - 0.8
    x = torch.nn.functional.interpolate(coarse, size=128 if name.startswith("pix2pix") else 32, mode="bilinear")
    values = []
    for i in range(20):
        terms = method.step(x, -x, i / 20)
        assert all(torch.isfinite(value) for value in terms.values())
        values.append(float(terms[FALLS[name]]))
    assert sum(values[-5:]) < 0.9 * sum(values[:5])
    output = method.generate(x)
    assert output.shape == x.shape
    assert not output.requires_grad


def test_pix2pix_descends_its_published_objective():
    """The generator's gradient is that of ``BCE(D(x, G(x)), 1) + 100 L1`` under the updated
    discriminator."""
    method = METHODS["pix2pix"](seed=0, width=4)
    before = copy.deepcopy(method)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 1, 1, 128, 128, generator=rng) * 2 - 1
    torch.manual_seed(5)  # of dropout
    terms = method.step(x, y)
    torch.manual_seed(5)
    fake = before.generator(x)
    bce, l1 = torch.nn.functional.binary_cross_entropy_with_logits, (fake - y).abs().mean()
    real, made = (before.discriminator(torch.cat([x, image], 1)) for image in (y, fake.detach()))
    judged = 0.5 * (bce(real, torch.ones_like(real)) + bce(made, torch.zeros_like(made)))
    assert (float(terms["d"]), float(terms["l1"])) == pytest.approx((judged.item(), l1.item()), rel=1e-5)
    after = method.discriminator(torch.cat([x, fake], 1))
    wanted = torch.autograd.grad(bce(after, torch.ones_like(after)) + 100 * l1, list(before.generator.parameters()))
    for parameter, gradient in zip(method.generator.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_unet_memorises_what_it_can_learn_by_heart():
    method = METHODS["pix2pix_l1"](seed=0, width=16)
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 2, 8, 8, generator=rng) * 1.6 - 0.8
    pairs = torch.nn.functional.interpolate(coarse, size=128, mode="bilinear")
    errors = []
    for i in range(240):
        one = pairs[i % 4]
        errors.append(float(method.step(one[None, :1], one[None, 1:], i / 240)["l1"]))
    assert sum(errors[-8:]) < 0.35 * sum(errors[:8])


def test_the_rate_is_constant_and_then_falls_to_zero():
    method = METHODS["fastcut"](seed=0, width=4)
    image = torch.rand(1, 1, 32, 32)
    rates = []
    for progress in (0.0, 0.75, 0.875, 1.0):
        method.step(image, image, progress)
        rates += [group["lr"] for optimiser in method.optimisers for group in optimiser.param_groups]
    assert rates == pytest.approx([2e-4] * 4 + [1e-4] * 2 + [0.0] * 2)
