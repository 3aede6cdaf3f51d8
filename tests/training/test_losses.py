import numpy as np
import pytest
import torch

from medstyle.networks.mind import anatomy_loss
from medstyle.training.losses import (
    ADVERSARIAL,
    contrastive_loss,
    detail_loss,
    discriminator_loss,
    folded,
    generator_loss,
    perceptual_loss,
    r1_penalty,
    region_loss,
    slice_consistency,
    smoothness,
    structure_loss,
)

# dL_G/dl_f at l_f = -5 and l_r = 0, from the formulas by hand
GENERATOR_GRADIENT = {
    "minimax": -0.006693, "nonsaturating": -0.993307, "least_squares": -12.0, "relativistic": -0.993307, "hinge": -1.0,
}  # fmt: skip


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_generator_gradient_has_the_textbook_value(kind):
    logit = torch.tensor([[[[-5.0]]]], requires_grad=True)
    generator_loss(kind, [torch.zeros_like(logit)], [logit]).backward()
    assert float(logit.grad) == pytest.approx(GENERATOR_GRADIENT[kind], abs=1e-5)


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_at_the_boundary_the_critic_pulls_both_ways_alike(kind):
    at = torch.tensor([[[[ADVERSARIAL[kind].boundary]]]])
    real, fake = (at.clone().requires_grad_() for _ in range(2))
    discriminator_loss(kind, [real], [fake]).backward()
    assert float(real.grad) == pytest.approx(-float(fake.grad))


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_the_critic_wants_real_up_and_fake_down(kind):
    real, fake = (torch.tensor([[[[0.3]]]], requires_grad=True) for _ in range(2))
    discriminator_loss(kind, [real], [fake]).backward()
    assert float(real.grad) < 0 < float(fake.grad)


def test_a_relative_critic_sees_differences_alone():
    real, fake = torch.randn(2, 1, 1, 4, 4)
    for loss in (discriminator_loss, generator_loss):
        torch.testing.assert_close(loss("relativistic", [real], [fake]), loss("relativistic", [real + 7], [fake + 7]))


def test_scales_count_alike_whatever_their_size():
    small, large = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 9, 9), -1.0)
    mean = float(generator_loss("hinge", [], [small, large]))
    assert mean == pytest.approx((-2 + 1) / 2)


def test_r1_of_a_linear_critic_is_its_slope():
    images = torch.randn(3, 1, 8, 8, requires_grad=True)
    weights = torch.randn(1, 1, 8, 8)
    logits = [(images * weights).sum((1, 2, 3), keepdim=True)]  # one patch
    assert float(r1_penalty(images, logits)) == pytest.approx(0.5 * float(weights.square().sum()), rel=1e-5)


def test_r1_does_not_depend_on_the_image_size():
    values = []
    for size in (8, 16):
        images = torch.randn(2, 1, size, size, requires_grad=True)
        values.append(float(r1_penalty(images, [3 * images])))
    assert values[0] == pytest.approx(values[1]) == pytest.approx(4.5)


def test_detail_loss_weighs_small_things_more():
    flat = torch.zeros(1, 1, 40, 40)
    dotted = flat.clone()
    dotted[..., 20:22, 20:22] = 1.0
    missed = detail_loss(flat, dotted, 0.0)
    assert float(missed) == pytest.approx(4 / 1600)
    assert float(detail_loss(flat, dotted, 4.0)) > 4 * float(missed)
    for detail in (0.0, 4.0):
        assert float(detail_loss(dotted + 0.3, dotted, detail)) == pytest.approx(0.3, rel=1e-5)


def test_structure_loss_is_zero_for_equals():
    x = torch.rand(1, 1, 32, 32) * 2 - 1
    assert float(structure_loss(x, x)) == pytest.approx(0, abs=1e-5)
    assert float(structure_loss(x, -x)) > 0.5


def test_contrastive_loss_knows_its_extremes():
    vectors = torch.eye(6)[None]
    assert float(contrastive_loss([vectors], [vectors])) == pytest.approx(0, abs=1e-4)
    same = torch.ones(1, 6, 4) / 2
    assert float(contrastive_loss([same], [same])) == pytest.approx(float(torch.log(torch.tensor(6.0))), rel=1e-5)


def test_no_gradient_flows_into_the_keys():
    query, key = (torch.randn(1, 5, 3, requires_grad=True) for _ in range(2))
    contrastive_loss([query], [key]).backward()
    assert key.grad is None
    assert query.grad is not None


@pytest.mark.parametrize("loss", [structure_loss, lambda x, y: contrastive_loss([x[:, 0]], [y[:, 0]])])
def test_half_precision_forwards_do_not_coarsen_the_losses(loss):
    torch.manual_seed(0)
    x, y = torch.rand(2, 1, 24, 24), torch.rand(2, 1, 24, 24)
    plain = loss(x, y)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(loss(x, y), plain)


def test_smoothness_and_folds_of_known_fields():
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    still = torch.zeros(1, 2, 8, 8)
    stretched, mirrored = torch.stack([0.5 * y, 0 * x])[None], torch.stack([-2 * y, 0 * x])[None]
    assert float(smoothness(still)) == 0
    assert float(smoothness(stretched)) == pytest.approx(0.25 / 4)  # one of two components along one of two axes
    assert [float(folded(field)) for field in (still, stretched, mirrored)] == [0, 0, 1]
    volume = torch.zeros(1, 3, 4, 4, 4)
    volume[:, 2] = -2 * torch.arange(4.0)
    assert float(folded(volume)) == 1


def test_perceptual_loss_sends_gradients_to_the_output_alone():
    output, target = (torch.rand(1, 1, 8, 8, requires_grad=True) for _ in range(2))
    features = lambda image: [image + 0, 2 * image]  # noqa: E731
    loss = perceptual_loss(features, output, target)
    assert float(loss.detach()) == pytest.approx(1.5 * float((output - target).detach().abs().mean()), rel=1e-5)
    loss.backward()
    assert target.grad is None


@pytest.mark.parametrize("loss", [lambda x, y: detail_loss(x, y, 4.0), structure_loss, anatomy_loss])
@pytest.mark.parametrize("dims", [2, 3])
def test_a_divided_batch_has_the_mean_of_its_parts(loss, dims):
    torch.manual_seed(0)
    x, y = (torch.rand(4, 1, *(8, 24, 24)[-dims:]) for _ in range(2))
    parts = [loss(a, b) for a, b in zip(x.split(2), y.split(2), strict=True)]
    torch.testing.assert_close(loss(x, y), torch.stack(parts).mean())


@pytest.mark.parametrize("dims", [2, 3])
def test_regions_agree_where_their_means_do(dims):
    """Details that cancel within a region cost nothing, a shift of its mean costs the shift, what
    is unseen nothing."""
    shape = (2, 1, *[16] * dims)
    board = torch.from_numpy(np.indices(shape[2:]).sum(0) % 2 * 2.0 - 1).expand(shape)
    alike, seen = torch.zeros(shape), torch.ones(shape, dtype=torch.bool)
    assert float(region_loss(0.7 * board, alike, seen, [4] * dims)) == pytest.approx(0, abs=1e-6)
    assert float(region_loss(0.7 * board + 0.2, alike, seen, [4] * dims)) == pytest.approx(0.2, abs=1e-6)
    seen[..., 8:] = False
    half = alike.clone()
    half[..., 8:] = 5.0
    assert float(region_loss(half, alike, seen, [4] * dims)) == 0
    assert float(region_loss(half, alike, ~seen, [4] * dims)) > 1


def test_slices_may_differ_where_their_sources_do():
    still, moved = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 10.0)
    made, other = torch.zeros(2, 1, 4, 4), torch.full((2, 1, 4, 4), 0.5)
    assert slice_consistency(made, other, still, still).item() == pytest.approx(0.5)
    assert slice_consistency(made, made, still, moved).item() == 0
    half = torch.cat([still[..., :2], moved[..., 2:]], -1)  # the right half of the source changes
    right, left = (torch.where((torch.arange(4) < 2) == side, 0.5, 0.0).expand(2, 1, 4, 4) for side in (False, True))
    assert slice_consistency(made, right, still, half).item() < 1e-6
    assert slice_consistency(made, left, still, half).item() == pytest.approx(0.5, rel=1e-3)
