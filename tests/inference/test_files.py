import shutil
import subprocess
import sys

import numpy as np
import pytest

from medstyle import Refusal, Translator, UserError, read_volume, translate_path
from tests.conftest import ROOT

CHECKER = ROOT.parent / "shared/tools/check_derived_dicom.py"


@pytest.fixture(scope="module")
def translator(run):
    return Translator.load(run.translator)


def scan(run):
    return next((run.root / "data/scans").glob("*/mr_t1.nii.gz"))


def test_a_study_becomes_a_derived_series(run, translator, tmp_path):
    """The T1 series of the study is found by the model's own rules, and the T2 series is left alone."""
    import pydicom

    [result] = translate_path(run.study, tmp_path / "out", translator, uncertainty=True)
    assert result["ood_verdict"] == "ok"
    files = sorted((tmp_path / "out").rglob("synthetic*/*.dcm"))
    assert len(files) == 8
    made = pydicom.dcmread(files[0])
    assert made["SyntheticData"].value == "YES"
    assert "NOT FOR DIAGNOSIS" in made.SeriesDescription
    assert len(list((tmp_path / "out").rglob("uncertainty*/*.dcm"))) == 8
    with pytest.raises(Refusal, match="E_EXISTS"):
        translate_path(run.study, tmp_path / "out", translator)


@pytest.mark.skipif(not shutil.which("dciodvfy") or not CHECKER.is_file(), reason="dciodvfy or the checker is absent")
def test_the_derived_series_conforms(run, translator, tmp_path):
    translate_path(run.study, tmp_path / "out", translator)
    command = [sys.executable, str(CHECKER), str(run.study), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dicom_and_nifti_give_the_same_voxels(run, translator, tmp_path):
    from medstyle.imaging.dicom.deidentify import subject_key
    from medstyle.imaging.dicom.read import read_series
    from medstyle.imaging.dicom.scan import scan as scan_dicom

    translate_path(run.study, tmp_path / "dicom", translator)
    [series] = scan_dicom([tmp_path / "dicom"]).series
    by_dicom = read_series(series, "mr_t2")
    nifti = run.root / f"data/scans/{subject_key('PHANTOM-0000')}/mr_t1.nii.gz"
    translate_path(nifti, tmp_path / "out.nii.gz", translator)
    by_nifti = read_volume(tmp_path / "out.nii.gz", "mr_t2")
    np.testing.assert_allclose(by_dicom.affine, by_nifti.affine, atol=1e-3)
    np.testing.assert_allclose(by_dicom.voxels, by_nifti.voxels, atol=1.0)  # DICOM stores integers


def test_nifti_output_is_marked_and_never_overwritten(run, translator, tmp_path):
    import nibabel

    out = tmp_path / "t2.nii.gz"
    translate_path(scan(run), out, translator, uncertainty=True)
    assert "SYNTHETIC" in nibabel.load(out).header["descrip"].item().decode()
    assert "UNCERTAINTY" in nibabel.load(tmp_path / "t2_uncertainty.nii.gz").header["descrip"].item().decode()
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        translate_path(scan(run), out, translator)
    assert out.read_bytes() == before


def test_inputs_that_do_not_fit_are_named(run, translator, tmp_path, rng):
    from PIL import Image

    with pytest.raises(UserError, match="no such file"):
        translate_path(tmp_path / "none", tmp_path / "out", translator)
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(UserError, match="nothing to translate"):
        translate_path(tmp_path / "text.txt", tmp_path / "out", translator)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "cat.png")
    with pytest.raises(UserError, match="no input for mr_t1"):
        translate_path(tmp_path / "cat.png", tmp_path / "out.png", translator)
    with pytest.raises(UserError, match="is written as one of"):
        translate_path(scan(run), tmp_path / "out.png", translator)


def test_what_is_unlike_the_training_images_needs_insistence(run, tmp_path):
    translator = Translator.load(run.translator)
    translator.config.reference["volume"]["largest"] = 0.01
    with pytest.raises(Refusal, match="E_OUT_OF_DISTRIBUTION"):
        translate_path(scan(run), tmp_path / "out.nii.gz", translator)
    assert not (tmp_path / "out.nii.gz").exists()
    [result] = translate_path(scan(run), tmp_path / "out.nii.gz", translator, force=True)
    assert result["ood_verdict"] == "refuse"
