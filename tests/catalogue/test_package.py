import dataclasses
import json
import zipfile

import pytest

from medstyle.catalogue.keys import fingerprint, public_of, signing_key
from medstyle.catalogue.package import MANIFEST, SIGNATURE, Manifest, Package, checked, write_package
from medstyle.errors import ModelError

ABOUT = Manifest(
    1, "t1-to-t2", "3", "mr_t1 -> mr_t2", ("mr_t1",), "CC-BY-4.0", "0" * 64, "0.1.0", figures={"psnr": 26.5}
)


@pytest.fixture
def key(tmp_path):
    return signing_key(tmp_path / "publisher.pem")[0]


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "translator"
    (made / "more").mkdir(parents=True)
    (made / "translator.json").write_text("{}")
    (made / "weights.safetensors").write_bytes(bytes(range(256)) * 100)
    (made / "more/card.md").write_text("a card")
    return made


@pytest.fixture
def package(folder, key, tmp_path):
    write_package(folder, ABOUT, tmp_path / "model.zip", key)
    return tmp_path / "model.zip"


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("as_folder", [False, True])
def test_what_was_packed_comes_out(package, folder, key, tmp_path, as_folder):
    place = package
    if as_folder:
        place = tmp_path / "unpacked"
        zipfile.ZipFile(package).extractall(place)
    found = Package(place)
    found.unpack(tmp_path / "out")
    assert content(tmp_path / "out") == content(folder)
    assert found.signer == fingerprint(public_of(key))
    assert (found.manifest.key, found.manifest.figures) == ("t1-to-t2@3", {"psnr": 26.5})


def test_the_same_model_makes_the_same_bytes(package, folder, key, tmp_path):
    write_package(folder, ABOUT, tmp_path / "again.zip", key)
    assert (tmp_path / "again.zip").read_bytes() == package.read_bytes()


def test_any_changed_byte_is_noticed(package, tmp_path):
    """Some of every part: headers, manifest, signature, files, directory."""
    data = package.read_bytes()
    fine = 0
    for number, at in enumerate(range(3, len(data), 97)):
        (tmp_path / "bad.zip").write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        try:
            Package(tmp_path / "bad.zip").unpack(tmp_path / f"out{number}")
        except ModelError:
            continue
        fine += 1
        assert content(tmp_path / f"out{number}") == content(tmp_path / "translator")  # times, attributes: no content
    assert fine < number / 5


@pytest.mark.parametrize("end", [0, 1, 100, 20_000, -1, -30])
def test_a_package_that_is_cut_is_refused(package, tmp_path, end):
    (tmp_path / "cut.zip").write_bytes(package.read_bytes()[:end])
    with pytest.raises(ModelError):
        Package(tmp_path / "cut.zip").unpack(tmp_path / "out")


def changed(package, out, change):
    """Write a package whose members went through ``change``."""
    with zipfile.ZipFile(package) as old:
        members = {info.filename: old.read(info) for info in old.infolist()}
    change(members)
    with zipfile.ZipFile(out, "w") as new:
        for name, data in members.items():
            new.writestr(name, data)
    return out


def of_another_key(members, tmp_path):
    from medstyle.catalogue.keys import signed

    other = json.loads(signed(b"another manifest", signing_key(tmp_path / "other.pem")[0]))
    members[SIGNATURE] = json.dumps(other).encode()


CHANGES = {
    "a file is added": lambda m, _: m.__setitem__("translator/evil.py", b"import os"),
    "a file beside": lambda m, _: m.__setitem__("../evil", b"x"),
    "a file is missing": lambda m, _: m.pop("translator/translator.json"),
    "a file is replaced": lambda m, _: m.__setitem__("translator/translator.json", b"[]"),
    "a file has grown": lambda m, _: m.__setitem__("translator/more/card.md", b"a card and more"),
    "the manifest is edited": lambda m, _: m.__setitem__(MANIFEST, m[MANIFEST].replace(b"CC-BY-4.0", b"CC0-1.0  ")),
    "no signature": lambda m, _: m.pop(SIGNATURE),
    "no manifest": lambda m, _: m.pop(MANIFEST),
    "a signature of something else": of_another_key,
    "an empty signature": lambda m, _: m.__setitem__(SIGNATURE, b"{}"),
    "nested brackets": lambda m, _: m.__setitem__(SIGNATURE, b"[" * 100_000),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_package_that_was_changed_is_refused(package, tmp_path, name):
    bad = changed(package, tmp_path / "bad.zip", lambda members: CHANGES[name](members, tmp_path))
    with pytest.raises(ModelError):
        Package(bad).unpack(tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\..\\x", "a//b", "./a", "a\0b"])
def test_a_manifest_cannot_name_files_elsewhere_even_if_signed(name):
    text = json.dumps({**dataclasses.asdict(ABOUT), "files": {name: ["0" * 64, 1]}}).encode()
    with pytest.raises(ModelError, match="outside"):
        checked(text)


@pytest.mark.parametrize("change", [{"name": "../x"}, {"version": "1/2"}, {"name": ""}, {"format": 2}, {"extra": 1}])
def test_a_manifest_that_is_none_of_ours_is_refused(change):
    with pytest.raises(ModelError):
        checked(json.dumps({**dataclasses.asdict(ABOUT), **change}).encode())


def test_a_link_in_a_folder_is_not_followed(package, tmp_path):
    place = tmp_path / "unpacked"
    zipfile.ZipFile(package).extractall(place)
    weights = place / "translator/weights.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="link"):
        Package(place).unpack(tmp_path / "out")
