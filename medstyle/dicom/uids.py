"""Derive unique identifiers (``2.25.`` and a UUID, PS3.5 B.2) from what they identify."""

from __future__ import annotations

import hashlib
from uuid import UUID

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

IMPLEMENTATION_UID = "2.25.131797183890386993657555570534283336269"  # uuid5(NAMESPACE_URL, "medstyle")


def uid_of(*parts: object) -> str:
    """Return a UID that is derived from ``parts``."""
    return uid_from(hashlib.sha256("\0".join(map(str, parts)).encode()).digest())


def uid_from(digest: bytes) -> str:
    """Return the UID whose UUID (version 5) is the first 16 bytes of a hash."""
    return f"2.25.{UUID(bytes=digest[:16], version=5).int}"
