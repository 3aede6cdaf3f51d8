"""Which domain an input is: rules over DICOM attributes and file names, first match wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from medstyle.errors import ParamsError
from medstyle.imaging.modality import DOMAINS
from medstyle.params import params

__patient_data__ = True  # an error that passes through here may quote it: medstyle.errors.outline masks its text


@params
class Rule:
    """One rule: an input of ``domain`` has every attribute in ``when``."""

    domain: str
    """Domain of the inputs that match, a key of DOMAINS."""
    when: dict[str, str]
    """Attribute -> glob pattern, case ignored: DICOM keywords (``SeriesDescription: "*T1*"``), ``path``, or what
    ``ingest.labels`` adds."""

    def __post_init__(self) -> None:
        if self.domain not in DOMAINS:
            raise ParamsError(f"rules: unknown domain {self.domain!r}; known: {', '.join(DOMAINS)}")
        if not self.when:
            raise ParamsError(f"rules: the rule for {self.domain} has an empty 'when' and would match every input")

    def matches(self, attributes: Mapping[str, str]) -> bool:
        """Tell whether every pattern fits; an absent attribute counts as empty."""
        return all(
            fnmatchcase(str(attributes.get(key, "")).lower(), pattern.lower()) for key, pattern in self.when.items()
        )


def domain_of(attributes: Mapping[str, str], rules: Sequence[Rule]) -> str | None:
    """Return the domain of the first rule that matches, or None."""
    return next((rule.domain for rule in rules if rule.matches(attributes)), None)
