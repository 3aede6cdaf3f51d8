import json

import pytest

from medstyle import UserError
from medstyle.catalogue.package import Package
from medstyle.registry.publish import publish
from tests.registry.conftest import registered

pytestmark = [pytest.mark.slow, pytest.mark.ops]


def test_a_registered_version_is_published_with_what_is_known_of_it(versions, tmp_path, monkeypatch):
    for name, value in registered(versions, tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    path, manifest, signer = publish("1", tmp_path / "out", tmp_path / "key.pem", "CC-BY-4.0", "T1 to T2")
    assert path.name == "t1-to-t2-1.zip"
    package = Package(path)
    assert (package.signer, package.manifest) == (signer, manifest)
    assert manifest.task == "mr_t1 -> mr_t2"
    assert {"psnr", "ssim"} <= manifest.figures.keys()
    assert {"translator.json", "weights.safetensors", "MODEL_CARD.md"} <= manifest.files.keys()
    [row] = json.loads((tmp_path / "out/index.json").read_text())["packages"]
    assert (row["file"], row["version"], row["figures"]) == (path.name, "1", manifest.figures)
    with pytest.raises(UserError, match="does not change"):
        publish("models:/medstyle/1", tmp_path / "out", tmp_path / "key.pem", "CC-BY-4.0", "T1 to T2")
    with pytest.raises(UserError, match="no such registered model"):
        publish("99", tmp_path / "out", tmp_path / "key.pem", "CC-BY-4.0")
