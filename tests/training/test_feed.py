from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks.peers.data import Feed as References
from medstyle.errors import UserError
from medstyle.imaging.store import SliceStore
from medstyle.training.feed import Feed, nth, seeded
from medstyle.transforms.augment import Augmentation
from tests.training.conftest import SLICES

PLAIN = Augmentation(rotation_deg=0, scale=0, shift=0, flip=False, gamma=0)


def feed(store, domains=("mr_t1", "mr_t2"), **changes):
    settings = {"paired": True, "batch": 4, "seed": 0, "foreground": 0.1, "augmentation": PLAIN, **changes}
    return Feed(store, domains, **settings)


def test_every_item_once_per_round_wherever_the_run_begins():
    seen = [nth(10, k, "x") for k in range(30)]
    for turn in range(3):
        assert sorted(seen[10 * turn : 10 * turn + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]


def test_randomness_is_a_function_of_its_name():
    draws = {float(torch.rand(1, generator=seeded(s, t, p))) for s in (0, 1) for t in (0, 1) for p in "ab"}
    assert len(draws) == 8
    assert torch.equal(torch.rand(3, generator=seeded(1, 5)), torch.rand(3, generator=seeded(1, 5)))


def test_subjects_count_alike_and_every_slice_is_seen(store):
    """One subject loses most of its slices and is drawn as often as the others."""
    rows = [
        [*row[:3], 0.0 if row[0] == "train-0" and row[1] > 1 else 1.0] for row in store.index["rows"]["train"]["mr_t1"]
    ]
    store.index["rows"]["train"]["mr_t1"] = rows
    chosen = [feed(store).example(k) for k in range(5 * SLICES * 4)]
    counts = Counter(e.subject for e in chosen)
    assert len(set(counts.values())) == 1
    assert {e.place for e in chosen if e.subject == "train-0"} == {0, 1}
    assert {e.place for e in chosen if e.subject == "train-1"} == set(range(SLICES))


def test_pairs_show_the_same_slice(store):
    batch = feed(store)(3, 9, torch.device("cpu"))
    torch.testing.assert_close(batch.target, -batch.source, atol=2e-2, rtol=0)
    assert batch.paired.all()
    assert batch.source_index.tolist() == [0] * 4
    assert batch.target_index.tolist() == [1] * 4


def test_unpaired_images_meet_at_the_same_height(store):
    unpaired = feed(store, paired=False)
    chosen = [unpaired.example(k) for k in range(100)]
    assert any(e.subject != e.target_subject for e in chosen)
    assert max(abs(e.place - e.target_place) for e in chosen) <= 1


def test_every_direction_is_drawn(store):
    every = feed(store, ("mr_t1", "mr_t2", "mr_flair"), paired=False, everywhere=True)
    chosen = [every.example(k) for k in range(120)]
    assert set(Counter((e.source, e.target) for e in chosen).values()) == {20}
    same = [e.subject == e.target_subject and e.place == e.target_place for e in chosen]
    assert 0.2 < np.mean(same) < 0.8


def test_processes_divide_what_one_would_see(store):
    device = torch.device("cpu")
    shaken = Augmentation(noise=0.1, bias=0.2, elastic=0.02)
    whole = feed(store, augmentation=shaken)(5, 9, device)
    parts = [feed(store, augmentation=shaken, rank=rank, world=2)(5, 9, device) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([p.source for p in parts]), whole.source)
    torch.testing.assert_close(torch.cat([p.target for p in parts]), whole.target)
    assert [*parts[0].seeds, *parts[1].seeds] == list(whole.seeds)


@pytest.mark.parametrize("depth", [3, 5])
def test_neighbours_surround_the_slice_and_the_last_stands_for_what_is_missing(store, depth):
    stacked = feed(store, depth=depth, contrasts=("mr_flair",))
    batch = stacked(0, 9, torch.device("cpu"))
    assert batch.source.shape[1] == 2 * depth
    assert batch.target.shape[1] == 1
    middle = batch.source[:, depth // 2 : depth // 2 + 1]
    torch.testing.assert_close(batch.target, -middle, atol=2e-2, rtol=0)
    torch.testing.assert_close(batch.source[:, depth + depth // 2], 2 * middle[:, 0].abs() - 1, atol=5e-2, rtol=0)
    images = stacked.images["mr_t1"]
    block = images.block("train-0", 0, depth)
    np.testing.assert_array_equal(block[0], block[depth // 2])
    np.testing.assert_array_equal(block[-1], images.block("train-0", depth // 2, 1)[0])


def test_volumes_keep_their_axis(store):
    batch = feed(store, depth=4, volumetric=True)(0, 9, torch.device("cpu"))
    assert batch.source.shape == batch.target.shape == (4, 1, 4, 24, 24)
    torch.testing.assert_close(batch.target, -batch.source, atol=2e-2, rtol=0)


def test_reading_ahead_changes_nothing(store):
    one, other = feed(store), feed(store)
    device = torch.device("cpu")
    for step in (0, 1, 2, 7):
        expected = other.read(step)["source"]
        torch.testing.assert_close(one(step, 9, device).source, expected, atol=1e-5, rtol=0)


def test_a_target_whose_field_of_view_ends_earlier_is_not_trained_on_air(store):
    rows = [[*row[:3], 0.0 if row[1] < 3 else 1.0] for row in store.index["rows"]["train"]["mr_t2"]]
    store.index["rows"]["train"]["mr_t2"] = rows
    assert {feed(store).example(k).place for k in range(60)} == {3, 4, 5}
    every = feed(store, paired=False, everywhere=True)
    targets = [e.target_place for e in map(every.example, range(120)) if e.target == "mr_t2"]
    assert set(targets) == {3, 4, 5}
    peers = References(store, "mr_t1", "mr_t2", paired=True)
    assert {store.rows("mr_t2", "train")[next(peers.draws[0])[1]].slice for _ in range(60)} == {3, 4, 5}


def test_domains_without_common_slices_stop_with_their_cause(store):
    store.index["rows"]["train"]["mr_t2"] = [["other", *row[1:]] for row in store.index["rows"]["train"]["mr_t2"]]
    with pytest.raises(UserError, match="no train subject has all slices of mr_t1 and mr_t2"):
        feed(store)
    assert feed(store, paired=False).example(0).target_subject == "other"


def test_the_store_is_mapped_not_loaded(store):
    array = feed(store).images["mr_t1"].array
    assert isinstance(array, np.memmap)
    assert isinstance(store, SliceStore)
