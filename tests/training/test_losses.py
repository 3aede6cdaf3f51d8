import pytest
import torch

from medstyle.training.losses import (
    ADVERSARIAL,
    contrastive_loss,
    detail_loss,
    discriminator_loss,
    generator_loss,
    r1_penalty,
    structure_loss,
)

# dL_G/dl_f at l_f = -5, from the formulas by hand
GENERATOR_GRADIENT = {"minimax": -0.006693, "nonsaturating": -0.993307, "least_squares": -12.0, "hinge": -1.0}


@pytest.mark.parametrize("kind", ADVERSARIAL)
def test_generator_gradient_has_the_textbook_value(kind):
    logit = torch.tensor([[[[-5.0]]]], requires_grad=True)
    generator_loss(kind, [logit]).backward()
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


def test_scales_count_alike_whatever_their_size():
    small, large = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 9, 9), -1.0)
    mean = float(generator_loss("hinge", [small, large]))
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
