"""Losses as pure functions of tensors. Logits arrive as one map per discriminator scale.

Every adversarial loss is computed per patch, then averaged over patches, then over scales: an average of logits first
would be another objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Adversarial(NamedTuple):
    """The three terms of one objective, each a map of logits to a loss per patch; above ``boundary`` they say real."""

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    boundary: float = 0.0


ADVERSARIAL: dict[str, Adversarial] = {
    # the founding log form: -log D(y) - log(1 - D(G)); G minimises log(1 - D(G)), which saturates (Goodfellow 2014)
    "minimax": Adversarial(lambda real: F.softplus(-real), F.softplus, lambda fake: -F.softplus(fake)),
    "nonsaturating": Adversarial(lambda real: F.softplus(-real), F.softplus, lambda fake: F.softplus(-fake)),
    "least_squares": Adversarial(  # Mao 2017
        lambda real: 0.5 * (real - 1) ** 2, lambda fake: 0.5 * fake**2, lambda fake: (fake - 1) ** 2, boundary=0.5
    ),
    "hinge": Adversarial(lambda real: F.relu(1 - real), lambda fake: F.relu(1 + fake), lambda fake: -fake),  # Lim 2017
}


def _mean(term: Callable[[Tensor], Tensor], logits: list[Tensor]) -> Tensor:
    return torch.stack([term(level.float()).mean() for level in logits]).mean()


def discriminator_loss(kind: str, real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return what the discriminator minimises for logits of real and generated images."""
    return _mean(ADVERSARIAL[kind].real, real) + _mean(ADVERSARIAL[kind].fake, fake)


def generator_loss(kind: str, fake: list[Tensor]) -> Tensor:
    """Return what the generator minimises for logits of its images."""
    return _mean(ADVERSARIAL[kind].generator, fake)


def r1_penalty(images: Tensor, logits: list[Tensor]) -> Tensor:
    """Return ``1/2 mean_n |grad_y sum_patches D|^2 / n_patches`` on real images (Mescheder 2018).

    The division by the number of patches keeps the weight independent of the image size. ``images`` must require grad.
    """
    patches = sum(level[0].numel() for level in logits)
    total = torch.stack([level.float().sum() for level in logits]).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean() / patches


def detail_loss(output: Tensor, target: Tensor, detail: float) -> Tensor:
    """Return the mean absolute difference of each image, averaged, weighted towards what differs from its surroundings.

    A pixel weighs ``1 + detail |y - mean of its 9 x 9 neighbours|``: small lesions and sulci fill a few pixels and
    would hardly count in the plain mean. With ``detail`` 0 it is L1; a uniform error ``e`` gives ``e`` for any value.
    """
    flat = target.flatten(1, -3)  # slice by slice, also in a volume
    around = F.avg_pool2d(flat, 9, stride=1, padding=4, count_include_pad=False).view_as(target)
    weight = (1 + detail * (target - around).abs()).flatten(1)
    # a mean of the images' own means, so that a batch may be divided among processes
    return ((weight * (output.float() - target).abs().flatten(1)).sum(1) / weight.sum(1)).mean()


def structure_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return ``1 - SSIM`` (Wang 2004) in [0, 2] for images in network units.

    The Gaussian window (sigma 1.5) is cut to 7 pixels: a third of the cost of 11 in training, where it is only a guide.
    """
    from monai.losses import SSIMLoss

    # shifted to [0, 1]: among signed means the luminance term would reward the negative image
    ssim = SSIMLoss(spatial_dims=2, data_range=1.0, win_size=7)
    if output.ndim == 5:  # slice by slice, as it is measured
        output, target = (x.transpose(1, 2).flatten(0, 1) for x in (output, target))
    with torch.autocast(output.device.type, enabled=False):  # local variances cancel in bfloat16
        loss: Tensor = ssim((output.float() + 1) / 2, (target.float() + 1) / 2)
    return loss


def slice_consistency(output: Tensor, following: Tensor, content: Tensor, next_content: Tensor) -> Tensor:
    """Return how far the outputs of two neighbouring slices differ where their sources do not.

    ``sum(w |y' - y|) / sum(w)`` with ``w = exp(-|x' - x| / 0.1)``, mean over examples: what the source shows to change
    through the plane hardly counts, flicker of the output does.
    """
    weight = torch.exp(-(next_content - content).abs().mean(1, keepdim=True) / 0.1)
    apart = (following.float() - output.float()).abs().mean(1, keepdim=True)
    return ((weight * apart).flatten(1).sum(1) / weight.flatten(1).sum(1)).mean()


def region_loss(output: Tensor, alike: Tensor, seen: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the mean absolute difference of the means over overlapping regions.

    Two people brought together by an affine map agree region by region, not pixel by pixel: comparing pixels would
    teach blur.

    Args:
        output, alike: ``(N, C, ...)``.
        seen: ``(N, 1, ...)`` bool; what was not seen counts as equal.
        sides: of a region along each axis, pixels; they lie half of it apart.
    """
    apart = (output.float() - alike) * seen
    sides = [max(1, min(side, size)) for side, size in zip(sides, apart.shape[2:], strict=True)]
    pool = F.avg_pool2d if apart.ndim == 4 else F.avg_pool3d
    return pool(apart, sides, [max(1, n // 2) for n in sides]).abs().mean()


def smoothness(field: Tensor) -> Tensor:
    """Return the mean squared first difference of a displacement field ``(N, dims, ...)`` in pixels."""
    terms = [field.diff(dim=axis).square().mean() for axis in range(2, field.ndim)]
    return torch.stack(terms).mean()


def folded(field: Tensor) -> Tensor:
    """Return the share of places where ``x + field(x)`` folds space: the Jacobian determinant is not positive."""
    jacobian = torch.stack(torch.gradient(field.float(), dim=list(range(2, field.ndim))), -1)  # (N, dims, ..., dims)
    jacobian = jacobian.movedim(1, -2) + torch.eye(field.shape[1], device=field.device)
    return (torch.linalg.det(jacobian) <= 0).float().mean()


def perceptual_loss(features: Callable[[Tensor], list[Tensor]], output: Tensor, target: Tensor) -> Tensor:
    """Return the mean absolute difference of frozen features, mean over levels (Johnson 2016)."""
    with torch.no_grad():
        wanted = features(target)
    made = features(output)
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(made, wanted, strict=True)]).mean()


def contrastive_loss(queries: list[Tensor], keys: list[Tensor], temperature: float = 0.07) -> Tensor:
    """Return the patchwise InfoNCE loss of CUT (Park 2020), mean over layers and patches.

    Args:
        queries: per layer ``(N, P, C)`` unit vectors of the output at ``P`` places.
        keys: per layer ``(N, P, C)`` unit vectors of the input at the same places; no gradient flows into them.
            The same place is the positive, the other places of the same image are the negatives.
        temperature: softmax temperature.
    """
    losses = []
    with torch.autocast(queries[0].device.type, enabled=False):
        for query, key in zip(queries, keys, strict=True):
            similarity = query.float() @ key.detach().float().transpose(1, 2) / temperature  # (N, P, P)
            n, p, _ = similarity.shape
            losses.append(F.cross_entropy(similarity.flatten(0, 1), torch.arange(p, device=query.device).repeat(n)))
    return torch.stack(losses).mean()
