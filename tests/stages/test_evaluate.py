import csv
import json
import shutil

import pytest

from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.evaluation.baselines import BASELINES
from medstyle.stages.denoise import Params as Denoise
from medstyle.stages.denoise import run as denoise
from medstyle.stages.evaluate import Params
from medstyle.stages.evaluate import run as evaluate
from tests.inference.conftest import make_translator


@pytest.fixture
def metrics(run):
    return json.loads((run.root / "reports/metrics.json").read_text())


def test_the_model_stands_beside_every_baseline(run, metrics):
    assert list(metrics["tables"]) == ["truth", "acquired"]
    for table in metrics["tables"].values():
        assert set(table) == {"model", *BASELINES}
    rows = list(csv.DictReader((run.root / "reports/subjects.csv").read_text().splitlines()))
    assert len(rows) == 1 * 2 * (1 + len(BASELINES))  # subjects, references, methods
    mean = metrics["tables"]["truth"]["model"]["psnr"]["mean"]
    of_rows = [float(r["psnr"]) for r in rows if (r["reference"], r["method"]) == ("truth", "model")]
    assert mean == pytest.approx(sum(of_rows) / len(of_rows), abs=1e-5)


def test_safety_is_measured(run, metrics):
    safety = metrics["safety"]
    assert 0 <= safety["edge_displacement_mm"]["mean"] < 50
    assert safety["created"]["mean"] >= 0
    assert 0 <= safety["within_2sd"]["mean"] <= 1
    assert safety["risk_100"]["mean"] == pytest.approx(metrics["tables"]["truth"]["model"]["mae"]["mean"], rel=1e-3)
    assert 0 <= safety["mae_lesions"]["mean"] <= 1
    assert 0 < safety["unseen_to_training"]["mean"] < 2
    assert {"csf", "gm", "wm"} <= set(metrics["structures"])
    assert all(0 <= row["dice_output"]["mean"] <= 1 for row in metrics["structures"].values())
    page = (run.root / "reports/report.html").read_text()
    assert metrics["intervals"]["table"] == {}
    assert "too few subjects for a 90 % interval: 1 of at least 9" in page
    assert "Uncertainty" in page
    assert "<td>csf</td>" in page
    assert "mm from the nearest true edge" in page


def test_sets_are_set_beside_the_unseen_targets(run, metrics):
    found = metrics["distances"]
    assert set(found["table"]) == {"model", *BASELINES, "training targets"}
    assert all(row["fd_local"] >= 0 for row in found["table"].values())
    assert found["table"]["training targets"]["fd_local"] < found["table"]["identity"]["fd_local"], "T1 is no T2"
    assert found["slices"] >= 4
    rows = csv.DictReader((run.root / "reports/subjects.csv").read_text().splitlines())
    assert set(found["subjects"]) == {row["subject"] for row in rows}
    assert "<td>training targets</td>" in (run.root / "reports/report.html").read_text()


def test_a_protocol_for_ct_refuses_mr(run, tmp_path):
    data = run.root / "data"
    with pytest.raises(UserError, match="synthrad2025 measures CT numbers; mr_t2 has none"):
        evaluate(
            Params(protocol="synthrad2025"), data / "scans", data / "slices", run.translator, tmp_path / "t", tmp_path
        )


def test_only_unseen_subjects_are_measured(run):
    from medstyle.data.store import SliceStore

    rows = csv.DictReader((run.root / "reports/subjects.csv").read_text().splitlines())
    assert {row["subject"] for row in rows} == set(SliceStore.open(run.root / "data/slices").subjects("test"))


def test_the_person_is_the_unit(run, tmp_path):
    """Of two sessions of one person one is measured: they are no two independent subjects."""
    shutil.copytree(run.root / "data/scans", tmp_path / "scans")
    path = tmp_path / "scans/manifest.json"
    one, two, *_ = sorted({item["subject"] for item in json.loads(path.read_text())["items"]})
    sessions = path.read_text()
    for number, subject in enumerate((one, two)):
        sessions = sessions.replace(f'"subject": "{subject}"', f'"subject": "{one}_ses-{number}"')
    path.write_text(sessions)
    denoise(Denoise((48, 40), validation=0, test_subjects=(one,)), tmp_path / "scans", tmp_path / "slices")
    assert len(SliceStore.open(tmp_path / "slices").subjects("test")) == 2
    folders = tmp_path / "scans", tmp_path / "slices", run.translator, tmp_path / "truth", tmp_path
    evaluate(Params(protocol="unpaired_scans", figures=1), *folders)
    assert json.loads((tmp_path / "metrics.json").read_text())["subjects"] == 1


def test_a_subject_of_another_site_is_measured_against_its_own_target(run, tmp_path):
    """Its scores are those of a model whose target that site is; the other keeps its own."""
    shutil.copytree(run.root / "data/scans", tmp_path / "scans")
    path = tmp_path / "scans/manifest.json"
    manifest = json.loads(path.read_text())
    first, second, third, *_ = sorted({item["subject"] for item in manifest["items"]})
    for item in manifest["items"]:
        if item["subject"] in (second, third) and item["domain"] == "mr_t2":
            item["domain"] = "mr_t2@north"
    path.write_text(json.dumps(manifest))
    plain = Denoise((48, 40), validation=0, test_subjects=(first, second))
    denoise(plain, tmp_path / "scans", tmp_path / "slices")
    translator = make_translator(("mr_t1", "mr_t2@north", "mr_t2"))
    scores = {}
    for name, one in (("both", translator), ("north", translator.towards("mr_t2@north"))):
        one.save(tmp_path / name)
        folders = tmp_path / "scans", tmp_path / "slices", tmp_path / name, tmp_path / "truth", tmp_path / f"of-{name}"
        evaluate(Params(figures=1, uncertainty=0, intervals=0), *folders)
        rows = csv.DictReader((tmp_path / f"of-{name}/subjects.csv").read_text().splitlines())
        scores[name] = {row["subject"]: row for row in rows if row["method"] == "model"}
    assert set(scores["both"]) == {first, second}
    assert scores["both"][second] == scores["north"][second]
    assert scores["both"][first] == scores["north"][first]
    groups = json.loads((tmp_path / "of-both/metrics.json").read_text())["subgroups"]["target"]
    assert {name: of["subjects"] for name, of in groups.items()} == {"mr_t2": 1, "mr_t2@north": 1}


def test_the_page_is_self_contained(run):
    page = (run.root / "reports/report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http://" not in page
    assert "https://" not in page
    assert "histogram_matching" in page
    assert "not a medical device" in page


def test_an_unknown_protocol_is_named():
    with pytest.raises(
        UserError, match="none of plain, synthrad2025, selfrdb, paired_pictures, unpaired, unpaired_scans"
    ):
        Params(protocol="fid")


@pytest.mark.parametrize("config", [{"contrasts": ["mr_t2"]}, {"dimensions": 3, "size": [4, 32, 32]}], ids=str)
def test_every_kind_of_translator_is_measured(run, tmp_path, config):
    translator = make_translator(**config)
    translator.save(tmp_path / "model")
    data = run.root / "data"
    folders = data / "scans", data / "slices", tmp_path / "model", data / "raw/truth", tmp_path
    evaluate(Params(figures=1, segmenter=2), *folders, lineage={"git.sha": "0123456"})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["subjects"] == 1
    assert metrics["tables"]["truth"]["model"]["through_plane"]["mean"] > 0
    page = (tmp_path / "report.html").read_text()
    assert "through_plane (lower is better)" in page
    assert "<code>0123456</code>" in page


def test_scans_without_pairs_are_measured(run, tmp_path):
    data = run.root / "data"
    folders = data / "scans", data / "slices", run.translator, data / "raw/truth", tmp_path
    evaluate(Params(protocol="unpaired_scans", figures=1), *folders)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    table = metrics["tables"]["unseen targets"]
    assert set(table) == {"model", *BASELINES}
    assert table["identity"]["edges"]["mean"] == pytest.approx(1)
    distances = {name: row["intensity_distance"]["mean"] for name, row in table.items()}
    assert distances["histogram_matching"] < 0.5 * distances["identity"]
    assert "histogram matching" in (tmp_path / "report.html").read_text()


def test_a_subject_needs_every_contrast(run, tmp_path):
    make_translator(("mr_t1", "mr_flair", "mr_t2"), contrasts=["mr_flair"]).save(tmp_path / "model")
    data = run.root / "data"
    with pytest.raises(UserError, match="no test subject has all of mr_flair, mr_t1, mr_t2"):
        evaluate(Params(), data / "scans", data / "slices", tmp_path / "model", tmp_path / "truth", tmp_path)


def test_intervals_are_calibrated_on_validation_subjects(tmp_path):
    """Ten validation subjects bound the numbers of the three unseen ones, and the voxels."""
    from medstyle.cohort.rules import Rule
    from medstyle.inference.calibrate import calibrate
    from medstyle.phantom.studies import PhantomParams, write_phantom
    from medstyle.stages import denoise, ingest
    from medstyle.transforms.prepare import Preparation

    phantom = PhantomParams(subjects=15, matrix=48, slices=8, spacing_mm=(4.8, 4.8, 12.0))
    write_phantom(tmp_path / "raw", phantom, workers=1)
    rules = tuple(Rule(domain, {"SeriesDescription": f"*{domain[-2:].upper()}*"}) for domain in ("mr_t1", "mr_t2"))
    ingest.run(ingest.Params(str(tmp_path / "raw"), rules), tmp_path / "scans", tmp_path / "ingest.json")
    plain = denoise.Params(
        (48, 40), Preparation("none", False), validation=0.66, test=0.2, bad_pairs="flag", same_image=1.0
    )
    denoise.run(plain, tmp_path / "scans", tmp_path / "slices")
    translator = make_translator()
    interval = calibrate(translator, SliceStore.open(tmp_path / "slices"))
    make_translator(interval=interval).save(tmp_path / "model")
    data = tmp_path / "scans", tmp_path / "slices", tmp_path / "model", tmp_path / "raw/truth"
    evaluate(Params(figures=0, uncertainty=1, segmenter=2), *data, tmp_path / "out")
    found = json.loads((tmp_path / "out/metrics.json").read_text())["intervals"]
    assert (found["level"], found["missing"]) == (0.9, "")
    assert {"voxels", "bright volume", "bright mean", "csf volume", "lesion volume"} <= set(found["table"])
    for row in found["table"].values():
        assert row["unseen"] <= 3 <= row["calibration"] <= 10
        assert row["covered"] * row["unseen"] == pytest.approx(round(row["covered"] * row["unseen"]))
        assert min(row["width"], row["constant_width"]) > 0
    assert found["table"]["voxels"]["constant_width"] == interval.constant
    page = (tmp_path / "out/report.html").read_text()
    assert "<td>csf volume</td>" in page
    assert page.count('"interval": {') == 1, "an overlay of the subject with an uncertainty"


def test_sites_and_subgroups_are_told_apart(tmp_path):
    """Two scanners in turns, eight unseen subjects, a model that does nothing."""
    from medstyle.cohort.rules import Rule
    from medstyle.stages import acquire, denoise, ingest
    from medstyle.transforms.prepare import Preparation

    phantom = acquire.Params(subjects=12, matrix=48, slices=8, spacing_mm=(4.8, 4.8, 12.0), sites=2)
    acquire.run(phantom, tmp_path / "raw")
    rules = tuple(Rule(domain, {"SeriesDescription": f"*{domain[-2:].upper()}*"}) for domain in ("mr_t1", "mr_t2"))
    ingest.run(ingest.Params(str(tmp_path / "raw"), rules), tmp_path / "scans", tmp_path / "ingest.json")
    plain = denoise.Params((48, 40), Preparation("none", False), test=0.6, bad_pairs="flag", same_image=1.0)
    denoise.run(plain, tmp_path / "scans", tmp_path / "slices")
    make_translator().save(tmp_path / "model")
    data = tmp_path / "scans", tmp_path / "slices", tmp_path / "model", tmp_path / "raw/truth"
    evaluate(Params(figures=0, uncertainty=0, segmenter=0), *data, tmp_path / "out")
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["structures"] == metrics["distances"] == {}
    assert metrics["sites"]["told_apart_before"] > 0.8  # T1 is not T2
    groups = metrics["subgroups"]["ManufacturerModelName"]
    assert len(groups) == 2
    assert sum(group["subjects"] for group in groups.values()) == metrics["subjects"]
    page = (tmp_path / "out/report.html").read_text()
    assert "By ManufacturerModelName" in page
    assert "A classifier tells sources from real targets" in page
