from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from medstyle.cohort.inventory import Item, inventory
from medstyle.cohort.sessions import sessions
from medstyle.dicom.acquired import write_series
from medstyle.dicom.uids import uid_of
from medstyle.imaging.volume import Volume
from medstyle.pseudonyms import person_of

SHAPE = (6, 20, 20)


@pytest.fixture
def scan_of(tmp_path):
    """Write a scan of a study and frame of reference at a position; return its item."""

    def write(name, study="1", space="1", at=(0.0, 0.0, 0.0)):
        affine = np.diag([1.0, 1.0, 3.0, 1.0])
        affine[:3, 3] = at
        write_series(
            tmp_path / name, Volume(np.ones(SHAPE, np.float32), affine, "mr_t1"),
            {"PatientID": "P", "PatientName": "P", "StudyInstanceUID": uid_of("study", study),
             "SeriesInstanceUID": uid_of(name), "FrameOfReferenceUID": uid_of("space", space)},
            range(len(np.ones(SHAPE))),
        )  # fmt: skip
        (item,) = inventory([tmp_path / name]).volumes
        return item

    return write


def test_the_scans_that_share_a_space_make_the_pair(scan_of):
    t1, moved, t2 = scan_of("a", space="1"), scan_of("b", space="2"), scan_of("c", space="1")
    for order in permutations([("mr_t1", t1), ("mr_t2", moved), ("mr_t2", t2)]):
        (session,) = sessions("sub-0", order).values()
        assert [session["mr_t1"][0], session["mr_t2"][0]] == [t1, t2]
        assert session["mr_t2"][1] is moved  # the next to try


def test_of_one_space_the_scans_that_overlap_most(scan_of):
    brain, neck, other = scan_of("a"), scan_of("b", at=(0, 0, -15.0)), scan_of("c", at=(0, 1.0, 0))
    (session,) = sessions("sub-0", [("mr_t2", neck), ("mr_t2", other), ("mr_t1", brain)]).values()
    assert session["mr_t2"][0] is other


def test_studies_of_the_same_domains_are_sessions_of_one_person(scan_of):
    images = [(domain, scan_of(f"{study}{domain}", study, study)) for study in "12" for domain in ("mr_t1", "mr_t2")]
    found = sessions("sub-0", images)
    assert len(found) == 2
    assert {person_of(subject) for subject in found} == {"sub-0"}
    for session in found.values():
        assert len({session[domain][0].series.study_uid for domain in ("mr_t1", "mr_t2")}) == 1


def test_studies_of_different_domains_are_one_session(scan_of):
    """A person's CT and MR are seldom of one study.

    A second MR study remains a session of its own.
    """
    images = [("mr_t1", scan_of("a", "1")), ("ct", scan_of("b", "2")), ("mr_t1", scan_of("c", "3"))]
    assert [sorted(session) for session in sessions("sub-0", images).values()] == [["ct", "mr_t1"], ["mr_t1"]]
    assert list(sessions("sub-0", images[:2])) == ["sub-0"]


def test_sessions_of_bids_are_kept_apart():
    def file(session, name):
        return Item("volume", "volume", "", "", (Path(f"data/sub-01/{session}/anat/sub-01_{name}.nii.gz"),))

    images = [(name, file(session, name)) for session in ("ses-1", "ses-2") for name in ("mr_t1", "mr_t2")]
    for session in sessions("sub-0", images).values():
        assert len({item.path.parent for items in session.values() for item in items}) == 1
        assert sorted(session) == ["mr_t1", "mr_t2"]
