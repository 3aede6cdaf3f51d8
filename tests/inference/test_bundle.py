"""A MONAI bundle gives the voxels of `medstyle translate`."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from safetensors.torch import load_file

from medstyle import ModelError, read_volume, write_volume
from medstyle.imaging.volume import Volume
from medstyle.inference.bundle import write_bundle
from medstyle.inference.files import translate_path
from medstyle.networks.export import Rendering
from medstyle.transforms.prepare import Preparation
from tests.conftest import ROOT, affine
from tests.inference.conftest import head, make_translator

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:NvImgCodec")

CLEANED = Preparation(denoise="nlm", bias_field=True, spacing_mm=(3.0, 3.0))
MODELS = {
    "slices": {},
    "neighbours and preparation": {"neighbours": 3, "preparation": CLEANED},
    "an ensemble": {"members": 2},
    "CT": {"domains": ("mr_t1", "ct")},
    "volumes": {"dimensions": 3, "size": (8, 24, 24)},
}


def run(bundle, scan):
    """Run the bundle as its README says; return what it wrote."""
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    more = ["--bundle_root", ".", "--input", str(scan)]
    done = subprocess.run([*command, *more], cwd=bundle, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return bundle / "eval" / scan.name.replace(".nii.gz", "_synthetic.nii.gz")


def evaluated(bundle, scan):
    """Do the same in this process, which is quicker."""
    parser = ConfigParser()
    parser.read_config(bundle / "configs/inference.json")
    parser.update({"bundle_root": str(bundle), "input": str(scan)})
    [made] = parser.get_parsed_content("run")
    return np.asarray(made["pred"][0]).transpose(2, 1, 0)


def expected(model, scan, out):
    translate_path(scan, out, model)
    return read_volume(out, domain=model.config.target).voxels


@pytest.fixture
def scan(tmp_path):
    """An oblique scan."""
    voxels = head(shape=(9, 36, 40)).voxels
    write_volume(tmp_path / "mr_t1.nii.gz", Volume(voxels, affine((4.0, 4.0, 8.0), (5, 10, 15)), "mr_t1"))
    return tmp_path / "mr_t1.nii.gz"


@pytest.mark.parametrize("name", MODELS)
def test_the_voxels_are_those_of_translate(scan, tmp_path, name):
    model = make_translator(**MODELS[name])
    write_bundle(model, tmp_path / "bundle")
    wanted = expected(model, scan, tmp_path / "made.nii.gz")
    made = evaluated(tmp_path / "bundle", scan)
    assert np.ptp(wanted) > 0
    np.testing.assert_allclose(made, wanted, atol=1e-4 * np.ptp(wanted), rtol=0)


@pytest.mark.slow
def test_the_command_of_monai_writes_them_on_the_same_grid(scan, tmp_path):
    model = make_translator(preparation=CLEANED)
    write_bundle(model, tmp_path / "bundle")
    wanted = expected(model, scan, tmp_path / "made.nii.gz")
    made = read_volume(run(tmp_path / "bundle", scan), domain="mr_t2")
    np.testing.assert_allclose(made.voxels, wanted, atol=1e-4 * np.ptp(wanted), rtol=0)
    np.testing.assert_allclose(made.affine, read_volume(scan, domain="mr_t1").affine, atol=1e-3)


def test_both_forms_of_the_weights_are_the_translators(tmp_path):
    model = make_translator()
    write_bundle(model, tmp_path / "bundle")
    known = Rendering(model, model.style()).state_dict()
    stored = load_file(tmp_path / "bundle/models/model.safetensors")
    extra = {"metadata.json": "", "inference.json": ""}
    script = torch.jit.load(tmp_path / "bundle/models/model.ts", _extra_files=extra)
    for weights in (stored, script.state_dict()):
        assert weights.keys() == known.keys()
        assert all(torch.equal(weights[key], known[key]) for key in known)
    for name, text in extra.items():
        assert json.loads(text) == json.loads((tmp_path / "bundle/configs" / name).read_text())


def test_the_metadata_say_what_it_is(tmp_path):
    write_bundle(make_translator(("mr_t1", "ct")), tmp_path / "bundle")
    about = json.loads((tmp_path / "bundle/configs/metadata.json").read_text())
    assert about["network_data_format"]["outputs"]["pred"]["modality"] == "CT"
    assert "Research only" in about["intended_use"]
    assert {"version", "monai_version", "pytorch_version", "required_packages_version", "task"} <= about.keys()


@pytest.mark.parametrize("domains", [("photo", "painting")])
def test_what_cannot_be_a_bundle_is_refused_and_leaves_nothing(tmp_path, domains):
    with pytest.raises(ModelError, match="from one scan"):
        write_bundle(make_translator(domains), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []
