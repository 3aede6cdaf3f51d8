"""Run a real archive (Orthanc with DICOMweb), a real door, and foreign clients (dcmtk)."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests
import yaml

from medstyle.dicom.acquired import write_series
from medstyle.dicom.uids import uid_of
from tests.conftest import ROOT
from tests.flows.conftest import wait_for
from tests.inference.conftest import head

PROGRAM = shutil.which("Orthanc", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
# pynetdicom brings programs of the same names, which are not foreign
DCMTK = {name: str(shutil.which(name, path="/usr/bin:/usr/local/bin")) for name in ("storescu", "echoscu", "movescu")}
NEEDED = [name for name, path in DCMTK.items() if path == "None"]
NEEDED += [] if PROGRAM and PLUGIN.exists() else ["Orthanc"]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


class Archive:
    """An Orthanc of its own, asked over its REST interface; it knows a door at ``door_port``."""

    title = "ORTHANC"

    def __init__(self, folder: Path, door_port: int, **more: Any) -> None:
        self.folder, self.http, self.dicom = folder, free_port(), free_port()
        self.url, self.web = f"http://127.0.0.1:{self.http}", f"http://127.0.0.1:{self.http}/dicom-web"
        settings = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(PLUGIN)],
            "HttpPort": self.http,
            "DicomPort": self.dicom,
            "DicomAet": self.title,
            "DicomModalities": {
                "door": ["MEDSTYLE", "127.0.0.1", door_port],
                "foreign": ["FOREIGN", "127.0.0.1", door_port],
            },
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "OverwriteInstances": False,
            "DicomAlwaysAllowMove": True,
            "Dictionary": {"0008,001c": ["CS", "SyntheticData", 1, 1]},
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            **more,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen([str(PROGRAM), self.folder / "orthanc.json"], stdout=log, stderr=log)
        wait_for(self.ready, 60)

    def ready(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.folder / "log").read_text()
        with contextlib.suppress(requests.ConnectionError):
            return bool(self.get("system"))
        return False

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(60)

    def send(self, path: Path) -> dict[str, Any]:
        answer = requests.post(f"{self.url}/instances", data=path.read_bytes(), timeout=30)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def get(self, path: str) -> Any:
        answer = requests.get(f"{self.url}/{path}", timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: Any) -> Any:
        answer = requests.post(f"{self.url}/{path}", json=body, timeout=300)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def find(self, level: str, **query: str) -> list[Any]:
        return list(self.post("tools/find", {"Level": level, "Query": query, "Expand": True}))

    def derived(self, study: str) -> list[dict[str, Any]]:
        """Return the series of a study that the door has made."""
        series = self.find("Series", StudyInstanceUID=study)
        return [one for one in series if one["MainDicomTags"].get("Manufacturer") == "medstyle project"]

    def file(self, instance: str) -> bytes:
        return requests.get(f"{self.url}/instances/{instance}/file", timeout=30).content

    def clear(self) -> None:
        for study in self.get("studies"):
            requests.delete(f"{self.url}/studies/{study}", timeout=60)


class Door:
    """A `medstyle listen` with its folder; ``settings`` are those of the section `door`."""

    def __init__(self, folder: Path, model: Path, port: int, **settings: Any) -> None:
        self.folder, self.model, self.port = folder, model, port
        self.station, self.log, self.audit = folder / "station", folder / "log", folder / "audit.jsonl"
        self.metrics = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        common = {"port": port, "metrics_port": self.metrics, "quiet_s": 1.0, "retry_s": 0.2, "free_mb": 1}
        (folder / "params.yaml").write_text(yaml.safe_dump({"door": {**common, **settings}}))
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def command(self) -> list[str]:
        options = ["--params", self.folder / "params.yaml", "--model", self.model, "--audit", self.audit]
        return [sys.executable, "-m", "medstyle.cli", "listen", *map(str, [self.station, *options])]

    def start(self, *, translating: bool = False) -> None:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("a") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=log, env=env, cwd=self.folder)
        wait_for(lambda: self.health(200 if translating else None), 120)

    def health(self, status: int | None = None) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        with contextlib.suppress(requests.RequestException):
            answer = requests.get(f"http://127.0.0.1:{self.metrics}/health", timeout=5)
            return status is None or answer.status_code == status
        return False

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = requests.get(f"http://127.0.0.1:{self.metrics}/metrics", timeout=5).text
        rows = [line.rpartition(" ") for line in text.splitlines() if line.startswith(name)]
        return sum(float(value) for _, _, value in rows)

    def said(self) -> list[dict[str, Any]]:
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def worker(self) -> int | None:
        """Return the process id of the translator."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for path in children for pid in path.read_text().split()]
        return pids[0] if pids else None

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(90)


def study(folder: Path, number: int, slices: range = range(3), **attributes: Any) -> str:
    """Write a small T1 study; return its UID."""
    uid = uid_of("study", number)
    about = {
        "StudyInstanceUID": uid,
        "SeriesInstanceUID": uid_of("series", number),
        "FrameOfReferenceUID": uid_of("frame", number),
        "SeriesDescription": "T1 SE",
        "SeriesNumber": 1,
        "PatientID": f"P{number}",
        "PatientName": f"Doe^{number}",
        "StudyID": str(number),
        **attributes,
    }
    whole = head(shape=(slices.stop, 24, 24), seed=number)
    write_series(folder, whole, about, range(slices.stop))
    for k in range(slices.start):
        (folder / f"{k:04d}.dcm").unlink()
    return uid


def storescu(port: int, *files: Path, calling: str = "SENDER", called: str = "MEDSTYLE", **options: Any) -> int:
    command = [DCMTK["storescu"], "-aet", calling, "-aec", called, *options.get("more", []), "127.0.0.1", str(port)]
    return subprocess.run([*command, *map(str, files)], capture_output=True, check=False, timeout=120).returncode


def echoscu(port: int, calling: str = "SENDER", called: str = "MEDSTYLE") -> int:
    command = [DCMTK["echoscu"], "-aet", calling, "-aec", called, "127.0.0.1", str(port)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60).returncode


@contextlib.contextmanager
def running(thing: Archive | Door, **options: Any) -> Iterator[Any]:
    """Start an archive or a door, and stop it in the end."""
    thing.start(**options)
    try:
        yield thing
    finally:
        thing.stop()


def soon(what: Callable[[], Any], seconds: float = 60) -> Any:
    """Return the first truthy answer; a minute is long for a door."""
    return wait_for(what, seconds)
