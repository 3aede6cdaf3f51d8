"""Identifiers that do not tell who the patient is."""

from __future__ import annotations

import hashlib
import hmac
import os

PUBLIC_SECRET = "medstyle"  # not a secret: with it a key can be guessed by hashing candidate names


def subject_key(patient_id: str, secret: str | None = None) -> str:
    """Return ``sub-`` and 12 hexadecimal digits of HMAC-SHA256 of ``patient_id``.

    ``secret`` defaults to the environment's ``MEDSTYLE_SECRET``; keep it outside the repository. Without one a public
    default is used: keys are then stable and pseudonymous, but whoever can guess a PatientID can recognise it.
    """
    key = secret or os.environ.get("MEDSTYLE_SECRET") or PUBLIC_SECRET
    digest = hmac.new(key.encode(), patient_id.strip().encode(), hashlib.sha256).hexdigest()
    return f"sub-{digest[:12]}"
