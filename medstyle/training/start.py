"""Start a training from the weights of a translator, and keep some of them still at first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from medstyle.errors import ParamsError
from medstyle.networks.networks import Networks
from medstyle.networks.translator import Translator

CODES = "style.codes.weight"  # (domains, S): a row belongs to its domain, not to its number
CONTENT = ("generator.encoder.", "generator.bottleneck.")  # what reads anatomy; the rest renders a contrast


class Taken(NamedTuple):
    """The names of the weights that were taken from the start, and of those that were left."""

    weights: tuple[str, ...]
    left: tuple[str, ...]

    def line(self) -> str:
        """Say in one line what was taken, and which layers keep their random weights."""
        layers = list(dict.fromkeys(name.rpartition(".")[0] for name in self.left))
        named = f"; not taken: {', '.join(layers[:6])}{' ...' if len(layers) > 6 else ''}" if layers else ""
        return f"{len(self.weights)} of {len(self.weights) + len(self.left)} weights taken{named}"


@torch.no_grad()
def take_weights(networks: Networks, domains: Sequence[str], start: Translator) -> Taken:
    """Copy the weights of equal name and shape from the first member of ``start``.

    A style code is taken from the domain of the same name, else from the domain that it is a
    variant of (``mr_t1`` for ``mr_t1@north``). Networks per domain are not taken.

    Args:
        networks: changed in place.
        domains: of ``networks``, in the order of the style index.
        start: the translator to start from.

    Raises:
        UserError: no weight of the generator fits.
    """
    theirs = start.members[0].state_dict()
    taken: list[str] = []
    left: list[str] = []
    for name, own in networks.state_dict().items():
        other = theirs.get(name)
        per_domain = name.startswith(("style.mapping.branches.", "style.encoder.heads."))
        if name == CODES and other is not None and other.shape[1] == own.shape[1]:
            complete = _take_codes(own, other, domains, start.config.domains)
            (taken if complete else left).append(name)
        elif other is not None and other.shape == own.shape and not per_domain and name != CODES:
            own.copy_(other)
            taken.append(name)
        else:
            left.append(name)
    if not any(name.startswith("generator.") and theirs[name].ndim > 3 for name in taken):  # no convolution
        raise ParamsError(
            "train.start: no weight of its generator has the name and the shape of one here; set network as in its "
            "translator.json, or leave start out"
        )
    return Taken(tuple(taken), tuple(left))


def _take_codes(own: Tensor, other: Tensor, domains: Sequence[str], known: Sequence[str]) -> bool:
    """Copy the rows of known domains; return whether all were known."""
    found = [next((known.index(n) for n in (d, d.partition("@")[0]) if n in known), None) for d in domains]
    for row, number in enumerate(found):
        if number is not None:
            own[row] = other[number]
    return None not in found


def hold(networks: Networks, taken: Taken, still: bool) -> None:
    """Keep the taken weights of the encoder and the bottleneck still, or let them be trained.

    What they are at a step depends on the step alone, so a resumed run does the same.
    """
    names = {name for name in taken.weights if name.startswith(CONTENT)}
    for name, weight in networks.named_parameters():
        weight.requires_grad_(not (still and name in names))
