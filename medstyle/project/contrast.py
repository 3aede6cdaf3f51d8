"""Recognise what an image shows: its contrast, or that it is a mask or was derived."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medstyle.cohort.inventory import Item
from medstyle.imaging.modality import DOMAINS

if TYPE_CHECKING:
    from medstyle.networks.recogniser import Look

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

_LABELS = re.compile(
    r"masks?|seg|segs|segmentations?|labels?|labelmap|lesions?|regions?|roi|rois|aseg|aparc|parcellations?|annotations?"
    r"|brainmask|tissues?|gt|truth|dseg|probseg"
)
_DERIVED = re.compile(r"adc|fa|md|trace|cbf|cbv|mtt|tmax|phase|swi|qsm|b0map|fieldmap|dwi|bold|asl|perf|uncertainty")
_WORDS = {  # contrast -> words in names and descriptions, most specific contrast first
    "mr_flair": r"flair|t2flair|tirm|darkfluid",
    "mr_t1@contrast": r"t1c|t1ce|t1gd|t1post|t1wce|ce|gd|gad|contrast|postcontrast|kmpost",
    "mr_t1": r"t1|t1w|t1se|t1tse|t1fse|mprage|mp2rage|spgr|bravo|tfl|fspgr|vibe|t1map|t1gre|t13d",
    "mr_t2": r"t2|t2w|t2tse|t2fse|t2se|t2star|blade|haste|ssfse|t2tra",
    "mr_pd": r"pd|pdw|protondensity|rho",
    "ct": r"ct|ctac|cbct|hu",
}
_CONTRASTS = {domain: re.compile(pattern) for domain, pattern in _WORDS.items()}
_CONSTANT = 0.75  # share of neighbours inside the body with exactly the same value, above which it is a map of labels
MOST_LABELS = 256


class Finding(NamedTuple):
    """What an image shows, and by what it was recognised.

    ``domain`` is "" if it is no image to learn from, or unknown.
    """

    domain: str
    why: str


def tokens(text: str) -> list[str]:
    """Return the words of a name in lower case: runs of letters and digits, and each such part."""
    words = re.findall(r"[A-Za-z0-9]+", text)
    parts = [part for word in words for part in re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|[a-z]*\d+[a-z]*", word)]
    return [word.lower() for word in (*words, *parts)]


def by_words(text: str) -> Finding | None:
    """Recognise a contrast, a mask or a derived map from a name; None if it says nothing."""
    found = set(tokens(text))
    if said := next((word for word in sorted(found) if _LABELS.fullmatch(word)), None):
        return Finding("", f"a mask or labels, by the word {said!r}")
    named = {domain: [w for w in sorted(found) if pattern.fullmatch(w)] for domain, pattern in _CONTRASTS.items()}
    if named["mr_t1"] and named["mr_flair"] and not named["mr_t2"]:
        named["mr_flair"] = []  # T1 FLAIR is a T1 contrast of one vendor
    if found & {"pre", "without", "wo", "non", "no", "native"}:
        named["mr_t1@contrast"] = []
    for domain, words in named.items():
        if domain == "mr_t1@contrast" and words and not named["mr_t1"] and not words[0].startswith("t1"):
            continue  # "contrast" alone may be of CT
        if words:
            return Finding(domain, f"the word {words[0]!r}")
    if said := next((word for word in sorted(found) if _DERIVED.fullmatch(word)), None):
        return Finding("", f"a map or another technique, by the word {said!r}")
    return None


def by_sequence(attributes: Mapping[str, str]) -> Finding | None:
    """Recognise a contrast of MR from the times of its sequence in ms; None if they do not tell.

    The limits are those of textbooks (McRobbie, MRI from Picture to Proton, 2017, ch. 3): T1 has a
    short TE and a short TR or an inversion of 0.4 to 1.4 s, FLAIR an inversion of more than 1.5 s.
    """
    echo, repetition, inversion = (
        _number(attributes, name) for name in ("EchoTime", "RepetitionTime", "InversionTime")
    )
    if echo is None:
        return None
    said = f"TE {echo:g}, TR {repetition or 0:g}, TI {inversion or 0:g} ms"
    if inversion is not None and inversion >= 1500:
        return Finding("mr_flair", said)
    if inversion is not None and 400 <= inversion <= 1400 and echo < 35:
        return Finding(_enhanced(attributes), said)
    if repetition is None:
        return None
    if echo < 35 and repetition < 1200:
        return Finding(_enhanced(attributes), said)
    if echo >= 60 and repetition >= 1500:
        return Finding("mr_t2", said)
    if echo < 45 and repetition >= 1800:
        return Finding("mr_pd", said)
    return None


def _enhanced(attributes: Mapping[str, str]) -> str:
    agent = attributes.get("ContrastBolusAgent", "").strip().lower()
    return "mr_t1@contrast" if agent and agent not in ("no", "none") else "mr_t1"


def _number(attributes: Mapping[str, str], name: str) -> float | None:
    try:
        return float(attributes.get(name, ""))
    except ValueError:
        return None


def contrast_of(item: Item, path: str) -> Finding:
    """Recognise the contrast of a scan from its header, its description and its path.

    Where the times of an MR sequence contradict its description, nothing is assumed.
    """
    if item.series is None:
        name = path.rsplit("/", 1)[-1]
        folder = path.rsplit("/", 2)[-2] if "/" in path else ""
        found = by_words(name.split(".")[0]) or by_words(folder)
        return found or Finding("", "neither its name nor its folder says what it shows")
    modality, texts = item.attributes.get("Modality", ""), ("SeriesDescription", "ProtocolName", "SequenceName")
    if modality == "CT":
        return Finding("ct", "Modality CT")
    if modality != "MR":
        return Finding("", f"Modality {modality or 'is missing'}: neither MR nor CT")
    said = next((found for name in texts if (found := by_words(item.attributes.get(name, "")))), None)
    measured = by_sequence(item.attributes)
    if said is None or not said.domain:
        return said or measured or Finding("", "neither description nor sequence says what it shows")
    if said.domain == "mr_t1" and _enhanced(item.attributes) != "mr_t1":
        return Finding("mr_t1@contrast", f"{said.why} and a contrast agent")
    if measured and measured.domain.partition("@")[0] != said.domain.partition("@")[0]:
        if {measured.domain, said.domain} <= {"mr_t2", "mr_pd", "mr_flair"} or said.domain == "mr_flair":
            return said  # a long TE and TR, which the three share
        return Finding("", f"its description says {said.domain}, its sequence ({measured.why}) {measured.domain}")
    return said


def looks_like_labels(voxels: NDArray) -> bool:
    """Return whether a volume ``(D, H, W)`` holds whole numbers that are constant in patches.

    Fewer than three values are a mask.
    """
    body = voxels != voxels.flat[0]
    if not body.any() or not np.array_equal(voxels, np.rint(voxels)):
        return not body.any()
    values = np.unique(voxels)
    if len(values) <= 2:
        return True
    same = (voxels[..., 1:] == voxels[..., :-1])[body[..., 1:] & body[..., :-1]]
    return len(values) <= MOST_LABELS and bool(same.mean() > _CONSTANT)


class Seen(NamedTuple):
    """What an image looks like, and what contradicts it: "" if nothing does."""

    look: Look
    doubt: str

    @property
    def text(self) -> str:
        """The contrast and the probability, in words for a table."""
        return f"{DOMAINS[self.look.contrast].label} {self.look.probability:.2f}" if self.look.contrast else "unsure"


def look_over(item: Item, domain: str | None = None) -> Seen:
    """Look at the voxels of an image; compare them with its domain, or with its header and name.

    Args:
        item: the image.
        domain: that a rule assigned; without one, words and times of the sequence count.
    """
    from medstyle.data.looks import look_at

    look = look_at(item)
    said, why = (domain, "its rule") if domain else contrast_of(item, item.path.as_posix())
    doubts = []
    if said and look.contradicts(said):
        doubts.append(f"looks like {DOMAINS[look.contrast].label}, but is {DOMAINS[said].label} by {why}")
    if look.turned:
        doubts.append(f"shows a head that lies {look.orientation}")
    return Seen(look, "; ".join(doubts))
