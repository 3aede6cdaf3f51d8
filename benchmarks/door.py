"""Send studies from an archive through the door and back while everything is killed at random.

Orthanc sends small studies to `medstyle listen` by C-STORE, and gets the results back. Meanwhile
the door, its translator and the archive are killed with SIGKILL; the archive is stopped and started
twice. In the end every study must have exactly one result, whose objects are bit for bit those of
the door's folder. Then the throughput of the door alone is measured beside Orthanc's own C-STORE,
in turns with the same files and the same sender (dcmtk's storescu).
Usage: python benchmarks/door.py [--studies 1000] [--kills 50] [--minutes 15] [--seed 0]
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import sqlite3
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import requests

sys.path.insert(0, str(Path(__file__).parents[1]))  # the archive is that of the tests
from medstyle.dicom.instance import identify
from medstyle.errors import UserError
from medstyle.inference.inbox import retry
from tests.door.archive import DCMTK, Archive, Door, free_port, study
from tests.flows.conftest import wait_for
from tests.inference.conftest import make_translator

BATCH = 20  # studies that the archive is asked to send at once


class Chaos:
    """Kills one of the processes, and starts it again."""

    def __init__(self, archive: Archive, door: Door, seed: int) -> None:
        self.archive, self.door, self.lots = archive, door, random.Random(seed)
        self.killed: Counter[str] = Counter()

    def kill(self) -> None:
        what = self.lots.choice(["door", "door", "translator", "translator", "archive"])
        worker = self.door.worker()
        if what == "translator" and worker is not None:
            with suppress(ProcessLookupError):
                subprocess.run(["kill", "-9", str(worker)], check=False)
        elif what == "archive":
            self.archive.stop(signal.SIGKILL)
            self.archive.start()
        else:
            what = "door"
            self.door.stop(signal.SIGKILL)
            self.door.start()
        self.killed[what] += 1

    def restart_archive(self) -> None:
        self.archive.stop()
        time.sleep(2)
        self.archive.start()
        self.killed["archive restarted"] += 1


def fill(archive: Archive, folder: Path, count: int) -> list[str]:
    """Put studies into the archive; return their UIDs."""
    uids = []
    for number in range(count):
        uids.append(study(folder / f"{number:04d}", number, range(2)))
        for path in sorted((folder / f"{number:04d}").glob("*.dcm")):
            archive.send(path)
    return uids


def ask(archive: Archive, studies: list[str]) -> bool:
    """Have the archive send studies to the door; return whether it says that it has."""
    try:
        answer = requests.post(f"{archive.url}/modalities/door/store", json=studies, timeout=60)
    except requests.RequestException:
        return False
    return answer.status_code == 200


def through(archive: Archive, door: Door, uids: list[str], chaos: Chaos, arguments: argparse.Namespace) -> float:
    """Send everything, with kills, until every study is delivered; return the seconds."""
    ids = [one["ID"] for one in archive.find("Study") if one["MainDicomTags"]["StudyInstanceUID"] in set(uids)]
    start = time.monotonic()
    batches = [ids[k : k + BATCH] for k in range(0, len(ids), BATCH)]
    pause = arguments.minutes * 60 * 0.8 / max(arguments.kills, 1)
    following, restarts, back = start + pause / 2, [0.3, 0.6], 0
    while time.monotonic() - start < arguments.minutes * 60:
        if batches and ask(archive, batches[0]):
            batches.pop(0)
        done = delivered(door)
        if not batches and done == len(uids) and sum(chaos.killed.values()) >= arguments.kills + 2:
            break
        if restarts and done >= restarts[0] * len(uids):
            restarts.pop(0)
            chaos.restart_archive()
        elif time.monotonic() > following and sum(chaos.killed.values()) < arguments.kills + 2:
            following += chaos.lots.uniform(0.5, 1.5) * pause
            chaos.kill()
        for path in sorted(door.station.glob("quarantine/*")):  # killed twice while in work: as docs say
            with suppress(UserError):
                retry(door.station, path.name)
                back += 1
        time.sleep(0.2)
        print(f"\r{time.monotonic() - start:5.0f} s: {done} delivered, {dict(chaos.killed)}", end="", file=sys.stderr)
    print(f"\nput back from quarantine after two kills in the same study: {back}", file=sys.stderr)
    return time.monotonic() - start


def delivered(door: Door) -> int:
    ledger = sqlite3.connect(f"file:{door.station}/ledger.db?mode=ro", uri=True, timeout=60)
    with closing(ledger), suppress(sqlite3.OperationalError):
        return int(ledger.execute("SELECT COUNT(*) FROM deliveries WHERE state = 'done'").fetchone()[0])
    return 0


def verify(archive: Archive, door: Door, uids: list[str]) -> Counter[str]:
    """Compare what the archive has with what the door has made, by UID and hash."""
    found: Counter[str] = Counter()
    made: dict[str, dict[str, str]] = {}
    for path in sorted(door.station.glob("derived/*/*/*.dcm")):
        identity = identify(path)
        made.setdefault(identity.study, {})[identity.instance] = content(path.read_bytes())
    for uid in uids:
        series = archive.derived(uid)
        images = [one for one in series if one["MainDicomTags"]["Modality"] == "MR"]
        stored = {}
        for entry in [instance for one in series for instance in one["Instances"]]:
            data = archive.file(entry)
            stored[identify(data).instance] = content(data)
        found["lost"] += not images or stored.keys() < made.get(uid, {}).keys()
        found["doubled"] += len(images) > 1 or len(series) > 3
        found["different"] += stored != made.get(uid, {})
        found["right"] += len(images) == 1 and stored == made.get(uid, {})
    found["studies in the archive"] = len(archive.get("studies"))
    return found


def content(data: bytes) -> str:
    """Hash the data set without the file's own header, in which an archive names itself."""
    [length] = struct.unpack("<L", data[140:144])  # of group 0002 (PS3.10 7.1)
    return hashlib.sha256(data[144 + length :]).hexdigest()


def throughput(archive: Archive, door: Door, folder: Path, repeats: int = 5) -> float:
    """Return the door's instances per second over Orthanc's, for the same files in turns."""
    seconds: dict[str, list[float]] = {"door": [], "archive": []}
    for turn in range(repeats):
        place = folder / f"turn-{turn}"
        study(place, 100_000 + turn, range(200))
        files = sorted(map(str, place.glob("*.dcm")))
        for name, port, called in (("door", door.port, "MEDSTYLE"), ("archive", archive.dicom, "ORTHANC")):
            start = time.monotonic()
            command = [DCMTK["storescu"], "-aet", "ORTHANC", "-aec", called, "127.0.0.1", str(port), *files]
            subprocess.run(command, check=True, capture_output=True)
            seconds[name].append(time.monotonic() - start)
    return statistics.median(seconds["archive"]) / statistics.median(seconds["door"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=15.0, help="end then, whatever is done")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="medstyle-") as scratch:
        folder, port = Path(scratch), free_port()
        make_translator().save(folder / "model")
        archive = Archive(folder / "orthanc", port)
        route = {"kind": "dicom", "name": "pacs", "ae_title": archive.title, "host": "127.0.0.1", "port": archive.dicom}
        door = Door(folder / "door", folder / "model", port, callers=["ORTHANC"], routes=[route], commitment_s=20.0)
        archive.start()
        door.start(translating=True)
        try:
            uids = fill(archive, folder / "studies", arguments.studies)
            chaos = Chaos(archive, door, arguments.seed)
            seconds = through(archive, door, uids, chaos, arguments)
            wait_for(archive.ready, 60)
            found = verify(archive, door, uids)
            print(f"{len(uids)} studies in {seconds:.0f} s; killed: {dict(chaos.killed)}; {dict(found)}")
            door.stop()
            door.start(translating=True)
            ratio = throughput(archive, door, folder / "throughput")
            print(f"instances per second into the door over those into Orthanc: {ratio:.2f}")
        finally:
            door.stop()
            archive.stop()


if __name__ == "__main__":
    main()
