"""Sources of the style code ``s``."""

from __future__ import annotations

from torch import Tensor, nn


class DomainStyle(nn.Module):
    """A learned code per domain: deterministic, the default for clinical synthesis.

    Args:
        domains: number of domains ``K``.
        size: length ``S`` of the code.
    """

    def __init__(self, domains: int, size: int = 8) -> None:
        super().__init__()
        self.codes = nn.Embedding(domains, size)

    def forward(self, domain: Tensor) -> Tensor:
        """Return the codes ``(N, S)`` of domain indices ``(N,)``."""
        codes: Tensor = self.codes(domain)
        return codes
