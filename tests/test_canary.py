"""Patient data does not leak: no canary of the input is in anything that a run keeps or prints."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
import pydicom
import pytest
import requests
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
)

from medstyle import write_volume
from medstyle.dicom.acquired import write_series
from medstyle.dicom.elements import words
from tests.canary import DIGITS, DISGUISES, ELEMENTS, IN_PATH, WORD, find, plant, search, value_of, zipped
from tests.conftest import TINY, Project, write_params
from tests.flows.conftest import wait_for
from tests.inference.conftest import head, make_translator
from tests.studio.conftest import Running, Visitor, studio

pytestmark = [pytest.mark.slow, pytest.mark.ops, pytest.mark.timeout(1500)]

RULES = [
    *TINY["ingest"]["rules"],
    {"domain": "mr_t1", "when": {"path": "*t1.nii*"}},
    {"domain": "mr_t2", "when": {"path": "*t2.mha"}},
    {"domain": "photo", "when": {"path": "*.png"}},
    {"domain": "painting", "when": {"path": "*.jpg"}},
]
# What goes back to the patient with a derived series (docs/reference/dicom.md).
IDENTITY = set(words(
    "PatientName PatientID PatientBirthDate PatientSex PatientWeight StudyInstanceUID StudyDate StudyTime "
    "ReferringPhysicianName StudyID AccessionNumber StudyDescription FrameOfReferenceUID PositionReferenceIndicator "
    "AcquisitionDate AcquisitionTime"
))  # fmt: skip
SHOWS_PATHS = {
    "inspect",
    "inspect --json",
    "translate a NIfTI file",
    "deidentify broken",
}  # a person must learn which file is meant


@pytest.fixture(scope="module")
def slice_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an acquired slice full of canaries."""
    folder = tmp_path_factory.mktemp("slice")
    attributes = {
        "StudyInstanceUID": "1.2",
        "SeriesInstanceUID": "1.2.1",
        "FrameOfReferenceUID": "1.2.9",
        "SeriesDescription": "T1 SE",
        "SeriesNumber": 1,
    }
    write_series(folder, head(), attributes, range(10))
    plant(folder / "0004.dcm", 0, 1, 4)
    return folder / "0004.dcm"


def test_every_field_of_the_input_holds_a_canary(slice_file: Path) -> None:
    data = slice_file.read_bytes()
    assert all(value_of(keyword).encode() in data for keyword in ELEMENTS if keyword != "PatientID")


@pytest.mark.parametrize("disguise", DISGUISES)
def test_the_search_is_not_blind(slice_file: Path, disguise: str) -> None:
    found = find(DISGUISES[disguise](slice_file.read_bytes()))
    for text in (WORD, *DIGITS.values()):
        assert any(text in form for form in found), text


def test_the_search_looks_into_deflated_dicom_and_into_names(slice_file: Path, tmp_path: Path) -> None:
    shutil.copy(slice_file, tmp_path / "a.dcm")
    plant(tmp_path / "a.dcm", 0, 1, 4, DeflatedExplicitVRLittleEndian)
    assert any("!deflated" in form for form in search(tmp_path))
    (tmp_path / f"{IN_PATH}.txt").touch()
    assert any(form.startswith("name ") for form in search(tmp_path))


class Ran(NamedTuple):
    """What came of a whole run on canaries.

    Attributes:
        project: the checkout, with its DVC cache and MLflow store.
        temporary: TMPDIR of every command.
        made: outputs of `translate` and of a second project, for pictures.
        said: name of a command -> what it printed.
        answers: name of a request -> the answer of the server.
        log: what the server printed.
        looked: what the studio answered to its page: name of a job -> its end, name of a download
            -> its bytes.
    """

    project: Path
    temporary: Path
    made: Path
    said: dict[str, str]
    answers: dict[str, requests.Response]
    log: Path
    looked: dict[str, bytes]


@pytest.fixture(scope="module")
def ran(
    copy_project: Callable[[], Project], slice_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ran]:
    """Run the stages, failing commands, an interrupted training and the server on canaries."""
    project, made = copy_project(), tmp_path_factory.mktemp("made")
    temporary = Path(tempfile.mkdtemp(prefix="medstyle-", dir="/tmp"))  # a socket's path is short
    project.more_env = {"TMPDIR": str(temporary), "MEDSTYLE_SECRET": f"{WORD} secret", "COLUMNS": "200"}
    said: dict[str, str] = {}

    def say(name: str, command: str, code: int = 0, folder: Path = project.folder) -> None:
        done = subprocess.run(
            command.split(), cwd=folder, env=project.env, capture_output=True, text=True, timeout=300, check=False
        )
        said[name] = done.stdout + done.stderr
        assert done.returncode == code, f"{name}: {done.returncode}\n{said[name]}"

    say("acquire", "medstyle acquire")
    mine = project.folder / "data/mine"
    fill(mine, project.folder / "data/raw", slice_file)
    write_params(project.folder, {"ingest": {"source": "data/mine", "rules": RULES}})
    say("inspect", "medstyle inspect data/mine/studies data/mine/nifti data/mine/broken data/mine/unfit", 3)
    say("inspect --json", "medstyle inspect data/mine/studies data/mine/nifti data/mine/broken --json", 3)
    for name, code in (("studies", 0), ("unfit", 0), ("broken", 2)):
        say(f"deidentify {name}", f"medstyle deidentify data/mine/{name} {made / 'clean'}", code)
    say("repro", "dvc repro register")
    say("add", "git add -A")
    say("commit", "git -c user.name=test -c user.email=test@localhost commit -qm run")
    say("promote", "medstyle promote 1 --because test")
    say("models", "medstyle models")
    say("summary", "medstyle summary")

    translate = "medstyle translate {} {} --model models/translator"
    shutil.copytree(mine / f"studies/{IN_PATH}^0", made / "in/study")
    say("translate", translate.format(made / "in/study", made / "derived") + " --uncertainty --force")
    say("translate again", translate.format(made / "in/study", made / "derived") + " --force", 2)
    malform(made / "in/study")
    say("translate malformed numbers", translate.format(made / "in/study", made / "malformed") + " --force --json")
    say("translate what is broken", translate.format("data/mine/broken", made / "broken"), 2)
    shutil.copytree(mine / "nifti", made / "in/nifti")
    say("translate a NIfTI file", translate.format(made / "in/nifti", made / "nifti") + " --force")
    say("translate a NIfTI file again", translate.format(made / "in/nifti", made / "nifti") + " --force", 2)
    (made / "file").touch()  # where a folder is needed: an error that nobody expects quotes the path
    say("translate into a file", translate.format(made / "in/nifti", made / "file") + " --force", 1)
    (made / "in/unlike").mkdir()
    stripes = np.float32(100 + 4000 * (np.indices((8, 48, 48))[2] // 3 % 2))
    write_volume(made / f"in/unlike/{IN_PATH}_t1.nii.gz", head(shape=stripes.shape).with_voxels(stripes))
    say("translate what is unlike", translate.format(made / "in/unlike", made / "unlike"), 2)
    broken = {"ingest": {"source": "data/mine/broken", "rules": RULES}}
    write_params(made, broken).rename(project.folder / "broken.yaml")
    say("ingest what is broken", "medstyle ingest --params broken.yaml", 2)

    pictures = made / "pictures"
    fill_pictures(pictures / "data/mine")
    write_params(pictures, {"ingest": {"source": "data/mine", "rules": RULES}})
    say("ingest pictures", "medstyle ingest", folder=pictures)
    make_translator(("photo", "painting")).save(pictures / "models/translator")
    (pictures / "out").mkdir()
    picture = f"data/mine/{IN_PATH}.png"
    say("translate a picture", translate.format(picture, "out/made.png") + " --force", folder=pictures)

    interrupt_training(project)
    said["repro after all"] = project.run("dvc", "repro", "register")
    with served(project, made / "log") as url:
        answers = ask_all(url, mine, made)
    with studio(project.folder, project.env, "--model", "models/translator") as running:
        looked = look(running, mine)
        running.end()
        left = [path for path in running.temporary.rglob("*") if path.is_file()]
        looked["left in the temporary folder"] = "\n".join(map(str, left)).encode()
    yield Ran(project.folder, temporary, made, said, answers, made / "log", looked)
    shutil.rmtree(temporary, ignore_errors=True)


def fill(mine: Path, raw: Path, slice_file: Path) -> None:
    """Make data of one's own in ``mine``: phantom studies with canaries, a NIfTI study, and what
    must be refused."""
    for subject, study in enumerate(sorted((raw / "studies").iterdir())):
        for series, folder in enumerate(sorted(study.iterdir())):
            out = mine / f"studies/{IN_PATH}^{subject}/{IN_PATH} {series}"
            out.mkdir(parents=True)
            syntaxes = {(1, 0): ImplicitVRLittleEndian, (2, 1): DeflatedExplicitVRLittleEndian}
            for number, file in enumerate(sorted(folder.iterdir())):
                shutil.copy(file, out / f"{IN_PATH}_{number}.dcm")
                plant(out / f"{IN_PATH}_{number}.dcm", subject, series, number, syntaxes.get((subject, series)))
        shutil.copytree(raw / f"truth/{study.name}", mine / f"truth/{WORD} PatientID {subject}")
    fill_nifti(mine / f"nifti/{IN_PATH}^9", raw / "truth/PHANTOM-0000")
    fill_refused(mine, slice_file)


def fill_nifti(folder: Path, truth: Path) -> None:
    import nibabel
    import SimpleITK as sitk

    folder.mkdir(parents=True)
    image = nibabel.load(truth / "mr_t1.nii.gz")
    for field, size in (("descrip", 80), ("aux_file", 24), ("intent_name", 16), ("db_name", 18)):
        image.header[field] = f"{WORD} {field}"[:size].encode()
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", f"{WORD} extension".encode()))
    image.set_sform(image.affine @ np.diag([1.0001, 1, 1, 1]), 1)  # not quite what qform says
    nibabel.save(image, folder / f"{IN_PATH}_t1.nii.gz")
    other = sitk.ReadImage(str(truth / "mr_t2.nii.gz"))
    other.SetMetaData("PatientName", f"{WORD}^NAME")
    sitk.WriteImage(other, str(folder / f"{IN_PATH}_t2.mha"))


def fill_refused(mine: Path, slice_file: Path) -> None:
    """Write files that are refused, each for a reason of its own.

    Those in ``unfit`` are images nevertheless.
    """
    broken = mine / "broken"

    def dicom(folder: str, name: str, old: bytes = b"", new: bytes = b"", **values: Any) -> Path:
        """Write a slice with other ``values``, and other bytes where pydicom would not write what
        is wanted."""
        path = mine / folder / f"{IN_PATH} {name}.dcm"
        path.parent.mkdir(exist_ok=True)
        shutil.copy(slice_file, path)
        plant(path, 20 + len(list(mine.glob("*/*.dcm"))), 1, 1)
        dataset = pydicom.dcmread(path)
        for keyword, value in values.items():
            setattr(dataset, keyword, value)
        dataset.save_as(path, enforce_file_format=True)
        data = path.read_bytes()
        assert old in data
        assert len(old) == len(new)
        path.write_bytes(data.replace(old, new))
        return path

    word, uid = WORD.encode(), f"2.25.{DIGITS['UI']}"
    dicom("unfit", "patient", PatientID="")
    latin = {"SpecificCharacterSet": "ISO_IR 100", "SeriesDescription": f"é {WORD}"}
    dicom("unfit", "charset", b"ISO_IR 100", word + b"  ", **latin)
    dicom("broken", "burned in", BurnedInAnnotation="YES")
    dicom("broken", "class", SOPClassUID=f"{uid}.5")
    dicom("broken", "spacing", b"11.11111", word, PixelSpacing=["11.11111", "11.11111"])
    dicom("broken", "frames", b"11111111", word, NumberOfFrames="11111111")
    dicom("broken", "syntax", b"1.2.840.10008.1.2.1\0", f"{uid}.99\0".encode())
    cut = dicom("broken", "cut")
    cut.write_bytes(cut.read_bytes()[:-2000])
    codestream = dicom("broken", "codestream")
    dataset = pydicom.dcmread(codestream)
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PixelData = encapsulate([f"{WORD} is no codestream".encode().ljust(4096, b"\0")])
    dataset.save_as(codestream, enforce_file_format=True)
    (broken / f"{IN_PATH}.dcm").write_bytes(f"{WORD} is no DICOM ".encode() * 40)
    (broken / f"{IN_PATH} report.txt").write_text(f"{WORD} has a headache")
    for name in ("t1.nii", "t1.nii.gz"):
        path = broken / f"{IN_PATH} cut {name}"
        write_volume(path, head(), f"{WORD} descrip")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (broken / f"{IN_PATH}.nrrd").write_text(f"NRRD0004\n# {WORD}\ntype: float\nname:={WORD}\ndata file: {WORD}.raw\n")
    (broken / f"{IN_PATH}.mha").write_text(f"ObjectType = Image\nNDims = {WORD}\n")
    for suffix in ("png", "jpg", "tif", "mp4"):
        (broken / f"{IN_PATH}.{suffix}").write_text(f"{WORD} is no picture")


def fill_pictures(folder: Path) -> None:
    """Write a PNG and a JPEG with notes of every kind, and one that is cut short."""
    from PIL import Image, PngImagePlugin

    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    notes = PngImagePlugin.PngInfo()
    notes.add_text("Comment", f"{WORD} tEXt")
    notes.add_text("Author", f"{WORD} zTXt", zip=True)
    notes.add_itxt("Title", f"{WORD} iTXt", zip=True)
    exif = Image.Exif()
    exif[0x010E], exif[0x013B] = f"{WORD} description", f"{WORD} artist"
    Image.fromarray(pixels).save(folder / f"{IN_PATH}.png", pnginfo=notes, exif=exif)
    Image.fromarray(pixels).save(folder / f"{IN_PATH}.jpg", exif=exif, comment=f"{WORD} comment".encode())
    whole = (folder / f"{IN_PATH}.jpg").read_bytes()
    (folder / f"{IN_PATH} cut.jpg").write_bytes(whole[:-300])


def malform(study: Path) -> None:
    """Put words where the T1 series of a study has numbers that the image does not need."""
    for path in next(path for path in sorted(study.iterdir()) if path.is_dir()).iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientWeight, dataset.SliceThickness, dataset.SeriesNumber = "11.111111", "22.222222", "333333333"
        dataset.save_as(path)
        data = path.read_bytes()
        for number in (b"11.111111", b"22.222222", b"333333333"):
            assert data.count(number) == 1
            data = data.replace(number, f"{WORD}X".encode())
        path.write_bytes(data)


def interrupt_training(project: Project) -> None:
    """Kill a long training, so that its state stays behind."""
    training = {**TINY["train"], "training": {**TINY["train"]["training"], "steps": 100_000}}
    parameters = write_params(project.folder / "data", {"train": training})
    process = project.start("medstyle", "train", "--params", str(parameters))
    states = project.folder / ".medstyle/train"
    while not list(states.glob("*/step-*.pt")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@contextmanager
def served(project: Project, log: Path) -> Iterator[str]:
    """Serve the champion as the README says; gives the address for requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as file:
        process = subprocess.Popen(
            ["medstyle", "serve", "--port", str(port), "--audit", "audit.jsonl"], cwd=project.folder, env=project.env,
            stdout=file, stderr=file, start_new_session=True,
        )  # fmt: skip

    def ready() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            return requests.get(f"http://127.0.0.1:{port}/ping", timeout=2).ok
        except requests.ConnectionError:
            return False

    try:
        wait_for(ready, 180)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def ask_all(url: str, mine: Path, made: Path) -> dict[str, requests.Response]:
    """Send images that fit, images that do not, and requests that are none."""
    [series, *_] = sorted((mine / f"studies/{IN_PATH}^0").iterdir())
    [malformed, *_] = sorted((made / "in/study").iterdir())
    structure = io.BytesIO()
    np.save(structure, np.zeros(4, [(WORD, "f4")]))
    images = {
        "slice": min(series.iterdir()).read_bytes(),
        "malformed numbers": min(malformed.iterdir()).read_bytes(),
        "series": zipped_folder(series),
        "nifti": next(mine.rglob("*_t1.nii.gz")).read_bytes(),
        "text": f"{WORD} is no image ".encode() * 20,
        "zip of text": zipped(f"{IN_PATH}.dcm", f"{WORD} is no image".encode()),
        "structured NPY": structure.getvalue(),
        "picture": (made / f"pictures/data/mine/{IN_PATH}.png").read_bytes(),
        **{f"broken: {path.name}": path.read_bytes() for path in sorted((mine / "broken").iterdir())},
    }
    answers = {}
    for name, image in images.items():
        table = {"columns": ["image"], "data": [[base64.b64encode(image).decode()]]}
        answers[name] = requests.post(url, json={"dataframe_split": table}, timeout=120)
    table = {"columns": [WORD], "data": [[WORD]]}
    answers["request: another column"] = requests.post(url, json={"dataframe_split": table}, timeout=60)
    table = {"columns": ["image"], "data": [[f"{WORD} is no base64!"]]}
    answers["request: no base64"] = requests.post(url, json={"dataframe_split": table}, timeout=60)
    headers = {"Content-Type": "application/json"}
    answers["request: no JSON"] = requests.post(url, data=f"{WORD} {{", headers=headers, timeout=60)
    return answers


def look(running: Running, mine: Path) -> dict[str, bytes]:
    """Use the studio as its page does: what fits, what does not, and what fails."""
    looked: dict[str, bytes] = {}
    for name in (f"studies/{IN_PATH}^0", f"nifti/{IN_PATH}^9", "broken"):
        visitor = Visitor(running)
        made = visitor.ask("POST", "api/sets").json()["set"]
        for path in sorted(path for path in (mine / name).rglob("*") if path.is_file()):
            headers = {"X-Name": quote(path.relative_to(mine).as_posix())}
            visitor.ask("PUT", f"api/sets/{made}", data=path.read_bytes(), headers=headers).raise_for_status()
        jobs = {"inspect": visitor.job("inspect", set=made)}
        jobs["translate"] = visitor.job("translate", set=made, force=True, uncertainty=True)
        images = jobs["inspect"]["result"].get("images", [])
        jobs |= {f"view {n}": visitor.job("view", set=made, item=one["item"]) for n, one in enumerate(images)}
        if jobs["translate"]["state"] == "done":
            one = jobs["translate"]["result"]["images"][0]
            about = {"item": one["item"], "number": 0, "target": one["target"], "job": jobs["translate"]["name"]}
            jobs["difference"] = visitor.job("difference", set=made, real=made, **about)
        for kind, job in jobs.items():
            looked[f"{name} {kind}"] = json.dumps(job).encode()
            files = [str(one) for image in job["result"].get("images", [job["result"]]) for one in image.values()]
            files += [one["file"] for one in job["result"].get("downloads", [])]
            for file in files:
                answer = visitor.ask("GET", f"api/jobs/{job['name']}/files/{quote(file, safe='')}")
                if answer.status_code == 200:
                    looked[f"{name} {kind}: {file}"] = answer.content
    for kind in ("models", "ledger", "data", "drift"):
        looked[kind] = json.dumps(visitor.job(kind)).encode()
    looked["model"] = json.dumps(visitor.job("model", name="local")).encode()
    return looked


def zipped_folder(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.iterdir():
            archive.write(path, f"{IN_PATH}/{path.name}")
    return buffer.getvalue()


def test_the_run_went_as_far_as_it_should(ran: Ran) -> None:
    report = json.loads((ran.project / "reports/ingest.json").read_text())
    assert report["used"] == {"mr_t1": 6, "mr_t2": 6}
    codes = {row["code"] for rows in (report["refused"], report["files"]) for row in rows}
    assert codes >= set(words("E_BURNED_IN E_DECODE E_NO_RULE E_NOT_DICOM E_SOPCLASS E_SUBJECT E_TRUNCATED"))
    assert "E_OUT_OF_DISTRIBUTION" in ran.said["translate what is unlike"]
    assert "Traceback" not in "".join(text for name, text in ran.said.items() if name != "translate into a file")
    assert list((ran.project / ".medstyle/train").rglob("*.pt"))
    assert (ran.project / "mlflow.db").is_file()
    assert (ran.project / "audit.jsonl").is_file()
    good = {name for name, answer in ran.answers.items() if answer.status_code == 200}
    assert good == {"slice", "malformed numbers", "series", "nifti"}
    assert {answer.status_code for name, answer in ran.answers.items() if name not in good} == {400}


def test_nothing_that_is_kept_holds_a_canary(ran: Ran) -> None:
    raw, state = ran.project / "data/mine", ran.project / ".medstyle/dvc"
    assert search(raw)
    assert search(ran.project, raw, state) == []
    assert search(ran.temporary) == []
    pictures = ran.made / "pictures"
    assert search(pictures, pictures / "data/mine") == []


def test_deidentified_copies_hold_no_canary(ran: Ran) -> None:
    raw = [path for kind in ("studies", "unfit") for path in (ran.project / "data/mine" / kind).rglob("*.dcm")]
    assert len(list((ran.made / "clean").glob("sub-*/*/*.dcm"))) == len(raw)
    assert search(ran.made / "clean") == []


def test_dvc_knows_the_names_of_raw_files_in_the_project_alone(ran: Ran) -> None:
    raw, state = ran.project / "data/mine", ran.project / ".medstyle/dvc"
    assert search(state)
    names = sorted((p.relative_to(ran.project).as_posix().encode() for p in raw.rglob("*")), key=len, reverse=True)
    for path in state.rglob("*.*"):
        data = path.read_bytes() if path.is_file() else b""
        for name in names:
            data = data.replace(name, b"")
        assert find(data, path.name) == []


def test_nothing_that_is_said_holds_a_canary(ran: Ran) -> None:
    printed = {name: text.replace(IN_PATH, "") if name in SHOWS_PATHS else text for name, text in ran.said.items()}
    printed["log of the server"] = ran.log.read_text()
    assert [form for name, text in printed.items() for form in find(text.encode(), name)] == []


def test_no_answer_holds_a_canary_but_the_image_that_goes_back(ran: Ran) -> None:
    for name, answer in ran.answers.items():
        text = answer.text
        if name in ("slice", "malformed numbers", "series"):
            [row] = answer.json()["predictions"]
            image = base64.b64decode(row.pop("image"))
            for data in unzipped(image) if name == "series" else [image]:
                assert_identity_alone(data)
            text = json.dumps(row)
        assert find(text.encode(), name) == []
        assert str(ran.temporary) not in text


def test_the_studio_shows_names_of_files_to_who_dropped_them_and_keeps_nothing(ran: Ran) -> None:
    """The list of refused files names them; what the log holds is searched with the project."""
    whole = {name for name in ran.looked if "translate:" in name or "difference:" in name}
    assert {name.rpartition(": ")[2] for name in whole} >= {"dicom", "0-synthetic.nii.gz", "difference.nii.gz"}
    assert (ran.project / "studio.errors").is_file()
    assert ran.looked.pop("left in the temporary folder") == b""
    for name, content in ran.looked.items():
        if name.endswith("translate: dicom"):
            for data in unzipped(content):
                assert_identity_alone(data)
        elif name.endswith(": source.mp4"):  # a clip is shown to who dropped it as it is
            assert content == (ran.project / f"data/mine/broken/{IN_PATH}.mp4").read_bytes()
        elif re.search(r" (inspect|translate|view \d+)$", name):  # says in words which file is meant
            assert IN_PATH.encode() in content or name != "broken inspect"
            assert find(content.replace(IN_PATH.encode(), b""), name) == []
        else:
            assert find(content, name) == [], name


def test_a_derived_series_holds_who_it_is_of_and_no_more(ran: Ran) -> None:
    files = [path for name in ("derived", "malformed") for path in sorted((ran.made / name).rglob("*.dcm"))]
    assert len(files) == 8 + 1 + 8, "a series with its map of uncertainty, and a series"
    for path in files:
        assert_identity_alone(path.read_bytes())
        assert find(path.relative_to(ran.made).as_posix().encode()) == []
    made = list((ran.made / "nifti").rglob("*.*"))
    assert made
    assert [form for path in made if path.is_file() for form in find(path.read_bytes(), path.name)] == []


def unzipped(data: bytes) -> list[bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert find("\n".join(archive.namelist()).encode()) == []
        return [archive.read(name) for name in archive.namelist()]


def drop_references(dataset: pydicom.Dataset) -> None:
    """Remove the UIDs of the images and series that the file, or a frame of it, refers to."""
    for element in dataset:
        for item in element.value if element.VR == "SQ" else ():
            drop_references(item)
            item.pop("ReferencedSOPInstanceUID", None)
            if element.keyword == "ReferencedSeriesSequence":
                item.pop("SeriesInstanceUID", None)
            item.pop("UID", None)  # of the source series, in a report
            item.pop("StudyInstanceUID", None)  # that of the report itself


def assert_identity_alone(data: bytes) -> None:
    """Take away what may go back to the patient: no canary is left in the bytes of the file."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    assert dataset.PatientID == f"{WORD} PatientID 0"
    for keyword in IDENTITY & {element.keyword for element in dataset}:
        delattr(dataset, keyword)
    assert dataset.Modality == "SR" or dataset.SourceImageSequence
    drop_references(dataset)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    assert find(buffer.getvalue()) == []


def test_the_door_says_nothing_of_a_patient(tmp_path: Path) -> None:
    """Neither of what it takes, nor of what it refuses, nor of archives that fail."""
    pytest.importorskip("pynetdicom")
    from tests.door.archive import Door, free_port, running, soon

    sent = tmp_path / "sent"
    about = {"StudyInstanceUID": "1.2", "SeriesInstanceUID": "1.2.1", "FrameOfReferenceUID": "1.2.9"}
    write_series(sent, head(), {**about, "SeriesDescription": "T1 SE", "SeriesNumber": 1}, range(10))
    for number, path in enumerate(sorted(sent.iterdir())):
        plant(path, 0, 1, number)
    make_translator().save(tmp_path / "model")
    nowhere = f"http://127.0.0.1:{free_port()}/{WORD}"
    routes = [
        {"kind": "dicom", "name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": free_port()},
        {"kind": "dicomweb", "name": "web", "url": nowhere},
    ]
    port = free_port()
    polls = [{"url": nowhere, "every_s": 0.5}]
    door = Door(tmp_path / "door", tmp_path / "model", port, callers=["SENDER"], routes=routes, polls=polls)
    with running(door, translating=True):
        send_all(port, sorted(sent.iterdir()))
        soon(lambda: list(door.station.glob("done/*/*")))
        soon(
            lambda: {line.get("route") for line in door.said() if line["event"] == "delivery failed"} == {"pacs", "web"}
        )
        shown = requests.get(f"http://127.0.0.1:{door.metrics}/metrics", timeout=5).content
    assert {line["event"] for line in door.said()} >= {"instance refused", "received", "delivery failed", "poll failed"}
    assert "Traceback" not in door.log.read_text()
    for said in (shown, door.log.read_bytes(), door.audit.read_bytes()):
        assert find(said) == []
    station = door.station
    assert search(station, station / "done", station / "derived") == []
    names = [path.relative_to(station).as_posix() for path in station.rglob("*")]
    assert find("\n".join(names).encode()) == []
    files = sorted(station.glob("derived/*/*/*.dcm"))
    assert len(files) == 10 + 1 + 1, "a series, its map and its report"
    for path in files:
        assert_identity_alone(path.read_bytes())


def send_all(port: int, files: list[Path]) -> None:
    """Send images, and what is refused: one without a UID, and from a stranger."""
    from pynetdicom import AE
    from pynetdicom.sop_class import MRImageStorage

    for calling in (f"{WORD}AE", "SENDER"):
        entity = AE(calling)
        entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
        association = entity.associate("127.0.0.1", port, ae_title="MEDSTYLE")
        assert association.is_established == (calling == "SENDER")
    bad = pydicom.dcmread(files[0])
    del bad.StudyInstanceUID
    assert association.send_c_store(bad).Status == 0xC000
    assert [association.send_c_store(pydicom.dcmread(path)).Status for path in files] == [0] * len(files)
    association.release()
