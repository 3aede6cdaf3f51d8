"""A few validation images, rendered again and again throughout a training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from medstyle.data.feed import Feed
from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.networks.networks import Networks
from medstyle.transforms.augment import Augmentation
from medstyle.transforms.body import box_around, extent_of


class Preview:
    """A few validation images (training ones where there are none), the same throughout the run."""

    def __init__(
        self,
        store: SliceStore,
        feed_of: Callable[..., Feed],
        domains: Sequence[str],
        volumetric: bool,
    ) -> None:
        plain = Augmentation(rotation_deg=0, scale=0, shift=0, flip=False, gamma=0)
        common = {
            "everywhere": False, "population": False, "batch": 2 if volumetric else 32, "augmentation": plain,
            "rank": 0, "world": 1,
        }  # fmt: skip
        self.volumetric = volumetric
        splits = ["validation"] if store.rows(domains[0], "validation") else []
        for self.paired, split in [(p, s) for p in (True, False) for s in [*splits, "train"]]:
            try:
                self.feed = feed_of(split, paired=self.paired, **common)
                break
            except UserError:  # no subject of the split has both: the next best
                continue

    @torch.inference_mode()
    def __call__(self, networks: Networks, device: torch.device) -> tuple[dict[str, float], np.ndarray]:
        """Return errors on the images and a picture of examples: source, output and, where there is one, target.

        Each is rendered by itself, as in use. In the body ``validation/l1`` is the mean absolute error,
        ``validation/of_copy`` its ratio to that of the untouched source; without pairs ``validation/change`` is the
        mean change of the source.
        """
        batch = self.feed(0, 1, device)
        out = torch.full_like(networks.content(batch.source), -1.0)
        for number, (x, index, y) in enumerate(
            zip(*(t.split(1) for t in (batch.source, batch.target_index, batch.target)), strict=True)
        ):
            body = (x > -0.999).flatten(0, -3).cpu().numpy()
            box = (..., *box_around(extent_of(body), x.shape[-2:], self.feed.multiple))
            out[number : number + 1][box] = networks.render(x[box], networks.style.usual(index, y)).to(out.dtype)
        source, out, target = networks.content(batch.source).cpu(), out.float().cpu(), batch.target.cpu()
        rows = [source, out, *([target] if self.paired else [])]
        body = (source > -0.999) | (target > -0.999) if self.paired else source > -0.999
        if self.paired:
            error = float((out - target)[body].abs().mean())
            copied = float((source - target)[body].abs().mean())
            values = {"validation/l1": error, "validation/of_copy": error / max(copied, 1e-6)}
        else:
            values = {"validation/change": float((out - source)[body].abs().mean())}
        some = torch.linspace(0, len(source) - 1, min(6, len(source))).round().long()
        shown = [row[some][:, :, row.shape[2] // 2] if self.volumetric else row[some] for row in rows]
        grid = torch.cat([torch.cat(list(row), -1) for row in shown], -2)  # (C, rows * H, columns * W)
        pixels = ((grid.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        return values, pixels[..., 0] if pixels.shape[-1] == 1 else pixels
