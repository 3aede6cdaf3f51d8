"""`medstyle studio` as a person uses it, in a real browser; and as an attacker does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pydicom
import pytest
import requests
from PIL import Image

from medstyle import Volume, read_volume, write_volume
from medstyle.cohort.inventory import inventory
from medstyle.inference.ood import assess
from medstyle.inference.translate import prepare_source
from medstyle.networks.translator import Translator
from medstyle.studio.jobs import KEPT
from tests.conftest import Run
from tests.dicom.test_corpus import CASES, CORPUS
from tests.flows.conftest import wait_for
from tests.registry.conftest import DESCRIPTORS, free_port
from tests.registry.test_server import HOSTILE
from tests.studio.conftest import BROWSER, GRAPHICS, Running, Visitor, here, make_project, studio

pytestmark = [pytest.mark.ops, pytest.mark.skipif(BROWSER is None, reason="no chromium is installed")]
AXE = Path(__file__).with_name("axe.min.js")
LONG = 60_000  # ms: the worker loads libraries while others use the machine


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=list(GRAPHICS))
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, running: Running) -> Iterator[Any]:
    """Return a page of a new session; at the end it has shown no fault."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, accept_downloads=True)
    one, faults = context.new_page(), []
    one.set_default_timeout(LONG)
    one.on("pageerror", lambda error: faults.append(str(error)))
    one.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    one.goto(running.url)
    yield one
    context.close()
    assert faults == []


def drop(page: Any, *paths: Path) -> None:
    """Give files, or one folder, to the place for them."""
    if paths[0].is_dir():
        page.locator("input[webkitdirectory]").first.set_input_files(str(paths[0]))
    else:
        page.locator("#files").set_input_files([str(path) for path in paths])


def translate(page: Any) -> None:
    page.get_by_role("button", name="Translate", exact=True).click()
    page.locator("[data-shown=both]").wait_for()


def download(page: Any, label: str) -> tuple[str, bytes]:
    with page.expect_download() as waiting:
        page.get_by_role("link", name=f"Download {label}").first.click()
    return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()


def pixels(page: Any, role: str) -> np.ndarray:
    """Return what a canvas shows."""
    image = page.locator(f"figure.{role} canvas").screenshot()
    return np.asarray(Image.open(io.BytesIO(image)).convert("L"), np.float32)


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (96, 128)) -> Path:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC).save(path)
    return path


def clip(path: Path) -> Path:
    """Write a clip of five frames whose picture changes after the third."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        frames = [np.asarray(Image.open(picture(path.with_suffix(".png"), seed))) for seed in (1, 1, 1, 2, 2)]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def test_a_study_is_seen_translated_compared_and_downloaded(page: Any, run: Run, tmp_path: Path) -> None:
    drop(page, run.study)
    page.locator("[data-shown=source]").wait_for()
    verdict = page.get_by_role("region", name="Viewer").locator("xpath=..").inner_text()
    assert "1 of 2 images will be translated" in verdict
    assert "DICOM series, 8 slices of 48 × 48, voxels of 4.8 × 4.8 × 12 mm\nused as T1" in verdict
    page.get_by_label("Map of uncertainty").check()
    translate(page)
    page.wait_for_timeout(500)
    source, result = pixels(page, "source"), pixels(page, "result")
    assert source.std() > 20
    assert result.std() > 20
    page.get_by_role("combobox", name="View", exact=True).select_option("slider")
    page.get_by_role("slider", name="Before – after").fill("30")
    assert "inset(0px 0px 0px 30%)" in page.locator("figure.result").get_attribute("style")
    page.get_by_role("combobox", name="View", exact=True).select_option("result")
    plain = pixels(page, "result")
    page.get_by_role("slider", name="Uncertainty").fill("90")
    page.wait_for_timeout(500)
    assert np.abs(pixels(page, "result") - plain).mean() > 1
    name, content = download(page, "DICOM (zip)")
    assert name == "synthetic-dicom.zip"
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert all(re.fullmatch(r"[\w./-]+", one) and ".." not in one for one in archive.namelist())
        archive.extractall(tmp_path / "made")
    files = [pydicom.dcmread(path) for path in (tmp_path / "made").rglob("*") if path.is_file()]
    assert {str(file.PatientID) for file in files} == {"PHANTOM-0000"}
    assert all("DERIVED" in file.ImageType for file in files)
    [series] = [item for item in inventory([tmp_path / "made"]).volumes if item.kind == "volume"]
    assert "SYNTHETIC" in series.flags
    name, content = download(page, "NIfTI")
    (tmp_path / name).write_bytes(content)
    assert read_volume(tmp_path / name, "mr_t2").voxels.shape == (8, 48, 48)


def test_a_real_scan_is_compared_as_an_overlay(page: Any, run: Run, tmp_path: Path) -> None:
    drop(page, run.study)
    page.locator("[data-shown=source]").wait_for()
    translate(page)
    plain = pixels(page, "result")
    page.get_by_text("Compare with a real scan").click()
    page.get_by_role("button", name="Use the T2 in this study").click()
    page.get_by_text("Mean absolute difference in the body").wait_for()
    page.get_by_text("Both scans have the same frame of reference").wait_for()
    page.get_by_role("slider", name="Difference").wait_for()
    page.locator("[data-shown=both]").wait_for()
    page.wait_for_timeout(500)
    laid = pixels(page, "result")
    assert np.abs(laid - plain).mean() > 1
    page.get_by_role("slider", name="Difference").fill("0")
    page.wait_for_timeout(500)
    assert np.abs(pixels(page, "result") - plain).mean() < np.abs(laid - plain).mean() / 4
    other = run.study.with_name("PHANTOM-0001")
    page.locator("details input[webkitdirectory]").set_input_files(str(other))
    page.get_by_text("The frames of reference do not match").wait_for()
    away = np.diag([4.8, 4.8, 12, 1.0])
    away[0, 3] = 5000
    write_volume(tmp_path / "mr_t2.nii.gz", Volume(np.float32(np.indices((8, 48, 48))[0]), away, "mr_t2"))
    page.locator("#real").set_input_files(str(tmp_path / "mr_t2.nii.gz"))
    page.get_by_text("the real scan shows another place").wait_for()
    drop(page, run.study)
    page.get_by_text("another place").wait_for(state="hidden")


def test_the_crosshair_is_linked_and_moves_by_keys(page: Any, run: Run) -> None:
    drop(page, run.study)
    page.locator("[data-shown=source]").wait_for()
    translate(page)
    canvas, beside = page.locator("figure.source canvas"), page.locator("figure.result output")
    canvas.focus()
    for _ in range(3):
        page.keyboard.press("PageUp")
    wait_for(lambda: beside.inner_text() != "")
    before = beside.inner_text()
    page.keyboard.press("PageUp")
    page.keyboard.press("ArrowLeft")
    wait_for(lambda: beside.inner_text() != before)
    place = page.locator("figure.source output").inner_text().partition(" mm")[0]
    wait_for(lambda: beside.inner_text().partition(" mm")[0] == place)


def test_a_picture_and_a_clip_are_translated_and_shown(page: Any, tmp_path: Path) -> None:
    page.get_by_role("combobox", name="Model").select_option("local")
    drop(page, picture(tmp_path / "photo.png"))
    page.locator("[data-shown=source]").wait_for()
    translate(page)
    _, content = download(page, "PNG")
    made = Image.open(io.BytesIO(content))
    assert made.size == (128, 96)
    assert "AI SYNTHETIC" in str(made.info)
    clip(tmp_path / "clip.mp4")
    drop(page, tmp_path / "clip.mp4")
    page.get_by_text("Clip, 5 frames, 128 × 96 pixels").wait_for()
    page.locator("[data-shown=source]").wait_for()
    translate(page)
    page.get_by_role("button", name="Play").click()
    first = pixels(page, "result")
    wait_for(lambda: bool(np.abs(pixels(page, "result") - first).mean() > 1), 30)
    name, content = download(page, "MP4")
    assert name == "synthetic-0.mp4"
    assert content[4:8] == b"ftyp"


def test_a_picture_is_styled_by_exemplars(page: Any, tmp_path: Path) -> None:
    page.get_by_role("link", name="Style").click()
    page.locator("#picture").set_input_files(str(picture(tmp_path / "a.png", 1, (600, 800))))
    page.locator("#exemplars").set_input_files([str(picture(tmp_path / f"{n}.png", n)) for n in (2, 3)])
    page.get_by_role("combobox", name="Method").select_option("")
    page.get_by_role("combobox", name="Model").select_option("local")
    page.get_by_role("slider", name="Weight of exemplar 2").fill("0.5")
    page.get_by_role("button", name="Preview").click()
    page.get_by_text("Preview in").wait_for()
    canvas = page.locator("figure.result canvas")
    wait_for(lambda: canvas.evaluate("canvas => [canvas.width, canvas.height]") == [341, 256], 30)
    page.get_by_role("button", name="Full size").click()
    page.get_by_text("Done in").wait_for()
    _, content = download(page, "PNG")
    assert Image.open(io.BytesIO(content)).size == (800, 600)
    page.get_by_role("combobox", name="Method").select_option("histogram_matching")
    page.get_by_role("button", name="Preview").click()
    page.get_by_text("takes the style of one exemplar; found 2").wait_for()


def test_a_page_that_loads_late_does_not_replace_the_one_chosen_since(browser: Any, running: Running) -> None:
    context = browser.new_context()
    page, held = context.new_page(), []
    page.set_default_timeout(LONG)
    page.route("**/translate.js*", lambda route: held.append(route))  # noqa: PLW0108  (Playwright takes no builtin)
    page.goto(running.url, wait_until="commit")
    page.get_by_role("link", name="Style").click()
    page.locator("#picture").wait_for(state="attached")
    with page.expect_response("**/translate.js*"):
        held[0].continue_()
    page.wait_for_timeout(500)
    assert page.locator("#picture").count() == 1
    context.close()


def test_a_clip_is_styled_by_an_exemplar_and_plays(page: Any, tmp_path: Path) -> None:
    page.get_by_role("link", name="Style").click()
    page.locator("#picture").set_input_files(str(clip(tmp_path / "clip.mp4")))
    page.locator("#exemplars").set_input_files(str(picture(tmp_path / "painting.png", 7)))
    page.get_by_role("button", name="Full size").click()
    page.get_by_text("choose a model of pictures for a clip").wait_for()
    page.get_by_role("combobox", name="Method").select_option("")
    page.get_by_role("combobox", name="Model").select_option("local")
    page.get_by_label("Brush").fill("64")
    page.get_by_role("button", name="Preview").click()
    page.get_by_text("Preview in").wait_for()
    assert page.get_by_role("button", name="Play").is_hidden()  # one frame
    page.get_by_role("button", name="Full size").click()
    page.get_by_text("Done in").wait_for()
    page.locator("[data-shown=both]").wait_for()
    page.get_by_role("button", name="Play").click()
    first = pixels(page, "result")
    wait_for(lambda: bool(np.abs(pixels(page, "result") - first).mean() > 1), 30)
    name, content = download(page, "MP4")
    assert name == "styled.mp4"
    assert content[4:8] == b"ftyp"


def test_wrong_files_get_words(page: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "scan.nii.gz").write_bytes(b"\x1f\x8b damaged")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 damaged")
    drop(page, tmp_path / "notes.txt", tmp_path / "scan.nii.gz")
    page.get_by_text("Nothing here can be translated.").wait_for()
    said = page.locator(".side").inner_text()
    assert "notes.txt" in said
    assert "E_NOT_DICOM" in said
    assert "scan.nii.gz" in said
    assert "/tmp" not in page.locator("section", has_text="Verdict").last.inner_text()
    assert page.get_by_role("button", name="Translate", exact=True).is_disabled()
    drop(page, tmp_path / "bad.zip")
    page.get_by_text("which may be damaged or encrypted").wait_for()


def test_the_page_says_what_differs_from_the_training_images(page: Any, run: Run, tmp_path: Path) -> None:
    """A scan with just as much noise as the model warns of."""
    translator = Translator.load(run.translator)
    scan = read_volume(next((run.root / "data/scans").glob("*/mr_t1.nii.gz")), "mr_t1")
    noise = np.random.default_rng(0).normal(0, float(scan.voxels.max()), scan.voxels.shape)

    def noisy(level: float) -> Volume:
        return scan.with_voxels(np.float32(np.abs(scan.voxels + level * noise)))

    scans = map(noisy, np.geomspace(0.001, 1, 60))
    odd = next(one for one in scans if assess(prepare_source(one, translator).slices, translator).verdict == "warn")
    write_volume(tmp_path / "mr_t1.nii.gz", odd)
    drop(page, tmp_path / "mr_t1.nii.gz")
    page.locator("[data-shown=source]").wait_for()
    translate(page)
    assert "differs from the training images" in page.get_by_role("region", name="Viewer").inner_text()


def test_a_job_is_cancelled_and_the_next_one_runs(page: Any, tmp_path: Path) -> None:
    z, y, x = np.ogrid[:60, -1:1:320j, -1:1:320j]
    slow = 400.0 * ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1) + 100.0 * (x**2 + y**2 < 0.1) + z % 2
    write_volume(tmp_path / "mr_t1.nii.gz", Volume(np.float32(slow), np.diag([0.7, 0.7, 2, 1]), "mr_t1"))
    drop(page, tmp_path / "mr_t1.nii.gz")
    page.locator("[data-shown=source]").wait_for()
    page.get_by_role("button", name="Translate", exact=True).click()
    page.get_by_text(re.compile("preparing|translating")).wait_for()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_text("Cancelled.").wait_for()
    page.get_by_role("combobox", name="Model").select_option("local")
    drop(page, picture(tmp_path / "photo.png"))
    page.get_by_text("used as").wait_for()
    translate(page)


def test_two_tabs_share_a_session_but_not_what_they_show(page: Any, running: Running, run: Run, tmp_path: Path) -> None:
    other = page.context.new_page()
    other.set_default_timeout(LONG)
    other.goto(running.url)
    other.get_by_role("combobox", name="Model").select_option("local")
    page.bring_to_front()
    drop(page, run.study)
    other.bring_to_front()
    drop(other, picture(tmp_path / "photo.png"))
    other.get_by_text("Picture, 128 × 96 pixels").wait_for()
    translate(other)
    page.bring_to_front()
    page.get_by_text("used as T1").wait_for()
    page.locator("[data-shown=source]").wait_for()
    translate(page)
    assert len(page.context.cookies()) == 1


def test_the_end_of_a_session_deletes_its_files(page: Any, running: Running, run: Run) -> None:
    before = set(running.sessions)
    drop(page, run.study)
    page.locator("[data-shown=source]").wait_for()
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in running.sessions)
    page.get_by_role("button", name="End session").click()
    page.get_by_role("button", name="End and delete").click()
    wait_for(lambda: not any(list(path.rglob("*.dcm")) for path in running.sessions if path not in before))
    page.get_by_text("What you drop is shown here").wait_for()


def test_promote_and_roll_back_say_what_changes(page: Any) -> None:
    page.get_by_role("link", name="Models").click()
    row = page.get_by_role("row").filter(has_text="champion")
    row.wait_for()
    assert row.inner_text().startswith("1")
    page.get_by_role("row").filter(has_text=re.compile(r"^2")).get_by_role("button", name="Promote").click()
    asked = page.get_by_role("dialog")
    assert "Version 2 becomes the champion; version 1 becomes “previous”." in asked.inner_text()
    asked.get_by_label("Reason").fill("a test")
    asked.get_by_role("button", name="Promote").click()
    page.get_by_text("version 2 is the new champion, after 1").wait_for()
    page.get_by_role("button", name="Roll back").click()
    assert "Version 1 becomes the champion again; version 2" in page.get_by_role("dialog").inner_text()
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    page.get_by_text("version 1 is champion again, after 2").wait_for()
    page.get_by_role("row").filter(has_text=re.compile(r"^1champion")).get_by_role("button", name="Details").click()
    results = page.get_by_role("region", name="Results")
    results.wait_for()
    assert {"model", "histogram matching"} <= {line.split("\t")[0] for line in results.inner_text().splitlines()}
    assert "lesions kept\tcreated per subject" in results.inner_text()


def test_the_training_of_a_model_is_drawn(page: Any) -> None:
    page.get_by_role("link", name="Models").click()
    page.get_by_role("listitem").filter(has_text="run").get_by_role("button", name="Details").click()
    curve = page.get_by_role("img", name=re.compile(r"generator\. .*l1: from [\d.]+ to [\d.]+"))
    curve.wait_for()
    assert curve.locator("polyline").first.get_attribute("points").count(",") > 4
    sample = page.get_by_role("img", name="Unseen subject: source, synthetic and real images. Research only.")
    sample.wait_for()
    wait_for(lambda: sample.evaluate("canvas => canvas.width") > 300)


def test_two_versions_are_compared_on_one_study(page: Any, run: Run) -> None:
    page.get_by_role("link", name="Models").click()
    two = page.get_by_role("region", name="Two models on one study")
    two.get_by_role("combobox", name="Left").select_option("1")
    two.get_by_role("combobox", name="Right").select_option("2")
    two.locator("input[webkitdirectory]").set_input_files(str(run.study))
    two.get_by_role("button", name="Compare", exact=True).click()
    two.get_by_text(re.compile(r"Version 2.*: the source resembles the training images")).wait_for()
    two.locator("[data-shown=both]").wait_for()
    page.wait_for_timeout(500)
    assert "Version 1 (champion): T2" in two.locator("figure.source").inner_text()
    assert "Version 2" in two.locator("figure.result").inner_text()
    left, right = pixels(two, "source"), pixels(two, "result")
    assert left.std() > 20
    assert 0.1 < np.abs(left[:, : right.shape[1]] - right[:, : left.shape[1]]).mean() < left.std()
    two.get_by_role("combobox", name="Left").select_option("3")  # the one that makes no numbers
    two.get_by_role("button", name="Compare", exact=True).click()
    two.get_by_role("alert").wait_for()


def test_the_data_of_the_project_are_shown(page: Any) -> None:
    page.get_by_role("link", name="Data").click()
    page.get_by_text("mr_t1: 5 images of 5 subjects").wait_for()
    assert page.get_by_role("img", name=re.compile("mr_t1, image")).count() == 5
    assert "validation\t1\t1" in page.get_by_role("region", name="Splits").inner_text()
    assert "PHANTOM" not in page.locator("main").inner_text()


def test_drift_is_shown_over_time_with_its_test(page: Any, running: Running, run: Run) -> None:
    from medstyle.inference.drift import limit_of
    from medstyle.networks.translator import Translator

    translator = Translator.load(run.translator)
    limit = limit_of(translator)
    for number in range(9):
        place = running.folder / f"data/station/derived/{number:016x}/translation.json"
        place.parent.mkdir(parents=True)
        row = {"ood_score": limit * (0.5 + number / 5), "weights_sha256": translator.sha256}
        place.write_text(json.dumps([row]))
        os.utime(place, (time.time() - 86400 * 8 * (9 - number),) * 2)
    page.get_by_role("link", name="Data").click()
    drift = page.get_by_role("region", name="Drift")
    drift.get_by_text("Of 3 images of the last 30 days, 3 deviate").wait_for()
    dots = drift.get_by_role("img").locator("circle").all()
    heights = [float(one.get_attribute("cy") or 0) for one in dots]
    assert len(dots) == 9
    assert heights == sorted(heights, reverse=True)  # the score rises, so do the dots
    level = float(drift.locator("svg[role=img] .level").get_attribute("y1") or 0)
    assert [height < level for height in heights] == [0.5 + number / 5 > 1 for number in range(9)]


def test_a_study_in_quarantine_has_its_reason_and_is_put_back(page: Any, running: Running) -> None:
    station, key = running.folder / "data/station", "0123456789abcdef"
    (station / "inbox").mkdir(parents=True, exist_ok=True)
    (station / "quarantine" / key / "study").mkdir(parents=True)
    reason = {"code": "E_INPUT", "type": "DataError", "reason": "nothing to translate"}
    (station / "quarantine" / key / "reason.json").write_text(json.dumps(reason))
    from medstyle.inference.inbox import TABLE

    with sqlite3.connect(station / "ledger.db") as ledger:
        ledger.execute(TABLE)
        row = (key, "0" * 64, "quarantined", "E_INPUT", 0, 0, "2026-01-01T00:00:00+00:00")
        ledger.execute("INSERT INTO studies VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    ledger.close()
    page.get_by_role("link", name="Jobs").click()
    page.get_by_text("E_INPUT: nothing to translate").wait_for()
    page.get_by_role("button", name="Retry").click()
    page.get_by_text("back in the inbox").wait_for()
    assert (station / "inbox/study").is_dir()
    assert not (station / "quarantine" / key).exists()
    page.get_by_role("cell", name="waiting", exact=True).wait_for()


PAGES = ("Translate", "Style", "Models", "Jobs", "Data")


def opened(page: Any, name: str) -> None:
    """Go to a page, with everything open that can be opened, and wait for its answers."""
    page.get_by_role("link", name=name, exact=True).click()
    page.get_by_role("heading", name=name, level=1).wait_for()
    if name == "Models":
        page.get_by_role("listitem").filter(has_text="run").get_by_role("button", name="Details").click()
        page.get_by_role("heading", name="Sample pictures").wait_for()
    elif name == "Jobs":
        page.get_by_text("Reading the ledger").wait_for(state="hidden")
    elif name == "Data":
        page.get_by_text("Reading the inbox").wait_for(state="hidden")
        page.get_by_text("Looking at the data").wait_for(state="hidden")
    page.evaluate("for (const one of document.querySelectorAll('main details')) one.open = true")
    page.wait_for_timeout(500)


@pytest.mark.slow
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 820)])
@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is fetched by python -m medstyle.studio.vendor")
def test_no_serious_fault_of_accessibility(browser: Any, running: Running, run: Run, scheme: str, width: int) -> None:
    context = browser.new_context(viewport={"width": width, "height": 860}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.set_default_timeout(LONG)
    page.goto(running.url)
    drop(page, run.study)
    page.locator("[data-shown=source]").wait_for()
    page.get_by_label("Map of uncertainty").check()
    translate(page)
    faults = []
    for name in PAGES:
        opened(page, name)
        if name == "Translate":
            page.get_by_role("button", name="Use the T2 in this study").click()
            page.get_by_text("Mean absolute difference").wait_for()
        page.add_script_tag(path=str(AXE))
        found = page.evaluate("axe.run()")["violations"]
        faults += [(name, one["id"], one["nodes"][0]["html"][:200]) for one in found
                   if one["impact"] in ("serious", "critical")]  # fmt: skip
        wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
        faults += [(name, "wider than the window", str(wide))] if wide > 0 else []
    page.get_by_role("button", name="End session").click()
    found = page.evaluate("axe.run()")["violations"]
    faults += [("dialog", one["id"], "") for one in found if one["impact"] in ("serious", "critical")]
    context.close()
    assert faults == []


def tab_to(page: Any, target: Any) -> None:
    """Press Tab until the element has the focus, which must be seen at every stop."""
    for _ in range(80):
        page.keyboard.press("Tab")
        seen = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert seen != "none" or page.evaluate("document.activeElement === document.body")
        if target.evaluate("one => one === document.activeElement"):
            return
    raise AssertionError("the keyboard does not reach it")


def test_the_keyboard_alone_translates_compares_and_downloads(page: Any, run: Run) -> None:
    page.get_by_role("combobox", name="Model").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    with page.expect_file_chooser() as choosing:
        tab_to(page, page.get_by_role("button", name="Choose files").first)
        page.keyboard.press("Enter")
    choosing.value.set_files([str(path) for path in sorted(run.study.rglob("*.dcm"))])
    page.locator("[data-shown=source]").wait_for()
    go = page.get_by_role("button", name="Translate", exact=True)
    wait_for(go.is_enabled)
    tab_to(page, go)
    page.keyboard.press("Enter")
    page.locator("[data-shown=both]").wait_for()
    tab_to(page, page.get_by_role("combobox", name="View", exact=True))
    page.keyboard.press("b")  # Blend
    dial = page.get_by_role("slider", name="Source – synthetic")
    tab_to(page, dial)
    page.keyboard.press("End")
    assert dial.input_value() == "100"
    tab_to(page, page.locator("figure.source canvas"))
    beside = page.locator("figure.result output")
    page.keyboard.press("PageUp")
    page.keyboard.press("PageUp")
    wait_for(lambda: beside.text_content() != "")
    with page.expect_download() as waiting:
        tab_to(page, page.get_by_role("link", name="Download DICOM (zip)"))
        page.keyboard.press("Enter")
    assert waiting.value.suggested_filename == "synthetic-dicom.zip"


SHOTS = Path(__file__).with_name("screenshots")
SMALL = (400, 275)  # pixels of a stored picture


def shot(page: Any) -> Image.Image:
    """Return the page as a small picture; what differs from run to run is covered."""
    changing = [
        page.locator(one) for one in ("select", "td:nth-child(7)", "li.row", ".thumbs figcaption", ".chart text")
    ]
    large = Image.open(io.BytesIO(page.screenshot(mask=changing, mask_color="#888888", animations="disabled")))
    return large.convert("RGB").resize(SMALL, Image.Resampling.BOX)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_look_as_they_did(browser: Any, run: Run, versions: Path, tmp_path: Path, scheme: str) -> None:
    """Compare small pictures with those in `screenshots/`.

    `MEDSTYLE_SCREENSHOTS=write pytest -m slow tests/studio -k look_as_they_did` writes them anew;
    look at them before they are committed.
    """
    project = make_project(run, versions, tmp_path)
    unlike = {}
    with studio(*project, "--model", str(run.translator)) as running:
        context = browser.new_context(viewport={"width": 1280, "height": 880}, color_scheme=scheme)
        page = context.new_page()
        page.set_default_timeout(LONG)
        page.goto(running.url)
        drop(page, run.study)
        page.locator("[data-shown=source]").wait_for()
        translate(page)
        for name in PAGES:
            opened(page, name)
            page.evaluate("scrollTo(0, 0)")
            page.wait_for_timeout(500)
            seen, file = shot(page), SHOTS / f"{name.lower()}-{scheme}.png"
            if os.environ.get("MEDSTYLE_SCREENSHOTS") == "write":
                SHOTS.mkdir(exist_ok=True)
                seen.quantize(64).save(file, optimize=True)
            stored = Image.open(file).convert("RGB")
            apart = np.abs(np.asarray(seen, np.float32) - np.asarray(stored, np.float32)).max(axis=2)
            unlike[name] = float((apart > 48).mean())
        context.close()
    assert max(unlike.values()) < 0.03, unlike


def test_the_page_is_small_and_asks_no_other_host(browser: Any, running: Running, run: Run) -> None:
    context = browser.new_context()
    page = context.new_page()
    asked: list[Any] = []
    page.on("response", lambda answer: asked.append(answer))  # noqa: PLW0108 - a method of C is no handler
    page.goto(running.url)
    page.get_by_role("heading", name="Translate", level=1).wait_for()
    drop(page, run.study)
    page.locator("[data-shown=source]").wait_for(timeout=LONG)
    size = sum(len(one.body()) for one in asked if "/web/" in one.url or one.url == running.url)
    hosts = {one.url.split("/")[2] for one in asked if one.url.startswith("http")}
    context.close()
    assert hosts == {running.url.split("/")[2]}
    assert 2e6 < size < 4e6


def test_names_that_look_like_paths_are_harmless(running: Running) -> None:
    visitor, before = Visitor(running), set(running.sessions)
    visitor = Visitor(running)
    names = ("../../../../evil", "%2e%2e/%2e%2e/evil", "/etc/evil", "a/../../evil", "..%5c..%5cevil", "%00", "a/b", "a")
    made = visitor.ask("POST", "api/sets").json()["set"]
    for name in (*names, *names):
        answer = visitor.ask("PUT", f"api/sets/{made}", data=b"x", headers={"X-Name": name})
        assert answer.status_code == 204, name
    [folder] = set(running.sessions) - before
    files = [path for path in running.temporary.rglob("*") if path.is_file() and path.read_bytes() == b"x"]
    assert len(files) == 2 * len(names)
    assert all(path.is_relative_to(folder / "sets" / made) for path in files)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("../../../evil.txt", "/tmp/evil.txt", "a/b.txt", "a/b.txt/c.txt"):
            archive.writestr(name, "zipped")
    made, _ = visitor.upload("study.zip", packed.getvalue())
    job = visitor.ask("POST", "api/jobs/inspect", json={"set": made}).json()["name"]
    events = visitor.ask("GET", f"api/jobs/{job}/events").text
    assert '"state": "done"' in events
    files = [path for path in running.temporary.rglob("*") if path.is_file() and path.read_bytes() == b"zipped"]
    assert len(files) == 4
    assert all(path.is_relative_to(folder / "sets" / made) for path in files)


def test_nobody_sees_the_files_or_jobs_of_another_session(running: Running) -> None:
    one, other = Visitor(running), Visitor(running)
    made, _ = one.upload("a.txt", b"x")
    job = one.ask("POST", "api/jobs/inspect", json={"set": made}).json()["name"]
    assert other.ask("GET", f"api/jobs/{job}/events").status_code == 404
    assert other.ask("DELETE", f"api/jobs/{job}").status_code == 404
    assert other.ask("POST", "api/jobs/inspect", json={"set": made}).status_code == 404
    assert other.ask("PUT", f"api/sets/{made}", data=b"x").status_code == 404
    assert one.ask("GET", f"api/jobs/{job}/files/..%2f..%2fetc").status_code == 404
    assert requests.post(f"{running.url}api/sets", timeout=30).status_code == 403
    assert requests.get(f"{running.url}api/jobs/{job}/events", timeout=30).status_code == 401


def test_what_is_too_large_is_refused_and_leaves_nothing(running: Running) -> None:
    visitor, before = Visitor(running), set(running.sessions)
    visitor = Visitor(running)
    _, answer = visitor.upload("large", iter([b"x" * (1 << 20)] * 30))  # without a length
    assert answer.status_code == 413
    assert "more than 24 MiB in this session" in answer.json()["error"]
    made = visitor.ask("POST", "api/sets").json()["set"]
    claimed = {"X-Name": "large", "Content-Length": str(2 << 30)}
    request = requests.Request("PUT", f"{running.url}api/sets/{made}", headers=claimed).prepare()
    cookies = "; ".join(f"{name}={value}" for name, value in visitor.session.cookies.items())
    request.headers.update({**visitor.session.headers, "Cookie": cookies})
    request.headers["Content-Length"] = str(2 << 30)
    assert visitor.session.send(request, timeout=30).status_code == 413
    [folder] = set(running.sessions) - before
    assert not [path for path in folder.rglob("*") if path.is_file()]
    _, answer = visitor.upload("small", b"x" * (20 << 20))
    assert answer.status_code == 204  # what was refused does not count


@pytest.mark.slow
def test_memory_does_not_grow_with_uploads(running: Running) -> None:
    """200 sessions with an upload each, and in one session 200 questions."""

    def some(count: int) -> int:
        for _ in range(count):
            visitor = Visitor(running)
            made, answer = visitor.upload("a.nii", b"x" * (4 << 20))
            assert answer.status_code == 204
            job = visitor.ask("POST", "api/jobs/inspect", json={"set": made}).json()["name"]
            assert "done" in visitor.ask("GET", f"api/jobs/{job}/events").text
            assert visitor.ask("DELETE", "api/session").status_code == 204
        return running.memory

    before = some(40)
    assert some(160) - before < 16 << 20
    visitor, known = Visitor(running), set(running.sessions)
    visitor = Visitor(running)
    [folder] = set(running.sessions) - known
    jobs = [visitor.ask("POST", "api/jobs/ledger", json={}).json()["name"]]
    for _ in range(200):
        assert "done" in visitor.ask("GET", f"api/jobs/{jobs[-1]}/events").text
        jobs.append(visitor.ask("POST", "api/jobs/ledger", json={}).json()["name"])
    assert len(list((folder / "jobs").iterdir())) <= KEPT + 2
    assert visitor.ask("GET", f"api/jobs/{jobs[0]}/events").status_code == 404
    assert "done" in visitor.ask("GET", f"api/jobs/{jobs[-10]}/events").text


@pytest.mark.slow
def test_two_gigabytes_are_streamed_to_the_disk(tmp_path: Path, run: Run) -> None:
    size, block = 2 << 30, b"x" * (1 << 20)
    with studio(tmp_path, here(), "--model", str(run.translator), "--upload-mb", "2049") as running:
        visitor = Visitor(running)
        visitor.upload("warm", block * 20)
        before, most = running.memory, 0

        def blocks() -> Iterator[bytes]:
            nonlocal most
            for _ in range(size // len(block) - 20):
                most = max(most, running.memory)
                yield block

        _, answer = visitor.upload("large", blocks())
        assert answer.status_code == 204
        assert most - before < 64 << 20
        [file] = [path for path in running.temporary.rglob("*") if path.is_file() and path.stat().st_size > 1 << 30]
        assert file.stat().st_size == size - 20 * len(block)


def test_another_address_asks_for_the_token(project: tuple[Path, dict[str, str]], run: Run) -> None:
    with studio(*project, "--host", "0.0.0.0", "--model", str(run.translator)) as running:
        port = running.url.split(":")[2].strip("/")
        token = running.link.partition("token=")[2]
        url = f"http://127.0.0.1:{port}/"
        assert len(token) >= 43
        for wrong in ("", "?token=", "?token=wrong", f"?token={token[:-1]}"):
            assert requests.get(url + wrong, timeout=30).status_code == 401
        session = requests.Session()
        assert "medstyle" in session.get(f"{url}?token={token}", timeout=30).text
        assert session.get(f"{url}web/app.js", timeout=30).status_code == 200
        own = {"Origin": url.rstrip("/")}
        assert session.post(f"{url}api/sets", headers=own, timeout=30).status_code == 200
        assert session.post(f"{url}api/sets", headers={"Origin": "http://evil.example"}, timeout=30).status_code == 403


def test_a_studio_that_is_killed_leaves_nothing_to_the_next_one(tmp_path: Path, run: Run) -> None:
    with studio(tmp_path, here(), "--model", str(run.translator)) as running:
        visitor = Visitor(running)
        visitor.upload("a", b"of a patient")
        running.end(signal.SIGKILL)
        [left] = running.temporary.glob("medstyle-studio-*")
        shutil.copytree(left, tmp_path / "kept")
        env = {**here(), "TMPDIR": str(running.temporary)}
        with studio(tmp_path, env, "--model", str(run.translator)) as again:
            shutil.copytree(tmp_path / "kept", again.temporary / "medstyle-studio-left")
        with studio(tmp_path, env, "--model", str(run.translator)):
            pass
    assert "Traceback" not in (tmp_path / "studio.errors").read_text()


@pytest.mark.slow
def test_a_page_outlives_the_server_and_says_what_is_lost(browser: Any, project: Any, run: Run) -> None:
    port, options = free_port(), ("--model", str(run.translator))
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    page = context.new_page()
    page.set_default_timeout(3 * LONG)  # two studios load their libraries
    with studio(*project, "--port", str(port), *options) as running:
        page.goto(running.url)
        drop(page, run.study)
        page.locator("[data-shown=source]").wait_for()
        translate(page)
        running.end(signal.SIGKILL)
        page.get_by_role("link", name="Jobs").click()
        page.get_by_text("this page reconnects by itself").wait_for()
    with studio(*project, "--port", str(port), *options):
        page.get_by_text("to go on, drop it again").wait_for()
        page.get_by_role("region", name="Studies").or_(page.get_by_text("No inbox is here")).or_(
            page.get_by_text("Nothing is in")).first.wait_for()  # fmt: skip
        page.get_by_role("link", name="Translate").click()
        page.get_by_text("These files are deleted; drop them again.").wait_for()
        page.wait_for_timeout(500)
        assert pixels(page, "result").std() > 20  # what was shown is still there
        assert page.get_by_role("button", name="Translate", exact=True).is_disabled()
        assert page.get_by_role("link", name="Download DICOM").count() == 0
        drop(page, run.study)
        page.locator("[data-shown=source]").wait_for()
        translate(page)
    context.close()


def test_a_session_ends_by_itself(tmp_path: Path, run: Run) -> None:
    with studio(tmp_path, here(), "--model", str(run.translator), "--idle-minutes", "0.02") as running:
        visitor = Visitor(running)
        visitor.upload("a", b"of a patient")
        assert running.sessions
        wait_for(lambda: not running.sessions)
        assert "reload the page" in visitor.ask("POST", "api/sets").json()["error"]
        running.end()
        assert not list(running.temporary.glob("medstyle-studio-*"))


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_told_in_words_and_harms_no_other(running: Running, name: str) -> None:
    """The set of `medstyle serve`, each under the name that takes it furthest."""
    content = HOSTILE[name][0]()
    suffix = "zip" if "a zip" in name or "called DICOM" in name else "npy" if "NPY" in name else "dcm"
    visitor, other = Visitor(running), Visitor(running)
    made, answer = visitor.upload(f"file.{'png' if name.startswith('a picture for') else suffix}", content)
    assert answer.status_code == 204
    for kind in ("inspect", "translate"):
        ended = visitor.job(kind, set=made)
        said = ended["error"] or json.dumps(ended["result"])
        assert "unexpected" not in said
        assert "ended its process" not in said
        assert str(running.temporary) not in said
        assert ended["state"] == "failed" or kind == "inspect"
        if kind == "inspect" and ended["state"] == "done":
            assert not any(one["use"].startswith("used as") for one in ended["result"]["images"])
    assert visitor.ask("DELETE", "api/session").status_code == 204
    assert other.job("models")["state"] == "done"


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("inspect", {"set": None}),
        ("view", {"model": 5}),
        ("translate", {"weights": "x", "more": 1}),
        ("difference", {"job": "../../../etc", "number": -1}),
        ("model", {"name": "../../etc"}),
        ("model", {"name": 5}),
        ("model", {"folder": "/etc"}),
        ("training", {"name": "0x1"}),
        ("retry", {"key": "../derived"}),
        ("promote", {"version": "no"}),
    ],
)
def test_arguments_that_no_page_sends_are_refused_in_words(running: Running, kind: str, arguments: dict) -> None:
    visitor = Visitor(running)
    made, _ = visitor.upload("a", b"x")
    if kind in ("inspect", "view", "translate", "difference"):
        arguments = {"set": made, **{name: value for name, value in arguments.items() if name != "set"}}
        arguments |= {"item": ["a"]} if kind in ("inspect", "view") else {}
    ended = visitor.job(kind, **arguments)
    assert ended["state"] == "failed"
    assert "unexpected" not in ended["error"]
    assert visitor.ask("POST", f"api/jobs/{kind}", data=b"[1]").status_code == 400
    assert visitor.ask("POST", "api/jobs/__class__", json={}).status_code == 404


def test_who_leaves_while_sending_leaves_nothing(running: Running) -> None:
    known = set(running.sessions)
    visitor = Visitor(running)
    [folder] = set(running.sessions) - known
    made = visitor.ask("POST", "api/sets").json()["set"]
    host = running.url.split("/")[2]
    cookies = "; ".join(f"{name}={value}" for name, value in visitor.session.cookies.items())
    lines = [f"PUT /api/sets/{made} HTTP/1.1", f"Host: {host}", f"Origin: http://{host}", f"Cookie: {cookies}",
             "X-Name: half", "Content-Length: 1000000"]  # fmt: skip
    with socket.create_connection(("127.0.0.1", int(host.split(":")[1]))) as leaving:
        leaving.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + b"x" * 1000)
        wait_for(lambda: [path for path in folder.rglob("half") if path.is_file()])
    wait_for(lambda: not [path for path in folder.rglob("half") if path.is_file()])
    wait_for(lambda: visitor.ask("POST", "api/session").json()["bytes"] == 0)


def test_open_connections_and_nonsense_leave_room_for_the_page(running: Running) -> None:
    """More than the process has descriptors: silent, in the middle of a header, and nonsense."""
    address = ("127.0.0.1", int(running.url.split(":")[2].strip("/")))
    for said in (b"", b"GET / HTTP/1.1\r\nHost: ", b"nonsense\r\n\r\n"):
        with contextlib.ExitStack() as stack:
            for _ in range(DESCRIPTORS + 44):
                one = stack.enter_context(socket.create_connection(address))
                with contextlib.suppress(OSError):
                    one.sendall(said)
            assert Visitor(running).job("models")["state"] == "done"


@pytest.mark.slow
@pytest.mark.skipif(not CASES, reason="the conformance set beside the project is absent")
def test_awkward_dicom_is_shown_or_refused_in_words(running: Running) -> None:
    for case in CASES:
        visitor = Visitor(running)
        made = visitor.ask("POST", "api/sets").json()["set"]
        for file in sorted(path for path in (CORPUS / case).rglob("*") if path.is_file())[:40]:
            answer = visitor.ask(
                "PUT", f"api/sets/{made}", data=file.read_bytes(), headers={"X-Name": quote(file.name)}
            )
            assert answer.status_code in (204, 413), case
        found = visitor.job("inspect", set=made)
        jobs = [found, visitor.job("translate", set=made)]
        items = found["result"]["images"] if found["state"] == "done" else []
        jobs += [visitor.job("view", set=made, item=one["item"]) for one in items if one["view"]]
        for job in jobs:
            assert "unexpected" not in job["error"], case
            assert "ended its process" not in job["error"], case
        visitor.ask("DELETE", "api/session")
