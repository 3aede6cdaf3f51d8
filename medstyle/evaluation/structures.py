"""Measure whether a segmenter of real images finds the same structures in synthetic images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]
BATCH = 8


@dataclass(frozen=True)
class Segmenter:
    """A trained U-Net and its input size ``(H, W)``.

    Takes slices ``(D, H, W)`` in [0, 1] of any size.
    """

    network: torch.nn.Module
    size: tuple[int, int]

    @torch.inference_mode()
    def __call__(self, image: Image) -> Labels:
        """Return the label of each voxel, ``(D, H, W)``."""
        found = torch.cat([self.network(one).argmax(1) for one in _framed(image, self.size).split(BATCH)])
        return np.asarray(_framed(found.numpy(), image.shape[1:])[:, 0].numpy(), np.uint8)

    @torch.inference_mode()
    def features(self, image: Image) -> NDArray[np.float64]:
        """Return each slice's deepest feature maps, averaged over locations, ``(D, F)``."""

        def deepest(x: torch.Tensor) -> torch.Tensor:
            level: Any = self.network.model
            while isinstance(level, torch.nn.Sequential):  # down, (skip: the next level), up
                x, level = level[0](x), level[1].submodule
            return level(x).mean(dim=(2, 3))

        return np.asarray(torch.cat([deepest(one) for one in _framed(image, self.size).split(BATCH)]), np.float64)


def _framed(array: NDArray, size: tuple[int, ...]) -> torch.Tensor:
    """Crop or zero-pad slices ``(D, H, W)`` about their centre, ``(D, 1, *size)``."""
    from monai.transforms import ResizeWithPadOrCrop

    frame = ResizeWithPadOrCrop((len(array), *size), mode="constant")
    return torch.as_tensor(np.asarray(frame(np.asarray(array, np.float32)[None])))[0][:, None]


def train_segmenter(
    images: Sequence[Image], labels: Sequence[Labels], classes: int, steps: int, seed: int = 0
) -> Segmenter:
    """Train a small U-Net (Ronneberger 2015) on slices with Dice and cross-entropy losses.

    Args:
        images: ``(D, H, W)`` in [0, 1], one per subject; sizes may differ.
        labels: of the same shapes, with values below ``classes``; 0 is background.
        classes: number of labels.
        steps: number of steps of 8 slices each.
        seed: seed of weights and draws; the state of torch's random generator is restored.
    """
    from monai.losses.dice import DiceCELoss
    from monai.networks.nets.unet import UNet

    height, width = (16 * -(-max(image.shape[axis] for image in images) // 16) for axis in (1, 2))
    x = torch.cat([_framed(image, (height, width)) for image in images])
    y = torch.cat([_framed(one, (height, width)) for one in labels])
    used = torch.nonzero(y.amax(dim=(1, 2, 3)))[:, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(2, 1, classes, (16, 32, 64, 128), (2, 2, 2), num_res_units=1)
        optimiser = torch.optim.Adam(network.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=max(2, steps))
        loss = DiceCELoss(to_onehot_y=True, softmax=True)
        for _ in range(steps):
            rows = used[torch.randint(len(used), (BATCH,))]
            optimiser.zero_grad()
            loss(network(x[rows]), y[rows]).backward()
            optimiser.step()
            schedule.step()
    return Segmenter(network.eval(), (height, width))


def overlap(found: Labels, truth: Labels, classes: int) -> dict[int, tuple[float, float]]:
    """Return the Dice coefficient and the relative volume error of each structure of ``truth``."""
    result = {}
    for label in range(1, classes):
        a, b = found == label, truth == label
        if b.any():
            both, size = int((a & b).sum()), int(b.sum())
            result[label] = (2 * both / (int(a.sum()) + size), (int(a.sum()) - size) / size)
    return result
