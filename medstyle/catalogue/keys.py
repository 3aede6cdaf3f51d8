"""Sign manifests and check signatures by ed25519 (RFC 8032), and know whose keys are trusted."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from medstyle.errors import ModelError, ParamsError
from medstyle.jobs.atomic import write_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def signing_key(path: Path) -> tuple[Ed25519PrivateKey, bool]:
    """Read a private key (PEM, PKCS 8), or make one that only this user can read.

    Returns the key, and whether it is new.

    Raises:
        ParamsError: the file holds no such key, or needs a password.
    """
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if not path.exists():
        key = Ed25519PrivateKey.generate()
        text = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
            file.write(text)
        return key, True
    try:
        found = form.load_pem_private_key(path.read_bytes(), None)
    except (ValueError, TypeError, OSError):
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise ParamsError(f"{path}: no private key of ed25519 in PEM without a password; name another --key")
    return found, False


def public_of(key: Ed25519PrivateKey) -> bytes:
    """Return the public key, 32 bytes."""
    return key.public_key().public_bytes_raw()


def fingerprint(public: bytes) -> str:
    """Return the name of a key, which people compare."""
    return hashlib.sha256(public).hexdigest()[:40]


def signed(manifest: bytes, key: Ed25519PrivateKey) -> bytes:
    """Return the signature file of a manifest."""
    document = {
        "algorithm": "ed25519",
        "key": base64.b64encode(public_of(key)).decode(),
        "signature": base64.b64encode(key.sign(manifest)).decode(),
    }
    return json.dumps(document, indent=1).encode() + b"\n"


def signer(manifest: bytes, signature: bytes) -> str:
    """Return the fingerprint of the key that has signed ``manifest``.

    Raises:
        ModelError: the signature is not one of this manifest.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        document = json.loads(signature)
        public = base64.b64decode(document["key"], validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(
            base64.b64decode(document["signature"], validate=True), manifest
        )
    except (ValueError, KeyError, TypeError, RecursionError, InvalidSignature):
        raise ModelError(
            "the signature does not fit the manifest: it was changed, or damaged; fetch it again"
        ) from None
    return fingerprint(public)


class Trust:
    """The fingerprints that this user trusts, in a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def known(self) -> list[str]:
        """Return the trusted fingerprints."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except ValueError:
            raise ModelError(f"{self.file}: damaged; remove it, and trust your publishers again") from None
        return [str(one) for one in found]

    def add(self, name: str) -> None:
        """Trust a key from now on."""
        write_json(self.file, sorted({*self.known(), name}))
