import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest

from medstyle.catalogue.store import install, installed, installed_folder, place
from medstyle.errors import ModelError, OutputError
from medstyle.networks.translator import Translator
from medstyle.registry.publish import publish
from tests.conftest import ROOT
from tests.inference.conftest import make_translator


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSTYLE_MODELS", str(tmp_path / "store"))
    return tmp_path / "store"


@pytest.fixture
def published(tmp_path):
    """Two models in one index; returns its folder and the fingerprint of the key."""
    make_translator().save(tmp_path / "a")
    make_translator(("mr_t2", "mr_t1")).save(tmp_path / "b")
    for name in ("a", "b"):
        _, _, signer = publish(
            str(tmp_path / name), tmp_path / "out", tmp_path / "key.pem", "CC-BY-4.0", f"model-{name}"
        )
    return tmp_path / "out", signer


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_published_model_is_installed_and_translates(published, store):
    out, signer = published
    manifest, new = install(out, "model-a", trust=signer)
    assert new
    assert (manifest.task, manifest.inputs, manifest.licence) == ("mr_t1 -> mr_t2", ("mr_t1",), "CC-BY-4.0")
    assert Translator.load(installed_folder("model-a")).sha256 == manifest.weights_sha256
    assert installed_folder(manifest.key) == installed_folder("model-a")
    assert install(out / f"model-a-{manifest.version}.zip") == (manifest, False)  # trusted from now on
    assert [one.key for one in installed()] == [manifest.key]
    assert installed_folder("model-b") is None


def test_a_stranger_is_refused_with_the_fingerprint(published, store):
    out, signer = published
    for trust in (None, "0" * 40):
        with pytest.raises(ModelError, match=f"signed by {signer}, which you do not trust"):
            install(out, "model-a", trust)
    assert tree(store) == [] if store.exists() else True


def test_a_tampered_package_leaves_nothing(published, store, tmp_path):
    out, signer = published
    [package] = out.glob("model-a-*.zip")
    data = package.read_bytes()
    at = data.index(b"weights.safetensors", data.index(b"signature.json") + 400) + 3000
    package.write_bytes(data[:at] + b"\0\1\2" + data[at + 3 :])
    with pytest.raises(ModelError, match=r"not what was signed|damaged"):
        install(package, trust=signer)
    assert [name for name in tree(store) if not name.startswith((".lock", "trusted"))] == []
    assert list(installed()) == []


INSTALL = (
    "import sys; from pathlib import Path; from medstyle.catalogue.store import install; install(Path(sys.argv[1]))"
)


def _manifest_of(package, folder):
    with zipfile.ZipFile(package) as archive:
        return archive.extract("manifest.json", folder)


def test_a_process_that_is_killed_leaves_all_or_nothing(published, store, tmp_path):
    out, signer = published
    [package] = out.glob("model-a-*.zip")
    [other] = out.glob("model-b-*.zip")
    install(other, trust=signer)
    shutil.rmtree(next(store.glob("model-b@*")))
    for pause in (0.1, 0.2, 0.3, 0.4, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-c", INSTALL, package], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for manifest in installed():
            assert Translator.load(installed_folder(manifest.key)).sha256 == manifest.weights_sha256
    half = store / ".part-model-a@0"  # what a kill just before the last step leaves
    half.mkdir()
    shutil.copy(_manifest_of(package, tmp_path), half)
    assert all(installed_folder(manifest.key) is not None for manifest in installed())
    assert installed_folder(".part-model-a@0") is None
    shutil.rmtree(half)
    install(package)
    assert not [path for path in store.iterdir() if path.name.startswith(".part-")]


def test_an_index_lists_and_chooses(published, store):
    out, signer = published
    with pytest.raises(ModelError, match=r"name one of its packages: model-a@\w+, model-b@\w+"):
        install(out / "index.json", trust=signer)
    with pytest.raises(ModelError, match="name one"):
        install(out, "model-c", trust=signer)
    install(out, "model-b", trust=signer)
    rows = json.loads((out / "index.json").read_text())["packages"]
    rows[0]["file"] = "../secret.zip"
    (out / "index.json").write_text(json.dumps({"packages": rows}))
    with pytest.raises(ModelError, match="outside its folder"):
        install(out, "model-a", trust=signer)


def test_an_installed_version_does_not_change(published, store, tmp_path):
    out, signer = published
    manifest, _ = install(out, "model-a", trust=signer)
    shutil.rmtree(out)
    publish(str(tmp_path / "a"), out, tmp_path / "key.pem", "CC0-1.0", "model-a")
    with pytest.raises(ModelError, match="another model of this name and version"):
        install(out, "model-a")
    assert next(installed()).licence == manifest.licence
    with pytest.raises(OutputError, match="does not change"):
        publish(str(tmp_path / "a"), out, tmp_path / "key.pem", "CC0-1.0", "model-a")


def test_the_store_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("MEDSTYLE_MODELS", raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert place() == tmp_path / "medstyle/models"
    assert list(installed()) == []


def test_the_commands(published, store, medstyle, tmp_path):
    out, signer = published
    refused = medstyle("install", out, "model-a", cwd=tmp_path)
    assert refused.returncode == 2
    assert re.search(f"--trust {signer}", refused.stderr)
    done = medstyle("install", out, "model-a", "--trust", signer, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    listed = json.loads(medstyle("models", "--available", "--index", out / "index.json", "--json", cwd=tmp_path).stdout)
    assert (listed[0]["name"], listed[0]["place"]) == ("model-a", "installed")
    assert {row["name"] for row in listed[1:]} == {"model-a", "model-b"}
    assert "CC-BY-4.0" in medstyle("models", "--available", cwd=tmp_path).stdout
    assert medstyle("publish", tmp_path / "a", cwd=tmp_path).returncode == 2  # no licence
