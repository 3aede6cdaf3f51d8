"""Share normalisation statistics among the windows of a large picture or the frames of a shot.

A network that normalises each of them by its own mean and variance renders a dark corner as bright
as the sky, and its style changes from tile to tile and from frame to frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from medstyle.networks.palette import Palette

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

PER_CHANNEL = (nn.InstanceNorm2d, nn.InstanceNorm3d, Palette)


class Statistics:
    """What every normalisation layer measures of its inputs, per channel.

    It is the mean and the mean square, and of a :class:`Palette` the levels.

    Args:
        networks: networks whose layers normalise per channel, as ours and MONAI's do; other
            normalisations are unchanged.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        self.layers = [
            layer
            for network in networks
            for layer in network.modules()
            if isinstance(layer, PER_CHANNEL)
            or (isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels)
        ]
        self.held: dict[int, Tensor] = {}  # number of the layer -> its statistics

    @contextmanager
    def gather(self) -> Iterator[None]:
        """Average over all images that are rendered in this context.

        Each is normalised by itself.
        """
        seen = [0] * len(self.layers)

        def note(number: int, x: Tensor) -> None:
            own = self._measured(number, x)
            seen[number] += 1
            self.held[number] = own if seen[number] == 1 else self.held[number].lerp(own, 1 / seen[number])

        with self._hooked(note, apply=False):
            yield

    @contextmanager
    def share(self, memory: float = 1.0) -> Iterator[None]:
        """Normalise by stored statistics, of which each image replaces a share ``1 - memory``."""

        def note(number: int, x: Tensor) -> None:
            if number not in self.held:
                self.held[number] = self._measured(number, x)
            elif memory < 1:  # else the image's own statistics do not count and need not be computed
                self.held[number] = self._measured(number, x).lerp(self.held[number], memory)

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
                    return self._normalised(number, layer, x, *inputs[1:]).to(output.dtype) if apply else None

                handle = layer.register_forward_hook(hook)
                stack.callback(handle.remove)
            yield

    def _measured(self, number: int, x: Tensor) -> Tensor:
        """Return the palette ``(C, Q)`` of ``(N, C, ...)`` or, ``(2, C)``, mean and mean square."""
        layer = self.layers[number]
        return layer.measure(x).mean(0) if isinstance(layer, Palette) else _moments(x)

    def _normalised(self, number: int, layer: nn.Module, x: Tensor, *wanted: Tensor) -> Tensor:
        if isinstance(layer, Palette):
            return layer.mapped(x, self.held[number][None], *wanted)
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
