"""Every subject is tested once, by a model that did not see it."""

import csv

import pytest

from medstyle import UserError
from medstyle.data.manifest import Manifest
from medstyle.evaluation.gate import read_methods
from medstyle.networks.translator import Translator
from medstyle.project.folds import cross_validate, fold_subjects
from medstyle.pseudonyms import person_of
from tests.conftest import TINY, write_params


@pytest.fixture
def project(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "reports").mkdir()
    (tmp_path / "data/scans").symlink_to(run.root / "data/scans")
    short = {**TINY["train"], "training": {**TINY["train"]["training"], "steps": 4}}
    write_params(tmp_path, {"train": short, "evaluate": {"segmenter": 0, "figures": 0}})
    return tmp_path


def test_every_subject_is_tested_once_by_a_model_of_the_others(run, project, capsys):
    out = project / "reports/folds.csv"
    comparison, metrics = cross_validate(project / "params.yaml", 3, run.root / "data/raw/truth", out)
    subjects = {person_of(key) for key in Manifest.read(project / "data/scans").subjects()}
    with out.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    first = rows[0]["reference"]
    of_model = [row for row in rows if (row["method"], row["reference"]) == ("model", first)]
    assert sorted(person_of(row["subject"]) for row in of_model) == sorted(subjects)
    places = list((project / ".medstyle/folds").iterdir())
    assert len(places) == 3
    for place in places:
        tested = len(read_methods(place / "reports/subjects.csv")["model"])
        facts = Translator.load(place / "translator").config.facts
        assert facts["unseen test subjects"] == tested
        assert facts["training subjects"] + facts["validation subjects"] + tested == len(subjects)
    mean = sum(float(row["psnr"]) for row in of_model) / len(of_model)
    assert comparison["psnr"]["model"]["mean"] == pytest.approx(mean, abs=1e-5)
    assert "psnr" in metrics["headline"]

    capsys.readouterr()
    again, _ = cross_validate(project / "params.yaml", 3, run.root / "data/raw/truth", out)
    assert again == comparison
    assert "fold" not in capsys.readouterr().out, "what is done is not done again"


def test_the_command_prints_the_model_beside_the_baselines(project, medstyle):
    done = medstyle("crossvalidate", "--folds", 2, cwd=project)
    assert done.returncode == 0, done.stderr
    assert "psnr" in done.stdout
    assert "histogram_matching" in done.stdout
    assert (project / "reports/folds.csv").is_file()
    refused = medstyle("crossvalidate", "--folds", 9, cwd=project)
    assert refused.returncode == 2
    assert refused.stderr.strip() == "medstyle: --folds 9: there are 5 subjects; choose 2 to 5"


def test_sessions_of_a_person_stay_together_and_domains_are_divided_alike():
    paired = {f"sub-{k}_ses-{s}": ["mr_t1", "mr_t2"] for k in range(7) for s in range(2)}
    folds = fold_subjects(paired, 3, 0)
    assert sorted(person for fold in folds for person in fold) == sorted({person_of(key) for key in paired})
    assert {len(fold) for fold in folds} == {2, 3}
    unpaired = {f"sub-{domain}{k}": [domain] for domain in ("photo", "painting") for k in range(6)}
    for fold in fold_subjects(unpaired, 3, 0):
        assert sorted(person[4:-1] for person in fold) == ["painting"] * 2 + ["photo"] * 2
    with pytest.raises(UserError, match="choose 2 to 7"):
        fold_subjects(paired, 1, 0)
