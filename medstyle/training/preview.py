"""Render a few validation images repeatedly during training."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from medstyle.data.batch import Batch
from medstyle.data.sampler import BatchSampler, Sampling
from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.networks.networks import Networks
from medstyle.transforms.augment import Augmentation
from medstyle.transforms.body import AIR, box_around, extent_of, is_body

PLAIN = Augmentation(rotation_deg=0, scale=0, shift=0, flip=False, gamma=0)


class Preview:
    """A few validation images, or training images if there are none.

    The same throughout the run.
    """

    def __init__(self, store: SliceStore, sampling: Sampling) -> None:
        sampling = replace(
            sampling, all_directions=False, cross_subject=False, batch=2 if sampling.volumetric else 32,
            augmentation=PLAIN, window=0, rank=0, world=1,
        )  # fmt: skip
        splits = ["validation"] if store.rows(sampling.domains[0], "validation") else []
        for paired, split in [(p, s) for p in (True, False) for s in [*splits, "train"]]:
            try:
                self.sampler = BatchSampler(store, replace(sampling, paired=paired, split=split))
                break
            except UserError:  # no subject of the split has all the images: try the next choice
                continue

    @torch.inference_mode()
    def __call__(
        self, networks: Networks, device: torch.device
    ) -> tuple[Batch, Tensor, dict[str, float], NDArray[np.uint8]]:
        """Return the images, the outputs, the errors and an image of examples.

        The examples show source, output and, if there is one, target. Each image is rendered
        separately, as in inference. ``validation/l1`` is the mean absolute error in the body;
        ``validation/of_copy`` is its ratio to the error of the unchanged source. Without pairs,
        ``validation/change`` is the mean change of the source.
        """
        batch = self.sampler(0, 1, device)
        rendered = torch.full_like(networks.content(batch.source), AIR)
        for number, (x, index, y) in enumerate(
            zip(*(t.split(1) for t in (batch.source, batch.target_index, batch.target)), strict=True)
        ):
            body = is_body(x).flatten(0, -3).cpu().numpy()
            box = (..., *box_around(extent_of(body), x.shape[-2:], self.sampler.sampling.multiple))
            rendered[number : number + 1][box] = networks.render(x[box], networks.style.default(index, y)).to(
                rendered.dtype
            )
        source, out, target = networks.content(batch.source).cpu(), rendered.float().cpu(), batch.target.cpu()
        if self.sampler.sampling.paired:
            body = is_body(source) | is_body(target)
            error = float((out - target)[body].abs().mean())
            copied = float((source - target)[body].abs().mean())
            values = {"validation/l1": error, "validation/of_copy": error / max(copied, 1e-6)}
            return batch, rendered, values, self._picture([source, out, target])
        values = {"validation/change": float((out - source)[is_body(source)].abs().mean())}
        return batch, rendered, values, self._picture([source, out])

    def _picture(self, rows: list[Tensor]) -> NDArray[np.uint8]:
        """Arrange up to six examples of each of ``rows`` ``(N, C, ...)`` in a grid."""
        some = torch.linspace(0, len(rows[0]) - 1, min(6, len(rows[0]))).round().long()
        volumetric = self.sampler.sampling.volumetric
        shown = [row[some][:, :, row.shape[2] // 2] if volumetric else row[some] for row in rows]
        grid = torch.cat([torch.cat(list(row), -1) for row in shown], -2)  # (C, rows * H, columns * W)
        pixels: NDArray[np.uint8] = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        return pixels[..., 0] if pixels.shape[-1] == 1 else pixels
