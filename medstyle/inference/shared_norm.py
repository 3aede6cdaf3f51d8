"""Statistics of normalisation that the windows of a large picture, or the frames of a shot, have in common.

A network that normalises each of them by its own mean and variance paints a dark corner as bright as the sky, and
changes its style from tile to tile and from frame to frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text

PER_CHANNEL = (nn.InstanceNorm2d, nn.InstanceNorm3d)


class Statistics:
    """The mean and mean square that every normalisation of some networks has seen, by channel.

    Args:
        networks: normalised by channel, as ours and MONAI's are; other normalisations are left alone.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.layers = [
            layer
            for network in networks
            for layer in network.modules()
            if isinstance(layer, PER_CHANNEL)
            or (isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels)
        ]
        self.held: dict[int, Tensor] = {}  # number of the layer -> (2, C)

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Take the mean over all images that are rendered meanwhile; each is normalised by itself."""
        seen = [0] * len(self.layers)

        def note(number: int, x: Tensor) -> None:
            own = _moments(x)
            seen[number] += 1
            self.held[number] = own if seen[number] == 1 else self.held[number].lerp(own, 1 / seen[number])

        with self._hooked(note, apply=False):
            yield

    @contextmanager
    def share(self, memory: float = 1.0) -> Iterator[None]:
        """Normalise by what is held, of which each image first replaces the share ``1 - memory`` by its own."""

        def note(number: int, x: Tensor) -> None:
            if number not in self.held:
                self.held[number] = _moments(x)
            elif memory < 1:  # else nothing of its own counts, and need not be computed
                self.held[number] = _moments(x).lerp(self.held[number], memory)

        with self._hooked(note, apply=True):
            yield

    @contextmanager
    def _hooked(self, note: Callable[[int, Tensor], None], apply: bool) -> Iterator[None]:
        with ExitStack() as stack:
            for number, layer in enumerate(self.layers):

                def hook(
                    layer: nn.Module, inputs: tuple[Tensor], output: Tensor, number: int = number
                ) -> Tensor | None:
                    x = inputs[0].float()
                    note(number, x)
                    return self._normalised(number, layer, x).to(output.dtype) if apply else None

                handle = layer.register_forward_hook(hook)
                stack.callback(handle.remove)
            yield

    def _normalised(self, number: int, layer: nn.Module, x: Tensor) -> Tensor:
        mean, square = (one.view(1, -1, *[1] * (x.ndim - 2)) for one in self.held[number])
        y = (x - mean) * (square - mean.square() + layer.eps).clamp(min=1e-6).rsqrt()  # type: ignore[operator]
        if layer.weight is not None:
            weight, bias = (one.view_as(mean) for one in (layer.weight, layer.bias))  # type: ignore[operator]
            y = y * weight + bias
        return y


def _moments(x: Tensor) -> Tensor:
    """Return the mean and the mean square of each channel of ``(N, C, ...)``, ``(2, C)``."""
    axes = [0, *range(2, x.ndim)]
    return torch.stack([x.mean(axes), x.square().mean(axes)])
