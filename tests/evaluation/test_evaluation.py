import numpy as np
import pytest
import torch

from medstyle.evaluation.baselines import BASELINES, histogram_matching
from medstyle.evaluation.protocols import PROTOCOLS, PictureSet, ms_ssim, through_plane
from medstyle.evaluation.safety import (
    by_lesion,
    calibration,
    created,
    edge_displacement,
    lesions,
    nearest,
    signatures,
    survival,
)
from medstyle.evaluation.statistics import (
    compare,
    differences_kept,
    effect,
    holm,
    paired_test,
    summary,
    told_apart,
)


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
    import torch
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
    """An offset of 100 HU is an MAE of 100 and a PSNR of 20 log10(4095 / 100); outside both are air."""
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


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_keep_the_shape(name, rng):
    source, targets = rng.random((100, 3)).astype(np.float32), rng.random((50, 3)).astype(np.float32)
    assert BASELINES[name](source, targets).shape == source.shape


def test_histogram_matching_is_monotone_and_takes_the_distribution(rng):
    source = rng.random((2000, 1)).astype(np.float32)
    targets = (0.2 + 0.5 * rng.random((3000, 1)) ** 2).astype(np.float32)
    out = histogram_matching(source, targets)
    order = np.argsort(source[:, 0])
    assert (np.diff(out[order, 0]) >= 0).all()
    np.testing.assert_allclose(np.quantile(out, [0.1, 0.5, 0.9]), np.quantile(targets, [0.1, 0.5, 0.9]), atol=0.02)


def test_a_comparison_is_of_pairs():
    """Subjects differ far more than methods do; only pairs show it."""
    first = [10.0, 20, 30, 40, 50, 60]
    result = compare(first, [x + d for x, d in zip(first, (1, 1.2, 0.8, 1.1, 0.9, 1), strict=True)])
    assert result["difference"] == pytest.approx(1)
    assert 0.8 < result["low"] < result["high"] < 1.2
    assert result["p"] == pytest.approx(2 / 64)
    assert compare([1, 2], [1, 2])["p"] is None


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["moments", "whitening_colouring"])
def test_feature_statistics_are_taken_over(name, channels, rng):
    source = (0.4 + 0.1 * rng.random((4000, channels))).astype(np.float32)
    mix = np.array([[0.2, 0.1, 0.0], [0.0, 0.15, 0.1], [0.05, 0.0, 0.2]])[:channels, :channels]
    targets = (0.5 + 0.6 * (rng.random((5000, channels)) - 0.5) @ mix).astype(np.float32)
    made = BASELINES[name](source, targets)
    np.testing.assert_allclose(made.mean(0), targets.mean(0), atol=0.01)
    np.testing.assert_allclose(made.std(0), targets.std(0), atol=0.01)
    if name == "whitening_colouring":
        np.testing.assert_allclose(np.cov(made.T), np.cov(targets.T), atol=1e-3)


def test_holm_has_the_known_answer():
    """0.01 x 4, 0.02 x 3, then never below what came before (Holm 1979)."""
    adjusted = holm({"a": 0.02, "b": 0.01, "c": 0.04, "d": 0.03})
    assert adjusted == pytest.approx({"b": 0.04, "a": 0.06, "d": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}
    assert holm({}) == {}


def test_the_effect_runs_from_worse_everywhere_to_better_everywhere():
    assert effect([2, 3, 4], [1, 2, 3]) == 1
    assert effect([1, 2, 3], [2, 3, 4]) == -1
    assert effect([1, 2], [1, 2]) == 0
    assert effect([2, 0, 0], [0, 1, 0]) == pytest.approx((2 - 1) / 3)  # ranks 2 and 1; no difference does not count


def test_summary_covers_the_mean():
    values = summary([1.0, 2.0, 3.0, 4.0])
    assert values["mean"] == 2.5
    assert values["sd"] == pytest.approx(1.29099, abs=1e-4)
    assert values["low"] < 2.5 < values["high"]
    assert summary([1.0, 2.0]) == summary([1.0, 2.0])


def test_no_p_value_from_few_subjects():
    assert paired_test([1, 2, 3, 4, 5], [2, 3, 4, 5, 6]) is None
    assert paired_test([1, 2, 3, 4, 5, 6.5], [2, 3.1, 4.2, 5.3, 6.4, 8]) == pytest.approx(2 / 64)


def test_a_lesion_that_stays_survives_and_one_that_vanishes_does_not(image):
    truth = np.full((9, 30, 30), 0.3, np.float32)
    ids = np.zeros(truth.shape, int)
    ids[3:6, 5:10, 5:10], ids[3:6, 18:23, 18:23] = 1, 2
    truth[ids > 0] = 0.8
    half = truth.copy()
    half[ids == 2] = 0.35
    found = lesions(half, truth, ids, voxel_mm3=8.0)
    assert [round(lesion.recovery, 3) for lesion in found] == [1.0, 0.1]
    result = survival(found)
    assert result["count"] == 2
    assert result["survived"] == 0.5
    assert found[0].radius_mm == pytest.approx((3 * 75 * 8 / (4 * np.pi)) ** (1 / 3))


def test_what_is_painted_in_is_counted_and_what_is_true_is_not():
    truth = np.full((12, 40, 40), 0.3, np.float32)
    ids = np.zeros(truth.shape, int)
    ids[3:6, 5:10, 5:10] = 1
    output = truth.copy()
    output[ids > 0] = 0.9  # too bright, but a lesion
    mask = np.ones(truth.shape, bool)
    assert created(output, truth, ids, mask, 8.0) == 0
    output[7:10, 20:23, 20:23] += 0.2
    output[2:4, 30:33, 30:33] += 0.2
    output[2, 20, 30] += 0.5  # 8 mm3: too small to be taken for a lesion
    output[9, 30:36, 5:11] += 0.1  # too faint
    assert created(output, truth, ids, mask, 8.0) == 2
    mask[:, :, 28:] = False
    assert created(output, truth, ids, mask, 8.0) == 1


def test_edges_are_displaced_by_as_much_as_the_anatomy():
    y, x = np.mgrid[-32:32, -32:32]
    radius = np.hypot(x, y)

    def disc(r):
        return np.clip(r - radius + 0.5, 0, 1).astype(np.float32)[None].repeat(2, 0)

    mask = np.ones((2, 64, 64), bool)
    assert edge_displacement(disc(14), disc(14), mask, (1, 1)) == 0
    for grown in (2, 4):
        assert edge_displacement(disc(14 + grown), disc(14), mask, (1.5, 1.5)) == pytest.approx(1.5 * grown, abs=0.6)
    assert edge_displacement(0 * disc(1), disc(14), mask, (1, 1)) == 0


def test_calibration_knows_honest_uncertainty_from_other(rng):
    sigma = rng.uniform(0.01, 0.2, 200_000).astype(np.float32)
    error = np.abs(rng.normal(0, sigma)).astype(np.float32)
    honest, blind, bold = (calibration(error, s) for s in (sigma, rng.permutation(sigma), sigma / 3))
    assert honest["within_2sd"] == pytest.approx(0.954, abs=0.01)
    assert honest["scale"] == pytest.approx(1, abs=0.05)
    assert honest["risk_25"] < honest["risk_50"] < honest["risk_75"] < honest["risk_100"]
    assert blind["risk_25"] == pytest.approx(blind["risk_100"], rel=0.05)
    assert bold["within_2sd"] < 0.6
    assert bold["scale"] == pytest.approx(3, abs=0.15)
    assert bold["risk_25"] == pytest.approx(honest["risk_25"], rel=1e-3)


def test_a_segmenter_learns_and_finds_what_is_there(rng):
    """Bright squares and dark discs on noise; in images without them it finds none."""
    from medstyle.evaluation.structures import overlap, train_segmenter

    y, x = np.mgrid[:40, :36]
    labels = np.zeros((6, 40, 36), np.uint8)
    for z in range(6):
        labels[z][(abs(y - 12 - z) < 6) & (abs(x - 12) < 6)] = 1
        labels[z][(y - 28) ** 2 + (x - 24 + z) ** 2 < 36] = 2
    image = (np.array([0.4, 0.8, 0.1])[labels] + rng.normal(0, 0.03, labels.shape)).astype(np.float32)
    before = torch.random.get_rng_state()
    segment = train_segmenter([image[:4], image[:3, :38]], [labels[:4], labels[:3, :38]], 3, 80)
    assert torch.equal(before, torch.random.get_rng_state())
    found = overlap(segment(image[4:]), labels[4:], 3)
    assert all(dice > 0.8 and abs(volume) < 0.4 for dice, volume in found.values()), found
    without = np.where(labels[4:] == 1, 0.4, image[4:]).astype(np.float32)
    missing = overlap(segment(without), labels[4:], 3)
    assert missing[1][0] < 0.2
    assert missing[2][0] > 0.8
    assert overlap(labels, labels, 3) == {1: (1.0, 0.0), 2: (1.0, 0.0)}
    assert overlap(labels, np.minimum(labels, 1), 3) == {
        1: (pytest.approx(2 / 3, abs=0.2), pytest.approx(-0.5, abs=0.2))
    }


def test_a_copy_of_a_training_image_is_known(rng):
    library = signatures(rng.random((20, 64, 48)))
    other = signatures(rng.random((5, 64, 48)))
    assert nearest(library[3:6], library) == pytest.approx(0, abs=1e-5)
    assert nearest(other, library) > 0.5
    assert nearest(signatures(2 * rng.random((1, 64, 48)) + 1), library) > 0.5
    again = np.random.default_rng(0).random((2, 64, 48))
    assert nearest(signatures(3 * again + 1), signatures(again)) == pytest.approx(
        0, abs=1e-5
    )  # brightness is no matter


def test_lesions_are_measured_apart(image):
    ids = np.zeros(image.shape, int)
    ids[1, 10:14, 10:14] = 1
    mask = np.ones(image.shape, bool)
    off = np.where(ids > 0, image + 0.3, image + 0.01).astype(np.float32)
    found = by_lesion(off, image, ids, mask)
    assert found["mae_lesions"] == pytest.approx(0.3, abs=1e-4)
    assert found["mae_elsewhere"] == pytest.approx(0.01, abs=1e-4)
    assert found["ssim_lesions"] < found["ssim_elsewhere"]
    assert "mae_lesions" not in by_lesion(off, image, 0 * ids, mask)


def test_sites_are_told_apart_until_they_are_alike(rng):
    people = rng.normal(0, 1, (12, 5))
    assert told_apart(people, people + 8) == 1.0
    assert 0.2 < told_apart(people, rng.normal(0, 1, (12, 5))) < 0.8
    assert differences_kept(people, 3 * people + 8) == pytest.approx(1)
    assert differences_kept(people, rng.normal(0, 1, (12, 5))) < 0.5


def test_neural_style_takes_texture_and_keeps_edges(rng):
    """Stripes in the style of noise: the noise's texture comes, the step in the middle stays where it is."""
    from medstyle.evaluation.baselines import PICTURE_METHODS
    from medstyle.evaluation.protocols import picture_style_distance

    photo = np.full((64, 64, 3), 60, np.uint8)
    photo[:, 32:] = 190
    style = rng.integers(0, 256, (64, 64, 1)).repeat(3, 2).astype(np.uint8)
    targets = PictureSet(style[None].astype(np.float32) / 255)
    made = {name: PICTURE_METHODS[name](photo, style) for name in ("moments", "neural_style")}
    apart = {name: picture_style_distance(image.astype(np.float32) / 255, targets) for name, image in made.items()}
    assert apart["neural_style"] < 0.6 * apart["moments"]
    columns = made["neural_style"].mean((0, 2))
    assert columns[32:].mean() > columns[:32].mean() + 20
