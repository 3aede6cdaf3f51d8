import io
import subprocess

import pydicom
import pytest
import requests

from medstyle.dicom.instance import identify
from medstyle.door.ledger import Ledger, hashed
from medstyle.door.outbox import Refused
from medstyle.door.settings import Poll, Web
from medstyle.door.store import Store
from medstyle.door.watch import Watch
from medstyle.door.web import Poller, WebSender
from medstyle.errors import DiskFull, ServiceError
from tests.door.archive import study


@pytest.fixture
def station(tmp_path):
    (tmp_path / "station").mkdir()
    ledger = Ledger(tmp_path / "station")
    yield Store(tmp_path / "station", ledger, 100, 0)
    ledger.close()


@pytest.fixture
def filled(archive, tmp_path):
    """An archive with three studies; returns their UIDs."""
    uids = [study(tmp_path / f"s{number}", number) for number in range(3)]
    for path in sorted(tmp_path.glob("s?/*.dcm")):
        archive.send(path)
    return uids


def poller(archive, store, limit=1 << 30, **options):
    return Poller(Poll(archive.web, **options), store, Watch(), 20.0, limit)


def test_what_an_archive_has_is_fetched_once_and_unchanged(archive, filled, station, tmp_path):
    one = poller(archive, station)
    assert one.fetch() == 9
    assert one.fetch() == 0
    assert poller(archive, station).fetch() == 0  # after a restart
    stored = [pydicom.dcmread(path) for path in station.arriving.glob("[!.]*/*.dcm")]
    sent = [pydicom.dcmread(path) for path in tmp_path.glob("s?/*.dcm")]
    by_uid = {dataset.SOPInstanceUID: dataset for dataset in sent}
    assert all(dataset == by_uid[dataset.SOPInstanceUID] for dataset in stored)
    assert len(stored) == len(sent)
    assert len(list(station.close_quiet(0))) == 3
    assert poller(archive, station).fetch() == 0


def test_a_filter_chooses_studies(archive, filled, station):
    assert poller(archive, station, filter={"PatientID": "P1"}).fetch() == 3
    assert poller(archive, station, filter={"ModalitiesInStudy": "CT"}).fetch() == 0
    assert poller(archive, station, filter={"ModalitiesInStudy": "MR"}).fetch() == 6


def test_what_a_study_gains_is_fetched(archive, filled, station, tmp_path):
    one = poller(archive, station)
    one.fetch()
    study(tmp_path / "more", 1, slices=range(3, 5))
    for path in sorted((tmp_path / "more").glob("*.dcm")):
        archive.send(path)
    assert one.fetch() == 2


def test_results_that_the_archive_has_got_are_not_fetched(archive, filled, station, tmp_path):
    study(tmp_path / "own", 1, slices=range(3, 5))
    files = sorted((tmp_path / "own").glob("*.dcm"))
    station.ledger.begin("web", "key", [hashed(identify(p).instance) for p in files])
    for path in files:
        archive.send(path)
    assert poller(archive, station).fetch() == 9


def test_what_is_too_large_is_left_and_stops_nothing(archive, filled, station):
    assert poller(archive, station, limit=100).fetch() == 0
    assert list(station.arriving.glob("[!.]*/*")) == []
    assert poller(archive, station).fetch() == 9


def test_no_room_ends_the_round(archive, filled, station):
    station.free_bytes = 1 << 60
    with pytest.raises(DiskFull):
        poller(archive, station).fetch()
    station.free_bytes = 0
    assert poller(archive, station).fetch() == 9


@pytest.fixture
def objects(tmp_path):
    study(tmp_path / "made", 7)
    return [(path, identify(path)) for path in sorted((tmp_path / "made").glob("*.dcm"))]


def sender(archive, **options):
    return WebSender(Web("dicomweb", "web", archive.web, **options), 20.0)


def test_what_is_pushed_is_stored_and_pushed_again_is_no_more(archive, objects):
    for _ in range(2):
        taken = list(sender(archive).send(objects, "", objects))
        assert sorted(taken) == sorted(identity for _, identity in objects)
    assert archive.get("statistics")["CountInstances"] == 3
    for entry in archive.get("instances"):
        stored = pydicom.dcmread(io.BytesIO(archive.file(entry)))
        assert stored in [pydicom.dcmread(path) for path, _ in objects]


def test_the_answer_is_read_one_by_one(archive, objects, tmp_path):
    """One of three objects has no UID of a patient's study: the archive takes the other two."""
    dataset = pydicom.dcmread(objects[1][0])
    del dataset.PatientID, dataset.SeriesInstanceUID
    dataset.save_as(objects[1][0])
    taken = []
    with pytest.raises(Refused, match="1 of 3"):
        taken.extend(identity for identity in sender(archive).send(objects, "", objects))
    assert archive.get("statistics")["CountInstances"] == 2


def test_an_archive_that_is_not_there_is_no_refusal(archive, objects):
    away = WebSender(Web("dicomweb", "web", "http://127.0.0.1:9/dicom-web"), 2.0)
    with pytest.raises((OSError, requests.ConnectionError)):
        list(away.send(objects, "", objects))
    elsewhere = WebSender(Web("dicomweb", "web", f"{archive.url}/nowhere"), 5.0)
    with pytest.raises(Refused, match="404"):
        list(elsewhere.send(objects, "", objects))


def test_a_bad_address_and_a_missing_password_are_told():
    with pytest.raises(ServiceError, match="no address"):
        WebSender(Web("dicomweb", "web", "archive"), 1.0)
    with pytest.raises(ServiceError, match="cannot be read"):
        WebSender(Web("dicomweb", "web", "http://archive", "me", "/nowhere/password"), 1.0)


def test_the_archive_sends_to_the_door_what_a_foreign_client_asks_to_move(archive, filled, station, port, scp):
    """C-MOVE by dcmtk: the archive opens the association to the door."""
    from tests.door.archive import DCMTK

    door = scp(port=port, callers=("ORTHANC",))
    command = [DCMTK["movescu"], "-S", "-aet", "SENDER", "-aec", "ORTHANC", "-aem", "MEDSTYLE"]
    keys = ["-k", "QueryRetrieveLevel=STUDY", "-k", f"StudyInstanceUID={filled[1]}"]
    subprocess.run([*command, *keys, "127.0.0.1", str(archive.dicom)], check=True, capture_output=True, timeout=60)
    assert len(door.files) == 3
    assert {pydicom.dcmread(path).StudyInstanceUID for path in door.files} == {filled[1]}
