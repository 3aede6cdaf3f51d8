import numpy as np
import pytest

from medstyle.cohort.rules import Rule
from medstyle.cohort.split import split_subjects
from medstyle.data.store import Row, SliceStore, StoreIndex, write_rows
from medstyle.errors import UserError
from medstyle.transforms.prepare import Preparation

SUBJECTS = [f"sub-{i:03d}" for i in range(40)]


def test_split_is_by_subject_complete_and_ignores_order():
    split = split_subjects(SUBJECTS, (0.1, 0.2), seed=0)
    assert split == split_subjects(SUBJECTS[::-1], (0.1, 0.2), seed=0)
    assert split != split_subjects(SUBJECTS, (0.1, 0.2), seed=1)
    counts = {name: list(split.values()).count(name) for name in ("train", "validation", "test")}
    assert counts == {"train": 28, "validation": 4, "test": 8}


def test_one_more_subject_moves_few():
    before = split_subjects(SUBJECTS, (0.1, 0.2), seed=0)
    after = split_subjects([*SUBJECTS, "sub-new"], (0.1, 0.2), seed=0)
    assert sum(before[s] != after[s] for s in SUBJECTS) <= 2


def test_too_few_subjects_is_an_error():
    with pytest.raises(UserError, match="too few"):
        split_subjects(["a", "b"], (0.5, 0.5), seed=0)
    assert split_subjects(["a"], (0.0, 0.0), seed=0) == {"a": "train"}


def test_rows_join_in_order_and_are_mapped(tmp_path, rng):
    blocks = [rng.normal(size=(n, 1, 4, 5)).astype(np.float16) for n in (3, 1, 2)]
    for i, block in enumerate(blocks):
        np.save(tmp_path / f"{i}.npy", block)
    write_rows(tmp_path / "train/mr_t1.npy", [tmp_path / f"{i}.npy" for i in range(3)])
    rows = {
        "mr_t1": tuple(Row("a", i, 0.0, 1.0, (0, 3, 1, 4)) for i in range(6)),
        "mr_t2": tuple(Row(subject, i, 0.0, 1.0, None) for subject, i in (("a", 5), ("a", 0), ("b", 1))),
    }
    rule = Rule("mr_t1", {"path": "*t1*"})
    index = StoreIndex((4, 5), Preparation(denoise="median"), "rigid", (rule,), {"a": "train"}, {"train": rows}, {})
    (tmp_path / "index.json").write_text(index.to_json())
    store = SliceStore.open(tmp_path)
    assert store.index == index
    array = store.array("mr_t1", "train")
    assert isinstance(array, np.memmap)
    np.testing.assert_array_equal(array, np.concatenate(blocks))
    assert store.pairs("mr_t1", "mr_t2", "train").tolist() == [[0, 1], [5, 0]]


def test_an_absent_store_names_the_remedy(tmp_path):
    with pytest.raises(UserError, match="medstyle denoise"):
        SliceStore.open(tmp_path)


def test_near_duplicates_are_found_once_in_any_chunk(rng):
    from medstyle.cohort.duplicates import near_duplicates

    images = rng.normal(size=(50, 300)).astype(np.float32)
    images[31], images[49] = images[7], images[8] + 0.01 * rng.normal(size=300)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    for chunk in (7, 1024):
        assert sorted(near_duplicates(images, 0.99, chunk)) == [(7, 31), (8, 49)]
