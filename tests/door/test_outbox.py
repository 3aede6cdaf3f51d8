import sqlite3
import threading

import pydicom
import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import MRImageStorage, StorageCommitmentPushModel

from medstyle.door.ledger import Ledger
from medstyle.door.outbox import Outbox, promise_kept
from medstyle.door.scu import DicomSender
from medstyle.door.settings import Dicom, Params
from medstyle.door.watch import Watch
from tests.door.archive import free_port, soon, study
from tests.door.test_ledger import derive

KEY = "0123456789abcdef"


@pytest.fixture
def station(tmp_path):
    """A study that came by the door and is derived."""
    folder = tmp_path / "station"
    study(folder / "derived" / KEY / "synthetic-mr_t2-0", 1)
    (folder / "done" / KEY / "closed-1").mkdir(parents=True)
    derive(folder, KEY)
    return folder


class Pacs:
    """An archive in this process, whose answers are told beforehand."""

    def __init__(self, *, commits=None):
        self.port, self.answers, self.stored, self.asked, self.commits = free_port(), [], [], [], commits
        self.server = None

    def start(self):
        entity = AE("PACS")
        entity.add_supported_context(MRImageStorage)
        if self.commits is not None:
            entity.add_supported_context(StorageCommitmentPushModel)
        handlers = [(evt.EVT_C_STORE, self.store), (evt.EVT_N_ACTION, self.ask)]
        self.server = entity.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)

    def store(self, event):
        answer = self.answers.pop(0) if self.answers else 0
        if answer == "abort":
            event.assoc.abort()
            return 0xC000
        if answer == 0:
            self.stored.append(str(event.request.AffectedSOPInstanceUID))
        return answer

    def ask(self, event):
        request = event.action_information
        self.asked.append((request.TransactionUID, [i.ReferencedSOPInstanceUID for i in request.ReferencedSOPSequence]))
        return self.commits, None

    def stop(self):
        if self.server is not None:
            self.server.shutdown()


@pytest.fixture
def make(station):
    """Return a function that makes an outbox to an archive."""
    ledger, archives, watch = Ledger(station), [], Watch()

    def outbox(started=True, commits=None, **settings):
        pacs = Pacs(commits=commits)
        archives.append(pacs)
        if started:
            pacs.start()
        params = Params(retry_s=0.01, **{"refusals": 3, "silence_s": 5.0, **settings})
        sender = DicomSender(Dicom("dicom", "pacs", "PACS", "127.0.0.1", pacs.port), "MEDSTYLE", params.silence_s)
        return pacs, Outbox(station, "pacs", sender, ledger, params, watch), ledger

    yield outbox
    for one in archives:
        one.stop()
    ledger.close()


def uids(station):
    return sorted(pydicom.dcmread(path).SOPInstanceUID for path in station.glob("derived/*/*/*.dcm"))


def state(ledger):
    [(_, found)] = ledger.states()
    return found


def until(outbox, ledger, wanted):
    def reached():
        outbox.deliver()
        return state(ledger) == wanted

    soon(reached)


def test_each_object_is_sent_once(make, station):
    pacs, outbox, ledger = make()
    for _ in range(3):
        outbox.deliver()
    assert sorted(pacs.stored) == uids(station)
    assert state(ledger) == "done"


@pytest.mark.parametrize("answers", [[0, 0xA700], [0xA700], [0, "abort"], [0, 0, 0xC001]])
def test_what_fails_is_sent_again_and_nothing_else(make, station, answers):
    pacs, outbox, ledger = make()
    pacs.answers = list(answers)
    until(outbox, ledger, "done")
    assert sorted(pacs.stored) == uids(station)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom forgets a refused socket
def test_an_archive_that_is_down_is_waited_for(make, station):
    pacs, outbox, ledger = make(started=False)
    outbox.deliver()

    def at_once():
        [delivery] = ledger.due("pacs", 1e12)
        ledger.settle(delivery._replace(due=0.0))

    for _ in range(10):  # more often than an archive may refuse
        at_once()
        outbox.deliver()
    assert state(ledger) == "waiting"
    pacs.start()
    at_once()
    until(outbox, ledger, "done")
    assert sorted(pacs.stored) == uids(station)


def test_an_archive_that_refuses_for_good_is_given_up_until_told_otherwise(make, station):
    pacs, outbox, ledger = make()
    pacs.answers = [0xC001] * 3
    until(outbox, ledger, "refused")
    assert pacs.stored == []
    outbox.deliver()
    assert state(ledger) == "refused"
    ledger.retry()
    outbox.deliver()
    assert (state(ledger), sorted(pacs.stored)) == ("done", uids(station))


def test_a_study_that_did_not_come_by_the_door_is_not_sent(make, station):
    (station / "done" / KEY / "closed-1").rename(station / "done" / KEY / "by hand")
    pacs, outbox, ledger = make()
    outbox.deliver()
    assert ledger.states() == {}
    (station / "done" / KEY / "closed-2").mkdir()  # now the same comes by the door, too
    outbox.deliver()
    assert sorted(pacs.stored) == uids(station)


def test_a_study_that_is_not_filed_yet_is_awaited(make, station):
    (station / "done").rename(station / "elsewhere")
    _, outbox, ledger = make()
    outbox.deliver()
    assert ledger.states() == {}
    (station / "elsewhere").rename(station / "done")
    outbox.deliver()
    assert state(ledger) == "done"


def test_a_promise_that_is_kept_ends_the_delivery(make, station):
    pacs, outbox, ledger = make(commits=0)
    outbox.deliver()
    assert state(ledger) == "promised"
    [(transaction, asked)] = pacs.asked
    assert sorted(asked) == uids(station) == sorted(pacs.stored)
    assert not promise_kept(ledger, Watch(), "1.2.3", set(asked), set())
    assert promise_kept(ledger, Watch(), transaction, set(asked), set())
    assert state(ledger) == "done"
    assert not promise_kept(ledger, Watch(), transaction, set(asked), set())


def test_what_the_archive_has_lost_is_sent_again(make, station):
    pacs, outbox, ledger = make(commits=0)
    outbox.deliver()
    [(transaction, asked)] = pacs.asked
    promise_kept(ledger, Watch(), transaction, set(asked[1:]), {asked[0]})
    pacs.stored.clear()
    soon(lambda: outbox.deliver() or pacs.stored)
    assert pacs.stored == [asked[0]]
    soon(lambda: outbox.deliver() or len(pacs.asked) == 2)


def test_an_archive_that_never_reports_is_asked_again_and_then_believed(make, station):
    pacs, outbox, ledger = make(commits=0, commitment_s=0.01)
    until(outbox, ledger, "done")
    assert len(pacs.asked) == 3
    assert len({transaction for transaction, _ in pacs.asked}) == 3
    assert sorted(pacs.stored) == uids(station)


@pytest.mark.parametrize("commits", [None, 0x0122], ids=["not offered", "refused"])
def test_an_archive_without_commitment_is_believed(make, station, commits):
    _, outbox, ledger = make(commits=commits)
    outbox.deliver()
    assert state(ledger) == "done"


def test_what_is_gone_from_derived_is_reported(make, station):
    _, outbox, ledger = make()
    for path in station.glob("derived/*/*/*"):
        path.unlink()
    until(outbox, ledger, "refused")


def test_a_kill_after_the_archive_has_taken_an_object_doubles_nothing(make, station):
    """The archive has an object, of which the ledger does not know: it gets the same again."""
    pacs, outbox, ledger = make()
    outbox.deliver()
    with sqlite3.connect(station / "ledger.db") as database:
        database.execute("UPDATE outbox SET sent = 0")
        database.execute("UPDATE deliveries SET state = 'waiting', due = 0")
    database.close()
    outbox.deliver()
    assert sorted(pacs.stored) == sorted(uids(station) * 2)  # an archive keeps one of each UID
    assert state(ledger) == "done"


def test_it_stops_when_told(make, station):
    _, outbox, ledger = make()
    stop = threading.Event()
    thread = threading.Thread(target=outbox.work, args=(stop,))
    thread.start()
    soon(lambda: ledger.states() and state(ledger) == "done")
    stop.set()
    thread.join(10)
    assert not thread.is_alive()
