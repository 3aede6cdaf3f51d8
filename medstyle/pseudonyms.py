"""Make pseudonyms: keyed hashes that do not reveal what they stand for, and their secret."""

from __future__ import annotations

import hashlib
import hmac
import os
from functools import lru_cache
from pathlib import Path

from medstyle.errors import ParamsError

__patient_data__ = True  # errors raised here may quote patient data: medstyle.errors.outline masks their text

PUBLIC_SECRET = "medstyle"  # not secret: with it, a key can be guessed by hashing candidate names
NO_SECRET = (
    "no secret is set, so anyone who can guess a PatientID recognises its key; "
    "export MEDSTYLE_SECRET=... or MEDSTYLE_SECRET_FILE=FILE, kept outside the repository"
)


def own_secret() -> str | None:
    """Return ``MEDSTYLE_SECRET``, or the text of the file ``MEDSTYLE_SECRET_FILE``, or None.

    Raises:
        UserError: the file cannot be read, is empty, or lies in a git repository, which may be
            published.
    """
    if secret := os.environ.get("MEDSTYLE_SECRET"):
        return secret
    file = os.environ.get("MEDSTYLE_SECRET_FILE")
    return _secret_in(Path(file)) if file else None


@lru_cache(1)
def _secret_in(file: Path) -> str:
    if any((folder / ".git").exists() for folder in file.resolve().parents):
        raise ParamsError(f"MEDSTYLE_SECRET_FILE: {file}: lies in a git repository; keep the secret outside")
    try:
        secret = file.read_text().strip()
    except (OSError, UnicodeDecodeError):
        secret = ""
    if not secret:
        raise ParamsError(
            f"MEDSTYLE_SECRET_FILE: {file}: no readable text; write the secret there or unset the variable"
        )
    return secret


def subject_key(patient_id: str) -> str:
    """Return ``sub-`` and 12 hexadecimal digits of the HMAC-SHA256 of ``patient_id``.

    The key is that of :func:`own_secret`. Without a secret, a public one is used: keys are then
    stable and pseudonymous, but anyone who can guess a PatientID can recognise it.
    """
    return f"sub-{short_key('subject', patient_id.strip())}"


def short_key(use: str, value: str) -> str:
    """Return 12 hexadecimal digits that identify ``value`` for one ``use`` without revealing it."""
    return digest(use, value).hex()[:12]


def digest(use: str, value: str) -> bytes:
    """Return a keyed hash.

    ``use`` prevents hashes for one purpose from being looked up in another.
    """
    key = own_secret() or PUBLIC_SECRET
    return hmac.new(key.encode(), f"{use}\0{value}".encode(errors="surrogateescape"), hashlib.sha256).digest()


SESSION = "_ses-"  # separates the key of a person from that of a session


def person_of(subject: str) -> str:
    """Return the key of the person to whom a subject (session) belongs.

    Splits keep persons together.
    """
    return subject.partition(SESSION)[0]
