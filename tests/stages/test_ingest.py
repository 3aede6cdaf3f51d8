import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from pydicom import dcmread

from medstyle import Volume, read_picture, read_volume, write_picture, write_volume
from medstyle.cohort.inventory import inventory
from medstyle.cohort.rules import Rule
from medstyle.dicom.acquired import write_series
from medstyle.dicom.uids import uid_of
from medstyle.dicom.write import Derivation
from medstyle.errors import UserError
from medstyle.phantom.studies import PhantomParams, acquire, draw_subject
from medstyle.pseudonyms import person_of, subject_key
from medstyle.stages.ingest import Params
from medstyle.stages.ingest import run as ingest
from tests.conftest import ROOT, TINY, affine

RULES = tuple(Rule(**rule) for rule in TINY["ingest"]["rules"])


def manifest(out):
    return json.loads((out / "manifest.json").read_text())["items"]


def test_dicom_studies_become_volumes_with_the_same_voxels(run, tmp_path):
    items = manifest(run.root / "data/scans")
    assert len(items) == 10
    assert {item["domain"] for item in items} == {"mr_t1", "mr_t2"}
    key = subject_key("PHANTOM-0000")
    made = read_volume(run.root / f"data/scans/{key}/mr_t1.nii.gz", "mr_t1")
    truth = read_volume(run.root / "data/raw/truth/PHANTOM-0000/mr_t1.nii.gz", "mr_t1")
    np.testing.assert_allclose(made.affine, truth.affine, atol=1e-3)
    assert np.corrcoef(made.voxels.ravel(), truth.voxels.ravel())[0, 1] > 0.95


def test_nothing_that_leaves_names_a_patient(run):
    out = run.root / "data/scans"
    for path in [*out.rglob("*"), run.root / "reports/ingest.json"]:
        assert "PHANTOM" not in path.name
        if path.suffix == ".json":
            assert "PHANTOM" not in path.read_text()


def test_keys_that_anyone_can_guess_are_warned_of(run, tmp_path, monkeypatch):
    monkeypatch.delenv("MEDSTYLE_SECRET", raising=False)
    said = []
    for secret in ("", "ours"):
        monkeypatch.setenv("MEDSTYLE_SECRET", secret)
        said.append([])
        params = Params(str(run.study), RULES)
        ingest(params, tmp_path / f"scans{secret}", tmp_path / "ingest.json", said[-1].append)
    assert [sum("MEDSTYLE_SECRET" in line for line in lines) for lines in said] == [1, 0]


def test_bad_files_are_reported_and_the_rest_goes_on(run, tmp_path):
    source = tmp_path / "raw"
    shutil.copytree(run.study, source / "a")
    shutil.copytree(run.root / "data/raw/studies/PHANTOM-0001", source / "b")
    (source / "notes.txt").write_text("hello")
    sorted((source / "b/01_mr_t1").iterdir())[3].unlink()  # a gap
    (source / "truth").mkdir()
    shutil.copytree(run.study, source / "truth/never")
    ingest(Params(str(source), RULES), tmp_path / "scans", tmp_path / "ingest.json")
    assert len(manifest(tmp_path / "scans")) == 3
    report = json.loads((tmp_path / "ingest.json").read_text())
    assert [entry["code"] for entry in report["refused"]] == ["E_GAP"]
    assert any(entry["code"] == "E_NOT_DICOM" for entry in report["files"])
    assert "notes" not in json.dumps(report)


def test_a_gap_is_filled_where_params_say_so(run, tmp_path):
    source = tmp_path / "raw"
    shutil.copytree(run.study, source / "a")
    for path in (source / "a/01_mr_t1").iterdir():
        if dcmread(path, stop_before_pixels=True).InstanceNumber == 4:
            path.unlink()
    for policy, counts in (("refuse", [None]), ("interpolate", [1, None])):
        ingest(Params(str(source), RULES, gaps=policy), tmp_path / policy, tmp_path / "ingest.json")
        assert [item.get("interpolated_slices") for item in manifest(tmp_path / policy)] == counts
    key = subject_key("PHANTOM-0000")
    made = read_volume(tmp_path / f"interpolate/{key}/mr_t1.nii.gz", "mr_t1")
    whole = read_volume(run.root / f"data/scans/{key}/mr_t1.nii.gz", "mr_t1")
    np.testing.assert_allclose(made.affine, whole.affine, atol=1e-3)
    kept = [z for z in range(8) if z != 3]
    np.testing.assert_allclose(made.voxels[kept], whole.voxels[kept], atol=1e-3)
    np.testing.assert_allclose(made.voxels[3], (whole.voxels[2] + whole.voxels[4]) / 2, rtol=1e-5)


def test_what_a_model_made_is_no_training_data(run, tmp_path):
    """Unless a person says so, and then the manifest tells."""
    from medstyle.dicom.write import ModelIdentity, write_derived

    shutil.copytree(run.study / "01_mr_t1", tmp_path / "raw/t1")
    (item,) = inventory([tmp_path / "raw/t1"]).volumes
    made = item.load("mr_t1")
    model = ModelIdentity("m", "1", "0" * 64, {})
    write_derived(made.with_voxels(made.voxels, "mr_t2"), Derivation(item.series, model), tmp_path / "raw/out")
    rules = (Rule("mr_t2", {"SeriesDescription": "*SYNTHETIC*"}), *RULES)
    lines = []
    ingest(Params(str(tmp_path / "raw"), rules), tmp_path / "scans", tmp_path / "r.json", lines.append)
    assert [one["domain"] for one in manifest(tmp_path / "scans")] == ["mr_t1"]
    (refused,) = json.loads((tmp_path / "r.json").read_text())["refused"]
    assert refused["code"] == "E_SYNTHETIC"
    allowing = Params(str(tmp_path / "raw"), rules, allow=("E_SYNTHETIC",))
    ingest(allowing, tmp_path / "scans", tmp_path / "r.json", lines.append)
    original, synthetic = manifest(tmp_path / "scans")
    assert "flags" not in original
    assert (synthetic["flags"], synthetic["allowed"]) == (["DERIVED", "SYNTHETIC"], ["E_SYNTHETIC"])
    assert any("overrode 1 x E_SYNTHETIC" in line for line in lines)
    with pytest.raises(UserError, match="'E_GAP' is none of E_BURNED_IN, E_INCOMPLETE, E_INTERLEAVED, E_SYNTHETIC"):
        Params(str(tmp_path / "raw"), rules, allow=("E_GAP",))


def test_a_series_that_lost_a_slice_at_its_end_is_no_whole_volume(run, tmp_path):
    shutil.copytree(run.study, tmp_path / "raw/a")
    *_, last = sorted((tmp_path / "raw/a/01_mr_t1").iterdir(), key=lambda path: dcmread(path).InstanceNumber)
    last.write_bytes(last.read_bytes()[:-400])
    ingest(Params(str(tmp_path / "raw"), RULES), tmp_path / "out", tmp_path / "r.json")
    assert [one["domain"] for one in manifest(tmp_path / "out")] == ["mr_t2"]
    allowing = Params(str(tmp_path / "raw"), RULES, allow=("E_INCOMPLETE",))
    ingest(allowing, tmp_path / "out", tmp_path / "r.json")
    assert [one["shape"][0] for one in manifest(tmp_path / "out")] == [7, 8]


def test_a_time_point_is_taken_where_params_say_so(tmp_path, rng):
    voxels = rng.integers(0, 999, (2, 5, 12, 16)).astype(np.float32)
    for time in (0, 1):
        attributes = {"PatientID": "P", "StudyInstanceUID": "2.25.1", "SeriesInstanceUID": f"2.25.{time + 2}"}
        volume = Volume(voxels[time], affine((1, 1, 2), (0, 0, 0)), "mr_t1")
        write_series(tmp_path / "raw", volume, attributes, range(5 * time, 5 * time + 5))
    for path in (tmp_path / "raw").iterdir():  # both times in one series
        dataset = dcmread(path)
        dataset.TemporalPositionIdentifier = int(dataset.SeriesInstanceUID[-1]) - 1
        dataset.SeriesInstanceUID = "2.25.9"
        dataset.save_as(path)
    rules = (Rule("mr_t1", {"Modality": "MR"}),)
    with pytest.raises(UserError, match="E_4D"):
        ingest(Params(str(tmp_path / "raw"), rules), tmp_path / "out", tmp_path / "r.json")
    ingest(Params(str(tmp_path / "raw"), rules, time_point=1), tmp_path / "out", tmp_path / "r.json")
    (item,) = manifest(tmp_path / "out")
    assert item["time_point"] == 1
    np.testing.assert_allclose(read_volume(tmp_path / "out" / item["path"], "mr_t1").voxels, voxels[1])
    with pytest.raises(UserError, match="E_4D"):
        ingest(Params(str(tmp_path / "raw"), rules, time_point=2), tmp_path / "out", tmp_path / "r.json")


def test_bids_names_say_who_and_when(tmp_path, rng):
    """`ses-1` and `ses-2` of one person: two sessions, one person, whatever the folders below are
    called."""
    for session in ("ses-1", "ses-2"):
        for name in ("T1w", "T2w"):
            path = tmp_path / f"raw/sub-01/{session}/anat/sub-01_{session}_{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            volume = Volume(rng.normal(100, 9, (4, 8, 8)).astype(np.float32), affine((1, 1, 2), (0, 0, 0)), "mr_t1")
            write_volume(path, volume)
    rules = (Rule("mr_t1", {"path": "*_T1w.nii.gz"}), Rule("mr_t2", {"path": "*_T2w.nii.gz"}))
    ingest(Params(str(tmp_path / "raw"), rules), tmp_path / "out", tmp_path / "r.json")
    items = manifest(tmp_path / "out")
    assert len(items) == 4
    assert len({item["subject"] for item in items}) == 2
    assert {person_of(item["subject"]) for item in items} == {subject_key("sub-01")}


def test_a_tilted_scan_is_straightened_or_refused(tmp_path, rng):
    from medstyle.dicom.acquired import write_series

    tilted = affine((1.0, 1.0, 3.0), (0, 0, 0))
    tilted[1, 2] = 0.9
    volume = Volume(rng.integers(0, 99, (5, 12, 16)).astype(np.float32), tilted, "ct")
    attributes = {"PatientID": "P", "PatientName": "P", "StudyInstanceUID": "2.25.1", "SeriesInstanceUID": "2.25.2"}
    write_series(tmp_path / "raw", volume, attributes, range(5))
    rules = (Rule("ct", {"Modality": "CT"}),)
    ingest(Params(str(tmp_path / "raw"), rules), tmp_path / "out", tmp_path / "r.json")
    (item,) = manifest(tmp_path / "out")
    assert item["straightened"] is True
    straight = read_volume(tmp_path / "out" / item["path"], "ct")
    assert not straight.is_sheared
    assert straight.voxels.shape[0] == 5
    with pytest.raises(UserError, match="E_TILT_NEEDS_RESAMPLE"):
        ingest(Params(str(tmp_path / "raw"), rules, tilt="refuse"), tmp_path / "out", tmp_path / "r.json")


def test_scans_of_one_space_say_so_without_its_name(run):
    """Series of one frame of reference share a keyed hash of it.

    Those of different patients do not.
    """
    items = manifest(run.root / "data/scans")
    spaces = {
        subject: {i["space"] for i in items if i["subject"] == subject} for subject in {i["subject"] for i in items}
    }
    assert all(len(of) == 1 for of in spaces.values())
    assert len(set.union(*spaces.values())) == len(spaces)


def test_volume_files_and_pictures(tmp_path, rng):
    source = tmp_path / "raw"
    for subject in ("sub-01", "sub-02"):
        (source / "scans" / subject).mkdir(parents=True)
        volume = Volume(rng.normal(100, 9, (4, 8, 8)).astype(np.float32), affine((1, 1, 2), (0, 0, 0)), "ct")
        write_volume(source / "scans" / subject / "ct.nii.gz", volume)
    (source / "photo").mkdir()
    deep = rng.integers(0, 65536, (8, 9, 3), dtype=np.uint16)
    write_picture(source / "photo/a.tif", deep)
    rules = (Rule("ct", {"path": "*/ct.nii.gz"}), Rule("photo", {"path": "photo/*"}))
    ingest(Params(str(source), rules), tmp_path / "out", tmp_path / "r.json")
    items = manifest(tmp_path / "out")
    assert [item["domain"] for item in items].count("ct") == 2
    assert len({item["subject"] for item in items}) == 3
    [photo] = [item for item in items if item["domain"] == "photo"]
    np.testing.assert_array_equal(read_picture(tmp_path / "out" / photo["path"]), deep)
    ingest(Params(str(source), rules[:1], r"sub-\d+"), tmp_path / "out", tmp_path / "r.json")
    assert {item["subject"] for item in manifest(tmp_path / "out")} == {subject_key("sub-01"), subject_key("sub-02")}


def test_a_rule_may_look_at_the_voxels(tmp_path, rng):
    """Names say nothing: the phantom's T1 is found by its looks, and noise has none."""
    params = PhantomParams()
    scan = acquire(params, draw_subject(params, 0), "mr_t1")[0]
    for number, volume in enumerate((scan, scan.with_voxels(rng.rayleigh(100, scan.voxels.shape)))):
        (tmp_path / f"raw/sub-{number}").mkdir(parents=True)
        write_volume(tmp_path / f"raw/sub-{number}/scan.nii.gz", volume)
    rules = (Rule("mr_t1", {"looks_like": "mr_t1"}),)
    ingest(Params(str(tmp_path / "raw"), rules, r"sub-\d+"), tmp_path / "out", tmp_path / "r.json")
    [item] = manifest(tmp_path / "out")
    assert item["subject"] == subject_key("sub-0")
    [refused] = json.loads((tmp_path / "r.json").read_text())["refused"]
    assert refused["code"] == "E_NO_RULE"


def picture(rng, size=(192, 256)):
    """Draw a smooth picture."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(size[::-1], Image.Resampling.BICUBIC)


def test_pictures_that_are_small_or_come_twice_are_listed(tmp_path, rng):
    """Of one picture under three names and in three sizes the first by path is kept, once in each
    domain."""
    source = tmp_path / "raw"
    for folder in ("photo", "painting"):
        (source / folder).mkdir(parents=True)
    first, other = picture(rng), picture(rng)
    first.save(source / "photo/a.png")
    first.save(source / "photo/b.tif")
    first.resize((100, 75)).save(source / "photo/c.jpg", quality=90)
    other.save(source / "photo/d.png")
    picture(rng, (15, 90)).save(source / "photo/e.png")
    first.save(source / "painting/a.png")
    rules = (Rule("photo", {"path": "photo/*"}), Rule("painting", {"path": "painting/*"}))
    keys = {item.path.name: item.key for item in inventory([source / "photo"]).volumes}

    def run(**settings):
        ingest(Params(str(source), rules, **settings), tmp_path / "out", tmp_path / "r.json")
        refused = json.loads((tmp_path / "r.json").read_text())["refused"]
        entries = manifest(tmp_path / "out")
        places = {tmp_path / "out" / entry["path"] for entry in entries}
        assert set((tmp_path / "out").glob("*/*")) == places
        assert {p for p in (tmp_path / "out").iterdir() if p.is_dir()} == {place.parent for place in places}
        return entries, {entry["item"]: (entry["code"], entry["reason"]) for entry in refused}

    entries, refused = run(min_pixels=16)
    assert sorted(entry["domain"] for entry in entries) == ["painting", "photo", "photo"]
    assert {key: code for key, (code, _) in refused.items()} == {
        keys["b.tif"]: "E_DUPLICATE", keys["c.jpg"]: "E_DUPLICATE", keys["e.png"]: "E_SMALL"
    }  # fmt: skip
    assert refused[keys["b.tif"]][1].startswith(f"the same picture as {keys['a.png']}")
    assert refused[keys["c.jpg"]][1].startswith(f"nearly the same picture as {keys['a.png']}")
    assert set(run(min_pixels=16, same_image=1.0)[1]) == {keys["b.tif"], keys["e.png"]}
    assert run(duplicates="keep")[1] == {}


RULES_BY_LABEL = (Rule("photo", {"Category": "*zebra*"}), Rule("painting", {"Category": "horse"}))
NAMES = {"a.png": "horse", "b.png": "horse,zebra", "c.png": "cow"}
ABSENT = {"gone.png": "zebra"}


@pytest.fixture(params=["folders", "csv", "coco"])
def labelled(request, tmp_path, rng):
    """Pictures whose category a folder, a table or annotations tell.

    Returns how ingest is to be asked.
    """
    source = tmp_path / "raw"
    for name, category in NAMES.items():
        folder = source / ("images" if request.param != "folders" else category.rpartition(",")[2])
        folder.mkdir(parents=True, exist_ok=True)
        picture(rng).save(folder / name)
    if request.param == "folders":
        return {
            "source": str(source),
            "rules": (Rule("photo", {"path": "zebra/*"}), Rule("painting", {"path": "horse/*"})),
        }
    picture(rng).save(source / "images/unlisted.png")
    listed = {**NAMES, **ABSENT}
    (source / "notes").mkdir()
    if request.param == "csv":
        rows = [f'images/{name},"{category}",1' for name, category in listed.items()]
        (source / "notes/labels.csv").write_text("\n".join(["path,Category,Site", *rows]))
        return {"source": str(source), "rules": RULES_BY_LABEL, "labels": "notes/labels.csv"}
    categories = [{"id": 7 + i, "name": name} for i, name in enumerate(("zebra", "horse", "cow"))]
    numbers = {one["name"]: one["id"] for one in categories}
    document = {
        "images": [{"id": 50 + i, "file_name": name} for i, name in enumerate(listed)],
        "annotations": [
            {"id": 0, "image_id": 50 + i, "category_id": numbers[name], "bbox": [0, 0, 9, 9]}
            for i, names in enumerate(listed.values())
            for name in [*names.split(","), names.split(",")[0]]
        ],
        "categories": categories,
    }
    (source / "notes/labels.json").write_text(json.dumps(document))
    return {"source": str(source), "rules": RULES_BY_LABEL, "labels": "notes/labels.json"}


def test_folders_tables_and_annotations_name_domains_alike(labelled, tmp_path, capsys):
    ingest(Params(**labelled), tmp_path / "out", tmp_path / "r.json")
    found = {entry["domain"]: tmp_path / "out" / entry["path"] for entry in manifest(tmp_path / "out")}
    assert set(found) == {"photo", "painting"}
    for domain, name in (("painting", "a.png"), ("photo", "b.png")):
        [given] = (tmp_path / "raw").rglob(name)
        np.testing.assert_array_equal(read_picture(found[domain]), read_picture(given))
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["files"] == []
    codes = [entry["code"] for entry in report["refused"]]
    assert sorted(codes) == (["E_NO_LABEL", "E_NO_RULE"] if "labels" in labelled else ["E_NO_RULE"])
    said = "1 of 4 images that it lists are not in"
    assert (said in capsys.readouterr().out) == ("labels" in labelled)


BAD_LABELS = {
    "no file": (None, "none.csv: no such file"),
    "no path": (b"name,Category\na.png,horse", r"no column 'path'.*it has name, Category"),
    "short line": (b"path,Category\na.png", "line 2 does not have 2 columns"),
    "twice": (b"path,Category\na.png,cow\na.png,horse", "line 3 names a file for the second time"),
    "unknown column": (b"path,Kind\na.png,horse", "no image has an attribute 'Category'.*has Kind"),
    "not COCO": (b'{"images": []}', "not annotations in COCO format.*'categories'"),
    "not JSON": (b"{", "not annotations in COCO format"),
    "not text": (b"\xff\xfe\x00", "not readable as UTF-8"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_labels_that_are_wrong_are_named(tmp_path, rng, name):
    content, message = BAD_LABELS[name]
    (tmp_path / "raw").mkdir()
    picture(rng).save(tmp_path / "raw/a.png")
    file = "none.csv" if content is None else "a.json" if content.startswith(b"{") else "a.csv"
    if content is not None:
        (tmp_path / "raw" / file).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        ingest(Params(str(tmp_path / "raw"), RULES_BY_LABEL, labels=file), tmp_path / "out", tmp_path / "r.json")
    assert len(str(error.value).splitlines()) == 1


def test_two_images_for_one_domain_are_not_mixed_up(run, tmp_path):
    rules = (Rule("mr_t1", {"Modality": "MR"}),)
    shutil.copytree(run.study, tmp_path / "raw/a")
    ingest(Params(str(tmp_path / "raw"), rules), tmp_path / "out", tmp_path / "r.json")
    assert len(manifest(tmp_path / "out")) == 1
    assert json.loads((tmp_path / "r.json").read_text())["refused"][0]["code"] == "E_DUPLICATE_DOMAIN"


def test_mistakes_name_the_remedy(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        ingest(Params(str(tmp_path / "none"), RULES), tmp_path / "out", tmp_path / "r.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing could be used"):
        ingest(Params(str(tmp_path / "empty"), RULES), tmp_path / "out", tmp_path / "r.json")
    with pytest.raises(UserError, match=r"ingest\.rules"):
        Params()
    with pytest.raises(UserError, match="regular expression"):
        Params("x", RULES, "(")


# not ru_maxrss, which on Linux begins with the peak of the process that started this one
PROGRAM = """
import sys
from pathlib import Path
from medstyle.cohort.rules import Rule
from medstyle.stages.ingest import Params, run
source, out = map(Path, sys.argv[1:])
run(Params(str(source), (Rule("mr_t1", {"Modality": "MR"}),)), out / "scans", out / "report.json")
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_studies(tmp_path, rng):
    """Ten times the studies, the same peak: a scan's voxels are let go before the next, and its
    files share facts."""
    volume = Volume(rng.integers(0, 4096, (24, 256, 256)).astype(np.float32), affine((1, 1, 3), (0, 0, 0)), "mr_t1")
    peaks = []
    for studies in (10, 100):
        source, out = tmp_path / f"in{studies}", tmp_path / f"out{studies}"
        for number in range(studies):
            attributes = {
                "PatientID": f"P{number}",
                "StudyInstanceUID": uid_of(number),
                "SeriesInstanceUID": uid_of(number, 1),
            }
            write_series(source / str(number), volume, attributes, range(24))
        command = [sys.executable, "-c", PROGRAM, str(source), str(out)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert len(manifest(out / "scans")) == studies
        peaks.append(int(done.stdout.split()[-2]))
    assert peaks[1] < 1.2 * peaks[0]
