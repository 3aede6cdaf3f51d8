import base64
import hashlib
import io
import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from medstyle import Refusal, Translator, UserError, read_volume, translate_path, translate_volume, write_volume
from medstyle.cohort.inventory import Item, inventory
from medstyle.cohort.rules import Rule
from medstyle.dicom.acquired import write_series
from medstyle.inference.files import Request
from medstyle.networks.conformal import Interval
from medstyle.phantom.studies import PhantomParams, acquire, draw_subject
from medstyle.transforms.descriptors import Reference
from tests.conftest import ROOT
from tests.inference.conftest import ANYTHING, Plain, head, make_translator

CHECKER = ROOT.parent / "shared/tools/check_derived_dicom.py"
LABELS = {"mr_t1": "T1 SE", "mr_t2": "T2 SE", "mr_flair": "FLAIR"}


@pytest.fixture(scope="module")
def translator():
    return make_translator()


@pytest.fixture
def nifti(tmp_path):
    """Write one subject's scans as ingest does."""
    folder = tmp_path / "scans"
    folder.mkdir()
    for domain in LABELS:
        write_volume(folder / f"{domain}.nii.gz", head(domain))
    return folder


@pytest.fixture
def study(tmp_path):
    return write_study(tmp_path / "studies" / "A")


def write_study(folder, number=1, domains=tuple(LABELS)):
    """Write a DICOM study of drawn heads."""
    for series, domain in enumerate(domains, 1):
        attributes = {
            "SeriesDescription": LABELS[domain],
            "PatientName": "Nobody",
            "PatientID": f"P{number}",
            "StudyID": str(number),
            "StudyInstanceUID": f"1.2.{number}",
            "SeriesInstanceUID": f"1.2.{number}.{series}",
            "FrameOfReferenceUID": f"1.2.{number}.9",
            "SeriesNumber": series,
            "PatientPosition": "HFS",
        }
        volume = head(domain, seed=number)
        write_series(folder / domain, volume, attributes, range(len(volume.voxels)))
    return folder


def test_a_study_becomes_a_derived_series(study, translator, tmp_path, monkeypatch):
    """The T1 series of the study is found by the model's own rules, and the others are left
    alone."""
    import pydicom

    [result] = translate_path(study, tmp_path / "out", translator, Request(uncertainty=True))
    assert result["ood_verdict"] == "ok"
    files = sorted((tmp_path / "out").rglob("synthetic*/*.dcm"))
    assert len(files) == 10
    made = pydicom.dcmread(files[0])
    assert made["SyntheticData"].value == "YES"
    assert "T1->T2" in made.SeriesDescription
    assert "NOT FOR DIAGNOSIS" in made.SeriesDescription
    assert len(list((tmp_path / "out").rglob("uncertainty*/*.dcm"))) == 1, "one Parametric Map"
    monkeypatch.setattr(Item, "load", lambda *_, **__: pytest.fail("the voxels are read before the output is checked"))
    with pytest.raises(Refusal, match="E_EXISTS"):
        translate_path(study, tmp_path / "out", translator)


@pytest.mark.skipif(not shutil.which("dciodvfy") or not CHECKER.is_file(), reason="dciodvfy or the checker is absent")
def test_the_derived_series_conforms(run, tmp_path):
    translate_path(run.study, tmp_path / "out", Translator.load(run.translator))
    command = [sys.executable, str(CHECKER), str(run.study), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def read_series(folder, domain):
    from medstyle.dicom import read
    from medstyle.dicom.scan import scan

    [series] = scan([folder]).series
    return read.read_series(series, domain)


def assert_same_picture(stored, expected):
    """Compare up to the unit: MR has none, and DICOM spreads a small range over 12 bits."""
    np.testing.assert_allclose(stored / stored.max(), expected / expected.max(), atol=1e-3)


def test_dicom_and_nifti_give_the_same_voxels(study, translator, tmp_path):
    translate_path(study, tmp_path / "dicom", translator)
    by_dicom = read_series(tmp_path / "dicom", "mr_t2")
    write_volume(tmp_path / "t1.nii.gz", read_series(study / "mr_t1", "mr_t1"))
    translate_path(tmp_path / "t1.nii.gz", tmp_path / "out.nii.gz", translator)
    by_nifti = read_volume(tmp_path / "out.nii.gz", "mr_t2")
    np.testing.assert_allclose(by_dicom.affine, by_nifti.affine, atol=1e-3)
    assert_same_picture(by_dicom.voxels, by_nifti.voxels)


def test_nifti_output_is_marked_and_never_overwritten(nifti, translator, tmp_path):
    import nibabel

    out = tmp_path / "t2.nii.gz"
    translate_path(nifti / "mr_t1.nii.gz", out, translator, Request(uncertainty=True))
    assert "SYNTHETIC" in nibabel.load(out).header["descrip"].item().decode()
    assert "UNCERTAINTY" in nibabel.load(tmp_path / "t2_uncertainty.nii.gz").header["descrip"].item().decode()
    assert not (tmp_path / "t2_interval.nii.gz").exists(), "this model is not calibrated"
    before = out.read_bytes()
    with pytest.raises(UserError, match="exists already"):
        translate_path(nifti / "mr_t1.nii.gz", out, translator)
    assert out.read_bytes() == before


def test_the_interval_of_a_calibrated_model_is_a_map_beside_the_uncertainty(study, nifti, tmp_path):
    import nibabel
    import pydicom

    translator = make_translator(size=[48, 40], interval=Interval(9, 2.5, 0.3))
    [row] = translate_path(nifti / "mr_t1.nii.gz", tmp_path / "t2.nii.gz", translator, Request(uncertainty=True))
    assert not [note for note in row["warnings"] if "interval" in note]
    half = nibabel.load(tmp_path / "t2_interval.nii.gz")
    assert "INTERVAL MAP" in half.header["descrip"].item().decode()
    values = half.get_fdata()
    assert values.max() > nibabel.load(tmp_path / "t2_uncertainty.nii.gz").get_fdata().max(), "factors above 1 widen"
    translate_path(study, tmp_path / "out", translator, Request(uncertainty=True))
    [file] = (tmp_path / "out").rglob("interval*/*.dcm")
    dataset = pydicom.dcmread(file)
    assert dataset.SOPClassUID == pydicom.uid.ParametricMapStorage
    assert (dataset.ContentLabel, dataset.SeriesDescription.split(" AI")[0]) == ("INTERVAL", "INTERVAL MAP")
    facts = json.loads(dataset.private_block(0x0099, "MEDSTYLE AI 1.0")[3].value)
    assert facts["interval"] == "90 % of the voxels for 90 % of the subjects, from 9 validation subjects"


def test_inputs_that_do_not_fit_are_named(nifti, translator, tmp_path, rng):
    from PIL import Image

    with pytest.raises(UserError, match="no such file"):
        translate_path(tmp_path / "none", tmp_path / "out", translator)
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(UserError, match="no usable image"):
        translate_path(tmp_path / "text.txt", tmp_path / "out", translator)
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / "cat.png")
    with pytest.raises(UserError, match="cannot be an input for mr_t1"):
        translate_path(tmp_path / "cat.png", tmp_path / "out.png", translator)
    with pytest.raises(UserError, match="must be written as one of"):
        translate_path(nifti / "mr_t1.nii.gz", tmp_path / "out.png", translator)
    pictures = make_translator(("photo", "painting"))
    with pytest.raises(UserError, match="pictures have no unit"):
        translate_path(tmp_path / "cat.png", tmp_path / "out.png", pictures, Request(uncertainty=True))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp", ".jpg"])
def test_a_picture_keeps_what_its_format_holds(tmp_path, rng, suffix):
    """Bits and opacity where there is room for them.

    The note always, and never what the camera wrote.
    """
    from PIL import Image

    from medstyle import read_picture, write_picture

    dtype = np.uint16 if suffix in (".png", ".tif") else np.uint8
    white = np.iinfo(dtype).max
    ramp = np.linspace(0, white, 48 * 64).astype(dtype).reshape(48, 64, 1)
    given = np.dstack([ramp, ramp.T.reshape(48, 64, 1), ramp[::-1], ramp])
    write_picture(tmp_path / f"in{suffix}", given)
    if suffix == ".jpg":
        exif = Image.Exif()
        exif[0x010F] = "a camera"
        exif.get_ifd(0x8825)[1] = "N"
        with Image.open(tmp_path / "in.jpg") as image:
            image.save(tmp_path / "in.jpg", exif=exif)
    [row] = translate_path(tmp_path / f"in{suffix}", tmp_path / f"out{suffix}", make_translator(("photo", "painting")))
    made = read_picture(row["out"], alpha=True)
    assert made.dtype == dtype
    if suffix == ".jpg":
        assert made.shape == (48, 64, 3)
    else:
        np.testing.assert_array_equal(made[..., 3], given[..., 3])
    assert len(np.unique(made[..., 0])) > 256 or dtype == np.uint8
    assert b"AI SYNTHETIC" in Path(row["out"]).read_bytes()
    with Image.open(row["out"]) as image:
        tags = dict(image.getexif())
    assert 0x010F not in tags
    assert 0x8825 not in tags


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_mask_is_whole_where_it_is_white(tmp_path, dtype):
    from medstyle import write_picture
    from medstyle.inference.files import read_mask

    white = np.iinfo(dtype).max
    write_picture(tmp_path / "mask.png", np.array([[0, white // 5, white]], dtype))
    np.testing.assert_allclose(read_mask(tmp_path / "mask.png"), [[0, 0.2, 1]], atol=1e-6)


def coarse(pixels):
    """Return means of blocks of 8 x 8: a codec halves the resolution of colours, and random weights
    paint noise."""
    return pixels.reshape(6, 8, 8, 8, 3).mean(axis=(1, 3))


def test_a_film_comes_back_with_its_times(tmp_path, rng):
    """Frame by frame what a picture would become, in the film's own rhythm.

    Nothing is left of one that is refused.
    """
    import av

    from medstyle.imaging.video import read_frames
    from medstyle.inference.render_options import RenderOptions
    from medstyle.inference.translate import translate_picture

    with av.open(str(tmp_path / "in.mp4"), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(5):
            pixels = np.full((48, 64, 3), (40 * k, 128, 200 - 40 * k), np.uint8)
            pixels[10:30, 10 + k : 30 + k] = 255
            out.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        out.mux(stream.encode())
    translator = make_translator(("photo", "painting"))
    [row] = translate_path(
        tmp_path / "in.mp4", tmp_path / "out.mp4", translator, Request(options=RenderOptions(temporal_smoothing=0))
    )
    assert row["shape"] == [5, 48, 64]
    before, after = (list(read_frames(tmp_path / name)) for name in ("in.mp4", "out.mp4"))
    assert [round(float(f.time), 3) for f in after] == [round(float(f.time), 3) for f in before]
    for source, made in zip(before, after, strict=True):
        expected = translate_picture(source.pixels, translator).image
        assert np.abs(coarse(made.pixels) - coarse(expected)).mean() < 4
    with pytest.raises(UserError, match="cannot be an input for mr_t1"):
        translate_path(tmp_path / "in.mp4", tmp_path / "scan.mp4", make_translator())
    strict = make_translator(
        ("photo", "painting"), reference={"photo": Reference(ANYTHING, ANYTHING._replace(largest=1e-3))}
    )
    with pytest.raises(Refusal, match="E_OUT_OF_DISTRIBUTION"):
        translate_path(tmp_path / "in.mp4", tmp_path / "odd.mp4", strict)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_what_is_unlike_the_training_images_needs_insistence(nifti, tmp_path):
    strict = make_translator(reference={"mr_t1": Reference(ANYTHING._replace(largest=1e-3), ANYTHING)})
    with pytest.raises(Refusal, match="E_OUT_OF_DISTRIBUTION"):
        translate_path(nifti / "mr_t1.nii.gz", tmp_path / "out.nii.gz", strict)
    assert not (tmp_path / "out.nii.gz").exists()
    [result] = translate_path(nifti / "mr_t1.nii.gz", tmp_path / "out.nii.gz", strict, Request(force=True))
    assert result["ood_verdict"] == "refuse"


def phantom(domain):
    """Return a scan of the digital phantom, whose contrast and orientation can be recognised."""
    params = PhantomParams(domains=(domain,))
    return acquire(params, draw_subject(params, 0), domain)[0]


def test_a_clear_contradiction_needs_insistence(tmp_path):
    """A T1 of the phantom passes as T1; as T2, or upside down, it is refused with what it shows."""
    scan = phantom("mr_t1")
    for name, one, said in (
        ("mr_t1", scan, ""),
        ("mr_t2", scan, r"E_OUT_OF_DISTRIBUTION: image \w+ looks like T1 \(.*not like T2"),
        ("mr_t1", scan.with_voxels(np.ascontiguousarray(scan.voxels[::-1])), "lies upside down"),
    ):
        translator = make_translator((name, "mr_flair"))
        folder = tmp_path / f"{name} {said[:5]}"
        folder.mkdir()
        write_volume(folder / f"{name}.nii.gz", one)
        if said:
            with pytest.raises(Refusal, match=said):
                translate_path(folder / f"{name}.nii.gz", folder / "out.nii.gz", translator)
            assert not (folder / "out.nii.gz").exists()
        [row] = translate_path(folder / f"{name}.nii.gz", folder / "out.nii.gz", translator, Request(force=bool(said)))
        assert row["ood_verdict"] == ("refuse" if said else "ok")
        assert len(row["warnings"]) == bool(said)


def test_a_rule_that_looks_finds_the_source(tmp_path):
    """Two nameless files: the rule of the model takes the one that looks like its source."""
    (tmp_path / "in").mkdir()
    for name, domain in (("a", "mr_t1"), ("b", "mr_pd")):
        write_volume(tmp_path / f"in/{name}.nii.gz", phantom(domain))
    translator = make_translator(rules=(Rule("mr_t1", {"looks_like": "mr_t1"}),))
    [row] = translate_path(tmp_path / "in", tmp_path / "out", translator)
    assert Path(row["out"]).name == "a.nii.gz"


def change(folder, **elements):
    import pydicom

    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        for keyword, value in elements.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path)


def test_a_doubtful_scan_needs_a_persons_word(study, translator, tmp_path):
    """The error is that of the scan which was meant, not that nothing fits.

    What is let through warns.
    """
    change(study / "mr_t1", ConversionType="WSD", ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"])
    change(study / "mr_t1", BurnedInAnnotation=None)
    with pytest.raises(UserError, match=r"nothing to translate: image [0-9a-f]{12}: E_BURNED_IN"):
        translate_path(study, tmp_path / "out", translator)
    [result] = translate_path(study, tmp_path / "out", translator, Request(allow=["E_BURNED_IN"]))
    assert any("may show patient data" in warning for warning in result["warnings"])


def test_an_incomplete_scan_is_translated_with_a_warning(study, translator, tmp_path):
    last = sorted((study / "mr_t1").iterdir())[-1]
    last.write_bytes(last.read_bytes()[:-400])
    [result] = translate_path(study, tmp_path / "out", translator)
    assert result["shape"][0] == 9
    assert any("damaged, or missing" in warning for warning in result["warnings"])


def test_messages_name_no_file_that_was_found(nifti, triple, tmp_path):
    """A person's own words may be repeated; what lies below them may be named after a patient."""
    folder = tmp_path / "in/DOE_JOHN"
    shutil.copytree(nifti, folder)
    (folder / "mr_t1.nii.gz").rename(folder / "DOE_T1.nii.gz")
    strict = make_translator(reference={"mr_t1": Reference(ANYTHING._replace(largest=1e-3), ANYTHING)})
    (folder / "mr_t2.nii.gz").unlink()
    (folder / "mr_flair.nii.gz").unlink()
    translate_path(tmp_path / "in", tmp_path / "out", make_translator(), Request(source_domain="mr_t1"))
    for out, translator, message in (
        ("new", strict, "does not resemble the training images"),
        ("new", triple, "needs one image of mr_t2"),
        ("out", strict, "exists already"),
    ):
        with pytest.raises(UserError, match=message) as caught:
            translate_path(tmp_path / "in", tmp_path / out, translator, Request(source_domain="mr_t1"))
        assert "DOE" not in str(caught.value)


def test_a_source_may_be_any_domain_of_the_translator(study, tmp_path):
    """The series is found, read and named by the domain that was asked for."""
    translator = make_translator(("mr_t1", "mr_t2", "mr_flair"))
    [result] = translate_path(study, tmp_path / "out", translator, Request(source_domain="mr_t2", target="mr_t1"))
    made = read_series(tmp_path / "out", "mr_t1").voxels
    expected = translate_volume(read_series(study / "mr_t2", "mr_t2"), translator, "mr_t1").image.voxels
    assert_same_picture(made, expected)
    assert result["domain"] == "mr_t1"
    import pydicom

    assert "T2->T1" in pydicom.dcmread(next((tmp_path / "out").rglob("*.dcm"))).SeriesDescription


# Contrasts


@pytest.fixture(scope="module")
def triple():
    return make_translator(("mr_t1", "mr_t2", "mr_flair"), contrasts=["mr_t2"])


def test_the_contrasts_of_a_study_are_found(study, triple, tmp_path):
    """Two studies below one folder: each source takes its contrast from its own study."""
    write_study(study.parent / "B", 2)
    rows = translate_path(study.parent, tmp_path / "out", triple)
    assert len(rows) == 2
    for row, folder in zip(rows, (study, study.parent / "B"), strict=True):
        t1, t2 = (read_series(folder / name, name) for name in ("mr_t1", "mr_t2"))
        expected = translate_volume(t1, triple, contrasts=[t2]).image.voxels
        made = read_series(tmp_path / "out" / row["out"].rsplit("/", 1)[1], "mr_flair").voxels
        np.testing.assert_allclose(made, expected, atol=1.0)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_a_derived_series_names_what_entered_and_what_made_it(study, tmp_path, neighbours):
    import pydicom

    translator = make_translator(("mr_t1", "mr_t2", "mr_flair"), contrasts=["mr_t2"], neighbours=neighbours)
    translator.save(tmp_path / "model")
    translate_path(study, tmp_path / "out", translator, Request(uncertainty=True))
    [file] = (tmp_path / "out").rglob("0005.dcm")
    entered = {i.ReferencedSOPInstanceUID for i in pydicom.dcmread(file).SourceImageSequence}
    names = [sorted((study / name).iterdir())[k] for name in ("mr_t1", "mr_t2") for k in range(3, 6)]
    expected = {pydicom.dcmread(name).SOPInstanceUID for name in (names if neighbours == 3 else names[1::3])}
    assert entered == expected
    [uncertainty] = (tmp_path / "out").rglob("uncertainty*/0001.dcm")
    [series] = pydicom.dcmread(uncertainty).ReferencedSeriesSequence
    assert series.SeriesInstanceUID == pydicom.dcmread(names[0]).SeriesInstanceUID
    facts = json.loads(pydicom.dcmread(file).private_block(0x0099, "MEDSTYLE AI 1.0")[3].value)
    assert facts["config_sha256"] == hashlib.sha256((tmp_path / "model/translator.json").read_bytes()).hexdigest()
    assert 0 < facts["uncertainty_mean"] < facts["uncertainty_max"]


def test_another_style_is_another_series(study, tmp_path):
    import pydicom

    translator = make_translator(style=("domain", "latent", "reference"), size=[48, 40])
    requests = [Request(), Request(seed=1), Request(seed=2), Request(reference=study / "mr_t2"), Request(seed=1)]
    series = []
    for number, request in enumerate(requests):
        [row] = translate_path(study, tmp_path / f"{number}", translator, request)
        series.append(pydicom.dcmread(next(Path(row["out"]).iterdir())).SeriesInstanceUID)
    assert series[4] == series[1]
    assert len(set(series)) == 4


def test_all_slices_enter_where_the_network_cuts_across_them():
    from medstyle.inference.files import _neighbourhood

    axial = head()
    sagittal = replace(axial, affine=axial.affine[:, [1, 2, 0, 3]])
    assert [_neighbourhood(axial, make_translator(neighbours=n)) for n in (1, 3)] == [0, 1]
    assert _neighbourhood(sagittal, make_translator()) is None
    assert _neighbourhood(axial, make_translator(dimensions=3)) is None


@pytest.mark.parametrize("given", ["file", "folder"])
def test_the_contrasts_of_a_file_lie_in_its_folder(nifti, triple, tmp_path, given):
    source = nifti / "mr_t1.nii.gz" if given == "file" else nifti
    [row] = translate_path(source, tmp_path / "out" if given == "folder" else tmp_path / "out.nii.gz", triple)
    t1, t2 = (read_volume(nifti / f"{name}.nii.gz", name) for name in ("mr_t1", "mr_t2"))
    expected = translate_volume(t1, triple, contrasts=[t2]).image.voxels
    np.testing.assert_array_equal(read_volume(row["out"], "mr_flair").voxels, expected)


def test_a_missing_contrast_is_named(nifti, triple, tmp_path):
    (nifti / "mr_t2.nii.gz").unlink()
    with pytest.raises(UserError, match="needs one image of mr_t2 in the same folder; found 0"):
        translate_path(nifti / "mr_t1.nii.gz", tmp_path / "out.nii.gz", triple)
    study = write_study(tmp_path / "study", domains=("mr_t1", "mr_flair"))
    write_study(tmp_path / "study/other", 2)
    with pytest.raises(UserError, match="needs one image of mr_t2 in the same DICOM study; found 0"):
        translate_path(study, tmp_path / "out", triple)


# Style


@pytest.mark.parametrize("reference", ["mr_t2.nii.gz", ""], ids=["file", "folder"])
def test_a_style_is_a_file_or_the_target_in_a_folder(nifti, tmp_path, reference):
    translator = make_translator(style=("domain", "reference"), size=[48, 40])
    source = nifti / "mr_t1.nii.gz"
    [row] = translate_path(source, tmp_path / "out.nii.gz", translator, Request(reference=nifti / reference))
    t1, t2 = (read_volume(nifti / f"{name}.nii.gz", name) for name in ("mr_t1", "mr_t2"))
    expected = translate_volume(t1, translator, reference=t2).image.voxels
    np.testing.assert_array_equal(read_volume(row["out"], "mr_t2").voxels, expected)
    (nifti / "mr_t2.nii.gz").unlink()
    with pytest.raises(UserError, match=r"no such file|needs exactly one image of mr_t2; found 0"):
        translate_path(source, tmp_path / "again.nii.gz", translator, Request(reference=nifti / reference))


# One answer, whichever way it is asked for


@pytest.fixture
def served():
    """Return the served model, to be given a translator."""
    with warnings.catch_warnings(action="ignore"):  # MLflow would like type hints that it can validate
        from medstyle.registry.pyfunc import ServedTranslator
    return ServedTranslator()


def test_command_python_and_server_give_the_same_voxels(nifti, served, medstyle, tmp_path):
    translator = make_translator(style=("domain", "latent"), members=2, refiner=4)
    for one in translator.members:
        for weight in one.refiner.network.head.parameters():
            torch.nn.init.normal_(weight)
    translator.save(tmp_path / "model")
    source = nifti / "mr_t1.nii.gz"
    model, out = tmp_path / "model", tmp_path / "by_command.nii.gz"
    options = ["--model", model, "--seed", 3, "--sharpness", 0.5, "--uncertainty", "--json"]
    done = medstyle("translate", source, out, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["domain"] == "mr_t2"
    by_command = [read_volume(path, "mr_t2").voxels for path in (out, tmp_path / "by_command_uncertainty.nii.gz")]

    loaded = Translator.load(model)
    x = torch.rand(1, 1, 16, 16)
    assert not torch.equal(loaded.sharpened(0.5)(x, style=loaded.style(seed=3)), loaded(x, style=loaded.style(seed=3)))
    result = translate_volume(read_volume(source, "mr_t1"), loaded.sharpened(0.5), seed=3, uncertainty=True)
    by_python = [result.image.voxels, result.uncertainty.voxels]

    served.translator = loaded
    rows = pd.DataFrame({"image": [source.read_bytes()]})
    row = served.predict(None, rows, {"seed": 3, "uncertainty": True, "sharpness": 0.5}).iloc[0]
    for number, name in enumerate(("image", "uncertainty")):
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(base64.b64decode(row[name]))
        np.testing.assert_array_equal(by_command[number], by_python[number])
        np.testing.assert_array_equal(read_volume(path, "mr_t2").voxels, by_python[number])


def test_the_server_takes_a_zip_of_all_contrasts(study, triple, served, tmp_path):
    served.translator = triple
    row = served.predict(None, pd.DataFrame({"image": [zipped(study)]})).iloc[0]
    with zipfile.ZipFile(io.BytesIO(base64.b64decode(row["image"]))) as archive:
        archive.extractall(tmp_path / "made")
    translate_path(study, tmp_path / "out", triple)
    made, expected = (read_series(folder, "mr_flair").voxels for folder in (tmp_path / "made", tmp_path / "out"))
    np.testing.assert_array_equal(made, expected)
    with pytest.raises(MlflowException, match="needs one image of mr_t2"):
        served.predict(None, pd.DataFrame({"image": [zipped(study / "mr_t1")]}))


def test_the_server_takes_style_and_warns(nifti, served):
    translator = make_translator(style=("domain", "latent", "reference"), size=[48, 40])
    served.translator = translator
    image, reference = ((nifti / f"{name}.nii.gz").read_bytes() for name in ("mr_t1", "mr_t2"))
    plain, styled = (
        served.predict(None, pd.DataFrame({"image": [image], "reference": [column]})).iloc[0]["image"]
        for column in (None, reference)
    )
    assert plain != styled
    drawn = served.predict(None, pd.DataFrame({"image": [image]}), {"seed": 0}).iloc[0]["image"]
    assert drawn not in (plain, styled)
    served.translator = make_translator(generator=Plain(lambda x: 0 * x))
    row = served.predict(None, pd.DataFrame({"image": [image]})).iloc[0]
    assert "the output is constant" in row["warnings"]
    for rows, params, word in (
        ({"image": [image]}, {"seed": 4}, "not from latent"),
        ({"image": [image], "reference": [reference]}, {}, "not from reference"),
    ):
        with pytest.raises(MlflowException, match=f"row 0: .*{word}"):
            served.predict(None, pd.DataFrame(rows), params)


@pytest.mark.parametrize("kind", ["jpeg", "png of 16 bits"])
def test_the_server_gives_a_picture_for_a_picture(served, tmp_path, rng, kind):
    """The answer is what the command line writes, in the style of a reference where there is
    one."""
    from medstyle import read_picture, write_picture

    served.translator = make_translator(("photo", "painting"), style=("domain", "reference"), size=[32, 32])
    suffix, dtype = (".jpg", np.uint8) if kind == "jpeg" else (".png", np.uint16)
    ramp = np.linspace(0, np.iinfo(dtype).max, 48 * 64).astype(dtype).reshape(48, 64, 1)
    write_picture(tmp_path / f"in{suffix}", np.dstack([ramp, ramp[::-1], ramp[:, ::-1]]))
    write_picture(tmp_path / "style.jpg", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    answers = []
    for style in (None, tmp_path / "style.jpg"):
        rows = pd.DataFrame(
            {"image": [(tmp_path / f"in{suffix}").read_bytes()], "reference": [style and style.read_bytes()]}
        )
        row = served.predict(None, rows).iloc[0]
        assert row["content_type"] == ("image/jpeg" if kind == "jpeg" else "image/png")
        out = tmp_path / f"{style and 'styled'}{suffix}"
        translate_path(tmp_path / f"in{suffix}", out, served.translator, Request(reference=style, force=True))
        answers.append(base64.b64decode(row["image"]))
        assert answers[-1] == out.read_bytes()
        assert read_picture(out).dtype == dtype
    assert answers[0] != answers[1]


def test_the_server_tells_neither_data_nor_places(nifti, served):
    """MLflow would add the beginning of each image, and our own errors the server's folder."""
    served.translator = make_translator()
    for image in (b"ZZIMAGE" * 40, zipped(nifti), (nifti / "mr_t1.nii.gz").read_bytes()[:3000]):
        with pytest.raises(MlflowException, match="row 0: ") as caught:
            served.predict(None, pd.DataFrame({"image": [image]}))
        said = caught.value.message
        caught.value.message = "Failed to predict data 'ZZIMAGE'"
        assert caught.value.message == said == str(caught.value)
        assert "/" not in said
        assert "ZZIMAGE" not in caught.value.serialize_as_json()


def test_the_server_says_of_an_unexpected_error_that_it_is_one(nifti, served, capfd):
    text = "IMAGE".rjust(7, "Z")  # the line of code is shown, and may be

    def fail(x):
        raise KeyError(text)

    served.translator = make_translator(generator=Plain(fail))
    image = (nifti / "mr_t1.nii.gz").read_bytes()
    with pytest.raises(MlflowException, match="row 0: unexpected KeyError") as caught:
        served.predict(None, pd.DataFrame({"image": [image]}))
    assert caught.value.get_http_status_code() == 500
    log = capfd.readouterr().err
    assert "in fail" in log
    assert "ZZIMAGE" not in log


def zipped(folder):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for file in folder.rglob("*.dcm"):
            archive.write(file, file.relative_to(folder).as_posix())
    return buffer.getvalue()


def test_translators_join_to_an_ensemble(nifti, medstyle, tmp_path):
    both = make_translator(members=2)
    for number, one in enumerate(both.members):
        Translator(both.config, [one]).save(tmp_path / f"seed-{number}")
    arguments = ["ensemble", "joined", "seed-0", "seed-1"]
    done = medstyle(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 members" in done.stdout
    volume = read_volume(nifti / "mr_t1.nii.gz", "mr_t1")
    expected = translate_volume(volume, both).image.voxels
    made = translate_volume(volume, Translator.load(tmp_path / "joined")).image.voxels
    np.testing.assert_array_equal(made, expected)
    for again, message in (
        (arguments, "exists already"),
        (["ensemble", "new", "seed-0", "other"], "other architecture"),
    ):
        make_translator(widths=(4, 8)).save(tmp_path / "other")
        done = medstyle(*again, cwd=tmp_path)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_pages_that_are_left_out_are_said(tmp_path, rng):
    from PIL import Image

    first, *rest = (Image.fromarray(rng.integers(0, 256, (40, 40, 3), np.uint8)) for _ in range(3))
    first.save(tmp_path / "pages.tif", save_all=True, append_images=rest)
    [row] = translate_path(
        tmp_path / "pages.tif", tmp_path / "out.tif", make_translator(("photo", "painting")), Request(force=True)
    )
    assert "only the first of 3 pages was translated" in " ".join(row["warnings"])


def test_a_model_of_any_contrast_takes_files_of_any_name_and_series_of_mr_and_ct(nifti, study, tmp_path):
    """Nothing has to be named: its rules know CT by its Modality, the rest is a brain scan."""
    rules = (Rule("ct", {"Modality": "CT"}), Rule("brain", {"path": "*"}))
    model = make_translator(("brain", "mr_t1", "mr_t2", "ct"), rules=rules)
    write_volume(tmp_path / "Scan of today.nii.gz", head())
    for source in (nifti / "mr_t1.nii.gz", tmp_path / "Scan of today.nii.gz"):
        [row] = translate_path(source, tmp_path / f"{source.stem}-t2.nii.gz", model, Request("mr_t2"))
        assert row["domain"] == "mr_t2"
    scans = head("ct")
    attributes = {"Modality": "CT", "SeriesDescription": "HEAD", "PatientID": "P9", "StudyID": "9",
                  "StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.9.1"}  # fmt: skip
    write_series(tmp_path / "ct/head", scans.with_voxels(np.rint(scans.voxels - 1024), "ct"), attributes, range(1, 11))
    [row] = translate_path(tmp_path / "ct", tmp_path / "made", model, Request("mr_t1"))
    assert read_volume_of(row["out"]).voxels.shape == scans.voxels.shape
    rows = translate_path(study, tmp_path / "all", model, Request("mr_t2"))
    assert len(rows) == len(LABELS), "every series of the study is a brain scan"


def read_volume_of(folder):
    [item] = inventory([Path(folder)]).volumes
    return item.load("mr_t1")
