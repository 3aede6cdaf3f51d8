"""The part of 3D Slicer's module that speaks HTTP, with the real server; Slicer is not needed."""

import ast
import importlib.util
import socket
import subprocess
import sys

import numpy as np
import pytest

from medstyle import Translator, read_volume, translate_volume, write_volume
from tests.conftest import ROOT
from tests.registry.conftest import registered, serving

pytestmark = [pytest.mark.slow, pytest.mark.ops]
FILE = ROOT / "slicer/MedstyleTranslate.py"


@pytest.fixture(scope="module")
def module():
    spec = importlib.util.spec_from_file_location("MedstyleTranslate", FILE)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture(scope="module")
def url(versions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("service")
    with serving(registered(versions, folder), folder) as service:
        yield service.url


def test_the_answer_is_the_translated_volume(module, url, run, tmp_path):
    path = next((run.root / "data/scans").rglob("mr_t1.nii.gz"))
    source = read_volume(path, domain="mr_t1")
    write_volume(tmp_path / "in.nii.gz", source)
    made = module.translate(url, (tmp_path / "in.nii.gz").read_bytes(), uncertainty=True)
    (tmp_path / "out.nii.gz").write_bytes(made["image"])
    expected = translate_volume(source, Translator.load(run.translator)).image
    got = read_volume(tmp_path / "out.nii.gz", domain="mr_t2")
    np.testing.assert_allclose(got.voxels, expected.voxels, atol=1e-3 * np.ptp(expected.voxels))
    np.testing.assert_allclose(got.affine, source.affine, atol=1e-3)
    assert made["domain"] == "mr_t2"
    assert made["uncertainty"][:2] == b"\x1f\x8b"
    assert made["weights_sha256"] == module.version(url)["weights_sha256"]


def test_what_the_server_refuses_is_said_in_its_words(module, url):
    with pytest.raises(module.ServerError, match="E_"):
        module.translate(url, b"no image")
    with pytest.raises(module.ServerError):
        module.translate(url, b"", target="nothing")


def test_a_server_that_is_not_there_and_a_bad_address_are_told(module):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(module.ServerError, match="is `medstyle serve` running"):
        module.version(f"http://127.0.0.1:{port}")
    with pytest.raises(module.ServerError, match="must begin with"):
        module.version("file:///etc/passwd")


def test_it_needs_the_standard_library_and_slicer_alone():
    tree = ast.walk(ast.parse(FILE.read_text()))
    names = {alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names}
    roots = {name.partition(".")[0] for name in names}
    assert roots - sys.stdlib_module_names == {"qt", "slicer"}
    done = subprocess.run([sys.executable, "-S", "-c", f"import runpy; runpy.run_path({str(FILE)!r})"], check=False)
    assert done.returncode == 0
