"""Compare what a scan looks like with what its name, its header and its rule say."""

from __future__ import annotations

from typing import NamedTuple

from medstyle.cohort.inventory import Item
from medstyle.imaging.modality import DOMAINS
from medstyle.networks.recogniser import Look, look_at
from medstyle.project.contrast import contrast_of

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


class Seen(NamedTuple):
    """What an image looks like, and what contradicts it: "" if nothing does."""

    look: Look
    doubt: str

    @property
    def text(self) -> str:
        """The contrast and the probability, in words for a table."""
        if not self.look.contrast:
            return "unsure"
        return f"{DOMAINS[self.look.contrast].label} {self.look.probability:.2f}"


def look_over(item: Item, domain: str | None = None) -> Seen:
    """Look at an image; compare it with its domain, or with its header and its name.

    Args:
        item: the image.
        domain: that a rule assigned; without one, words and times of the sequence count.
    """
    look = look_at(item)
    said, why = (domain, "its rule") if domain else contrast_of(item, item.path.as_posix())
    doubts = []
    if said and look.contradicts(said):
        labels = (DOMAINS[look.contrast].label, DOMAINS[said].label)
        doubts.append(f"looks like {labels[0]}, but {why} says {labels[1]}")
    if look.turned:
        doubts.append(f"shows a head that lies {look.orientation}")
    return Seen(look, "; ".join(doubts))
