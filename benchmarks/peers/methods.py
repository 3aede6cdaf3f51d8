"""Implement the reference methods as their papers say, in eager float32.

``METHODS[name](seed)`` builds one for images of one channel. What all share: batch 1, Adam 2e-4
with betas (0.5, 0.999), a rate that is constant and then falls linearly to zero, no moving average
of weights. The schedule is the published one stretched over the budget: without it a short run
would never see its decay, and do worse.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .networks import PatchGAN, ResNet, UNet, gaussian_, xavier_

Losses = dict[str, Tensor]


class Method(ABC):
    """The interface of a method for the benchmark.

    Attributes:
        paired: whether ``step`` wants source and target of the same slice.
        generator: source to target.
        hold: share of the run with a constant learning rate.
    """

    paired: bool
    hold = 0.5  # 100 epochs constant, 100 falling
    generator: nn.Module

    def __init__(self) -> None:
        self.optimisers: list[torch.optim.Optimizer] = []

    def step(self, x: Tensor, y: Tensor, progress: float = 0.0) -> Losses:
        """Take one step on source and target ``(N, C, H, W)``.

        ``progress`` in [0, 1] is the share of the run done.
        """
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = 2e-4 * min(1.0, (1 - progress) / (1 - self.hold))
        return self._step(x, y)

    @abstractmethod
    def _step(self, x: Tensor, y: Tensor) -> Losses: ...

    @torch.no_grad()
    def generate(self, x: Tensor) -> Tensor:
        """Translate ``(N, C, H, W)``."""
        return self.generator(x)

    def _adam(self, *modules: nn.Module) -> torch.optim.Adam:
        weights = [p for module in modules for p in module.parameters()]
        self.optimisers.append(torch.optim.Adam(weights, lr=2e-4, betas=(0.5, 0.999)))
        return self.optimisers[-1]  # type: ignore[return-value]


def _update(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    optimiser.zero_grad()
    loss.backward()
    optimiser.step()


def _freeze(modules: Iterable[nn.Module], frozen: bool) -> None:
    for module in modules:
        module.requires_grad_(not frozen)


def _cross_entropy(logits: Tensor, real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def _squares(logits: Tensor, real: bool) -> Tensor:
    return F.mse_loss(logits, torch.full_like(logits, float(real)))


class Pix2Pix(Method):
    """Isola 2017: ``BCE + 100 L1``, the discriminator sees the source and its loss is halved.

    Another ``generator`` may be trained by the same objective; it keeps its own initial weights.
    Without the ``adversarial`` term it is the paper's baseline of L1 alone.
    """

    paired = True

    def __init__(
        self,
        seed: int = 0,
        width: int = 64,
        generator: Callable[[], nn.Module] | None = None,
        adversarial: bool = True,
    ) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.adversarial = adversarial
        self.generator = generator() if generator is not None else gaussian_(UNet(width=width))
        self.discriminator = gaussian_(PatchGAN(2, width, instance=False))
        self.of_g, self.of_d = self._adam(self.generator), self._adam(self.discriminator)

    def _step(self, x: Tensor, y: Tensor) -> Losses:
        fake = self.generator(x)
        if not self.adversarial:
            l1 = F.l1_loss(fake, y)
            _update(self.of_g, 100 * l1)
            return {"l1": l1.detach()}
        _freeze([self.discriminator], False)
        real = _cross_entropy(self.discriminator(torch.cat([x, y], 1)), True)
        made = _cross_entropy(self.discriminator(torch.cat([x, fake.detach()], 1)), False)
        _update(self.of_d, 0.5 * (real + made))
        _freeze([self.discriminator], True)
        fool, l1 = _cross_entropy(self.discriminator(torch.cat([x, fake], 1)), True), F.l1_loss(fake, y)
        _update(self.of_g, fool + 100 * l1)
        return {"d": (0.5 * (real + made)).detach(), "adversarial": fool.detach(), "l1": l1.detach()}

    @torch.no_grad()
    def generate(self, x: Tensor) -> Tensor:
        """Translate each image alone, with its own batch statistics and with dropout as in training
        (Isola 2017)."""
        return torch.cat([self.generator(one) for one in x.split(1)])


class Pool:
    """The last ``size`` fake images: every other query returns an old one and keeps the new one
    (Shrivastava 2017)."""

    def __init__(self, size: int = 50) -> None:
        self.size, self.images = size, []

    def __call__(self, image: Tensor) -> Tensor:
        """Take a fake image ``(1, C, H, W)`` and return one for the discriminator."""
        if len(self.images) < self.size:
            self.images.append(image)
            return image
        if random.random() < 0.5:
            return image
        place = random.randrange(self.size)
        old, self.images[place] = self.images[place], image
        return old


class CycleGAN(Method):
    """Zhu 2017: two generators, two discriminators, least squares, ``10 cycle + 5 identity``, a
    pool of 50."""

    paired = False

    def __init__(self, seed: int = 0, width: int = 64) -> None:
        super().__init__()
        torch.manual_seed(seed)
        random.seed(seed)
        self.generator, self.back = gaussian_(ResNet(width=width)), gaussian_(ResNet(width=width))
        self.judge_x, self.judge_y = gaussian_(PatchGAN(1, width)), gaussian_(PatchGAN(1, width))
        self.of_g, self.of_d = self._adam(self.generator, self.back), self._adam(self.judge_x, self.judge_y)
        self.pool_x, self.pool_y = Pool(), Pool()

    def _step(self, x: Tensor, y: Tensor) -> Losses:
        critics = (self.judge_x, self.judge_y)
        _freeze(critics, True)
        fake_y, fake_x = self.generator(x), self.back(y)
        fool = _squares(self.judge_y(fake_y), True) + _squares(self.judge_x(fake_x), True)
        cycle = F.l1_loss(self.back(fake_y), x) + F.l1_loss(self.generator(fake_x), y)
        identity = F.l1_loss(self.generator(y), y) + F.l1_loss(self.back(x), x)
        _update(self.of_g, fool + 10 * cycle + 5 * identity)
        _freeze(critics, False)
        loss = fool.new_zeros(())
        for judge, real, fake in (
            (self.judge_y, y, self.pool_y(fake_y.detach())), (self.judge_x, x, self.pool_x(fake_x.detach())),
        ):  # fmt: skip
            loss = loss + 0.5 * (_squares(judge(real), True) + _squares(judge(fake), False))
        _update(self.of_d, loss)
        terms = {"d": loss, "adversarial": fool, "cycle": cycle, "identity": identity}
        return {name: value.detach() for name, value in terms.items()}


class CUT(Method):
    """Park 2020: least squares + patchwise contrast (256 places, temperature 0.07) in five layers
    of the generator.

    CUT: the contrast of source and output, averaged with that of a target image and its identity.
    ``fast`` is FastCUT: ten times the first alone, and half of the images enter the generator
    mirrored (flip equivariance).
    """

    paired = False

    def __init__(self, seed: int = 0, width: int = 64, fast: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        random.seed(seed)
        self.fast = fast
        self.hold = 0.75 if fast else 0.5  # 150 + 50 epochs; 200 + 200
        self.generator = network = xavier_(ResNet(width=width, antialias=True))
        self.discriminator = xavier_(PatchGAN(1, width))
        sizes = (1, 2 * width, 4 * width, 4 * width, 4 * width)
        self.projections = xavier_(
            nn.ModuleList(nn.Sequential(nn.Linear(n, 256), nn.ReLU(), nn.Linear(256, 256)) for n in sizes)
        )
        self.of_g, self.of_d = self._adam(network, self.projections), self._adam(self.discriminator)

    def _step(self, x: Tensor, y: Tensor) -> Losses:
        mirrored = self.fast and random.random() < 0.5
        inputs = x if self.fast else torch.cat([x, y])
        fake, *same = self.generator(inputs.flip(-1) if mirrored else inputs).split(len(x))
        _freeze([self.discriminator], False)
        real, made = self.discriminator(y), self.discriminator(fake.detach())
        judged = 0.5 * (_squares(real, True) + _squares(made, False))
        _update(self.of_d, judged)
        _freeze([self.discriminator], True)
        fool = _squares(self.discriminator(fake), True)
        contrast = self._contrast(x, fake, mirrored)
        terms = {"d": judged, "adversarial": fool, "contrast": contrast}
        if self.fast:
            loss = fool + 10 * contrast
        else:
            terms["identity"] = self._contrast(y, same[0], False)
            loss = fool + 0.5 * (contrast + terms["identity"])
        _update(self.of_g, loss)
        return {name: value.detach() for name, value in terms.items()}

    def _contrast(self, content: Tensor, output: Tensor, mirrored: bool) -> Tensor:
        with torch.no_grad():  # the keys are constants
            keys = self.generator.features(content)
        losses = []
        queries = [level.flip(-1) if mirrored else level for level in self.generator.features(output)]
        for key, query, project in zip(keys, queries, self.projections, strict=True):
            places = torch.randperm(key.shape[2] * key.shape[3])[:256]
            with torch.no_grad():
                k = F.normalize(project(key.flatten(2)[:, :, places].transpose(1, 2)), dim=-1)
            q = F.normalize(project(query.flatten(2)[:, :, places].transpose(1, 2)), dim=-1)
            similarity = q @ k.transpose(1, 2) / 0.07  # (N, P, P): the diagonal is the positive
            right = torch.arange(similarity.shape[1]).expand(len(similarity), -1)
            losses.append(F.cross_entropy(similarity.transpose(1, 2), right))
        return torch.stack(losses).mean()


METHODS: dict[str, Callable[..., Method]] = {
    "pix2pix": Pix2Pix,
    "pix2pix_l1": lambda seed=0, width=64: Pix2Pix(seed, width, adversarial=False),
    "cyclegan": CycleGAN,
    "cut": CUT,
    "fastcut": lambda seed=0, width=64: CUT(seed, width, fast=True),
}
