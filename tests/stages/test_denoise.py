import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from medstyle import Volume, read_volume, write_picture, write_volume
from medstyle.cohort.rules import Rule
from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.pseudonyms import subject_key
from medstyle.stages.denoise import Params
from medstyle.stages.denoise import run as denoise
from medstyle.stages.ingest import Params as Ingest
from medstyle.stages.ingest import run as ingest
from medstyle.transforms.prepare import Preparation
from tests.conftest import TINY, affine

PLAIN = Preparation("none", False)  # quick: most of what is stated here does not depend on it


def test_the_store_splits_by_subject_and_pairs_slices(run):
    store = SliceStore.open(run.root / "data/slices")
    subjects = [set(store.subjects(split)) for split in ("train", "validation", "test")]
    assert [len(s) for s in subjects] == [3, 1, 1]
    assert not subjects[0] & subjects[1] | subjects[0] & subjects[2] | subjects[1] & subjects[2]
    for split, own in zip(("train", "validation", "test"), subjects, strict=True):
        assert {row.subject for row in store.rows("mr_t1", split)} == own
    pairs = store.pairs("mr_t1", "mr_t2", "train")
    assert len(pairs) == 3 * 8
    assert store.array("mr_t1", "train").shape == (24, 1, 48, 40)


def test_values_are_network_units_with_air_at_minus_one(run):
    store = SliceStore.open(run.root / "data/slices")
    for domain in ("mr_t1", "mr_t2"):
        array = np.asarray(store.array(domain, "train"), np.float32)
        assert array.min() == -1
        assert (array[:, 0, 0, 0] == -1).all()
        body = array[array > -1]
        assert 0.5 < np.percentile(body, 99) <= 1.6


def test_paired_slices_show_the_same_anatomy(run):
    """Body outlines of source and target agree; a slip by one slice or a flip would show."""
    store = SliceStore.open(run.root / "data/slices")
    a, b = (np.asarray(store.array(d, "train"), np.float32) > -0.9 for d in ("mr_t1", "mr_t2"))
    dice = 2 * (a & b).sum() / (a.sum() + b.sum())
    flipped = 2 * (a & b[..., ::-1, :]).sum() / (a.sum() + b.sum())
    assert dice > 0.9
    assert dice > flipped + 0.02


def test_the_same_input_gives_the_same_bytes(run, tmp_path):
    from medstyle import params

    settings = params.load(Params, "denoise", run.params)
    denoise(settings, run.root / "data/scans", tmp_path / "again")
    first = {p.relative_to(run.root / "data/slices"): p.read_bytes() for p in (run.root / "data/slices").rglob("*.*")}
    second = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*.*")}
    assert first == second


def test_named_subjects_are_the_test_split(run, tmp_path):
    names = ("PHANTOM-0001", "PHANTOM-0003")
    settings = Params((48, 40), PLAIN, validation=0.34, test=0.9, test_subjects=(subject_key(names[0]), names[1]))
    denoise(settings, run.root / "data/scans", tmp_path / "slices")
    store = SliceStore.open(tmp_path / "slices")
    assert set(store.subjects("test")) == {subject_key(name) for name in names}
    assert [len(store.subjects(split)) for split in ("train", "validation")] == [2, 1]  # shares of the three others
    assert {row.subject for row in store.rows("mr_t1", "test")} == set(store.subjects("test"))


def test_dicom_and_nifti_subjects_are_one_cohort(run, tmp_path):
    """What a subject came as makes no difference from here on."""
    shutil.copytree(run.root / "data/raw/studies", tmp_path / "raw/dicom")
    for number in range(3):
        for domain in ("mr_t1", "mr_t2"):
            volume = read_volume(next((run.root / "data/scans").glob(f"*/{domain}.nii.gz")), domain)
            folder = tmp_path / f"raw/nifti/P{number}"
            folder.mkdir(parents=True, exist_ok=True)
            write_volume(folder / f"{domain}.nii.gz", volume.with_voxels(np.roll(volume.voxels, 3 + 3 * number, 2)))
    rules = tuple(Rule(**rule) for rule in TINY["ingest"]["rules"])
    rules += tuple(Rule(domain, {"path": f"*/{domain}.nii.gz"}) for domain in ("mr_t1", "mr_t2"))
    ingest(Ingest(str(tmp_path / "raw"), rules), tmp_path / "scans", tmp_path / "report.json")
    items = json.loads((tmp_path / "scans/manifest.json").read_text())["items"]
    sources = {item["subject"]: item["source"] for item in items}
    assert sorted(sources.values()) == ["dicom"] * 5 + ["volume"] * 3
    denoise(Params((48, 40), PLAIN, validation=0.25, test=0.25), tmp_path / "scans", tmp_path / "slices")
    store = SliceStore.open(tmp_path / "slices")
    assert set(store.index.subjects) == set(sources)
    for split in ("train", "validation", "test"):
        assert len(store.pairs("mr_t1", "mr_t2", split)) == len(store.rows("mr_t1", split)) > 0


def test_sessions_of_one_person_stay_together(run, tmp_path):
    """Whatever the seed; and a person who is named takes every session along."""
    shutil.copytree(run.root / "data/scans", tmp_path / "scans")
    path = tmp_path / "scans/manifest.json"
    document = json.loads(path.read_text())
    one, two, *_ = sorted({item["subject"] for item in document["items"]})
    for item in document["items"]:
        for session, subject in enumerate((one, two)):
            if item["subject"] == subject:
                item["subject"] = f"{one}_ses-{session}"
    path.write_text(json.dumps(document))
    for seed in range(4):
        denoise(Params((48, 40), PLAIN, test=0.5, validation=0, seed=seed), tmp_path / "scans", tmp_path / "slices")
        splits = SliceStore.open(tmp_path / "slices").index.subjects
        assert splits[f"{one}_ses-0"] == splits[f"{one}_ses-1"]
    denoise(Params((48, 40), PLAIN, validation=0, test_subjects=(one,)), tmp_path / "scans", tmp_path / "slices")
    assert SliceStore.open(tmp_path / "slices").subjects("test") == [f"{one}_ses-0", f"{one}_ses-1"]


def test_a_named_subject_that_is_absent_is_an_error(run, tmp_path):
    settings = Params(test_subjects=("PHANTOM-0001", "Somebody"))
    with pytest.raises(UserError, match=r"denoise\.test_subjects: no subject matches number 2 of") as caught:
        denoise(settings, run.root / "data/scans", tmp_path / "slices")
    assert "Somebody" not in str(caught.value)  # it may be a patient


def test_naming_every_subject_leaves_none_to_train_on(run, tmp_path):
    settings = Params(test_subjects=tuple(f"PHANTOM-{i:04}" for i in range(5)))
    with pytest.raises(UserError, match="none to train on"):
        denoise(settings, run.root / "data/scans", tmp_path / "slices")


def test_a_target_on_another_grid_is_brought_to_the_source(run, tmp_path):
    from medstyle import params, read_volume
    from medstyle.transforms.align import onto_grid

    scans = shutil.copytree(run.root / "data/scans", tmp_path / "scans")
    settings = params.load(Params, "denoise", run.params)
    for path in scans.glob("*/mr_t2.nii.gz"):
        volume = read_volume(path, "mr_t2")
        finer = volume.affine.copy()
        finer[:3, 0] /= 1.5
        grid = Volume(np.zeros((*volume.voxels.shape[:2], 72), np.float32), finer, "mr_t2")
        path.unlink()
        write_volume(path, onto_grid(volume, grid))
    denoise(settings, scans, tmp_path / "slices")
    again, before = SliceStore.open(tmp_path / "slices"), SliceStore.open(run.root / "data/slices")
    a, b = (np.asarray(s.array("mr_t2", "train"), np.float32) for s in (again, before))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97


def change_item(scans, subject, domain, **entries):
    path = scans / "manifest.json"
    document = json.loads(path.read_text())
    (item,) = (i for i in document["items"] if (i["subject"], i["domain"]) == (subject, domain))
    item.update(entries)
    path.write_text(json.dumps(document))
    return scans / item["path"]


def shifted(path):
    from medstyle import read_volume

    volume = read_volume(path, "mr_t2")
    matrix = volume.affine.copy()
    matrix[:3, 3] += [20, 0, 0]
    path.unlink()
    write_volume(path, Volume(volume.voxels, matrix, "mr_t2"))


BAD_PAIRS = {
    "E_PAIR_SPACE": lambda scans, subject: change_item(scans, subject, "mr_t2", space="elsewhere"),
    "E_PAIR_SHIFTED": lambda scans, subject: shifted(change_item(scans, subject, "mr_t2")),
}


@pytest.mark.parametrize("code", BAD_PAIRS)
def test_a_scan_that_does_not_fit_is_left_out_or_flagged(run, tmp_path, code):
    from medstyle import params
    from medstyle.stages import evaluate

    scans = shutil.copytree(run.root / "data/scans", tmp_path / "scans")
    settings = replace(params.load(Params, "denoise", run.params), preparation=PLAIN)
    bad = SliceStore.open(run.root / "data/slices").subjects("train")[0]
    BAD_PAIRS[code](scans, bad)
    lines = []
    denoise(settings, scans, tmp_path / "slices", lines.append)
    store = SliceStore.open(tmp_path / "slices")
    verdicts = {(p.subject, p.domain): p for p in store.index.pairs}
    assert set(verdicts) == {(subject, "mr_t2") for subject in store.index.subjects}
    assert [key[0] for key, pair in verdicts.items() if pair.code] == [bad]
    assert verdicts[bad, "mr_t2"].code == code
    assert not verdicts[bad, "mr_t2"].used
    assert any(bad in line and code in line and "denoise.alignment" in line for line in lines)
    assert bad not in {row.subject for row in store.rows("mr_t2", "train")}
    assert bad in {row.subject for row in store.rows("mr_t1", "train")}
    assert store.domains_of(bad) == {"mr_t1"}
    # a person may want it all the same, and registration mends it
    denoise(replace(settings, bad_pairs="flag"), scans, tmp_path / "flagged", lines.append)
    assert SliceStore.open(tmp_path / "flagged").domains_of(bad) == {"mr_t1", "mr_t2"}
    denoise(replace(settings, alignment="rigid"), scans, tmp_path / "rigid", lines.append)
    pairs = SliceStore.open(tmp_path / "rigid").index.pairs
    assert [pair.code for pair in pairs] == [""] * len(pairs)
    # what was left out is not measured either
    held = SliceStore.open(run.root / "data/slices").subjects("test")[0]
    BAD_PAIRS[code](scans, held)
    denoise(settings, scans, tmp_path / "slices", lines.append)
    with pytest.raises(UserError, match="no test subject has all of"):
        evaluate.run(
            evaluate.Params(), scans, tmp_path / "slices", run.translator, tmp_path / "no truth", tmp_path / "reports"
        )


@pytest.mark.parametrize("noise", [0, 0.01])
def test_one_image_under_two_names_is_no_test_subject(run, tmp_path, noise, rng):
    """A copy, even re-encoded, of a training image among the test images would be a leak.

    Both are named.
    """
    from medstyle import params, read_volume

    scans = shutil.copytree(run.root / "data/scans", tmp_path / "scans")
    settings = replace(params.load(Params, "denoise", run.params), preparation=PLAIN)
    store = SliceStore.open(run.root / "data/slices")
    train, held = store.subjects("train")[0], store.subjects("test")[0]
    for path in (scans / train).iterdir():
        volume = read_volume(path, path.name.split(".")[0])
        voxels = volume.voxels * 1.7 + rng.normal(0, noise * volume.voxels.max(), volume.voxels.shape)
        (scans / held / path.name).unlink()
        write_volume(scans / held / path.name, volume.with_voxels(voxels.astype(np.float32)))
    with pytest.raises(UserError, match="is the same image") as error:
        denoise(settings, scans, tmp_path / "slices")
    assert train in str(error.value)
    assert held in str(error.value)
    denoise(replace(settings, same_image=1), scans, tmp_path / "slices")


def test_unpaired_pictures_split_each_domain_alike(tmp_path, rng):
    from PIL import Image

    items = []
    for domain in ("photo", "painting"):
        for i in range(10):
            key = f"sub-{domain}{i}"
            (tmp_path / "scans" / key).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 255, (40, 50 + i, 3), dtype=np.uint8)).save(
                tmp_path / f"scans/{key}/{domain}.png"
            )
            items.append({"subject": key, "domain": domain, "path": f"{key}/{domain}.png"})
    (tmp_path / "scans/manifest.json").write_text(json.dumps({"rules": [], "items": items}))
    denoise(Params((32, 32), validation=0.1, test=0.2), tmp_path / "scans", tmp_path / "slices")
    store = SliceStore.open(tmp_path / "slices")
    for domain in ("photo", "painting"):
        assert store.array(domain, "train").shape == (7, 3, 32, 32)
        assert store.array(domain, "test").shape == (2, 3, 32, 32)
    with pytest.raises(UserError, match=r"denoise\.common_space: pictures have no common space"):
        denoise(Params((32, 32), common_space=True), tmp_path / "scans", tmp_path / "slices")


@pytest.mark.parametrize("aspect", ["crop", "pad", "stretch"])
def test_a_picture_comes_to_size_as_asked(tmp_path, aspect):
    """A disc at the middle of a wide picture: round and large, round and small between bars, or an
    ellipse."""
    items = []
    for i in range(3):
        y, x = np.mgrid[-50.0:50.0, -100.0:100.0]
        pixels = np.where((x**2 + y**2 < 40**2)[..., None], np.uint8(255), np.uint8(100 + i))
        (tmp_path / f"scans/sub-{i}").mkdir(parents=True)
        write_picture(tmp_path / f"scans/sub-{i}/photo.png", pixels.repeat(3, 2))
        items.append({"subject": f"sub-{i}", "domain": "photo", "path": f"sub-{i}/photo.png"})
    (tmp_path / "scans/manifest.json").write_text(json.dumps({"rules": [], "items": items}))
    settings = Params((40, 60), Preparation(aspect=aspect), validation=0.0, test=0.3, same_image=1)
    denoise(settings, tmp_path / "scans", tmp_path / "slices")
    image = SliceStore.open(tmp_path / "slices").array("photo", "train")[0, 0].astype(float)
    assert image.shape == (40, 60)
    disc, bars = image > 0.5, image < -0.9
    height, width = disc.any(1).sum(), disc.any(0).sum()
    expected = {"crop": (32, 32), "pad": (24, 24), "stretch": (32, 24)}[aspect]
    np.testing.assert_allclose((height, width), expected, atol=1)
    np.testing.assert_allclose(bars.all(1).sum(), 10 if aspect == "pad" else 0, atol=1)


def test_oblique_scans_are_sliced_axially(tmp_path, rng):
    """A scan stored with its first axis to the left is still cut from inferior to superior."""
    z, y, x = np.mgrid[-1:1:12j, -1:1:20j, -1:1:30j]
    voxels = (500 * (x**2 + y**2 + z**2 < 0.8)).astype(np.float32) + rng.normal(5, 1, x.shape).astype(np.float32)
    scans = tmp_path / "scans"
    items = []
    for i in range(3):
        (scans / f"sub-{i}").mkdir(parents=True)
        write_volume(scans / f"sub-{i}/ct.nii.gz", Volume(voxels, affine((1, 1, 2), (90, 0, 90)), "ct"))
        items.append({"subject": f"sub-{i}", "domain": "ct", "path": f"sub-{i}/ct.nii.gz"})
    (scans / "manifest.json").write_text(json.dumps({"rules": [], "items": items}))
    denoise(Params((32, 32), validation=0.0, test=0.3, same_image=1), scans, tmp_path / "slices")
    rows = SliceStore.open(tmp_path / "slices").rows("ct", "train")
    assert len(rows) == 2 * 20  # the axis of 20 voxels points up in the patient


@pytest.mark.parametrize("size", [[8, 8]])
def test_sizes_too_small_are_errors(size):
    from medstyle.params import parse

    with pytest.raises(UserError, match=r"denoise\.size"):
        parse(Params, {"size": size}, "denoise")


def test_nyul_learns_from_training_subjects_and_prepares_alike_in_use(run, tmp_path):
    """What the store holds is what an image gives in use, with the landmarks that travel with the
    translator."""
    from medstyle import params
    from medstyle.imaging.volume import read_volume
    from medstyle.transforms.prepare import prepare

    settings = params.load(Params, "denoise", run.params)
    settings = replace(settings, preparation=replace(settings.preparation, normalisation="nyul"))
    scans = run.root / "data/scans"
    denoise(settings, scans, tmp_path / "slices")
    store = SliceStore.open(tmp_path / "slices")
    preparation = store.index.preparation
    assert set(preparation.landmarks) == {"mr_t1", "mr_t2"}
    held = store.subjects("test")[0]
    for domain, landmarks in preparation.landmarks.items():
        assert all(one.scaled == landmarks for of in store.index.fingerprints.values() for one in of[domain])
        volume = read_volume(scans / held / f"{domain}.nii.gz", domain)
        used = prepare(volume, preparation).slices.numpy().astype(np.float16)
        stored = np.asarray(store.array(domain, "test"))
        width = [min(a, b) for a, b in zip(used.shape[2:], stored.shape[2:], strict=True)]

        def middle(slices, width=width):
            starts = [(n - w) // 2 for n, w in zip(slices.shape[2:], width, strict=True)]
            return slices[..., starts[0] : starts[0] + width[0], starts[1] : starts[1] + width[1]]

        np.testing.assert_allclose(middle(used).astype(float), middle(stored).astype(float), atol=2e-3)
    # without the test subject the landmarks are the same: nothing is learned from it
    shutil.copytree(scans, tmp_path / "scans")
    bright = tmp_path / "scans" / held / "mr_t2.nii.gz"
    volume = read_volume(bright, "mr_t2")
    bright.unlink()
    write_volume(bright, volume.with_voxels(np.sqrt(volume.voxels), "mr_t2"))
    denoise(settings, tmp_path / "scans", tmp_path / "again")
    assert SliceStore.open(tmp_path / "again").index.preparation == store.index.preparation
    # landmarks that were given stay, the others are learned
    given = tuple(np.linspace(-1, 1, len(preparation.landmarks["mr_t1"])).tolist())
    fixed = replace(settings, preparation=replace(settings.preparation, landmarks={"mr_t1": given}))
    denoise(fixed, scans, tmp_path / "given")
    index = SliceStore.open(tmp_path / "given").index
    assert index.preparation.landmarks == {"mr_t1": given, "mr_t2": preparation.landmarks["mr_t2"]}
    assert all(one.scaled == given for of in index.fingerprints.values() for one in of["mr_t1"])


def test_a_common_space_holds_training_scans_and_only_if_asked(run, tmp_path):
    from medstyle import params

    settings = replace(params.load(Params, "denoise", run.params), preparation=PLAIN)
    assert SliceStore.open(run.root / "data/slices").index.common_space == {}
    denoise(replace(settings, common_space=True), run.root / "data/scans", tmp_path / "slices")
    store = SliceStore.open(tmp_path / "slices")
    for domain in ("mr_t1", "mr_t2"):
        array, rows, maps = store.array(domain, "train"), store.rows(domain, "train"), store.common_space(domain)
        assert set(maps) == set(store.subjects("train"))
        middles = []
        for subject, matrix in maps.items():
            volume = np.stack([array[i, 0] for i, row in enumerate(rows) if row.subject == subject])
            middles.append((matrix @ [*np.argwhere(volume > -1).mean(axis=0), 1])[:3])
        assert np.ptp(middles, axis=0).max() < 12, "millimetres between the bodies' centres"
