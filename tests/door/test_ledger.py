import itertools
import sqlite3
import threading

import pytest

from medstyle.door.ledger import LONGEST_S, Delivery, Ledger, hashed, later


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(tmp_path)
    yield made
    made.close()


def derive(folder, *keys):
    with sqlite3.connect(folder / "ledger.db") as database:
        database.execute(
            "CREATE TABLE IF NOT EXISTS studies (key TEXT PRIMARY KEY, weights TEXT, status TEXT, code TEXT, "
            "series INTEGER, warned INTEGER, finished TEXT)"
        )
        for key in keys:
            database.execute("INSERT INTO studies VALUES (?, '', 'derived', '', 1, 0, '')", (key,))
    database.close()


def test_what_was_handed_over_or_made_is_known(ledger):
    assert not ledger.is_known(hashed("1.2"))
    ledger.add_instances(hashed("1"), [hashed("1.2")])
    ledger.begin("pacs", "key", [hashed("1.3")])
    assert ledger.is_known(hashed("1.2"))
    assert ledger.is_known(hashed("1.3"))  # the archive may send a result back
    assert ledger.count(hashed("1")) == 1


def test_each_route_begins_a_study_once(ledger, tmp_path):
    assert ledger.derived("pacs") == []  # the inbox has no table yet
    derive(tmp_path, "a", "b")
    assert ledger.derived("pacs") == ["a", "b"]
    ledger.begin("pacs", "a", ["u"])
    assert ledger.derived("pacs") == ["b"]
    assert ledger.derived("other") == ["a", "b"]
    assert ledger.due("pacs", 0.0) == [Delivery("pacs", "a")]


def test_what_was_sent_for_one_study_is_not_sent_for_its_next_version(ledger):
    ledger.begin("pacs", "a", ["u", "v"])
    ledger.mark("pacs", ["u"])
    ledger.begin("pacs", "b", ["u", "v", "w"])
    assert ledger.unsent("pacs", ["u", "v", "w"]) == {"v", "w"}
    assert ledger.unsent("other", ["u"]) == {"u"}
    ledger.mark("pacs", ["u"], sent=False)
    assert ledger.unsent("pacs", ["u"]) == {"u"}


def test_pauses_double_up_to_a_limit_and_refusals_end():
    delivery, pauses = Delivery("pacs", "a"), []
    for _ in range(15):
        delivery = later(delivery._replace(due=0.0), 1.0, False, 3)
        pauses.append(delivery.due)
    steps = [round(b - a) for a, b in itertools.pairwise(pauses)]
    assert steps[:5] == [1, 2, 4, 8, 16]
    assert steps[-1] == 0
    assert round(pauses[-1] - pauses[0]) == LONGEST_S - 1
    assert delivery.state == "waiting"  # a network that is down is never given up
    for _ in range(3):
        delivery = later(delivery, 1.0, True, 3)
    assert delivery.state == "refused"


def test_refused_deliveries_are_tried_again_on_request(ledger):
    ledger.begin("pacs", "a", ["u"])
    ledger.settle(Delivery("pacs", "a", "refused", 9, 9, 5.0))
    assert ledger.due("pacs", 1e12) == []
    assert ledger.states() == {("pacs", "refused"): 1}
    assert ledger.retry("other") == 0
    assert ledger.retry() == 1
    assert [one.key for one in ledger.due("pacs", 0.0)] == ["a"]


def test_a_promise_is_awaited_unless_it_is_already_kept(ledger):
    ledger.begin("pacs", "a", ["u"])
    ledger.settle(Delivery("pacs", "a", promise="1.2"))
    assert ledger.promised("1.2").key == "a"
    ledger.await_promise("1.2", 77.0)
    assert (ledger.promised("1.2").state, ledger.promised("1.2").due) == ("promised", 77.0)
    ledger.settle(Delivery("pacs", "a", "done"))  # the archive's report
    ledger.await_promise("1.2", 99.0)
    assert ledger.promised("1.2") is None
    assert ledger.states() == {("pacs", "done"): 1}


def test_it_reveals_no_uid_and_bears_several_threads_and_processes(ledger, tmp_path):
    other = Ledger(tmp_path)

    def add(which, start):
        for number in range(start, start + 40):
            which.add_instances(hashed("2.25.777"), [hashed(f"2.25.777.{number}")])

    threads = [threading.Thread(target=add, args=args) for args in ((ledger, 0), (other, 40), (ledger, 80))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other.close()
    assert ledger.count(hashed("2.25.777")) == 120
    assert b"2.25.777" not in (tmp_path / "ledger.db").read_bytes()
