"""What each protocol measures has known answers."""

import numpy as np
import pytest
import torch

from medstyle.evaluation.protocols import PROTOCOLS, PictureSet, ms_ssim, through_plane


@pytest.fixture
def image(rng):
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(rng.random((3, 40, 36)), (0, 2, 2))
    return ((smooth - smooth.min()) / np.ptp(smooth)).astype(np.float32)


def test_plain_has_the_known_answers(image):
    mask = np.zeros(image.shape, bool)
    mask[:, 8:30, 8:28] = True
    off = image + 0.1
    measured = PROTOCOLS["plain"].measure(off, image, mask)
    assert measured["mae"] == pytest.approx(0.1, abs=1e-6)
    assert measured["psnr"] == pytest.approx(20.0, abs=1e-4)
    same = PROTOCOLS["plain"].measure(image, image, mask)
    assert same["ssim"] == pytest.approx(1.0)
    assert same["mae"] == 0


def test_plain_agrees_with_monai_and_ignores_what_lies_outside(image, rng):
    from monai.metrics.regression import compute_ssim_and_cs

    other = np.clip(image + rng.normal(0, 0.1, image.shape), 0, 1).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[:, 5:-5, 5:-5] = True  # MONAI's map has no padding
    ours = PROTOCOLS["plain"].measure(other, image, mask)["ssim"]
    a, b = (torch.from_numpy(x)[:, None] for x in (other, image))
    full, _ = compute_ssim_and_cs(a, b, 2, data_range=torch.tensor(1.0), kernel_size=[11] * 2, kernel_sigma=[1.5] * 2)
    assert ours == pytest.approx(float(full.mean()), abs=1e-3)
    changed = np.where(mask, other, 0.9)
    again = PROTOCOLS["plain"].measure(changed.astype(np.float32), image, mask)
    assert again["mae"] == pytest.approx(PROTOCOLS["plain"].measure(other, image, mask)["mae"])


# what is done to an image -> what plain says of it
BESIDE = {
    "the same": (lambda v: v, {"nmse": 0, "nmi": 2, "edges": 1, "sharpness": 0}),
    "brighter": (lambda v: v + 0.1, {"edges": 1, "sharpness": 0}),
    "twice the contrast": (lambda v: 2 * v, {"nmse": 1, "nmi": 2, "edges": 1, "sharpness": np.log(4)}),
    "negative": (lambda v: 1 - v, {"edges": 1, "sharpness": 0}),
    "black": (lambda v: 0 * v, {"nmse": 1, "edges": 0}),
}


@pytest.mark.parametrize("name", BESIDE)
def test_plain_has_the_known_answers_beside_the_headline(image, name):
    change, expected = BESIDE[name]
    mask = np.zeros(image.shape, bool)
    mask[:, 8:30, 8:28] = True
    measured = PROTOCOLS["plain"].measure(change(image).astype(np.float32), image, mask)
    assert {key: measured[key] for key in expected} == pytest.approx(expected, abs=2e-3)


def test_every_protocol_names_what_it_measures(image, rng):
    mask = np.ones(image.shape, bool)
    for name, protocol in PROTOCOLS.items():
        scale = 2000 if protocol.unit == "HU" else 1
        pictures = (*rng.random((2, 20, 20, 3)), PictureSet(rng.random((2, 20, 20, 3))))
        given = (scale * image, scale * image, mask if protocol.paired else image) if name != "unpaired" else pictures
        measured = protocol.measure(*given)
        assert set(measured) == set(protocol.measures), name
        assert set(protocol.headline) <= set(measured)
        assert protocol.version >= 1


def blurred(image, rng):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(image, 1.5)


def noisy(image, rng):
    return image + rng.normal(0, 0.05 * np.ptp(image), image.shape)


@pytest.mark.parametrize("worse", [blurred, noisy], ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [name for name, protocol in PROTOCOLS.items() if protocol.paired])
def test_the_headline_prefers_the_reference_itself(image, rng, name, worse):
    protocol = PROTOCOLS[name]
    real = (2000 * image - 1000 if protocol.unit == "HU" else image).astype(np.float32)
    mask = np.zeros(image.shape, bool)
    mask[:, 4:-4, 4:-4] = True
    same, other = (protocol.measure(v.astype(np.float32), real, mask) for v in (real, worse(real, rng)))
    for measure in protocol.headline:
        sign = 1 if protocol.measures[measure] == "higher" else -1
        assert sign * same[measure] > sign * other[measure], measure


def test_synthrad_counts_hounsfield_units():
    """An offset of 100 HU is an MAE of 100 and a PSNR of 20 log10(4095 / 100).

    Outside both are air.
    """
    real = np.full((8, 32, 32), 40, np.float32)
    mask = np.zeros(real.shape, bool)
    mask[:, 8:24, 8:24] = True
    off = np.where(mask, real + 100, 900).astype(np.float32)
    measured = PROTOCOLS["synthrad2025"].measure(off, real, mask)
    assert measured["mae_hu"] == pytest.approx(100)
    assert measured["psnr"] == pytest.approx(20 * np.log10(4095 / 100))
    beyond = PROTOCOLS["synthrad2025"].measure(real + 5000, real, mask)
    assert beyond["mae_hu"] == pytest.approx(5000)  # unclipped
    assert beyond["psnr"] == pytest.approx(20 * np.log10(4095 / (3071 - 40)))  # clipped


def test_one_scale_of_ms_ssim_is_the_ssim_of_scikit_image(rng):
    from scipy.ndimage import gaussian_filter
    from skimage.metrics import structural_similarity

    real = gaussian_filter(rng.random((97, 98, 99)), 2) * 5000
    other = real + rng.normal(0, 30, real.shape)
    _, full = structural_similarity(other, real, data_range=4095, win_size=7, full=True)
    inside = np.zeros(real.shape, bool)
    inside[20:60, 30:70, 20:80] = True
    ours = ms_ssim(other, real, inside, 4095, weights=(1.0,))
    assert ours == pytest.approx(float(full[inside].mean()), abs=1e-6)
    assert ms_ssim(real, real, inside, 4095) == pytest.approx(1)


def test_selfrdb_forgives_gain_and_plain_does_not(image):
    mask = np.ones(image.shape, bool)
    measured = PROTOCOLS["selfrdb"].measure(0.8 * image, image, mask)
    assert measured["ssim"] == pytest.approx(1, abs=1e-4)
    assert measured["psnr"] > 100
    assert PROTOCOLS["plain"].measure(0.8 * image, image, mask)["psnr"] < 30


FLICKER = {
    "the same": (lambda v: v, 1.0),
    "brighter": (lambda v: v + 0.2, 1.0),
    "no change from slice to slice": (lambda v: np.repeat(v[:1], len(v), 0), 0.0),
    "twice the change": (lambda v: 2 * v, 2.0),
    "flickering": (lambda v: v + 0.5 * (np.arange(len(v)) % 2)[:, None, None], None),
}


@pytest.mark.parametrize("name", FLICKER)
def test_through_plane_tells_flicker_from_blur(image, name):
    change, expected = FLICKER[name]
    mask = np.zeros(image.shape, bool)
    mask[:, 8:30, 8:28] = True
    changed = np.where(mask, change(image), 5 * image)  # what lies outside does not count
    ratio = through_plane(changed, image, mask)
    assert ratio > 1.5 if expected is None else ratio == pytest.approx(expected, abs=1e-3)
    measured = PROTOCOLS["plain"].measure(changed, image, mask)["through_plane"]
    assert measured == pytest.approx(abs(np.log(ratio)))


def test_one_slice_has_no_plane_to_go_through(image):
    assert PROTOCOLS["plain"].measure(image[:1], image[:1], np.ones((1, 40, 36), bool))["through_plane"] == 0


def test_unpaired_scans_know_their_extremes(image):
    measure = PROTOCOLS["unpaired_scans"].measure
    content = np.maximum(image, 0.01)
    same = measure(content, content, content)
    assert same == pytest.approx({"intensity_distance": 0, "texture_distance": 0, "edges": 1}, abs=1e-6)
    brighter = measure(content + 0.2, content, content)
    assert brighter == pytest.approx({"intensity_distance": 0.2, "texture_distance": 0, "edges": 1}, abs=1e-5)
    assert measure(np.full_like(content, 0.5), content, content)["edges"] == 0


def test_unpaired_measures_know_their_extremes(rng):
    content = rng.random((24, 24, 3)).astype(np.float32)
    targets = PictureSet(content[None] * 0.5)
    measured = PROTOCOLS["unpaired"].measure(content, content, targets)
    assert measured["style_distance"] > 0.2
    assert measured["structure"] == pytest.approx(1.0)
    assert measured["colour_distance"] == pytest.approx(0.5 * content.mean(), rel=1e-3)
    reached = PROTOCOLS["unpaired"].measure(targets.pictures[0], content, targets)
    assert (reached["colour_distance"], reached["style_distance"]) == pytest.approx((0, 0), abs=1e-3)
