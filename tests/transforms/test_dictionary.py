import json

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, Orientationd

from medstyle.imaging.modality import NORMALISATIONS, QUANTILES
from medstyle.transforms import dictionary
from medstyle.transforms.augment import Augmentation, augment
from medstyle.transforms.dictionary import (
    CorrectBiasd,
    Denoised,
    ForegroundMaskd,
    NoiseSigmad,
    Normalised,
    RandAugmentd,
)
from medstyle.transforms.intensity import FILTERS, CorrectBias, Denoise, foreground_mask
from medstyle.transforms.prepare import Preparation

pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodec")  # MONAI's words for a reader that nobody asked for


@pytest.fixture
def example(run):
    """One subject as MONAI loads it: T1 and T2 on the axial grid."""
    items = json.loads((run.root / "data/scans/manifest.json").read_text())["items"]
    subject = items[0]["subject"]
    paths = {item["domain"]: run.root / "data/scans" / item["path"] for item in items if item["subject"] == subject}
    keys = sorted(paths)
    load = Compose([LoadImaged(keys, ensure_channel_first=True), Orientationd(keys, axcodes="LPS", labels=None)])
    return load(paths)


CASES = {
    "CorrectBiasd": (CorrectBiasd("mr_t1"), CorrectBias()),
    **{
        f"Denoised {name}": (Denoised("mr_t1", name), lambda image, name=name: Denoise(name, rician=True)(image))
        for name in FILTERS
    },
}


@pytest.mark.parametrize("name", CASES)
def test_a_dictionary_transform_does_what_the_pipeline_does(example, name):
    transform, plain = CASES[name]
    before = example["mr_t1"].clone()
    out = transform(example)
    torch.testing.assert_close(out["mr_t1"], plain(before))
    assert not torch.equal(out["mr_t1"], before)
    torch.testing.assert_close(example["mr_t1"], before)  # the input is left alone
    assert out["mr_t2"] is example["mr_t2"]
    torch.testing.assert_close(out["mr_t1"].affine, before.affine)


def test_what_is_found_is_added(example):
    out = Compose([ForegroundMaskd(["mr_t1", "mr_t2"]), NoiseSigmad("mr_t1")])(example)
    assert out["mr_t1_mask"].shape == example["mr_t1"].shape
    assert (np.asarray(out["mr_t1_mask"][0]) == foreground_mask(np.asarray(example["mr_t1"][0], np.float32))).all()
    torch.testing.assert_close(out["mr_t2_mask"].affine, example["mr_t2"].affine)
    assert out["mr_t1_sigma"] > 0
    doubled = NoiseSigmad("mr_t1")({"mr_t1": example["mr_t1"] * 2})["mr_t1_sigma"]
    assert doubled == pytest.approx(2 * out["mr_t1_sigma"], rel=1e-3)


LANDMARKS = {"mr_t1": tuple(np.linspace(-1, 1, len(QUANTILES)) ** 3)}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalising_returns_every_value(example, name):
    """Exactly, but for the rounding of 32-bit floats; through MONAI's Compose as well."""
    chain = Compose([Normalised("mr_t1", "mr_t1", Preparation(normalisation=name, landmarks=LANDMARKS))])
    scaled = chain(example)
    body = np.asarray(scaled["mr_t1"])[foreground_mask(np.asarray(example["mr_t1"][0], np.float32))[None]]
    assert -1.6 < np.percentile(body, 1) < np.percentile(body, 99) < 1.6
    back = chain.inverse(scaled)["mr_t1"]
    np.testing.assert_allclose(np.asarray(back), np.asarray(example["mr_t1"]), rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(back.affine, example["mr_t1"].affine)


def test_a_ct_goes_through_its_window_whatever_it_shows():
    values = torch.linspace(-1024, 3071, 1000).reshape(1, 10, 10, 10)
    scaled = Normalised("ct", "ct", Preparation(ct_window=(-100.0, 300.0)))({"ct": MetaTensor(values)})["ct"]
    torch.testing.assert_close(scaled.as_tensor(), (values + 100) / 200 - 1)


def test_augmentation_moves_all_images_alike_and_repeats_with_its_seed(example):
    slices = {key: example[key][..., 4] / 1000 - 1 for key in ("mr_t1", "mr_t2")}
    change = RandAugmentd(["mr_t1", "mr_t2"], Augmentation(noise=0.1))
    first, second = (change.set_random_state(7)(slices) for _ in range(2))
    torch.testing.assert_close(first["mr_t1"], second["mr_t1"])
    assert not torch.equal(change(slices)["mr_t1"], first["mr_t1"])
    change.set_random_state(7)
    change.randomize()
    plain = [slices[key].as_tensor()[None] for key in ("mr_t1", "mr_t2")]
    expected = augment(plain, change.settings, [change.seed], torch.tensor([True]))
    torch.testing.assert_close(first["mr_t2"].as_tensor(), expected[1][0])
    twins = RandAugmentd(["mr_t1", "mr_t2"], contrast=False)({"mr_t1": slices["mr_t1"], "mr_t2": slices["mr_t1"]})
    torch.testing.assert_close(twins["mr_t1"], twins["mr_t2"])


def test_every_public_transform_is_tested_here():
    public = {
        name
        for name, value in vars(dictionary).items()
        if name.endswith("d") and name[0] != "_" and isinstance(value, type)
    }
    own = {name for name in public if getattr(dictionary, name).__module__ == dictionary.__name__}
    assert own == {"CorrectBiasd", "Denoised", "ForegroundMaskd", "NoiseSigmad", "Normalised", "RandAugmentd"}
    for name in own:
        with pytest.raises(KeyError):
            getattr(dictionary, name)("absent", *(["mr_t1"] if name == "Normalised" else []))({})
        assert getattr(dictionary, name)(
            "absent", *(["mr_t1"] if name == "Normalised" else []), allow_missing_keys=True
        )({"x": 1}) == {"x": 1}
