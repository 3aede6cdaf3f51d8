"""Does a segmenter that was trained on real images find the same structures in synthetic ones?"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Image = NDArray[np.float32]
Labels = NDArray[np.uint8]
BATCH = 8


def train_segmenter(
    images: Sequence[Image], labels: Sequence[Labels], classes: int, steps: int, seed: int = 0
) -> Callable[[Image], Labels]:
    """Train a small U-Net (Ronneberger 2015) on slices by Dice and cross entropy; return ``(D, H, W)`` -> labels.

    Args:
        images: ``(D, H, W)`` in [0, 1], one for each subject; sizes may differ.
        labels: alike, values below ``classes``; 0 is background.
        classes: number of labels.
        steps: of 8 slices each.
        seed: of weights and draws; the generator of torch's random numbers is left as it was.
    """
    from monai.losses.dice import DiceCELoss
    from monai.networks.nets.unet import UNet
    from monai.transforms import ResizeWithPadOrCrop

    height, width = (16 * -(-max(image.shape[axis] for image in images) // 16) for axis in (1, 2))

    def framed(array: NDArray, size: tuple[int, int]) -> torch.Tensor:
        frame = ResizeWithPadOrCrop((len(array), *size), mode="constant")
        return torch.as_tensor(np.asarray(frame(np.asarray(array, np.float32)[None])))[0][:, None]

    x = torch.cat([framed(image, (height, width)) for image in images])
    y = torch.cat([framed(one, (height, width)) for one in labels])
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
    network.eval()

    @torch.inference_mode()
    def segment(image: Image) -> Labels:
        found = torch.cat([network(one).argmax(1) for one in framed(image, (height, width)).split(BATCH)])
        back = framed(found.numpy(), image.shape[1:])[:, 0]
        return np.asarray(back.numpy(), np.uint8)

    return segment


def overlap(found: Labels, truth: Labels, classes: int) -> dict[int, tuple[float, float]]:
    """Return for each structure of ``truth`` the Dice coefficient and the error of its volume over its volume."""
    result = {}
    for label in range(1, classes):
        a, b = found == label, truth == label
        if b.any():
            both, size = int((a & b).sum()), int(b.sum())
            result[label] = (2 * both / (int(a.sum()) + size), (int(a.sum()) - size) / size)
    return result
