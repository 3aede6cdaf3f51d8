"""Recognise which contrast a scan of a head shows, and which way up it is, by a small network.

The network sees three planes of a coarse cube (:mod:`medstyle.transforms.cube`) and was trained on
simulated heads alone (:mod:`medstyle.training.recogniser`); its weights come with the package.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from medstyle.imaging.volume import Volume
from medstyle.networks import folder as models
from medstyle.transforms.cube import SIDE, cube

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

READY = models.READY / "contrast"
CONTRASTS = ("mr_t1", "mr_t2", "mr_flair", "mr_pd", "ct", "")  # the last: no head
ORIENTATIONS = ("upright", "upside down", "front to back", "axes exchanged", "")  # the last: no head
OFFSETS = (-12, -6, 0, 6, 12)  # voxels of 3 mm from the centre of the body: where slices are looked at
WIDTHS, NARROW = (16, 32, 64, 96), 16


class Recogniser(nn.Module):
    """Classify a head from slices of its three planes by one 2-D encoder and two linear outputs.

    The encoder also sees which plane a slice is of, and where each pixel is. Its means, maxima and
    a few channels at their places are averaged over the slices of a plane.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 7  # grey values twice, plane (3), row and column
        for number, width in enumerate(WIDTHS):
            for stride in (2, 1) if number else (2,):
                layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
        self.encoder = nn.Sequential(*layers)
        self.narrow = nn.Sequential(nn.Conv2d(before, NARROW, 1, bias=False), nn.BatchNorm2d(NARROW), nn.ReLU())
        places = math.ceil(SIDE / 2 ** len(WIDTHS)) ** 2  # left of a slice after the encoder
        seen = 3 * (2 * before + NARROW * places)
        self.mixed = nn.Sequential(nn.Linear(seen, 128), nn.ReLU(), nn.Dropout(0.2))
        self.contrast = nn.Linear(128, len(CONTRASTS))
        self.orientation = nn.Linear(128, len(ORIENTATIONS))

    def forward(self, slices: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits ``(N, 6)`` of the contrasts and ``(N, 5)`` of the orientations.

        Args:
            slices: ``(N, 3, K, 2, H, W)`` of :func:`slices_of`, with any number ``K`` per plane.
        """
        n, planes, k, _, height, width = slices.shape
        flat = slices.flatten(0, 2)
        plane = torch.eye(3)[:, None].expand(n, planes, k, 3)[..., None, None].expand(-1, -1, -1, -1, height, width)
        rows = torch.linspace(-1, 1, height)[:, None].expand(height, width)
        columns = torch.linspace(-1, 1, width).expand(height, width)
        place = torch.stack([rows, columns]).expand(len(flat), 2, height, width)
        h = self.encoder(torch.cat([flat, plane.flatten(0, 2), place], 1))  # (N 3 K, C, h, w)
        pooled = torch.cat([h.mean((2, 3)), h.amax((2, 3)), self.narrow(h).flatten(1)], 1)
        mixed = self.mixed(pooled.unflatten(0, (n, planes, k)).mean(2).flatten(1))
        return self.contrast(mixed), self.orientation(mixed)


def slices_of(cubes: NDArray[np.uint8], offsets: tuple[int, ...] = OFFSETS) -> NDArray[np.float32]:
    """Return axial, coronal and sagittal slices of a cube, ``(3, K, 2, 72, 72)``.

    The two channels are the grey values of the cube, and the same relative to twice their median
    in the body: a head whose fat outshines its brain is seen as well.
    """
    counts = np.bincount(cubes.ravel(), minlength=256)
    counts[:30] = 0
    median = int(np.searchsorted(counts.cumsum(), counts.sum() / 2))
    at = [SIDE // 2 + offset for offset in offsets]
    planes = np.stack([cubes[at], cubes[:, at].swapaxes(0, 1), cubes[:, :, at].transpose(2, 0, 1)])
    grey = planes.astype(np.float32)
    return np.stack([grey / np.float32(204), np.minimum(grey / np.float32(2 * max(median, 1)), 1)], 2)


@dataclass(frozen=True)
class Look:
    """What a scan looks like.

    Attributes:
        contrast: ``mr_t1``, ``mr_t2``, ``mr_flair``, ``mr_pd`` or ``ct``; "" if the network is not
            sure, or sees no head.
        orientation: ``upright``, ``upside down``, ``front to back`` or ``axes exchanged``; "" if
            it is not sure. Left and right cannot be told apart.
        probability, probability_of_orientation: calibrated, of the likeliest answers.
    """

    contrast: str = ""
    orientation: str = ""
    probability: float = 0.0
    probability_of_orientation: float = 0.0

    def contradicts(self, domain: str) -> bool:
        """Return whether the scan clearly has another contrast than ``domain`` says.

        A domain that is no contrast of its own contradicts nothing; a variant of a domain
        (``mr_t1@north``) is judged as the domain.
        """
        base = domain.partition("@")[0]
        return bool(self.contrast and base) and base in CONTRASTS and self.contrast != base

    @property
    def turned(self) -> bool:
        """Whether the head is clearly not the way up that the header says."""
        return self.orientation not in ("", "upright")


@dataclass(frozen=True)
class Calibration:
    """What makes the probabilities honest.

    Attributes:
        temperatures: the logits of contrast and orientation are divided by these (Guo et al.,
            ICML 2017).
        sure: probabilities of contrast and orientation below which the answer is "unsure".
    """

    temperatures: tuple[float, float] = (1.0, 1.0)
    sure: tuple[float, float] = (0.9, 0.9)


@lru_cache(maxsize=2)
def load_recogniser(folder: Path = READY) -> tuple[Recogniser, Calibration]:
    """Load the network that comes with the package, or the one of a folder."""
    from safetensors.torch import load_file

    network = Recogniser()
    network.load_state_dict({name: value.float() for name, value in load_file(folder / "weights.safetensors").items()})
    known = json.loads((folder / "contrast.json").read_text(encoding="utf-8"))
    return network.eval().requires_grad_(False), Calibration(tuple(known["temperatures"]), tuple(known["sure"]))


def probabilities(contrast: Tensor, orientation: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Return calibrated probabilities ``(N, 6)`` and ``(N, 5)`` of the network's logits.

    A head lies somehow only as far as there is one.
    """
    p = F.softmax(contrast / calibration.temperatures[0], 1)
    q = F.softmax(orientation / calibration.temperatures[1], 1)[:, :-1] * (1 - p[:, -1:])
    return p, torch.cat([q, 1 - q.sum(1, keepdim=True)], 1)


def look(volume: Volume) -> Look:
    """Say what a scan looks like, whatever its domain.

    Anything but a head, and a field of view below 60 mm, gives an empty answer.
    """
    small = cube(volume)
    return Look() if small is None else look_at_slices(slices_of(small))


def look_at_slices(slices: NDArray[np.float32]) -> Look:
    """Say what the slices of :func:`slices_of` look like."""
    network, calibration = load_recogniser()
    with torch.inference_mode():
        logits, of_orientation = network(torch.from_numpy(slices)[None])
        found = probabilities(logits, of_orientation, calibration)
    (contrast, p), (orientation, q) = (
        (names[int(of[0].argmax())], float(of[0].max()))
        for names, of in zip((CONTRASTS, ORIENTATIONS), found, strict=True)
    )
    return Look(
        contrast if p >= calibration.sure[0] else "",
        orientation if q >= calibration.sure[1] else "",
        round(p, 4),
        round(q, 4),
    )
