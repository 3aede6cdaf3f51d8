"""`medstyle serve` as a process: promotions under load, limits, records, and its end."""

from __future__ import annotations

import base64
import contextlib
import gc
import hashlib
import io
import json
import re
import select
import signal
import socket
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from medstyle import Volume, write_volume
from tests.conftest import Run
from tests.dicom.test_corpus import CASES, CORPUS
from tests.flows.conftest import wait_for
from tests.registry.conftest import DESCRIPTORS, Service, ask, body_of, registered, serving

pytestmark = pytest.mark.ops
LIMIT_S = 6  # generous for a small image on a busy machine


@pytest.fixture(scope="module")
def env(versions: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return registered(versions, tmp_path_factory.mktemp("registry"))


@pytest.fixture(scope="module")
def service(env, tmp_path_factory) -> Iterator[Service]:
    with serving(env, tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture(scope="module")
def strict(env, tmp_path_factory) -> Iterator[Service]:
    """Serve with an audit and with limits that a test can reach."""
    options = ("--audit", "audit.jsonl", "--body-mb", "8", "--capacity", "3", "--timeout", str(LIMIT_S), "--rows", "5")
    with serving(env, tmp_path_factory.mktemp("strict"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def image(run: Run) -> bytes:
    return min((run.study / "01_mr_t1").iterdir()).read_bytes()


@pytest.fixture(scope="module")
def array(run: Run) -> bytes:
    from medstyle import read_volume

    file = io.BytesIO()
    np.save(file, read_volume(next((run.root / "data/scans").glob("*/mr_t1.nii.gz")), "mr_t1").voxels[4])
    return file.getvalue()


def slow(folder: Path, slices: int) -> bytes:
    """Return a small file whose translation takes long."""
    z, y, x = np.ogrid[:slices, -1:1:320j, -1:1:320j]
    head = 400.0 * ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1) + 100.0 * (x**2 + y**2 < 0.1) + z % 2
    write_volume(folder / "slow.nii.gz", Volume(np.float32(head), np.diag([0.7, 0.7, 2, 1]), "mr_t1"))
    return (folder / "slow.nii.gz").read_bytes()


@contextlib.contextmanager
def load(service: Service, image: bytes, clients: int = 3) -> Iterator[list[requests.Response]]:
    """Ask without a pause from several clients; gives the list that answers are added to."""
    answers: list[requests.Response] = []
    stop = threading.Event()

    def client() -> None:
        while not stop.is_set():
            answers.append(ask(service.url, image))

    with ThreadPoolExecutor(clients) as pool:
        running = [pool.submit(client) for _ in range(clients)]
        try:
            yield answers
        finally:
            stop.set()
    for one in running:
        one.result()


@pytest.mark.slow
def test_promotion_and_rollback_fail_no_request(service: Service, array: bytes) -> None:
    first = service.version
    with load(service, array) as answers:
        wait_for(lambda: len(answers) > 20)
        service.medstyle("promote", "2", "--because", "a test")
        wait_for(lambda: service.version["version"] == "2")
        second, before = service.version, len(answers)
        wait_for(lambda: len(answers) > before + 20)
        service.medstyle("rollback")
        wait_for(lambda: service.version["version"] == "1")
        before = len(answers)
        wait_for(lambda: len(answers) > before + 20)
        wait_for(lambda: len(service.workers) == 1)  # the old ones ended
    assert {answer.status_code for answer in answers} == {200}
    rows = [answer.json()["predictions"][0] for answer in answers]
    assert len({(row["weights_sha256"], row["image"]) for row in rows}) == 2  # each version has one answer
    assert {row["weights_sha256"] for row in rows} == {first["weights_sha256"], second["weights_sha256"]}
    assert rows[-1]["weights_sha256"] == first["weights_sha256"]
    assert second["since"] > first["since"]
    assert second["aliases"] == ["champion"]
    assert service.metric("medstyle_champion_switches_total") == 2


@pytest.mark.slow
def test_a_version_that_fails_the_golden_request_is_never_served(service: Service, array: bytes) -> None:
    with load(service, array, 1) as answers:
        service.medstyle("promote", "3", "--because", "a test")
        wait_for(lambda: service.log("refused"))
        before = len(answers)
        wait_for(lambda: len(answers) > before + 50)  # several looks at the alias later
        assert service.version["version"] == "1"
        service.medstyle("rollback")
    [refused] = service.log("refused")
    assert refused["version"] == "3"
    assert "not finite" in refused["reason"]
    assert {answer.json()["predictions"][0]["weights_sha256"] for answer in answers} == {
        service.version["weights_sha256"]
    }
    assert len(service.workers) == 1


@pytest.mark.slow
def test_a_killed_process_is_started_again_and_costs_no_request(service: Service, array: bytes) -> None:
    with load(service, array) as answers:
        wait_for(lambda: len(answers) > 10)
        [worker] = service.workers
        worker.kill()
        before = len(answers)
        wait_for(lambda: len(answers) > before + 10)
    assert {answer.status_code for answer in answers} == {200}
    [worker] = service.workers
    worker.kill()
    wait_for(lambda: requests.get(f"{service.url}/ping", timeout=5).status_code == 503)
    wait_for(lambda: requests.get(f"{service.url}/ping", timeout=5).status_code == 200)  # though nobody asks


def test_log_and_audit_tell_of_each_image_and_name_nobody(strict: Service, image: bytes) -> None:
    import pydicom

    named = pydicom.dcmread(io.BytesIO(image))
    named.PatientName, named.PatientID, named.StudyDescription = "ZZSECRET^NAME", "ZZSECRETID", "ZZSECRET"
    file = io.BytesIO()
    named.save_as(file)
    before = strict.metric("medstyle_requests_total", status="200")
    good = ask(strict.url, file.getvalue(), file.getvalue())
    bad = ask(strict.url, file.getvalue()[:-20000])
    worse = [ask(strict.url, b"ZZSECRET" * 30), ask(strict.url, b"", params={"ZZSECRET": 1})]
    worse += [ask(strict.url, b"", columns=["ZZSECRET"]), ask(strict.url, b"", params={"seed": "ZZSECRET"})]
    worse.append(requests.post(f"{strict.url}/invocations", data=b"ZZSECRET {", timeout=60))
    assert good.status_code == 200, good.text
    assert {answer.status_code for answer in (bad, *worse)} == {400}
    lines = [json.loads(line) for line in (strict.folder / "audit.jsonl").read_text().splitlines()]
    [line] = [line for line in lines if line["request"] == good.headers["X-Request-ID"]]
    row, (one, two) = good.json()["predictions"][1], line["images"]
    assert one["input_sha256"] == two["input_sha256"] == hashlib.sha256(file.getvalue()).hexdigest()
    assert two["output_sha256"] == hashlib.sha256(base64.b64decode(row["image"])).hexdigest()
    assert (line["status"], line["rows"], line["ood_verdicts"]) == (200, 2, {row["ood_verdict"]: 2})
    told = {key: two[key] for key in ("ood_score", "ood_verdict")}
    assert {**told, "weights_sha256": line["weights_sha256"], "domain": line["domain"]}.items() <= row.items()
    [refused] = [line for line in lines if line["request"] == bad.headers["X-Request-ID"]]
    assert refused.keys() == {"time", "request", "status", "rows", "ood_verdicts", "images"}
    assert refused["images"] == [{"input_sha256": hashlib.sha256(file.getvalue()[:-20000]).hexdigest()}]
    assert strict.metric("medstyle_requests_total", status="200") == before + 1
    assert strict.metric("medstyle_ood_verdicts_total") > 0
    assert strict.metric("medstyle_request_seconds_count") > before
    assert {line["request"] for line in strict.log("request")} >= {a.headers["X-Request-ID"] for a in (good, *worse)}
    places = (strict.folder, strict.temporary)
    written = b"".join(path.read_bytes() for place in places for path in place.rglob("*") if path.is_file())
    assert b"ZZSECRET" not in written
    assert not any("ZZSECRET" in answer.text for answer in (bad, *worse))


def test_without_its_line_in_the_audit_no_answer_is_given(strict: Service, array: bytes) -> None:
    file = strict.folder / "audit.jsonl"
    file.rename(strict.folder / "rotated.jsonl")
    file.mkdir()
    try:
        answer = ask(strict.url, array)
    finally:
        file.rmdir()
    assert answer.status_code == 500
    assert answer.json().keys() == {"error_code", "message"}
    [failure] = wait_for(lambda: strict.log("Exception in ASGI application\n"))
    assert failure["error"] == "IsADirectoryError"
    assert ask(strict.url, array).status_code == 200
    assert len(file.read_text().splitlines()) == 1


def test_a_body_beyond_the_limit_is_refused(strict: Service, array: bytes) -> None:
    large = body_of(bytes(9 << 20))
    sent = requests.post(f"{strict.url}/invocations", data=large, timeout=60)
    streamed = requests.post(f"{strict.url}/invocations", data=iter([large[:1000], large[1000:]]), timeout=60)
    for answer in (sent, streamed):
        assert answer.status_code == 413
        assert str(8 << 20) in answer.json()["message"]
    assert ask(strict.url, array).status_code == 200


def test_who_leaves_or_dawdles_while_sending_harms_nobody(strict: Service, array: bytes) -> None:
    before = strict.metric("medstyle_requests_total", status="400")
    start = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf"
    address = ("127.0.0.1", int(strict.url.rpartition(":")[2]))
    with socket.create_connection(address) as leaving:
        leaving.sendall(start)
    with socket.create_connection(address) as dawdling:
        dawdling.sendall(start)
        assert b" 408 " in dawdling.recv(1000)
    assert ask(strict.url, array).status_code == 200
    assert strict.metric("medstyle_requests_total", status="400") == before + 1
    assert strict.metric("medstyle_requests_held") == 0


def answers_of(sockets: list[socket.socket], drip: bytes) -> list[bytes]:
    """Send ``drip`` to each a second until all are closed; return what each has answered."""
    got = dict.fromkeys(sockets, b"")
    left = list(sockets)
    for _ in range(60):
        for one in left:
            with contextlib.suppress(OSError):
                one.sendall(drip)
        for one in select.select(left, [], [], 0)[0]:
            try:
                more = one.recv(4096)
            except ConnectionResetError:
                more = b""
            got[one] += more
            left = [other for other in left if more or other is not one]
        if not left:
            return list(got.values())
        time.sleep(1)
    raise AssertionError(f"{len(left)} connections are still open")


def test_who_sends_a_byte_a_second_holds_no_place_and_is_cut_off(service: Service, array: bytes) -> None:
    """So many bodies as the capacity, and a header that never ends."""
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    with contextlib.ExitStack() as stack:
        bodies = [stack.enter_context(socket.create_connection(address)) for _ in range(16)]
        header = stack.enter_context(socket.create_connection(address))
        for one in bodies:
            one.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        header.sendall(b"POST /invocations HTTP/1.1\r\nHost: ")
        with ThreadPoolExecutor(1) as pool:
            cut = pool.submit(answers_of, [*bodies, header], b"x")
            assert [ask(service.url, array).status_code for _ in range(3)] == [200] * 3
            assert service.metric("medstyle_requests_held") == 0
            answers = cut.result()
    assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
    assert all(b"connection: close" in answer.lower() for answer in answers)
    assert all(b"10000 bytes/s" in answer for answer in answers[:-1])


def test_open_connections_leave_room_for_others_and_write_no_log(service: Service, array: bytes) -> None:
    """More than the process has descriptors, silent or in the middle of a body."""
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    before = len((service.folder / "log").read_text().splitlines())
    start = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    for said in (b"", start):
        with contextlib.ExitStack() as stack:
            for _ in range(DESCRIPTORS + 44):
                one = stack.enter_context(socket.create_connection(address))
                with contextlib.suppress(OSError):
                    one.sendall(said)
            for path in ("ping", "health", "version") * 3:
                assert requests.get(f"{service.url}/{path}", timeout=5).status_code == 200
            assert ask(service.url, array).status_code == 200
    lines = [json.loads(line) for line in (service.folder / "log").read_text().splitlines()[before:]]
    assert not [line for line in lines if line["event"] != "request"]


def test_one_line_a_second_and_cause(service: Service) -> None:
    address = ("127.0.0.1", int(service.url.rpartition(":")[2]))
    start = time.monotonic()
    for _ in range(200):
        with socket.create_connection(address) as one:
            one.sendall(b"nonsense\r\n\r\n")
            assert b" 400 " in one.recv(1000)
    lines = service.log("Invalid HTTP request received.")
    assert 1 <= len(lines) <= time.monotonic() - start + 1
    time.sleep(1)
    with socket.create_connection(address) as one:
        one.sendall(b"nonsense\r\n\r\n")
        one.recv(1000)
    lines = wait_for(lambda: service.log("Invalid HTTP request received.")[len(lines) :])
    assert len(lines) + sum(one.get("left_out", 0) for one in service.log("Invalid HTTP request received.")) > 100


@pytest.mark.parametrize("form", ["split", "records", "one long row"])
def test_a_body_of_too_many_rows_is_refused_at_once(strict: Service, array: bytes, form: str) -> None:
    """A million rows in 5 MB, and one more than the limit."""
    audit = (strict.folder / "audit.jsonl").read_text()
    many: dict[str, object] = {
        "split": {"dataframe_split": {"columns": ["image"], "data": [[0]] * 1_000_000}},
        "records": {"dataframe_records": [{}] * 1_000_000},
        "one long row": {"dataframe_split": {"columns": ["image"], "data": [[0] * 1_000_000]}},
    }
    with ThreadPoolExecutor(1) as pool:
        body = json.dumps(many[form])
        asked = pool.submit(requests.post, f"{strict.url}/invocations", data=body, timeout=60)
        while not asked.done():
            assert requests.get(f"{strict.url}/ping", timeout=5).status_code == 200
    few = ask(strict.url, *[array] * 6)
    for answer in (asked.result(), few):
        assert answer.status_code == 413, answer.text
        assert "more than 5 rows" in answer.json()["message"]
    assert (strict.folder / "audit.jsonl").read_text() == audit
    assert ask(strict.url, *[array] * 5).status_code == 200


def test_an_overdue_translation_is_ended(strict: Service, array: bytes, tmp_path: Path) -> None:
    [worker] = strict.workers
    answer = ask(strict.url, slow(tmp_path, 200))
    assert answer.status_code == 504, answer.text
    wait_for(lambda: ask(strict.url, array).status_code == 200)
    assert not worker.is_running()  # nothing computes on
    assert not [path for path in strict.temporary.rglob("*") if path.suffix == ".gz"]


def test_requests_beyond_capacity_are_told_to_come_again(strict: Service, tmp_path: Path) -> None:
    wait_for(lambda: strict.workers)
    body = slow(tmp_path, 2)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: ask(strict.url, body), range(8)))
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)
    assert all("ask again" in answer.json()["message"] for answer in refused)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_it_ends(env, tmp_path: Path, kind: int) -> None:
    with serving(env, tmp_path, "--workers", "2") as service:
        workers = service.workers
        assert len(workers) == 2
        body = slow(tmp_path, 8)
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(ask, service.url, body)
            wait_for(lambda: service.metric("medstyle_requests_held") == 1)
            code = service.end(kind)
            if kind == signal.SIGTERM:  # what was begun is finished
                assert running.result().status_code == 200
                assert code == 0
                assert not list(service.temporary.iterdir())
        _, alive = psutil.wait_procs(workers, 20)
        assert not alive


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def zipped(*files: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        for number, content in enumerate(files):
            archive.writestr(f"../../{number}.dcm", content)
    return buffer.getvalue()


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 40), "red").save(buffer, "PNG")
    return buffer.getvalue()


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "a zip that unpacks to too much": (lambda: zipped(bytes((1 << 30) + 1)), "E_TOO_LARGE"),
    "a zip of too many files": (lambda: zipped(*[b""] * 20_001), "20001 files"),
    "a zip in a zip": (lambda: zipped(zipped(b"text")), "E_NOT_DICOM"),
    "an NPY that claims too much": (lambda: b"\x93NUMPY\x01\x00v\x00" + CLAIM.ljust(117).encode() + b"\n", "E_DECODE"),
    "an NPY of no size": (lambda: npy(np.zeros((0, 8, 8))), "E_SHAPE"),
    "an NPY beyond float32": (lambda: npy(np.full((8, 8), 1e300)), "E_SHAPE"),
    "an NPY of one number": (lambda: npy(np.array(1.0)), "E_"),
    "an NPY with nested brackets": (lambda: b"\x93NUMPY\x01\x00\x88\x13" + b"(" * 5000, "E_DECODE"),
    "a zip by bzip2": (lambda: zipped(bytes(1 << 20), method=zipfile.ZIP_BZIP2), "E_DECODE"),
    "a zip by LZMA": (lambda: zipped(bytes(1 << 20), method=zipfile.ZIP_LZMA), "E_DECODE"),
    "a picture that is called DICOM": (lambda: zipped(picture()), "E_NOT_DICOM"),
    "a picture for a scan model": (picture, "a picture cannot be an input"),
    "a picture behind DICOM's preamble": (lambda: bytes(128) + b"DICM" + picture(), "E_"),
}
CLAIM = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000, 1000), }"


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_a_clear_error_and_harms_no_other(strict: Service, array: bytes, name: str) -> None:
    make, message = HOSTILE[name]
    failed = strict.metric("medstyle_requests_total", status="500")
    answer = ask(strict.url, make())
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["message"]
    assert "\n" not in answer.json()["message"]
    assert ask(strict.url, array).status_code == 200
    assert strict.metric("medstyle_requests_total", status="500") == failed


@pytest.mark.slow
@pytest.mark.skipif(not CASES, reason="the conformance set beside the project is absent")
def test_awkward_dicom_is_translated_or_a_clear_error(service: Service, array: bytes) -> None:
    """Each case of the conformance set as one zip, and the first of its files by themselves."""
    for case in CASES:
        path = CORPUS / case
        files = [file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()]
        for image in (zipped(*files), *files[:3]):
            answer = ask(service.url, image)
            assert answer.status_code in {200, 400}, f"{case}: {answer.text}"
            if answer.status_code == 400:
                assert re.fullmatch(r"row 0: .*[A-Za-z]{3}.*", answer.json()["message"]), f"{case}: {answer.text}"
        assert ask(service.url, array).status_code == 200, case
    assert len(service.workers) == 1


BAD = {
    "no model": (["--model", "models:/medstyle@nobody"], "no such registered model"),
    "a limit of nothing": (["--capacity", "0"], "must be above 0"),
    "no audit": (["--audit", "nowhere/audit.jsonl"], "cannot be written"),
    "no address": (["--port", "{taken}"], "cannot be used"),
    "a broken model": (["--model", "models:/medstyle/3"], "not finite"),
}


@pytest.mark.filterwarnings("ignore")  # MLflow's own
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_served_is_one_line(env, strict: Service, medstyle, monkeypatch, tmp_path: Path, name: str):
    options, message = BAD[name]
    taken = strict.url.rpartition(":")[2]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", env["MLFLOW_TRACKING_URI"])
    done = medstyle("serve", *(option.format(taken=taken) for option in options), cwd=tmp_path)
    gc.collect()  # the socket that it had bound, which otherwise ends with the process
    assert done.returncode == 2, done.stderr
    assert message in done.stderr.splitlines()[-1]
