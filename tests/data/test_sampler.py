from collections import Counter

import numpy as np
import pytest
import torch

from benchmarks.peers.data import Feed as References
from medstyle.data.sampler import BatchSampler, Sampling, nth, seeded
from medstyle.data.store import SliceStore
from medstyle.errors import UserError
from medstyle.transforms.augment import Augmentation
from tests.data.conftest import SLICES

PLAIN = Augmentation(rotation_deg=0, scale=0, shift=0, flip=False, gamma=0)


def sampler(store, domains=("mr_t1", "mr_t2"), **changes):
    settings = {"paired": True, "batch": 4, "seed": 0, "foreground": 0.1, "augmentation": PLAIN, **changes}
    return BatchSampler(store, Sampling(domains, **settings))


def change_rows(store, domain, **changes):
    """Change fields of the training rows of a domain: each by a function of the row."""
    store.index.rows["train"][domain] = [
        row._replace(**{name: change(row) for name, change in changes.items()})
        for row in store.index.rows["train"][domain]
    ]


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
    change_rows(store, "mr_t1", foreground=lambda row: float(row.subject != "train-0" or row.slice <= 1))
    chosen = [sampler(store).example(k) for k in range(5 * SLICES * 4)]
    counts = Counter(e.subject for e in chosen)
    assert len(set(counts.values())) == 1
    assert {e.place for e in chosen if e.subject == "train-0"} == {0, 1}
    assert {e.place for e in chosen if e.subject == "train-1"} == set(range(SLICES))


def test_pairs_show_the_same_slice(store):
    batch = sampler(store)(3, 9, torch.device("cpu"))
    torch.testing.assert_close(batch.target, -batch.source, atol=2e-2, rtol=0)
    assert batch.paired.all()
    assert batch.source_index.tolist() == [0] * 4
    assert batch.target_index.tolist() == [1] * 4


def test_unpaired_images_meet_at_the_same_height(store):
    unpaired = sampler(store, paired=False)
    chosen = [unpaired.example(k) for k in range(100)]
    assert any(e.subject != e.target_subject for e in chosen)
    assert max(abs(e.place - e.target_place) for e in chosen) <= 1


def test_people_meet_where_the_common_space_says_and_both_scans_reach(store):
    """Targets lie two slices higher, three rows down and one column to the right.

    Their lowest slices show nothing.
    """
    shifted = np.eye(4)
    shifted[:3, 3] = (-2, -3, -1)  # of the target's voxels to the source's
    store.index.common_space["mr_t2"] = {f"train-{k}": shifted.tolist() for k in range(5)}
    change_rows(store, "mr_t2", foreground=lambda row: float(row.slice >= 3))
    unpaired = sampler(store, paired=False, cross_subject=True)
    chosen = [unpaired.example(k) for k in range(200)]
    assert all(e.target_place == e.place + 2 for e in chosen)
    assert {e.place for e in chosen} == {1, 2, 3}
    assert len({(e.subject, e.target_subject) for e in chosen}) == 5 * 4, "everybody with everybody else"
    batch = unpaired(0, 9, torch.device("cpu"))
    for e, target, alike, seen in zip(chosen, batch.target, *batch.matched[:2], strict=False):
        torch.testing.assert_close(alike[:, :-3, :-1], target[:, 3:, 1:], atol=2e-3, rtol=0, msg=str(e))
        assert (seen == 1).all()


def test_what_a_scan_does_not_reach_is_not_compared(store):
    """A plane that is tilted leaves the scan on one side."""
    tilted = np.eye(4)
    tilted[0, 1] = 0.5  # a row further is half a slice higher
    store.index.common_space["mr_t1"] = {f"train-{k}": tilted.tolist() for k in range(5)}
    unpaired = sampler(store, paired=False, cross_subject=True)
    example = unpaired.example(0)
    alike, seen = unpaired._matched(example)
    heights = example.place + 0.5 * np.arange(24)
    assert ((seen[0, 0] > 0).all(1) == (heights <= SLICES - 1)).all()
    row = int(2 * (SLICES - 1 - example.place))
    stored = unpaired.images["mr_t2"].block(example.target_subject, SLICES - 1, 1)
    np.testing.assert_allclose(alike[0, 0, row], stored[0, 0, row], atol=2e-3)


def test_who_is_not_in_the_common_space_is_met_by_height_and_not_compared(store):
    del store.index.common_space["mr_t1"]["train-0"]
    unpaired = sampler(store, paired=False, cross_subject=True, batch=5)
    chosen = [unpaired.example(k) for k in range(5)]
    batch = unpaired(0, 9, torch.device("cpu"))
    for e, seen in zip(chosen, batch.matched.seen, strict=True):
        assert (seen > 0).any() == (e.subject != "train-0")
    assert batch.matched.image.shape == batch.target.shape
    assert batch.matched.voxel_mm == (1, 1, 1)


def test_every_direction_is_drawn(store):
    every = sampler(store, ("mr_t1", "mr_t2", "mr_flair"), paired=False, all_directions=True)
    chosen = [every.example(k) for k in range(120)]
    assert set(Counter((e.source, e.target) for e in chosen).values()) == {20}
    same = [e.subject == e.target_subject and e.place == e.target_place for e in chosen]
    assert 0.2 < np.mean(same) < 0.8


def test_processes_divide_what_one_would_see(store):
    device = torch.device("cpu")
    shaken = Augmentation(noise=0.1, bias=0.2, elastic=0.02)
    whole = sampler(store, augmentation=shaken)(5, 9, device)
    parts = [sampler(store, augmentation=shaken, rank=rank, world=2)(5, 9, device) for rank in (0, 1)]
    torch.testing.assert_close(torch.cat([p.source for p in parts]), whole.source)
    torch.testing.assert_close(torch.cat([p.target for p in parts]), whole.target)
    assert [*parts[0].seeds, *parts[1].seeds] == list(whole.seeds)


@pytest.mark.parametrize("depth", [3, 5])
def test_neighbours_surround_the_slice_and_the_last_stands_for_what_is_missing(store, depth):
    stacked = sampler(store, depth=depth, contrasts=("mr_flair",))
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
    batch = sampler(store, depth=4, volumetric=True)(0, 9, torch.device("cpu"))
    assert batch.source.shape == batch.target.shape == (4, 1, 4, 24, 24)
    torch.testing.assert_close(batch.target, -batch.source, atol=2e-2, rtol=0)


def test_reading_ahead_changes_nothing(store):
    one, other = sampler(store), sampler(store)
    device = torch.device("cpu")
    for step in (0, 1, 2, 7):
        expected = other.read(step)["source"]
        torch.testing.assert_close(one(step, 9, device).source, expected, atol=1e-5, rtol=0)


def test_a_target_whose_field_of_view_ends_earlier_is_not_trained_on_air(store):
    change_rows(store, "mr_t2", foreground=lambda row: float(row.slice >= 3))
    assert {sampler(store).example(k).place for k in range(60)} == {3, 4, 5}
    every = sampler(store, paired=False, all_directions=True)
    targets = [e.target_place for e in map(every.example, range(120)) if e.target == "mr_t2"]
    assert set(targets) == {3, 4, 5}
    peers = References(store, "mr_t1", "mr_t2", paired=True)
    assert {store.rows("mr_t2", "train")[next(peers.draws[0])[1]].slice for _ in range(60)} == {3, 4, 5}


def test_domains_without_common_slices_stop_with_their_cause(store):
    change_rows(store, "mr_t2", subject=lambda row: "other")
    with pytest.raises(UserError, match="no train subject has all slices of mr_t1 and mr_t2"):
        sampler(store)
    assert sampler(store, paired=False).example(0).target_subject == "other"


def test_the_store_is_mapped_not_loaded(store):
    array = sampler(store).images["mr_t1"].array
    assert isinstance(array, np.memmap)
    assert isinstance(store, SliceStore)


def test_variants_take_turns_with_the_source_and_every_target_is_drawn(store):
    """Each way as often as the other; a pair is one slice, whatever the input."""
    one = sampler(store, ("mr_t1", "mr_flair"), variants=("mr_t2",))
    chosen = [one.example(k) for k in range(40)]
    assert {(e.source, e.target) for e in chosen} == {("mr_t1", "mr_flair"), ("mr_t2", "mr_flair")}
    assert Counter(e.source for e in chosen) == {"mr_t1": 20, "mr_t2": 20}
    assert all((e.subject, e.place) == (e.target_subject, e.target_place) for e in chosen)
    batch = one(0, 2, torch.device("cpu"))
    assert batch.source_index.tolist() == [0] * 4, "a variant has the index of its source"
    several = sampler(store, ("mr_t1", "mr_t2", "mr_flair"))
    batch = several(0, 2, torch.device("cpu"))
    assert sorted(batch.target_index.tolist()) == [1, 1, 2, 2]
    assert batch.paired.all()


def test_a_slice_is_drawn_only_where_all_targets_show_the_body(store):
    change_rows(store, "mr_t2", foreground=lambda row: float(row.slice >= 2))
    change_rows(store, "mr_flair", foreground=lambda row: float(row.slice < 4))
    one = sampler(store, ("mr_t1", "mr_t2", "mr_flair"))
    assert {one.example(k).place for k in range(60)} == {2, 3}


def test_a_window_is_the_same_part_of_all_images_and_another_at_each_step(store):
    whole, part = (sampler(store, window=window) for window in (0, 16))
    starts = set()
    for step in range(6):
        everything, batch = (one(step, 9, torch.device("cpu")) for one in (whole, part))
        assert torch.equal(batch.whole, everything.target)
        assert torch.equal(everything.whole, everything.target)
        [(y, x)] = [
            (y, x)
            for y in range(everything.source.shape[2] - 15)
            for x in range(everything.source.shape[3] - 15)
            if torch.equal(everything.source[..., y : y + 16, x : x + 16], batch.source)
        ]
        assert torch.equal(everything.target[..., y : y + 16, x : x + 16], batch.target)
        starts.add((y, x))
    assert len(starts) > 3
    assert torch.equal(
        sampler(store, window=500)(0, 9, torch.device("cpu")).source, whole(0, 9, torch.device("cpu")).source
    )


def test_pairs_of_each_target_come_from_the_subjects_that_have_it(store):
    """Two protocols of one contrast, each in other people: no subject has both targets."""
    change_rows(store, "mr_t2", subject=lambda row: row.subject if row.subject != "train-0" else "elsewhere")
    change_rows(store, "mr_flair", subject=lambda row: row.subject if row.subject == "train-0" else "elsewhere")
    several = sampler(store, ("mr_t1", "mr_t2", "mr_flair"))
    chosen = [several.example(k) for k in range(60)]
    assert Counter(e.target for e in chosen) == {"mr_t2": 30, "mr_flair": 30}, "the rarer one as often"
    assert {e.subject for e in chosen if e.target == "mr_flair"} == {"train-0"}
    assert "train-0" not in {e.subject for e in chosen if e.target == "mr_t2"}
