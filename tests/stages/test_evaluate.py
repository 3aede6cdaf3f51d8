import csv
import json

import pytest

from medstyle.errors import UserError
from medstyle.evaluation.baselines import BASELINES
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
    page = (run.root / "reports/report.html").read_text()
    assert "Uncertainty" in page
    assert "mm from the nearest true edge" in page


def test_a_protocol_for_ct_refuses_mr(run, tmp_path):
    data = run.root / "data"
    with pytest.raises(UserError, match="synthrad2025 measures CT numbers; mr_t2 has none"):
        evaluate(
            Params(protocol="synthrad2025"), data / "scans", data / "slices", run.translator, tmp_path / "t", tmp_path
        )


def test_unseen_subjects_only(run):
    from medstyle.imaging.store import SliceStore

    rows = csv.DictReader((run.root / "reports/subjects.csv").read_text().splitlines())
    assert {row["subject"] for row in rows} == set(SliceStore.open(run.root / "data/slices").subjects("test"))


def test_the_page_is_self_contained(run):
    page = (run.root / "reports/report.html").read_text()
    assert page.count("data:image/png;base64,") >= 2
    assert "http://" not in page
    assert "https://" not in page
    assert "histogram_matching" in page
    assert "not a medical device" in page


def test_an_unknown_protocol_is_named():
    with pytest.raises(UserError, match="none of plain, synthrad2025, selfrdb, unpaired"):
        Params(protocol="fid")


@pytest.mark.parametrize("config", [{"contrasts": ["mr_t2"]}, {"dimensions": 3, "size": [4, 32, 32]}], ids=str)
def test_every_kind_of_translator_is_measured(run, tmp_path, config):
    translator = make_translator(**config)
    translator.save(tmp_path / "model")
    data = run.root / "data"
    evaluate(Params(figures=1), data / "scans", data / "slices", tmp_path / "model", data / "raw/truth", tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["subjects"] == 1
    assert metrics["tables"]["truth"]["model"]["through_plane"]["mean"] > 0
    assert "through_plane (lower is better)" in (tmp_path / "report.html").read_text()


def test_a_subject_needs_every_contrast(run, tmp_path):
    make_translator(("mr_t1", "mr_flair", "mr_t2"), contrasts=["mr_flair"]).save(tmp_path / "model")
    data = run.root / "data"
    with pytest.raises(UserError, match="no test subject has all of mr_flair, mr_t1, mr_t2"):
        evaluate(Params(), data / "scans", data / "slices", tmp_path / "model", tmp_path / "truth", tmp_path)
