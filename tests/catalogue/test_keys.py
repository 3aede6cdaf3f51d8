import stat

import pytest

from medstyle.catalogue.keys import Trust, fingerprint, public_of, signed, signer, signing_key
from medstyle.errors import ModelError, ParamsError

# RFC 8032, 7.1, test 2: secret key, public key, message, signature
SECRET = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"
PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
SIGNED = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_signatures_are_those_of_the_standard():
    import base64
    import json

    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SECRET))
    document = json.loads(signed(b"\x72", key))
    assert base64.b64decode(document["key"]).hex() == PUBLIC
    assert base64.b64decode(document["signature"]).hex() == SIGNED
    assert signer(b"\x72", signed(b"\x72", key)) == fingerprint(bytes.fromhex(PUBLIC))
    with pytest.raises(ModelError):
        signer(b"\x73", signed(b"\x72", key))


def test_a_key_is_made_once_and_only_for_its_owner(tmp_path):
    first, new = signing_key(tmp_path / "keys/publisher.pem")
    again, old = signing_key(tmp_path / "keys/publisher.pem")
    assert (new, old) == (True, False)
    assert public_of(first) == public_of(again)
    assert stat.S_IMODE((tmp_path / "keys/publisher.pem").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_told(tmp_path, text):
    (tmp_path / "key").write_bytes(text)
    with pytest.raises(ParamsError, match="no private key"):
        signing_key(tmp_path / "key")


def test_trust_is_remembered(tmp_path):
    trust = Trust(tmp_path / "store/trusted.json")
    assert trust.known() == []
    trust.add("b")
    trust.add("a")
    trust.add("a")
    assert Trust(tmp_path / "store/trusted.json").known() == ["a", "b"]
    trust.file.write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        trust.known()
