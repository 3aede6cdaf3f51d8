"""The whole door in its own processes, beside a real archive."""

import io
import os
import shutil
import signal
import subprocess

import pydicom
import pytest
import requests

from tests.door.archive import Door, echoscu, running, soon, storescu, study

pytestmark = [pytest.mark.slow, pytest.mark.ops]


@pytest.fixture(scope="module")
def door(shared_archive, model, tmp_path_factory):
    """A door with both kinds of route to the one archive."""
    archive, port = shared_archive
    archive.clear()
    routes = [
        {"kind": "dicom", "name": "pacs", "ae_title": archive.title, "host": "127.0.0.1", "port": archive.dicom},
        {"kind": "dicomweb", "name": "web", "url": archive.web},
    ]
    made = Door(tmp_path_factory.mktemp("door"), model, port, callers=["SENDER", "ORTHANC"], routes=routes)
    with running(made, translating=True):
        yield made


def instances(archive, uid):
    """Return the objects of the door's series in a study, by UID."""
    found = [one for series in archive.derived(uid) for one in series["Instances"]]
    datasets = [pydicom.dcmread(io.BytesIO(archive.file(one))) for one in found]
    return {dataset.SOPInstanceUID: dataset for dataset in datasets}


def kinds(datasets):
    return sorted(dataset.Modality for dataset in datasets.values())


def delivered(door, key_count):
    return door.metric('medstyle_door_deliveries{route="pacs",state="done"}') == key_count


def test_a_study_comes_back_to_the_archive_beside_its_source(door, shared_archive, tmp_path):
    archive, _ = shared_archive
    uid = study(tmp_path / "sent", 100)
    sent = sorted((tmp_path / "sent").glob("*.dcm"))
    for path in sent:
        archive.send(path)
    before = door.metric('medstyle_door_deliveries{route="pacs",state="done"}')
    archive.post("modalities/door/store", [archive.find("Study", StudyInstanceUID=uid)[0]["ID"]])
    soon(lambda: delivered(door, before + 1))
    made = instances(archive, uid)
    assert kinds(made) == ["MR", "MR", "MR", "OT", "SR"]
    assert len(archive.find("Study", StudyInstanceUID=uid)) == 1
    files = {
        pydicom.dcmread(path).SOPInstanceUID: pydicom.dcmread(path) for path in door.station.glob("derived/**/*.dcm")
    }
    assert all(files[name] == dataset for name, dataset in made.items())
    soon(lambda: any(line["event"] == "commitment" and line["kept"] == 5 for line in door.said()))
    # sent a second time, and its results sent to the door by the archive: nothing happens
    archive.post("modalities/door/store", [archive.find("Study", StudyInstanceUID=uid)[0]["ID"]])
    soon(lambda: door.metric('medstyle_door_instances_total{result="known"}') >= 8)
    soon(lambda: door.metric("medstyle_door_waiting") == 0)
    assert instances(archive, uid).keys() == made.keys()
    assert delivered(door, before + 1)


def test_a_study_that_grows_is_made_again_beside_the_old_result(door, shared_archive, tmp_path):
    archive, port = shared_archive
    uid = study(tmp_path / "all", 101, range(5))
    files = sorted((tmp_path / "all").glob("*.dcm"))
    assert storescu(port, *files[:3]) == 0
    soon(lambda: len(instances(archive, uid)) == 5)
    old = set(instances(archive, uid))
    assert storescu(port, *files[3:]) == 0
    soon(lambda: len(instances(archive, uid)) == 5 + 7)
    made = instances(archive, uid)
    assert old < made.keys()
    new = {name: dataset for name, dataset in made.items() if name not in old}
    assert kinds(new) == ["MR"] * 5 + ["OT", "SR"]
    assert len({dataset.SeriesInstanceUID for dataset in new.values()}) == 3


def test_a_translator_that_dies_is_started_anew(door, shared_archive, tmp_path):
    archive, port = shared_archive
    os.kill(door.worker(), signal.SIGKILL)
    uid = study(tmp_path / "sent", 102)
    assert storescu(port, *sorted((tmp_path / "sent").glob("*.dcm"))) == 0
    soon(lambda: not door.health(200))
    soon(lambda: len(instances(archive, uid)) == 5, 90)
    assert door.health(200)


def test_a_door_that_is_killed_loses_and_doubles_nothing(door, shared_archive, tmp_path):
    archive, port = shared_archive
    uids = [study(tmp_path / f"s{number}", number) for number in range(110, 114)]
    for number, _ in enumerate(uids):
        files = sorted((tmp_path / f"s{110 + number}").glob("*.dcm"))
        assert storescu(port, *files) == 0
        door.stop(signal.SIGKILL)
        door.start()
    for uid in uids:
        soon(lambda uid=uid: len(instances(archive, uid)) == 5, 120)
    assert len(archive.get("studies")) == len(
        {pydicom.dcmread(p).StudyInstanceUID for p in door.station.glob("done/*/*/*.dcm")}
    )


def test_it_says_how_it_is(door):
    text = requests.get(f"http://127.0.0.1:{door.metrics}/metrics", timeout=5).text
    for name in ("associations", "instances", "studies", "sent", "deliveries", "waiting", "received_bytes"):
        assert f"medstyle_door_{name}" in text
    assert requests.get(f"http://127.0.0.1:{door.metrics}/elsewhere", timeout=5).status_code == 404


def test_one_folder_has_one_door(door, tmp_path):
    other = Door(tmp_path, door.model, 0, callers=["SENDER"])
    other.station = door.station
    done = subprocess.run(other.command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 2
    assert "another door writes into it" in done.stderr


def test_it_ends_when_told_and_completes_the_study_in_work(shared_archive, model, tmp_path):
    own = Door(tmp_path / "door", model, 0, callers=["SENDER"], quiet_s=0.2)
    with running(own, translating=True):
        port = next(line["port"] for line in own.said() if line["event"] == "listening")
        study(tmp_path / "sent", 120)
        assert storescu(port, *sorted((tmp_path / "sent").glob("*.dcm"))) == 0
        soon(lambda: list(own.station.glob("inbox/closed-*")) or list(own.station.glob("done/*/*")))
        own.stop()
        assert own.process.returncode == 0
    assert echoscu(port) != 0
    assert list(own.station.glob("attempts/*")) == []
    assert "Traceback" not in own.log.read_text()


def test_a_full_disk_is_told_to_the_sender_and_passes(model, tmp_path):
    """The door runs on a disk of its own, which is filled and emptied."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("no disk can be mounted")
    try:
        own = Door(tmp_path / "door", model, 0, callers=["SENDER"], quiet_s=1.0, free_mb=0)
        own.station = place
        with running(own, translating=True):
            port = next(line["port"] for line in own.said() if line["event"] == "listening")
            filler = place / "filler"
            filler.write_bytes(bytes(shutil.disk_usage(place).free - 8192))
            study(tmp_path / "sent", 130)
            files = sorted((tmp_path / "sent").glob("*.dcm"))
            assert storescu(port, *files) != 0
            filler.unlink()
            assert storescu(port, *files) == 0
            soon(lambda: len(list(place.glob("derived/*/*/*.dcm"))) == 5)
    finally:
        subprocess.run(["umount", "-l", place], check=False)


def test_a_door_that_only_asks_finds_each_study_once(shared_archive, model, tmp_path):
    """QIDO, WADO, STOW alone: its results in the archive are not taken for new images."""
    archive, _ = shared_archive
    uids = [study(tmp_path / f"s{number}", number) for number in (140, 141)]
    for path in sorted(tmp_path.glob("s14?/*.dcm")):
        archive.send(path)
    polls = [{"url": archive.web, "filter": {"PatientID": f"P{number}"}, "every_s": 0.5} for number in (140, 141)]
    routes = [{"kind": "dicomweb", "name": "web", "url": archive.web}]
    own = Door(tmp_path / "door", model, 0, routes=routes, polls=polls)
    with running(own, translating=True):
        for uid in uids:
            soon(lambda uid=uid: len(instances(archive, uid)) == 5)
        asked = len(own.audit.read_text().splitlines())
        soon(lambda: len(own.audit.read_text().splitlines()) > asked + 6)  # it has asked again
        assert own.metric("medstyle_door_instances_total") == 6
        assert own.metric("medstyle_door_studies_total") == 2
    [listening] = [line for line in own.said() if line["event"] == "listening"]
    assert listening["port"] is None
    assert {len(instances(archive, uid)) for uid in uids} == {5}
