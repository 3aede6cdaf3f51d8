"""The viewer in the package is the one that was reviewed."""

import hashlib

from medstyle.studio.vendor import NIIVUE, WEB


def test_the_vendored_file_is_the_one_whose_hash_is_known_and_has_its_licence():
    assert hashlib.sha256(NIIVUE.place.read_bytes()).hexdigest() == NIIVUE.sha256
    assert "BSD 2-Clause License" in (WEB / "NIIVUE-LICENSE.txt").read_text()


def test_the_page_names_no_other_host():
    for path in WEB.parent.glob("*.*"):
        if path.suffix in (".html", ".js", ".css"):
            assert "://" not in path.read_text(), path.name
