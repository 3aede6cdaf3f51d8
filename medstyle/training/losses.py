"""Define the losses as pure functions of tensors; logits are one map per discriminator scale.

Every adversarial loss is computed per patch, then averaged over patches, then over scales.
Averaging the logits first would be a different objective.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Adversarial(NamedTuple):
    """The terms of one adversarial loss: each maps logits to a loss per patch.

    Logits above ``boundary`` mean "real". If ``relative``, the logits are differences: of the real
    and the generated image of a pair, or the reverse for ``generator``, so that an image counts as
    real only beside another.
    """

    real: Callable[[Tensor], Tensor]
    fake: Callable[[Tensor], Tensor]
    generator: Callable[[Tensor], Tensor]
    boundary: float = 0.0
    relative: bool = False


ADVERSARIAL: dict[str, Adversarial] = {
    # the original log form: -log D(y) - log(1 - D(G)); G minimises log(1 - D(G)), which saturates
    # (Goodfellow 2014)
    "minimax": Adversarial(lambda real: F.softplus(-real), F.softplus, lambda fake: -F.softplus(fake)),
    "nonsaturating": Adversarial(lambda real: F.softplus(-real), F.softplus, lambda fake: F.softplus(-fake)),
    "least_squares": Adversarial(  # Mao 2017
        lambda real: 0.5 * (real - 1) ** 2, lambda fake: 0.5 * fake**2, lambda fake: (fake - 1) ** 2, boundary=0.5
    ),
    # relativistic pairing, stable with penalties on both images (Jolicoeur-Martineau 2019; R3GAN,
    # Huang 2024)
    "relativistic": Adversarial(
        lambda apart: F.softplus(-apart), torch.zeros_like, lambda apart: F.softplus(-apart), relative=True
    ),
    "hinge": Adversarial(lambda real: F.relu(1 - real), lambda fake: F.relu(1 + fake), lambda fake: -fake),  # Lim 2017
}


def _mean(term: Callable[[Tensor], Tensor], logits: list[Tensor]) -> Tensor:
    return torch.stack([term(level.float()).mean() for level in logits]).mean()


def discriminator_loss(kind: str, real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return the loss of the discriminator for logits of real and generated images."""
    if ADVERSARIAL[kind].relative:
        real = [r - f for r, f in zip(real, fake, strict=True)]
    return _mean(ADVERSARIAL[kind].real, real) + _mean(ADVERSARIAL[kind].fake, fake)


def generator_loss(kind: str, real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return the loss of the generator for logits of its images.

    Those of the real images of the pairs are used by a relative loss alone.
    """
    if ADVERSARIAL[kind].relative:
        fake = [f - r for r, f in zip(real, fake, strict=True)]
    return _mean(ADVERSARIAL[kind].generator, fake)


def r1_penalty(images: Tensor, logits: list[Tensor]) -> Tensor:
    """Return ``1/2 mean_n |grad_y sum_patches D|^2 / n_patches`` on real images (Mescheder 2018).

    The division by the number of patches keeps the weight independent of the image size. ``images``
    must require grad.
    """
    patches = sum(level[0].numel() for level in logits)
    total = torch.stack([level.float().sum() for level in logits]).sum()
    (gradient,) = torch.autograd.grad(total, images, create_graph=True)
    return 0.5 * gradient.float().square().flatten(1).sum(1).mean() / patches


def detail_loss(output: Tensor, target: Tensor, detail: float) -> Tensor:
    """Return the mean absolute difference, weighted towards small details.

    A pixel has the weight ``1 + detail |y - mean of its 9 x 9 neighbours|``: small lesions and
    sulci fill few pixels and would hardly count in the plain mean. Each image is averaged first,
    then the batch. With ``detail`` 0 it is L1; a uniform error ``e`` gives ``e`` for any
    ``detail``.
    """
    flat = target.flatten(1, -3)  # slice by slice, also in a volume
    around = F.avg_pool2d(flat, 9, stride=1, padding=4, count_include_pad=False).view_as(target)
    weight = (1 + detail * (target - around).abs()).flatten(1)
    # a mean of per-image means, so that a batch can be divided among processes
    return ((weight * (output.float() - target).abs().flatten(1)).sum(1) / weight.sum(1)).mean()


def structure_loss(output: Tensor, target: Tensor) -> Tensor:
    """Return ``1 - SSIM`` (Wang 2004) in [0, 2] for images in network units.

    The Gaussian window (sigma 1.5) is truncated to 7 pixels: in training, where the loss is only a
    guide, this costs a third of 11 pixels.
    """
    from monai.losses import SSIMLoss

    # shifted to [0, 1]: with signed means, the luminance term would reward the negative image
    ssim = SSIMLoss(spatial_dims=2, data_range=1.0, win_size=7)
    if output.ndim == 5:  # slice by slice, as in the evaluation
        output, target = (x.transpose(1, 2).flatten(0, 1) for x in (output, target))
    with torch.autocast(output.device.type, enabled=False):  # local variances cancel in bfloat16
        loss: Tensor = ssim((output.float() + 1) / 2, (target.float() + 1) / 2)
    return loss


def slice_consistency(output: Tensor, following: Tensor, content: Tensor, next_content: Tensor) -> Tensor:
    """Return the difference of the outputs of two neighbouring slices where their sources agree.

    It is ``sum(w |y' - y|) / sum(w)`` with ``w = exp(-|x' - x| / 0.1)``, averaged over examples.
    Changes through the plane that the source shows hardly count; flicker of the output does.
    """
    weight = torch.exp(-(next_content - content).abs().mean(1, keepdim=True) / 0.1)
    apart = (following.float() - output.float()).abs().mean(1, keepdim=True)
    return ((weight * apart).flatten(1).sum(1) / weight.flatten(1).sum(1)).mean()


def region_loss(output: Tensor, alike: Tensor, seen: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the mean absolute difference of the means over overlapping regions.

    Two subjects that are aligned by an affine map agree region by region, not pixel by pixel;
    comparing pixels would cause blurring.

    Args:
        output, alike: ``(N, C, ...)``.
        seen: ``(N, 1, ...)`` bool; locations that were not seen count as equal.
        sides: of a region along each axis, in pixels; regions overlap by half.
    """
    apart = (output.float() - alike) * seen
    sides = [max(1, min(side, size)) for side, size in zip(sides, apart.shape[2:], strict=True)]
    pool = F.avg_pool2d if apart.ndim == 4 else F.avg_pool3d
    return pool(apart, sides, [max(1, n // 2) for n in sides]).abs().mean()


def smoothness(field: Tensor) -> Tensor:
    """Return the mean squared first difference of a field ``(N, dims, ...)`` in pixels."""
    terms = [field.diff(dim=axis).square().mean() for axis in range(2, field.ndim)]
    return torch.stack(terms).mean()


def folded(field: Tensor) -> Tensor:
    """Return the share of locations where ``x + field(x)`` folds space.

    There the Jacobian determinant is not positive.
    """
    jacobian = torch.stack(torch.gradient(field.float(), dim=list(range(2, field.ndim))), -1)  # (N, dims, ..., dims)
    jacobian = jacobian.movedim(1, -2) + torch.eye(field.shape[1], device=field.device)
    return (torch.linalg.det(jacobian) <= 0).float().mean()


def perceptual_loss(features: Callable[[Tensor], list[Tensor]], output: Tensor, target: Tensor) -> Tensor:
    """Return the mean difference of frozen features, averaged over levels (Johnson 2016)."""
    with torch.no_grad():
        wanted = features(target)
    made = features(output)
    return torch.stack([(a.float() - b.float()).abs().mean() for a, b in zip(made, wanted, strict=True)]).mean()


def contrastive_loss(queries: list[Tensor], keys: list[Tensor], temperature: float = 0.07) -> Tensor:
    """Return the patchwise InfoNCE loss of CUT (Park 2020), averaged over layers and patches.

    Args:
        queries: per layer, ``(N, P, C)`` unit vectors of the output at ``P`` locations.
        keys: per layer, ``(N, P, C)`` unit vectors of the input at the same locations, without
            gradient. The same location is the positive; the other locations of the image are the
            negatives.
        temperature: softmax temperature.
    """
    losses = []
    with torch.autocast(queries[0].device.type, enabled=False):
        for query, key in zip(queries, keys, strict=True):
            similarity = query.float() @ key.detach().float().transpose(1, 2) / temperature  # (N, P, P)
            n, p, _ = similarity.shape
            losses.append(F.cross_entropy(similarity.flatten(0, 1), torch.arange(p, device=query.device).repeat(n)))
    return torch.stack(losses).mean()
