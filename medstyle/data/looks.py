"""Look at the images of an inventory: what their voxels show, for rules and for people."""

from __future__ import annotations

from medstyle.cohort.inventory import Item
from medstyle.errors import Code, Refusal
from medstyle.networks.recogniser import Look, look

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


def look_at(item: Item) -> Look:
    """Read the voxels of an image and look at them; an empty answer if they are no usable scan."""
    if item.source not in ("dicom", "volume") or not item.usable:
        return Look()
    try:
        return look(item.load("ct" if item.attributes.get("Modality") == "CT" else "mr_t1", allow=(Code.E_DOMAIN,)))
    except Refusal:
        return Look()
