"""Pack a translator into a signed zip, and unpack one after every byte has been checked."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, field, replace
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from medstyle.catalogue.keys import signed, signer
from medstyle.errors import ModelError, UserError
from medstyle.jobs.atomic import atomic
from medstyle.params import params, parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT = 1
MANIFEST, SIGNATURE = "manifest.json", "signature.json"
LARGEST, MOST_FILES, LONGEST = 16 << 30, 1000, 4 << 20  # bytes, files; bytes of a manifest
CHUNK = 1 << 20
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
DAMAGED = "it is damaged or was changed; fetch it again"


@params
class Manifest:
    """What a package holds.

    Attributes:
        name, version: of the model; together they name the installed folder.
        task: what it does, such as ``mr_t1 -> mr_t2``.
        inputs: domains that it takes.
        licence: SPDX identifier of the weights.
        weights_sha256: hash of the weights.
        medstyle: version of the package that made it.
        gate: verdict of the registry.
        figures: measured values by name.
        files: path -> SHA-256 and size in bytes.
    """

    format: int
    name: str
    version: str
    task: str
    inputs: tuple[str, ...]
    licence: str
    weights_sha256: str
    medstyle: str
    gate: str = "not asked"
    figures: dict[str, float] = field(default_factory=dict)
    files: dict[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The name with its version."""
        return f"{self.name}@{self.version}"


def write_package(folder: Path, about: Manifest, out: Path, key: Ed25519PrivateKey) -> Manifest:
    """Write the files of ``folder`` with a signed manifest as the zip ``out``; the same every time.

    Returns the manifest, completed by the hashes of the files.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): _hashed(path) for path in paths}
    whole = replace(about, files=files)
    text = json.dumps(asdict(whole), indent=1, sort_keys=True).encode() + b"\n"
    checked(text)
    with atomic(out) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, data in ((MANIFEST, text), (SIGNATURE, signed(text, key))):
            archive.writestr(zipfile.ZipInfo(name), data)
        for name, path in zip(files, paths, strict=True):
            info = zipfile.ZipInfo(f"translator/{name}")
            info.file_size = path.stat().st_size
            with path.open("rb") as source, archive.open(info, "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
    return whole


def _hashed(path: Path) -> tuple[str, int]:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size


def checked(text: bytes) -> Manifest:
    """Read a manifest, and refuse one that no package of ours could have.

    Raises:
        ModelError: it is damaged, of another format, or names files outside its folder.
    """
    try:
        manifest = parse_json(Manifest, text, MANIFEST)
    except UserError:
        raise ModelError(f"{MANIFEST}: {DAMAGED}") from None
    if manifest.format != FORMAT:
        raise ModelError(f"{MANIFEST}: format {manifest.format}, but this version reads {FORMAT}; update medstyle")
    if not (NAME.fullmatch(manifest.name) and NAME.fullmatch(manifest.version)):
        raise ModelError(f"{MANIFEST}: name and version must be small letters, digits, and . _ -")
    for name, (_, size) in manifest.files.items():
        path = PurePosixPath(name)
        plain = not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
        if not plain or path.as_posix() != name or size < 0:
            raise ModelError(f"{MANIFEST}: a file outside the model's folder; {DAMAGED}")
    if len(manifest.files) > MOST_FILES or sum(size for _, size in manifest.files.values()) > LARGEST:
        raise ModelError(f"{MANIFEST}: more files or bytes than a model may have")
    return manifest


class Package:
    """A package to install: a zip, or a folder with the same content.

    Raises:
        ModelError: there is none at ``path``, or its manifest is not the one that was signed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        text, signature = self._small(MANIFEST), self._small(SIGNATURE)
        try:
            self.signer = signer(text, signature)
            self.manifest = checked(text)
        except ModelError as error:
            raise ModelError(f"{path}: {error}") from None
        self.documents: Mapping[str, bytes] = {MANIFEST: text, SIGNATURE: signature}

    def _small(self, name: str) -> bytes:
        with _told(self.path), self._open([name]) as members:
            for _, file in members:
                data = file.read(LONGEST + 1)
                if len(data) <= LONGEST:
                    return data
        raise ModelError(f"{self.path}: {DAMAGED}")

    def unpack(self, out: Path) -> None:
        """Write the files to the new folder ``out``, each checked by size and hash.

        Raises:
            ModelError: a file is missing or differs, or there is one that was not signed.
        """
        expected = {f"translator/{name}": facts for name, facts in self.manifest.files.items()}
        with _told(self.path):
            if self._names() != {*expected, MANIFEST, SIGNATURE}:
                raise ModelError(f"{self.path}: files are missing, or were added; {DAMAGED}")
            with self._open(expected) as members:
                for name, file in members:
                    place = out / PurePosixPath(name).relative_to("translator")
                    place.parent.mkdir(parents=True, exist_ok=True)
                    if not _copied(file, place, *expected[name]):
                        raise ModelError(f"{self.path}: {name} is not what was signed; {DAMAGED}")

    def _names(self) -> set[str]:
        if self.path.is_dir():
            paths = sorted(self.path.rglob("*"))
            return {path.relative_to(self.path).as_posix() for path in paths if not path.is_dir() or path.is_symlink()}
        with zipfile.ZipFile(self.path) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
        if len(names) != len(set(names)):
            raise ModelError(f"{self.path}: a file comes twice; {DAMAGED}")
        return set(names)

    def _open(self, names: Iterable[str]) -> Any:
        return _folder(self.path, names) if self.path.is_dir() else _zipped(self.path, names)


@contextmanager
def _folder(path: Path, names: Iterable[str]) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Give the files of a folder; links are not followed."""

    def members() -> Iterator[tuple[str, IO[bytes]]]:
        for name in names:
            if any(one.is_symlink() for one in ((path / name), *(path / name).parents) if one.is_relative_to(path)):
                raise ModelError(f"{path}: a link where a file should be; {DAMAGED}")
            with (path / name).open("rb") as file:
                yield name, file

    yield members()


@contextmanager
def _zipped(path: Path, names: Iterable[str]) -> Iterator[Iterator[tuple[str, IO[bytes]]]]:
    """Give the members of a zip."""
    with zipfile.ZipFile(path) as archive:

        def members() -> Iterator[tuple[str, IO[bytes]]]:
            for name in names:
                with archive.open(name) as file:
                    yield name, file

        yield members()


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Turn whatever the reader of a zip raises into one line."""
    try:
        yield
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError, EOFError, ValueError, zlib.error):
        raise ModelError(f"{path}: {DAMAGED}") from None
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise ModelError(f"{path}: no package of a model, or a part of it is missing") from None


def _copied(source: IO[bytes], place: Path, sha256: str, size: int) -> bool:
    """Copy a file; return whether it is the one that was signed."""
    digest, taken = hashlib.sha256(), 0
    with place.open("xb") as target:
        while chunk := source.read(CHUNK):
            taken += len(chunk)
            if taken > size:  # whatever a zip unpacks to
                return False
            digest.update(chunk)
            target.write(chunk)
    return taken == size and digest.hexdigest() == sha256
