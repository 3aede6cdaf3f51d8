import shutil
import socket
import struct
import subprocess
import threading

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless
from pynetdicom import AE
from pynetdicom.sop_class import MRImageStorage

from medstyle.door.settings import Tls
from medstyle.errors import DataError, ServiceError
from tests.door.archive import NEEDED, echoscu, soon, storescu, study

pytestmark = pytest.mark.skipif(bool(NEEDED), reason=f"absent: {', '.join(NEEDED)}")


@pytest.fixture
def files(tmp_path):
    study(tmp_path / "sent", 1)
    return sorted((tmp_path / "sent").glob("*.dcm"))


def pixels(paths):
    return sorted(pydicom.dcmread(path).PixelData for path in paths)


def test_a_foreign_client_stores_and_each_data_set_is_kept(scp, files):
    door = scp()
    assert echoscu(door.port) == 0
    assert storescu(door.port, *files) == 0
    assert pixels(door.files) == pixels(files)
    for stored, sent in zip(
        sorted(map(pydicom.dcmread, door.files), key=lambda d: d.InstanceNumber), files, strict=True
    ):
        assert stored == pydicom.dcmread(sent)
    assert storescu(door.port, *files) == 0  # again
    assert (door.count("instances", "stored"), door.count("instances", "known")) == (3, 3)


@pytest.mark.parametrize("options", [["-xi"], ["-xb"], ["-xd"]], ids=["implicit", "big endian", "deflated"])
def test_other_transfer_syntaxes_arrive_as_they_are_sent(scp, files, options):
    door = scp()
    assert storescu(door.port, *files, more=options) == 0
    arrays = [pydicom.dcmread(path).pixel_array.astype("<u2").tobytes() for path in door.files]
    assert sorted(arrays) == pixels(files)


def test_a_compressed_image_is_kept_compressed(scp, files, tmp_path):
    door = scp()
    dataset = pydicom.dcmread(files[0])
    before = dataset.pixel_array
    dataset.compress(JPEGLSLossless)
    dataset.save_as(tmp_path / "c.dcm")
    assert storescu(door.port, tmp_path / "c.dcm", more=["-xt"]) == 0
    [path] = door.files
    stored = pydicom.dcmread(path)
    assert stored.file_meta.TransferSyntaxUID == JPEGLSLossless
    assert (stored.pixel_array == before).all()


@pytest.mark.parametrize(("calling", "called"), [("FOREIGN", "MEDSTYLE"), ("SENDER", "OTHER"), ("sender", "MEDSTYLE")])
def test_who_may_not_call_is_refused_and_noted(scp, files, calling, called):
    door = scp()
    assert storescu(door.port, files[0], calling=calling, called=called) != 0
    assert echoscu(door.port, calling, called) != 0
    assert door.files == []
    soon(lambda: door.count("associations", "rejected") == 2)
    assert door.audited() == ["association refused"] * 2


def test_a_door_that_nobody_may_use_does_not_open(scp):
    with pytest.raises(DataError, match="nobody may call"):
        scp(callers=())


def test_a_port_that_is_taken_is_named(scp):
    with pytest.raises(ServiceError, match=r"choose another door\.port"):
        scp(port=scp().port)


@pytest.mark.parametrize("uid", ["../../../../tmp/x", "/etc/passwd", "1.2/../../3"])
def test_path_like_uids_are_harmless(scp, files, tmp_path, uid):
    door = scp()
    dataset = pydicom.dcmread(files[0])
    text, old = uid.encode().ljust(20, b"0"), dataset.StudyInstanceUID.encode()
    data = files[0].read_bytes().replace(old, text.ljust(len(old), b"1"))
    (tmp_path / "bad.dcm").write_bytes(data)
    before = {path for path in tmp_path.rglob("*") if not path.is_relative_to(door.folder)}
    storescu(door.port, tmp_path / "bad.dcm")
    assert {path for path in tmp_path.rglob("*") if not path.is_relative_to(door.folder)} == before
    assert all(path.parent.parent == door.store.arriving for path in door.files)
    assert storescu(door.port, *files) == 0


def associate(door, **limits):
    entity = AE("SENDER")
    entity.add_requested_context(MRImageStorage, ExplicitVRLittleEndian)
    entity.maximum_pdu_size = 0
    return entity.associate("127.0.0.1", door.port, ae_title="MEDSTYLE", **limits)


def test_an_instance_that_is_too_large_cuts_the_association_and_no_other(scp, files):
    door = scp(instance_mb=1)
    dataset = pydicom.dcmread(files[0])
    dataset.Rows, dataset.Columns, dataset.PixelData = 2000, 2000, bytes(8_000_000)
    other = associate(door)
    association = associate(door)
    connection = association.dul.socket.socket
    assert "Status" not in association.send_c_store(dataset)
    connection.close()
    assert door.files == []
    assert other.send_c_store(pydicom.dcmread(files[0])).Status == 0
    other.release()
    assert len(door.files) == 1


def pdu(kind, length, body=b""):
    return struct.pack(">BBL", kind, 0, length) + body


GARBAGE = {
    "a PDU of 4 GiB": pdu(1, 2**32 - 1, b"x" * 1000),
    "an unknown PDU": pdu(9, 10, b"x" * 10),
    "an association of zeros": pdu(1, 100, bytes(100)),
    "an association of noise": pdu(1, 300, bytes(range(256)) + bytes(44)),
    "data before an association": pdu(4, 12, struct.pack(">LBB", 8, 1, 3) + b"abcdef"),
    "text": b"GET / HTTP/1.1\r\nHost: door\r\n\r\n",
    "nothing": b"",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_what_is_no_association_is_harmless(scp, files, name, capfd):
    door = scp()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", door.port), 5) as connection:
            connection.sendall(GARBAGE[name])
    assert storescu(door.port, *files) == 0
    assert len(door.files) == 3
    assert "".join(capfd.readouterr()) == ""


def test_silent_connections_do_not_keep_others_out(scp, files):
    door = scp(associations=2, silence_s=2.0)
    silent = [socket.create_connection(("127.0.0.1", door.port), 5) for _ in range(30)]
    soon(lambda: storescu(door.port, *files) == 0)
    assert len(door.files) == 3
    for one in silent:
        one.close()


def test_half_a_pdu_ends_in_time(scp):
    door = scp(silence_s=1.0)
    with socket.create_connection(("127.0.0.1", door.port), 5) as connection:
        connection.sendall(pdu(1, 5000, b"x" * 100))
        connection.settimeout(30)
        assert connection.recv(100)[:1] in (b"", b"\x07")  # closed, or aborted
    soon(lambda: not door.server.active_associations)


def test_there_are_no_more_associations_than_allowed(scp):
    door = scp(associations=2)
    both = [associate(door) for _ in range(2)]
    assert all(one.is_established for one in both)
    assert associate(door).is_rejected
    for one in both:
        one.release()
    soon(lambda: not door.server.active_associations)
    third = associate(door)
    assert third.is_established
    third.release()


def test_a_caller_that_calls_too_often_is_turned_away(scp):
    door = scp(associations_per_minute=3)
    assert [echoscu(door.port) for _ in range(3)] == [0, 0, 0]
    assert echoscu(door.port) != 0
    assert door.count("associations", "too often") == 1


def test_a_data_set_that_cannot_be_understood_is_refused(scp, files, tmp_path, capfd):
    door = scp()
    dataset = pydicom.dcmread(files[0])
    del dataset.StudyInstanceUID
    dataset.save_as(tmp_path / "bad.dcm")
    association = associate(door)
    assert association.send_c_store(tmp_path / "bad.dcm").Status == 0xC000
    assert association.send_c_store(files[0]).Status == 0
    association.release()
    assert len(door.files) == 1
    assert "Doe" not in "".join(capfd.readouterr())


def test_a_full_disk_is_answered_so_that_the_sender_tries_again(scp, files):
    door = scp(free_mb=1 << 40)
    association = associate(door)
    assert association.send_c_store(files[0]).Status == 0xA700
    association.release()
    assert door.files == []


def test_the_same_instance_over_several_associations_is_stored_once(scp, files):
    door = scp()
    statuses = []

    def send():
        association = associate(door)
        statuses.extend(association.send_c_store(path).Status for path in files)
        association.release()

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 12
    assert pixels(door.files) == pixels(files)
    assert door.count("instances", "stored") == 3


@pytest.fixture
def certificates(tmp_path):
    def make(name):
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1"]
        more = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
        subprocess.run([*command, *more], check=True, capture_output=True)
        return str(certificate), str(key)

    return make


@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is absent")
def test_with_tls_only_those_with_a_certificate_come_in(scp, files, certificates):
    ours, theirs, stranger = certificates("ours"), certificates("theirs"), certificates("stranger")
    door = scp(tls=Tls(*ours, theirs[0]))

    def send(certificate, key):
        more = ["+tls", key, certificate, "+cf", ours[0]]
        return storescu(door.port, *files, more=more)

    assert send(*stranger) != 0
    assert storescu(door.port, *files) != 0  # without encryption
    assert door.files == []
    assert send(*theirs) == 0
    assert pixels(door.files) == pixels(files)
