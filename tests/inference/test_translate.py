import subprocess
import sys

import numpy as np
import pytest
import torch

from medstyle import Refusal, Translator, UserError, Volume, read_volume, translate_picture, translate_volume
from medstyle.inference import translate
from medstyle.inference.ood import assess
from medstyle.inference.synthesise import synthesise
from medstyle.inference.translate import prepare_source, style_of
from medstyle.transforms.align import onto_grid
from tests.conftest import ROOT, affine
from tests.inference.conftest import Plain, head, make_translator

KINDS = {
    "2-D": {},
    "2.5-D": {"neighbours": 3},
    "3-D": {"dimensions": 3, "size": [8, 32, 32]},
    "ensemble": {"members": 2},
    "contrasts": {"domains": ("mr_t1", "mr_t2", "mr_flair"), "contrasts": ["mr_t2"]},
}


@pytest.fixture(params=KINDS)
def translator(request):
    return make_translator(**KINDS[request.param])


def beside(translator):
    return [head(name) for name in translator.config.contrasts]


def test_the_output_lies_on_the_grid_of_its_source(translator, source):
    made = translate_volume(source, translator, contrasts=beside(translator)).image
    np.testing.assert_array_equal(made.affine, source.affine)
    assert made.voxels.shape == source.voxels.shape
    assert made.domain == translator.config.target
    assert np.isfinite(made.voxels).all()
    assert made.voxels[0, 0, 0] == 0, "air stays air"
    assert np.ptp(made.voxels) > 0


def test_the_same_input_gives_the_same_output(translator, source):
    others = beside(translator)
    one, other = (translate_volume(source, translator, contrasts=others).image.voxels for _ in range(2))
    np.testing.assert_array_equal(one, other)


def flipped(volume):
    """The same head stored with reversed slices and columns."""
    matrix = volume.affine.copy()
    matrix[:3, 0] *= -1
    matrix[:3, 2] *= -1
    matrix[:3, 3] = (volume.affine @ [volume.voxels.shape[2] - 1, 0, volume.voxels.shape[0] - 1, 1])[:3]
    return Volume(np.ascontiguousarray(volume.voxels[::-1, :, ::-1]), matrix, volume.domain)


def test_storage_order_does_not_matter(translator, source):
    straight = translate_volume(source, translator, contrasts=beside(translator)).image.voxels
    others = [flipped(volume) for volume in beside(translator)]
    turned = translate_volume(flipped(source), translator, contrasts=others).image.voxels
    np.testing.assert_allclose(turned[::-1, :, ::-1], straight, atol=1e-3 * straight.max())


def test_gain_of_the_scanner_does_not_matter(translator, source):
    louder = source.with_voxels(source.voxels * 3)
    one, other = (translate_volume(v, translator, contrasts=beside(translator)).image.voxels for v in (source, louder))
    assert np.abs(other - one).mean() < 2e-3 * one.max()


def test_an_empty_scan_is_refused():
    empty = Volume(np.zeros((4, 16, 16), np.float32), affine((3, 3, 5), (0, 0, 0)), "mr_t1")
    with pytest.raises(Refusal, match="E_EMPTY"):
        translate_volume(empty, make_translator())


@pytest.mark.parametrize("chunk", [1, 200, 1 << 30])
def test_neighbours_are_channels_and_the_ends_repeat(monkeypatch, chunk):
    """Channel m B + b is contrast m of slice z + b - B // 2, in every chunk, and nothing of the others is made."""
    monkeypatch.setitem(translate.CHUNK, "cpu", chunk)
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


def test_pictures_keep_their_size(rng):
    translator = make_translator(("photo", "painting"))
    pixels = rng.integers(0, 256, (33, 21, 3), dtype=np.uint8)
    made = translate_picture(pixels, translator).image
    assert made.shape == pixels.shape
    assert made.dtype == np.uint8


def test_an_ensemble_is_the_mean_of_its_members(source):
    both = make_translator(members=2)
    content = prepare_source(source, both).slices
    each = [synthesise(Translator(both.config, [one]), content) for one in both.members]
    torch.testing.assert_close(synthesise(both, content), (each[0] + each[1]) / 2)


# Contrasts


@pytest.fixture
def triple():
    """Return a translator of T1, T2 and FLAIR whose output shows its three inputs: their mean."""
    mean = Plain(lambda x: x.mean(1, keepdim=True))
    return make_translator(("mr_t1", "mr_t2", "mr_flair", "mr_pd"), contrasts=["mr_t2", "mr_flair"], generator=mean)


def test_contrasts_come_in_any_order_and_on_any_grid(triple, source):
    t2, flair = head("mr_t2"), head("mr_flair")
    straight = translate_volume(source, triple, contrasts=[t2, flair]).image.voxels
    turned = translate_volume(source, triple, contrasts=[flipped(flair), t2]).image.voxels
    np.testing.assert_allclose(turned, straight, atol=1e-3 * straight.max())


def test_contrasts_are_prepared_as_the_source_is(triple, source):
    prepared = prepare_source(source, triple, [head("mr_flair"), head("mr_t2")])
    assert prepared.slices.shape[1] == 3
    for channel, volume in enumerate((source, head("mr_t2"), head("mr_flair"))):
        alone = prepare_source(volume, make_translator((volume.domain, "mr_pd"))).slices[:, 0]
        torch.testing.assert_close(prepared.slices[:, channel], alone)


def test_contrasts_are_registered_where_training_did(source):
    t2 = head("mr_t2")
    matrix = t2.affine.copy()
    matrix[:3, 3] += [8.0, -6.0, 0.0]
    moved = Volume(t2.voxels, matrix, "mr_t2")
    for how in ("headers", "rigid"):
        translator = make_translator(contrasts=["mr_t2"], alignment=how)
        expected = prepare_source(onto_grid(moved, source, how), make_translator()).slices
        torch.testing.assert_close(
            prepare_source(source, translator, [moved]).slices[:, 1:], expected, atol=1e-3, rtol=0
        )


WRONG_CONTRASTS = {"none": [], "one": ["mr_t2"], "another": ["mr_t2", "mr_pd"], "twice": ["mr_t2", "mr_t2"]}


@pytest.mark.parametrize("name", WRONG_CONTRASTS)
def test_contrasts_that_do_not_fit_are_named(triple, source, name):
    given = WRONG_CONTRASTS[name]
    with pytest.raises(
        UserError, match=f"needs mr_t2 and mr_flair beside mr_t1, not {' and '.join(given) or 'nothing'}"
    ):
        translate_volume(source, triple, contrasts=[head(domain) for domain in given])


def test_a_source_of_no_domain_of_the_translator_is_named():
    with pytest.raises(UserError, match="knows mr_t1, mr_t2, not 'mr_pd'"):
        translate_volume(head("mr_pd"), make_translator())


# Style


@pytest.fixture
def diverse():
    """Return a translator with every source of style."""
    return make_translator(style=("domain", "latent", "reference"), size=[48, 40])


def test_every_source_of_style_makes_another_image(diverse, source):
    bright = head("mr_t2").with_voxels(head("mr_t2").voxels * np.linspace(0.2, 1, 40, dtype=np.float32))
    options = [{}, {"seed": 1}, {"seed": 2}, {"reference": head("mr_t2")}, {"reference": bright}]
    made = [translate_volume(source, diverse, **option).image.voxels for option in options]
    again = [translate_volume(source, diverse, **option).image.voxels for option in options]
    for i, one in enumerate(made):
        np.testing.assert_array_equal(one, again[i])
        for other in made[:i]:
            assert np.abs(one - other).max() > 0


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_reference_is_framed_as_training_images_are(dimensions):
    size = [48, 40][:dimensions] if dimensions == 2 else [8, 32, 32]
    translator = make_translator(style=("reference",), dimensions=dimensions, size=size)
    seen = []
    translator.members[0].style.encoder.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    style_of(translator, reference=head("mr_t2", shape=(20, 60, 36)))
    assert seen[0].shape == ((1, 1, 8, 32, 32) if dimensions == 3 else (5, 1, 48, 40))
    assert (seen[0] > -1).flatten(1).any(1).all(), "every image shows the body"


def test_a_picture_gives_its_style_at_any_size(rng):
    translator = make_translator(("photo", "painting"), style=("domain", "reference"), size=[32, 32])
    pixels = rng.integers(0, 256, (33, 21, 3), dtype=np.uint8)
    painting = np.full((90, 70, 3), (200, 30, 60), np.uint8)
    by_domain = translate_picture(pixels, translator).image
    small, large = (
        translate_picture(pixels, translator, reference=image).image
        for image in (painting, np.ascontiguousarray(painting.repeat(3, 0).repeat(3, 1)))
    )
    assert (by_domain != small).any()
    np.testing.assert_allclose(small.astype(int), large.astype(int), atol=1)


WRONG_STYLES = {
    "a seed": ({}, {"seed": 3}, "not from latent"),
    "a reference": ({}, {"reference": head("mr_t2")}, "not from reference"),
    "both": ({"style": ("latent", "reference")}, {"seed": 3, "reference": head("mr_t2")}, "not from both"),
    "of another domain": ({"style": ("reference",)}, {"reference": head("mr_t1")}, "the reference is mr_t1"),
    "a picture": ({"style": ("reference",)}, {"reference": np.zeros((9, 9, 3), np.uint8)}, "must be a scan"),
    "nothing": ({"style": ("reference",)}, {}, "takes its style from a reference image"),
}


@pytest.mark.parametrize("name", WRONG_STYLES)
def test_a_style_that_was_not_trained_is_named(name, source):
    config, options, message = WRONG_STYLES[name]
    with pytest.raises(UserError, match=message):
        translate_volume(source, make_translator(**config), **options)


@pytest.mark.parametrize("kind", ["domain", "seed", "reference"])
def test_the_style_code_is_computed_once(kind, source, monkeypatch):
    monkeypatch.setitem(translate.CHUNK, "cpu", 1)
    translator = make_translator(style=("domain", "latent", "reference"), size=[48, 40])
    calls = []
    translator.members[0].style.register_forward_hook(lambda *_: calls.append(1))
    options = {"seed": {"seed": 1}, "reference": {"reference": head("mr_t2")}}.get(kind, {})
    translate_volume(source, translator, **options, uncertainty=True)
    assert len(calls) == 1


# The gate needs a trained translator


WRONG = {
    "noise": lambda v, rng: v.with_voxels(rng.rayleigh(100, v.voxels.shape).astype(np.float32)),
    "inverted": lambda v, rng: v.with_voxels(np.where(v.voxels > 50, v.voxels.max() - v.voxels, 0).astype(np.float32)),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_gate_tells_foreign_images_from_trained_ones(name, run, rng):
    trained = Translator.load(run.translator)
    scan = read_volume(next((run.root / "data/scans").glob("*/mr_t1.nii.gz")), "mr_t1")
    own = assess(prepare_source(scan, trained).slices, trained)
    foreign = assess(prepare_source(WRONG[name](scan, rng), trained).slices, trained)
    assert own.verdict == "ok"
    assert foreign.score > 1.5 * own.score
    assert foreign.verdict != "ok"


# Memory


LARGE = """
import resource
import numpy as np, torch
torch.set_num_threads(1)
from medstyle import translate_volume
from tests.conftest import affine
from tests.inference.conftest import make_translator
from medstyle.imaging.volume import Volume
shape = (600, 512, 512)
voxels = np.zeros(shape, np.float32)
y, x = np.mgrid[-1:1:512j, -1:1:512j].astype(np.float32)
for z in range(600):
    voxels[z] = ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1) * (300 + 60 * np.sin(9 * x + z / 40))
matrix = affine((0.5, 0.5, 0.5), (0, 0, 0))
matrix[0, 0] *= -1  # stored right to left: the axial grid is a copy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
translator = make_translator(widths=(2, 2), bottleneck_blocks=0, **{config})
result = translate_volume(Volume(voxels, matrix, "mr_t1"), translator)
assert result.image.voxels.shape == shape
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
LARGE_KINDS = {"2-D": {}, "2.5-D": {"neighbours": 3}, "3-D": {"dimensions": 3, "size": [64, 256, 256]}}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE_KINDS)
def test_a_large_scan_fits_into_memory(name):
    """Beside imports and the scan itself (629 MB), at most 4.7 times the scan: 4 GB in all on a CPU."""
    code = LARGE.replace("{config}", repr(LARGE_KINDS[name]))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = (int(kilobytes) * 1024 for kilobytes in done.stdout.split())
    assert peak - before < 4.7 * 600 * 512 * 512 * 4


def test_a_look_is_mixed_from_nothing_to_all(rng):
    from skimage.color import rgb2lab

    from medstyle.inference.render_options import RenderOptions

    translator = make_translator(("photo", "painting"))
    pixels = (rng.integers(60, 200, (40, 48, 1)) + rng.integers(-20, 20, 3)).astype(np.uint8)
    whole = translate_picture(pixels, translator).image.astype(float)
    none, half = (translate_picture(pixels, translator, options=RenderOptions(s)).image for s in (0, 0.5))
    np.testing.assert_array_equal(none, pixels)
    np.testing.assert_allclose(half, (whole + pixels) / 2, atol=0.51)
    kept = RenderOptions(keep_colour=True).applied(pixels, np.clip(pixels.astype(int) + 20, 0, 255).astype(np.uint8))
    np.testing.assert_allclose(rgb2lab(kept)[..., 1:], rgb2lab(pixels)[..., 1:], atol=1.5)
    assert (rgb2lab(kept)[..., 0] > rgb2lab(pixels)[..., 0] + 3).all()
    with pytest.raises(UserError, match="strength: must lie in"):
        RenderOptions(1.5)


def test_a_picture_is_painted_at_a_size_and_keeps_its_details(rng):
    """What the network changes is enlarged; what it leaves is there in every detail."""
    from medstyle.inference.render_options import RenderOptions

    fine = rng.integers(60, 160, (90, 120, 3)).astype(np.uint8)
    brighter = make_translator(("photo", "painting"), generator=Plain(lambda x: x + 0.2))
    made = translate_picture(fine, brighter, options=RenderOptions(size=32)).image
    np.testing.assert_allclose(made, fine + 0.2 * 127.5, atol=1)
    striped = make_translator(
        ("photo", "painting"), generator=Plain(lambda x: x + 0.2 * (-1) ** torch.arange(x.shape[3]))
    )
    columns = {
        size: translate_picture(np.full_like(fine, 100), striped, options=RenderOptions(size=size))
        .image.mean((0, 2))
        .astype(float)
        for size in (None, 45)
    }
    period = {size: np.abs(np.fft.rfft(values - values.mean())).argmax() for size, values in columns.items()}
    assert period[None] == 60, "stripes of a pixel"
    assert period[45] == 30, "of two pixels, where it is painted at half the size"
    with pytest.raises(UserError, match="size: must be at least 32"):
        RenderOptions(size=8)


LOOKS = [
    {},
    {"strength": 0.7},
    {"keep_colour": True},
    {"temporal_smoothing": 0.8},
    {"mask": np.full((2, 2), 0.5, np.float32)},
]


@pytest.mark.parametrize("look", LOOKS, ids=lambda look: next(iter(look), "whole"))
def test_sixteen_bits_stay_sixteen_and_opacity_stays(look, rng):
    """Eight bits and their multiples in sixteen become the same but for rounding; finer levels are made finely."""
    from medstyle.inference.render_options import RenderOptions

    translator, look = make_translator(("photo", "painting")), RenderOptions(**look)
    coarse = rng.integers(0, 256, (33, 21, 3), dtype=np.uint8)
    deep = 257 * coarse.astype(np.uint16)
    by_eight, by_sixteen = (translate_picture(one, translator, options=look).image for one in (coarse, deep))
    assert (by_eight.dtype, by_sixteen.dtype) == (np.uint8, np.uint16)
    np.testing.assert_allclose(by_sixteen / 257, by_eight, atol=2)
    ramp = np.linspace(0, 65535, 40 * 48).astype(np.uint16).reshape(40, 48, 1).repeat(3, 2)
    assert len(np.unique(translate_picture(ramp, translator, options=look).image[..., 1])) > 256
    opacity = rng.integers(0, 65536, (33, 21, 1), dtype=np.uint16)
    veiled = translate_picture(np.dstack([deep, opacity]), translator, options=look).image
    np.testing.assert_array_equal(veiled[..., 3:], opacity)
    laid = np.rint(deep * (opacity / 65535) + 65535 - opacity).astype(np.uint16)
    np.testing.assert_allclose(veiled[..., :3], translate_picture(laid, translator, options=look).image, atol=257)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_picture_is_sharpened_without_new_colours_and_enlarged_without_new_detail(rng, dtype):
    from scipy.ndimage import gaussian_filter
    from skimage.color import rgb2lab

    from medstyle.inference.render_options import RenderOptions

    white = np.iinfo(dtype).max
    smooth = gaussian_filter(rng.random((40, 48, 1)) * [1, 0.8, 0.6], (3, 3, 0))
    smooth = (white * (0.3 + 0.4 * (smooth - smooth.min()) / np.ptp(smooth))).astype(dtype)
    sharp = [RenderOptions(sharpen=amount).applied(smooth, smooth) for amount in (0, 0.5, 1)]
    np.testing.assert_array_equal(sharp[0], smooth)
    lab = [rgb2lab(one) for one in sharp]
    contrast = [np.abs(np.diff(one[..., 0], axis=0)).mean() for one in lab]
    assert contrast[0] < contrast[1] < contrast[2]
    np.testing.assert_allclose(*(one[..., 0].mean() for one in (lab[0], lab[2])), atol=0.2)
    np.testing.assert_allclose(lab[2][..., 1:], lab[0][..., 1:], atol=1 if dtype == np.uint8 else 0.01)
    veiled = np.dstack([smooth, smooth[..., 0]])
    for factor in (2, 3):
        large = RenderOptions(upscale=factor).applied(veiled, smooth)
        assert (large.shape, large.dtype) == ((40 * factor, 48 * factor, 4), dtype)
        back = large.reshape(40, factor, 48, factor, 4).mean((1, 3))
        np.testing.assert_allclose(back, veiled, atol=0.01 * white)
    with pytest.raises(Refusal, match="E_TOO_LARGE"):
        RenderOptions(upscale=4).applied(*[np.zeros((1 << 13, 1 << 10, 3), dtype)] * 2)
    for wrong in ({"sharpen": 1.1}, {"upscale": 5}, {"upscale": 0}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}: must"):
            RenderOptions(**wrong)


def small_body(rng, grow):
    """Draw slices of a body that differs in size from slice to slice, with ``grow`` pixels of air around its field."""
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
    """The box of a slice in use is the one that the feed cuts for a batch of one."""
    from medstyle.data.sampler import Feed
    from medstyle.data.store import SliceStore
    from medstyle.transforms.augment import Augmentation

    translator = make_translator()
    store = SliceStore.open(run.root / "data/slices")
    still = Augmentation(rotation_deg=0, scale=0, shift=0, flip=False, gamma=0)
    domains = ("mr_t1", "mr_t1@twin")  # the target is the source: its body adds nothing
    monkeypatch.setattr(SliceStore, "array", lambda self, name, split, own=SliceStore.array: own(self, "mr_t1", split))
    monkeypatch.setattr(SliceStore, "rows", lambda self, name, split, own=SliceStore.rows: own(self, "mr_t1", split))
    feed = Feed(store, domains, paired=True, batch=1, seed=0, foreground=0.0, augmentation=still,
                multiple=translator.multiple)  # fmt: skip
    seen = []
    monkeypatch.setattr(type(translator), "__call__", lambda self, x, style: seen.append(x) or x)
    for step in range(8):
        example = feed.example(step)
        row = feed.images["mr_t1"].rows[example.subject][example.place]
        content = torch.from_numpy(store.array("mr_t1", "train")[row : row + 1].astype(np.float32))
        synthesise(translator, content, body=content[:, 0].numpy() > -0.999)
        assert torch.equal(seen[-1], feed(step, 1, torch.device("cpu")).source)
