"""Look at the images of an inventory: what their voxels show, for rules and for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from medstyle.cohort.inventory import Item
from medstyle.cohort.rules import LOOKS_LIKE, Rule
from medstyle.errors import Code, Refusal

if TYPE_CHECKING:
    from medstyle.networks.recogniser import Look

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def look_at(item: Item) -> Look:
    """Read the voxels of an image and look at them; an empty answer if they are no usable scan."""
    from medstyle.networks.recogniser import Look, look

    if item.source not in ("dicom", "volume") or not item.usable:
        return Look()
    try:
        return look(item.load("ct" if item.attributes.get("Modality") == "CT" else "mr_t1", allow=(Code.E_DOMAIN,)))
    except Refusal:
        return Look()


def looks_asked_for(item: Item, rules: Sequence[Rule]) -> dict[str, str]:
    """Return the attribute ``looks_like``, if a rule asks for it: only then are voxels read."""
    return {LOOKS_LIKE: look_at(item).contrast} if any(LOOKS_LIKE in rule.when for rule in rules) else {}
