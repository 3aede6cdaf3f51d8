"""Subjects are divided by a hash: each on one side, whoever else there is."""

import pytest

from medstyle.cohort.split import split_subjects
from medstyle.errors import UserError

PEOPLE = [f"sub-{number}" for number in range(40)]


def test_every_subject_is_on_one_side_and_shares_are_kept():
    splits = split_subjects(PEOPLE * 2, (0.1, 0.25), 0)
    assert sorted(splits) == sorted(PEOPLE)
    counts = {name: list(splits.values()).count(name) for name in ("train", "validation", "test")}
    assert counts == {"train": 26, "validation": 4, "test": 10}


def test_the_same_seed_gives_the_same_sides_in_whatever_order_they_come():
    first = split_subjects(PEOPLE, (0.2, 0.2), 3)
    assert split_subjects(PEOPLE[::-1], (0.2, 0.2), 3) == first
    assert split_subjects(PEOPLE, (0.2, 0.2), 4) != first


def test_a_new_subject_moves_few_others():
    before = split_subjects(PEOPLE, (0.2, 0.2), 0)
    after = split_subjects([*PEOPLE, "sub-new"], (0.2, 0.2), 0)
    assert sum(before[name] != after[name] for name in PEOPLE) <= 2


def test_each_side_that_is_asked_for_has_a_subject_as_long_as_one_is_left_to_train_on():
    assert sorted(split_subjects(["a", "b", "c"], (0.01, 0.01), 0).values()) == ["test", "train", "validation"]
    assert set(split_subjects(["a", "b"], (0, 0), 0).values()) == {"train"}
    with pytest.raises(UserError, match=r"2 subjects are too few .* would leave none to train on"):
        split_subjects(["a", "b"], (0.1, 0.1), 0)
