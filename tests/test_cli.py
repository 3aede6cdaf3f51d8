import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import TINY, write_params


def commands():
    from medstyle.cli import app

    return [command.name or command.callback.__name__ for command in app.registered_commands]


@pytest.mark.parametrize("name", commands())
def test_every_command_has_help(medstyle, name, tmp_path):
    done = medstyle(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert len(done.stdout.split("Usage:")[1].splitlines()) > 3


def test_two_models_are_compared_on_the_same_subjects(medstyle, run, tmp_path):
    from medstyle.evaluation.protocols import PROTOCOLS
    from tests.inference.conftest import make_translator

    make_translator().save(tmp_path / "other")
    before = {path: path.stat().st_mtime_ns for path in run.root.rglob("*")}
    done = medstyle("evaluate", "--compare", run.translator, tmp_path / "other", "--json", cwd=run.root)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == set(PROTOCOLS["plain"].measures)
    metrics = json.loads((run.root / "reports/metrics.json").read_text())
    assert document["psnr"]["first"] == pytest.approx(metrics["tables"]["truth"]["model"]["psnr"]["mean"], abs=1e-4)
    assert document["psnr"]["difference"] == pytest.approx(document["psnr"]["second"] - document["psnr"]["first"])
    assert {path: path.stat().st_mtime_ns for path in run.root.rglob("*")} == before


def test_a_classical_method_needs_no_model(medstyle, tmp_path):
    import numpy as np

    from medstyle.imaging.picture import read_picture, write_picture

    y, x = np.mgrid[:30, :40]
    write_picture(tmp_path / "photo.png", np.stack([4 * x, 5 * y, x + y], -1).astype(np.uint8))
    write_picture(tmp_path / "style.png", np.full((8, 8, 3), (200, 40, 90), np.uint8))
    write_picture(tmp_path / "mask.png", np.where(x < 20, 0, 255).astype(np.uint8))
    arguments = ["translate", "photo.png", "out.png", "--method", "moments", "--style", "style.png"]
    done = medstyle(*arguments, "--style", "photo.png", "--weight", "1", cwd=tmp_path)
    assert (done.returncode, "--weight: 1 for 2 --style" in done.stderr) == (2, True)
    done = medstyle(*arguments, "--sharpen", "0.5", "--upscale", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert read_picture(tmp_path / "out.png").shape == (60, 80, 3)
    assert np.abs(read_picture(tmp_path / "out.png").astype(int) - (200, 40, 90)).max() <= 2
    masked = ["translate", "photo.png", "masked.png", "--method", "neural_style", "--mask", "mask.png"]
    done = medstyle(*masked, "--style", "style.png", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    made, photo = (read_picture(tmp_path / name).astype(int) for name in ("masked.png", "photo.png"))
    np.testing.assert_array_equal(made[:, :20], photo[:, :20])
    assert np.abs(made[:, 21:] - photo[:, 21:]).mean() > 20


def test_deidentify_copies_what_it_may_and_says_what_it_refused(medstyle, run, tmp_path, monkeypatch):
    source = tmp_path / "in"
    shutil.copytree(run.study, source)
    command = ["deidentify", "in", "out", "--dates", "shift", "--keep-device"]
    monkeypatch.delenv("MEDSTYLE_SECRET", raising=False)
    done = medstyle(*command, cwd=tmp_path)
    assert (done.returncode, "export MEDSTYLE_SECRET" in done.stderr) == (2, True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("MEDSTYLE_SECRET", "ours")
    count = len(list(source.rglob("*.dcm")))
    done = medstyle(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{count} files written to out, 0 skipped, 0 refused" in done.stdout
    assert f"deidentify: {count}/{count}" in done.stderr
    assert len(list((tmp_path / "out").glob("sub-*/*/*.dcm"))) == count
    (source / "cut.dcm").write_bytes(next(source.rglob("*.dcm")).read_bytes()[:-99])
    done = medstyle(*command, "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip().endswith(f"0 files written to out, {count} skipped, 1 refused")
    codes = {row["path"]: row["code"] for row in json.loads(done.stdout)}
    assert codes.pop("in/cut.dcm") == "E_TRUNCATED"
    assert set(codes.values()) == {"E_DUPLICATE"}


BAD = {
    "no params file": (["ingest"], "params.yaml: no such file"),
    "unknown key": (["denoise", "--params", "bad.yaml"], "denoise.colour: unknown key"),
    "no store": (["train", "--params", "params.yaml"], "no readable slice store"),
    "no translator": (["translate", "raw", "out", "--model", "nowhere"], "nowhere: not a translator folder"),
    "no registered model": (["translate", "raw", "out"], "no such registered model"),
    "nothing to inspect": (["inspect", "nowhere"], "nowhere: no such file or folder"),
    "nothing to deidentify": (["deidentify", "nowhere", "out"], "nowhere: no such file or folder"),
    "not a private element": (
        ["deidentify", "raw", "out", "--keep-private", "2004,01"],
        "2004,01: not a private element",
    ),
    "existing output": (["phantom", "raw"], "raw: exists already"),
    "phantom without subjects": (["phantom", "new", "--subjects", "0"], "subjects"),
    "no champion to leave": (["rollback"], "no previous champion"),
    "a method without a style": (["translate", "params.yaml", "o.png", "--method", "moments"], "with --style"),
    "an ensemble of nothing": (["ensemble", "new", "nowhere", "raw"], "nowhere: not a translator folder"),
    "no such version": (["promote", "3"], "no version 3"),
    "nothing measured": (["summary"], "run `dvc repro` first"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_code_2(medstyle, name, tmp_path, monkeypatch):
    arguments, message = BAD[name]
    monkeypatch.setenv("MEDSTYLE_SECRET", "ours")
    (tmp_path / "raw").mkdir()
    if name != "no params file":
        write_params(tmp_path)
    (tmp_path / "bad.yaml").write_text("denoise: {colour: 1}")
    done = medstyle(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("medstyle: ")
    assert message in last


def test_inspect_names_domains_as_ingest_does(medstyle, tmp_path):
    """By the path below the source, and by labels."""
    from PIL import Image

    rules = [{"domain": "painting", "when": {"path": "art/*"}}, {"domain": "photo", "when": {"Category": "zebra"}}]
    write_params(tmp_path, {"ingest": {"source": "mine", "labels": "labels.csv", "rules": rules}})
    for name in ("art/a.png", "b.png", "c.png"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20)).save(tmp_path / "mine" / name)
    (tmp_path / "mine/labels.csv").write_text("path,Category\nb.png,zebra\nc.png,cow\n")
    done = medstyle("inspect", "mine", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [one["domain"] for one in json.loads(done.stdout)["volumes"]] == ["painting", "photo", None]


def test_inspect_prints_the_contract(medstyle, run):
    done = medstyle("inspect", run.study, "--json", cwd=run.root)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"files", "volumes"}
    assert set(document["files"][0]) == {"path", "verdict", "code", "reason"}
    assert {v["domain"] for v in document["volumes"]} == {"mr_t1", "mr_t2"}
    for volume in document["volumes"]:
        assert volume["kind"] == "volume"
        assert volume["shape"] == [8, 48, 48]
        assert volume["value_range"][1] > volume["value_range"][0]
    table = medstyle("inspect", run.study, cwd=run.root).stdout
    assert "mr_t1" in table
    assert "16 files used, 0 not" in table


def test_inspect_says_what_a_head_looks_like(medstyle, tmp_path):
    """Under the name of another contrast there is a warning, under its own there is none."""
    from medstyle.imaging.volume import write_volume
    from medstyle.phantom.studies import PhantomParams, acquire, draw_subject

    params = PhantomParams()
    scan = acquire(params, draw_subject(params, 0), "mr_t1")[0]
    for name in ("t1", "flair"):
        write_volume(tmp_path / f"{name}.nii.gz", scan)
    done = medstyle("inspect", ".", "--looks", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {Path(row["files"][0]).name: row["look"] for row in json.loads(done.stdout)["volumes"]}
    assert {one["contrast"] for one in found.values()} == {"mr_t1"}
    assert found["t1.nii.gz"]["doubt"] == ""
    assert found["flair.nii.gz"]["doubt"] == "looks like T1, but is FLAIR by the word 'flair'"
    assert "warning: " in medstyle("inspect", ".", "--looks", cwd=tmp_path).stdout
    assert "looks" not in medstyle("inspect", ".", cwd=tmp_path).stdout


def test_inspect_tells_by_its_exit_code_that_something_was_refused(medstyle, tmp_path):
    """By the header alone, or by the voxels, which only --json reads."""
    import numpy as np

    from medstyle import Volume, write_volume

    write_volume(tmp_path / "t1.nii", Volume(np.ones((4, 5, 6), np.float32), np.eye(4), "mr_t1"))
    (tmp_path / "notes.txt").write_text("skipped is not refused")
    assert medstyle("inspect", ".", cwd=tmp_path).returncode == 0
    (tmp_path / "t1.nii").write_bytes((tmp_path / "t1.nii").read_bytes()[:-8])
    assert medstyle("inspect", ".", cwd=tmp_path).returncode == 0
    done = medstyle("inspect", ".", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert (done.returncode, [row["code"] for row in document["volumes"]]) == (3, ["E_TRUNCATED"])
    assert [(f["verdict"], f["code"]) for f in document["files"]] == [
        ("skipped", "E_NOT_DICOM"),
        ("refused", "E_TRUNCATED"),
    ]
    (tmp_path / "t1.nii").write_text("nothing")
    for flags in ([], ["--json"]):
        assert medstyle("inspect", ".", *flags, cwd=tmp_path).returncode == 3


def test_translate_prints_what_it_made(medstyle, run, tmp_path):
    arguments = ["translate", run.study, tmp_path / "out", "--model", run.translator]
    done = medstyle(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)
    assert row["domain"] == "mr_t2"
    assert row["ood_verdict"] == "ok"
    again = medstyle(*arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


def test_messages_hold_no_patient_names(run):
    command = [Path(sys.executable).with_name("medstyle"), "inspect", run.study]
    done = subprocess.run(command, cwd=run.root, capture_output=True, text=True, check=True)
    assert "mr_t1" in done.stdout
    assert not re.search(r"Phantom\^", done.stdout + done.stderr)


def test_inspect_names_a_file_whose_name_is_no_text(tmp_path):
    (tmp_path / os.fsdecode(b"M\xfcller.nii")).write_bytes(b"x")
    command = [Path(sys.executable).with_name("medstyle"), "inspect", tmp_path]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=strict, check=False)
    assert done.returncode == 3, done.stderr
    assert "M\\udcfcller.nii: E_DECODE" in done.stdout.replace("\n", "")


def test_export_writes_one_file_for_other_runtimes(medstyle, run, tmp_path):
    done = medstyle("export", run.translator, "model.ts", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "multiples of 4" in done.stdout
    again = medstyle("export", run.translator, "model.ts", cwd=tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr


@pytest.mark.slow
def test_train_divides_each_batch_among_processes(medstyle, run, tmp_path):
    shutil.copytree(run.root / "data/slices", tmp_path / "data/slices")
    write_params(tmp_path, {"train": {**TINY["train"], "training": {**TINY["train"]["training"], "processes": 2}}})
    done = medstyle("train", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, two = (
        load_file(folder / "weights.safetensors") for folder in (run.translator, tmp_path / "models/translator")
    )
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-3, rtol=1e-2)


def test_an_unexpected_error_shows_where_but_not_what(medstyle, run, tmp_path):
    """Its text may quote a header or, as here, a path."""
    folder = tmp_path / "in/DOE_JOHN"
    folder.mkdir(parents=True)
    shutil.copy(next((run.root / "data/scans").glob("*/mr_t1.nii.gz")), folder)
    (tmp_path / "file").touch()
    arguments = ["translate", "in", "file", "--model", run.translator, "--force"]
    done = medstyle(*arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "files.py" in done.stderr
    assert "NotADirectoryError" in done.stderr
    assert "DOE_JOHN" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("protocol", "target", "message"),
    [
        ("plain", "ct", "no test subject has all of ct, mr_t1; .* unpaired_scans"),
        ("synthrad2025", "mr_t2", "measures CT"),
    ],
)
def test_what_could_not_be_measured_is_said_before_it_is_trained(medstyle, run, tmp_path, protocol, target, message):
    """Four shipped files without pairs are measured by `plain`."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data/slices").symlink_to(run.root / "data/slices")
    changes = {"train": {**TINY["train"], "target": target}, "evaluate": {"protocol": protocol}}
    write_params(tmp_path, changes)
    done = medstyle("train", cwd=tmp_path)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    assert not (tmp_path / ".medstyle").exists()
    assert not (tmp_path / "mlflow.db").exists()
