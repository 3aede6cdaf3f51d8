"""What is proposed for each kind of data, and that it can be run without an edit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from medstyle import Volume, write_volume
from medstyle.cohort.inventory import inventory
from medstyle.cohort.rules import domain_of
from medstyle.data.canonical import attributes_of, labels_of
from medstyle.data.store import SliceStore
from medstyle.errors import DataError, ParamsError, UserError
from medstyle.networks.translator import Translator
from medstyle.params import load, parse
from medstyle.project.jobs import JOBS
from medstyle.project.propose import START_FITS, Proposal, Wishes, propose
from medstyle.project.reference import section
from medstyle.project.survey import survey
from medstyle.project.write import render
from medstyle.stages import denoise, ingest
from tests.conftest import ROOT
from tests.project.conftest import DATA, head, labels, picture, protocols, scan

Data = Callable[[str], Path]


def parsed(text: str, folder: Path) -> dict:
    (folder / "params.yaml").write_text(text)
    return {name: load(section(name), name, folder / "params.yaml") for name in yaml.safe_load(text)}


@pytest.mark.parametrize("name", DATA)
def test_the_proposal_is_what_an_expert_would_take(name: str, data: Data, tmp_path: Path) -> None:
    _, recipe, source, target = DATA[name]
    found = survey(data(name))
    made = propose(found, Wishes(minutes=1))
    assert (made.job.recipe, made.source, made.target) == (recipe, source, target)
    params = parsed(render(made, tmp_path), tmp_path)
    assert (params["train"].source, params["train"].target) == (source, target)
    if made.labels:
        pytest.fail("a pattern tells these files apart")
    rules, table = params["ingest"].rules, labels_of(params["ingest"])
    for image in found.images:
        wanted = image.domain if image.domain in (source, target) else None
        assert domain_of(attributes_of(image.item, data(name), table, rules), rules) == wanted


@pytest.mark.parametrize("name", DATA)
def test_ingest_and_denoise_take_every_image_of_the_proposal(
    name: str, data: Data, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("MEDSTYLE_SECRET", "a secret of this test")
    found = survey(data(name))
    made = propose(found, Wishes(minutes=1))
    params = parsed(render(made, tmp_path), tmp_path)
    said: list[str] = []
    ingest.run(params["ingest"], tmp_path / "scans", tmp_path / "ingest.json", said.append)
    images = sum(len(of) for domain in (made.source, made.target) for of in found.domains[domain].values())
    assert any(line.startswith(f"{images} images") for line in said), said
    denoise.run(params["denoise"], tmp_path / "scans", tmp_path / "slices", said.append)


def test_a_name_that_no_pattern_matches_is_in_a_table(tmp_path: Path) -> None:
    for k, name in enumerate(("t1", "t1w", "mprage", "spgr", "bravo", "tfl", "fspgr", "t1se")):
        scan(tmp_path / f"data/{k}/{name}.nii", k, 0)
        scan(tmp_path / f"data/{k}/flair.nii", k, 1)
    found = survey(tmp_path / "data")
    made = propose(found, Wishes(minutes=1))
    assert made.labels
    assert {made.labels[image.path] for image in found.images if image.domain} == {"mr_t1", "mr_flair"}


def test_headers_that_do_not_align_ask_for_a_registration(data: Data) -> None:
    made = propose(survey(data("shifted")), Wishes(minutes=1))
    assert made.sections["denoise"]["alignment"].value == "rigid"


def test_the_target_of_a_second_scanner_is_a_domain_of_its_own(tmp_path: Path, monkeypatch) -> None:
    """Its rules hold for new scans of that scanner, and it is in every part of the split."""
    monkeypatch.setenv("MEDSTYLE_SECRET", "a secret of this test")
    made = propose(survey(protocols(tmp_path / "data")), Wishes(minutes=1))
    params = parsed(render(made, tmp_path), tmp_path)
    assert (params["train"].target, params["train"].domains) == ("mr_flair", ("mr_flair@vida",))
    assert any("--to mr_flair@vida" in note for note in made.notes)
    new = {"Modality": "MR", "SeriesDescription": "FLAIR", "path": "elsewhere/1.dcm"}
    for scanner, domain in (("Vida", "mr_flair@vida"), ("Prisma fit", "mr_flair")):
        assert domain_of({**new, "ManufacturerModelName": scanner}, params["ingest"].rules) == domain
    said: list[str] = []
    ingest.run(params["ingest"], tmp_path / "scans", tmp_path / "ingest.json", said.append)
    denoise.run(params["denoise"], tmp_path / "scans", tmp_path / "slices", said.append)
    store = SliceStore.open(tmp_path / "slices")
    for split in ("train", "validation", "test"):
        have = {domain for subject in store.subjects(split) for domain in store.domains_of(subject)}
        assert have == {"mr_t1", "mr_flair", "mr_flair@vida"}, split


def test_files_of_a_rarer_protocol_are_named_one_by_one(tmp_path: Path) -> None:
    """No header tells it; the rule of the others stays a pattern, which takes new files."""
    for k in range(8):
        for contrast, name in enumerate(("t1", "flair")):
            scan(tmp_path / f"data/{k}/{name}.nii.gz", k, contrast)
        labels(tmp_path / f"data/{k}/t1_regions.nii.gz", k)
        if k % 3 == 0:
            thick = Volume(head(k, 1)[::2], np.diag([2.0, 2.0, 5.0, 1.0]), "mr_t1")
            write_volume(tmp_path / f"data/{k}/flair.nii.gz", thick)
    made = propose(survey(tmp_path / "data"), Wishes(minutes=1))
    rules = parsed(render(made, tmp_path), tmp_path)["ingest"].rules
    assert not made.labels
    for path, domain in (("3/flair", "mr_flair@protocol-2"), ("1/flair", "mr_flair"), ("9/flair", "mr_flair")):
        assert domain_of({"path": f"{path}.nii.gz"}, rules) == domain
    assert domain_of({"path": "3/t1_regions.nii.gz"}, rules) is None


def test_protocols_of_few_subjects_stay_together(tmp_path: Path) -> None:
    """Files without headers: each of another matrix, so that no protocol can be told."""
    for k in range(6):
        for contrast, name in enumerate(("t1", "flair")):
            volume = Volume(head(k, contrast)[:, : 40 - k], np.diag([2.0, 2.0, 2.5, 1.0]), "mr_t1")
            (tmp_path / f"data/{k}").mkdir(parents=True, exist_ok=True)
            write_volume(tmp_path / f"data/{k}/{name}.nii.gz", volume)
    assert "domains" not in propose(survey(tmp_path / "data"), Wishes(minutes=1)).sections["train"]


def one_subject(folder: Path) -> None:
    scan(folder / "a/t1.nii.gz", 0, 0)
    scan(folder / "a/t2.nii.gz", 0, 1)


def one_contrast(folder: Path) -> None:
    for k in range(3):
        scan(folder / f"{k}/t1.nii.gz", k, 0)


def only_labels(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for k in range(3):
        labels(folder / f"{k}_seg.nii.gz", k)


def tiny_pictures(folder: Path) -> None:
    from medstyle import write_picture

    for k in range(4):
        picture(folder / f"photo/{k}.png", k)
        picture(folder / f"art/{k}.png", 10 + k)
        for name in ("photo", "art"):
            from medstyle import read_picture

            write_picture(folder / f"{name}/{k}.png", read_picture(folder / f"{name}/{k}.png")[:40, :40])


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (one_subject, "only one subject"),
        (one_contrast, "only one domain"),
        (only_labels, "only one domain was found \\(none\\)"),
        (tiny_pictures, "about 40 pixels"),
        (lambda folder: folder.mkdir(), "empty"),
        (lambda folder: None, "no such folder"),
    ],
)
def test_what_cannot_be_learned_from_is_said_before_anything_starts(
    make: Callable[[Path], None], word: str, tmp_path: Path
) -> None:
    make(tmp_path / "data")
    with pytest.raises(DataError, match=word):
        propose(survey(tmp_path / "data"), Wishes(minutes=1))


def test_a_wish_is_granted_or_refused_by_name(data: Data) -> None:
    found = survey(data("bids"))
    made = propose(found, Wishes("mr_t2", "mr_t1", 1))
    assert (made.source, made.target) == ("mr_t2", "mr_t1")
    with pytest.raises(ParamsError, match="ct: no image of this domain"):
        propose(found, Wishes("ct", None, 1))


def test_more_minutes_are_more_steps(data: Data) -> None:
    found = survey(data("classes"))
    steps = [propose(found, Wishes(minutes=m)).sections["train"]["training"].value["steps"].value for m in (5, 50)]
    assert steps[1] > 4 * steps[0]


@pytest.mark.parametrize("recipe", [name for name in JOBS if (ROOT / f"recipes/{name}.yaml").is_file()])
def test_a_job_has_the_settings_of_its_recipe(recipe: str) -> None:
    job, train = JOBS[recipe], yaml.safe_load((ROOT / f"recipes/{recipe}.yaml").read_text())["train"]
    assert job.objective == train["objective"]
    assert {key: train["network"][key] for key in job.network} == job.network
    assert job.augmentation == train.get("augmentation", {})
    assert {key: train["training"][key] for key in job.training} == job.training


def test_every_number_has_its_reason(data: Data) -> None:
    from medstyle.project.propose import Chosen

    def bare(values: dict, path: str = "") -> list[str]:
        found = []
        for key, (value, why) in values.items():
            if isinstance(value, dict) and any(isinstance(one, Chosen) for one in value.values()):
                found += bare(value, f"{path}{key}.")
            elif not why:
                found.append(f"{path}{key}")
        return found

    made: Proposal = propose(survey(data("bids")), Wishes(minutes=1))
    assert [name for part, values in made.sections.items() for name in bare(dict(values), f"{part}.")] == []


def test_a_survey_reads_what_inspect_reads(data: Data) -> None:
    found = survey(data("mess"))
    usable = [item for item in inventory([data("mess")]).volumes if item.usable]
    assert len(found.images) == len(usable)
    assert found.refused == {"E_DECODE": 1}


def test_a_section_is_parsed_as_its_stage_does(data: Data) -> None:
    made = propose(survey(data("views")), Wishes(minutes=1))
    with pytest.raises(UserError):
        parse(section("denoise"), {"size": made.sections["denoise"]["size"].value, "junk": 1}, "denoise")


def test_the_network_that_is_proposed_with_a_start_is_that_of_the_ready_model() -> None:
    ready = Translator.load("anybrain").config.architecture
    assert ([*ready.widths], ready.neighbours) == START_FITS
    assert ready.fold == JOBS["paired_mr"].network["fold"]
    assert ready.bottleneck_blocks == JOBS["paired_mr"].network["bottleneck_blocks"]
