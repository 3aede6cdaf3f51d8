"""Assign domains to inputs by rules over DICOM attributes and file names; the first match wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from medstyle.errors import ParamsError
from medstyle.imaging.modality import DOMAINS
from medstyle.params import params

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text


@params
class Rule:
    """One rule: an input belongs to ``domain`` if it matches every pattern in ``when``."""

    domain: str
    """Domain of the inputs that match, a key of DOMAINS."""
    when: dict[str, str]
    """Attribute -> glob pattern, ignoring case. Attributes are DICOM keywords (``SeriesDescription:
    "*T1*"``), ``path``, those that ``ingest.labels`` adds, and ``looks_like``: the contrast that a
    scan of a head is recognised to have, ``mr_t1``, ``mr_t2``, ``mr_flair``, ``mr_pd`` or ``ct``,
    nothing if that is not sure."""

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ParamsError(f"rules: unknown domain {self.domain!r}; known: {', '.join(DOMAINS)}")
        if not self.when:
            raise ParamsError(f"rules: the rule for {self.domain} has an empty 'when' and would match every input")

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Return whether every pattern matches; a missing attribute counts as empty."""
        return all(
            fnmatchcase(str(attributes.get(key, "")).lower(), pattern.lower()) for key, pattern in self.when.items()
        )


LOOKS_LIKE = "looks_like"  # the attribute that is not in a header: whoever matches a rule with it reads the voxels


def domain_of(attributes: Mapping[str, str], rules: Sequence[Rule]) -> str | None:
    """Return the domain of the first rule that matches, or None."""
    return next((rule.domain for rule in rules if rule.matches(attributes)), None)
