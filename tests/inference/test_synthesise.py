"""What a network is shown of a scan, and how its answers are put together."""

import numpy as np
import pytest
import torch

from medstyle import Translator
from medstyle.inference import synthesise as rendering
from medstyle.inference.synthesise import synthesise
from medstyle.inference.translate import prepare_source
from medstyle.transforms.body import is_body
from tests.inference.conftest import Plain, make_translator


@pytest.mark.parametrize("chunk", [1, 200, 1 << 30])
def test_neighbours_are_channels_and_the_ends_repeat(monkeypatch, chunk):
    """Channel m B + b is contrast m of slice z + b - B // 2, in every chunk, and nothing of the
    others is made."""
    monkeypatch.setitem(rendering.CHUNK, "cpu", chunk)
    weights = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5]).view(-1, 1, 1)
    code = Plain(lambda x: (x * weights).sum(1, keepdim=True))
    translator = make_translator(
        ("mr_t1", "mr_t2", "mr_flair"), contrasts=["mr_t2"], neighbours=3, generator=code, mirror=False
    )
    content = torch.arange(5.0).view(5, 1, 1, 1) + torch.tensor([0.0, 5.0]).view(1, 2, 1, 1) + torch.zeros(5, 2, 8, 9)
    made = synthesise(translator, content)[:, 0, 0, 0]
    depth = torch.arange(5.0)
    before, after = (depth - 1).clamp(min=0), (depth + 1).clamp(max=4)
    expected = before + 10 * depth + 100 * after + 1e3 * (before + 5) + 1e4 * (depth + 5) + 1e5 * (after + 5)
    torch.testing.assert_close(made, expected)


def test_an_ensemble_is_the_mean_of_its_members(source):
    both = make_translator(members=2)
    content = prepare_source(source, both).slices
    each = [synthesise(Translator(both.config, [one]), content) for one in both.members]
    torch.testing.assert_close(synthesise(both, content), (each[0] + each[1]) / 2)


def small_body(rng, grow):
    """Draw slices of a body that differs in size from slice to slice, with ``grow`` pixels of air
    around its field."""
    y, x = np.mgrid[:96, :80]
    radii = np.array([3, 6, 14, 18, 9])[:, None, None]
    body = (y - 48) ** 2 + (x - 40) ** 2 < radii**2
    values = np.where(body, rng.random(body.shape), -1).astype(np.float32)
    wider = [(0, 0), (grow, grow), (grow, grow)]
    return torch.from_numpy(np.pad(values, wider, constant_values=-1))[:, None], np.pad(body, wider)


@pytest.mark.parametrize("neighbours", [1, 3])
def test_the_field_of_view_does_not_matter(rng, neighbours):
    translator = make_translator(neighbours=neighbours)
    wide, body = small_body(rng, 32)
    cut = (..., slice(32, -32), slice(32, -32))
    made, whole = synthesise(translator, wide[cut], body=body[cut]), synthesise(translator, wide, body=body)
    np.testing.assert_allclose(made[:, 0][body[cut]], whole[:, 0][body], atol=1e-5)
    if neighbours == 1:
        np.testing.assert_allclose(synthesise(translator, wide[2:3], body=body[2:3])[0], whole[2], atol=1e-5)


def test_a_slice_is_seen_as_in_training(run, monkeypatch):
    """The box of a slice in use is the one that the sampler cuts for a batch of one."""
    from medstyle.data.sampler import BatchSampler, Sampling
    from medstyle.data.store import SliceStore
    from medstyle.transforms.augment import Augmentation

    translator = make_translator()
    store = SliceStore.open(run.root / "data/slices")
    still = Augmentation(rotation_deg=0, scale=0, shift=0, flip=False, gamma=0)
    domains = ("mr_t1", "mr_t1@twin")  # the target is the source: its body adds nothing
    monkeypatch.setattr(SliceStore, "array", lambda self, name, split, own=SliceStore.array: own(self, "mr_t1", split))
    monkeypatch.setattr(SliceStore, "rows", lambda self, name, split, own=SliceStore.rows: own(self, "mr_t1", split))
    sampling = Sampling(domains, batch=1, seed=0, augmentation=still, paired=True, multiple=translator.multiple)
    sampler = BatchSampler(store, sampling)
    seen = []
    monkeypatch.setattr(type(translator), "__call__", lambda self, x, style: seen.append(x) or x)
    for step in range(8):
        example = sampler.example(step)
        row = sampler.images["mr_t1"].rows[example.subject][example.place]
        content = torch.from_numpy(store.array("mr_t1", "train")[row : row + 1].astype(np.float32))
        synthesise(translator, content, body=is_body(content[:, 0].numpy()))
        assert torch.equal(seen[-1], sampler(step, 1, torch.device("cpu")).source)
