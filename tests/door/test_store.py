import os
import time

import pydicom
import pytest

from medstyle.dicom.instance import Identity, identify
from medstyle.door.ledger import Ledger, hashed
from medstyle.door.store import Store
from medstyle.errors import DiskFull, Refusal
from tests.door.archive import study


@pytest.fixture
def sent(tmp_path):
    """Three instances of a study: what arrives, and what each is."""
    study(tmp_path / "sent", 1)
    files = sorted((tmp_path / "sent").glob("*.dcm"))
    return [(path.read_bytes(), identify(path)) for path in files]


@pytest.fixture
def make(tmp_path):
    ledgers = []

    def store(most=100, free=0):
        (tmp_path / "station").mkdir(exist_ok=True)
        ledgers.append(Ledger(tmp_path / "station"))
        return Store(tmp_path / "station", ledgers[-1], most, free)

    yield store
    for ledger in ledgers:
        ledger.close()


def bytes_of(folder):
    return sorted(path.read_bytes() for path in folder.glob("*.dcm"))


def test_a_quiet_study_goes_to_the_inbox_whole_and_once(make, sent):
    store = make()
    assert [store.put(*one) for one in sent] == ["stored"] * 3
    assert [store.put(*one) for one in sent] == ["known"] * 3
    assert list(store.close_quiet(60)) == []
    [(name, count, grown)] = store.close_quiet(0)
    assert (name, count, grown) == (hashed(sent[0][1].study), 3, False)
    assert bytes_of(store.folder / "inbox" / f"closed-{name}") == sorted(data for data, _ in sent)
    # sent a second time, before and after a restart of the door: nothing arrives
    for again in (store, make()):
        assert [again.put(*one) for one in sent] == ["known"] * 3
        assert list(again.close_quiet(0)) == []


@pytest.mark.parametrize("home", ["done", "quarantine"])
def test_a_study_that_grows_after_it_was_done_is_handed_over_whole(make, sent, home):
    store = make()
    for one in sent[:2]:
        store.put(*one)
    [(name, _, _)] = store.close_quiet(0)
    store.put(*sent[2])
    assert list(store.close_quiet(0)) == []  # it waits while the older part is in the inbox
    filed = store.folder / home / "0123456789abcdef"
    filed.mkdir(parents=True)
    (store.folder / "inbox" / f"closed-{name}").rename(filed / f"closed-{name}")
    assert list(store.close_quiet(0)) == [(name, 1, True)]
    assert bytes_of(store.folder / "inbox" / f"closed-{name}") == sorted(data for data, _ in sent)
    assert len(list((filed / f"closed-{name}").iterdir())) == 2


def test_a_close_that_was_interrupted_is_completed(make, sent):
    """A process that ends after it noted the instances, and before it moved them."""
    store = make()
    for one in sent:
        store.put(*one)
    store.ledger.add_instances(hashed(sent[0][1].study), [hashed(identity.instance) for _, identity in sent])
    again = make()
    assert [again.put(*one) for one in sent] == ["known"] * 3
    [(name, count, _)] = again.close_quiet(0)
    assert count == 3
    assert bytes_of(again.folder / "inbox" / f"closed-{name}") == sorted(data for data, _ in sent)


def test_half_an_instance_is_forgotten(make, sent):
    store = make()
    (store.parts / "half").write_bytes(sent[0][0][:100])
    again = make()
    assert list(again.parts.iterdir()) == []
    assert again.put(*sent[0]) == "stored"


@pytest.mark.parametrize("uid", ["../../../etc/passwd", "/etc/passwd", "..", ".", "a\x00b", "", "1" * 5000, "1.2\n3"])
def test_a_uid_that_looks_like_a_path_stays_inside(make, tmp_path, uid):
    store = make()
    before = {path for path in tmp_path.rglob("*") if "station" not in path.parts}
    store.put(b"data", Identity(uid, uid, uid, uid, uid))
    [path] = store.arriving.glob("[!.]*/*.dcm")
    assert (path.parent.name, path.name) == (hashed(uid), f"{hashed(uid)}.dcm")
    assert {path for path in tmp_path.rglob("*") if "station" not in path.parts} == before


def test_limits_refuse_and_leave_nothing(make, sent):
    store = make(most=2)
    for one in sent[:2]:
        store.put(*one)
    with pytest.raises(Refusal, match="E_TOO_LARGE"):
        store.put(*sent[2])
    with pytest.raises(DiskFull):
        make(free=1 << 60).put(*sent[2])
    assert list(store.parts.iterdir()) == []
    assert len(list(store.arriving.glob("*/*.dcm"))) == 2


def test_other_studies_do_not_wait(make, sent, tmp_path):
    store = make()
    store.put(*sent[0])
    study(tmp_path / "other", 2)
    other = min((tmp_path / "other").iterdir())
    store.put(other.read_bytes(), identify(other))
    old = time.time() - 100
    os.utime(store.arriving / hashed(sent[0][1].study), (old, old))
    assert [name for name, _, _ in store.close_quiet(50)] == [hashed(sent[0][1].study)]
    assert store.waiting() == (1, 1)
    assert pydicom.dcmread(next(store.arriving.glob("[!.]*/*.dcm"))).PatientID == "P2"
