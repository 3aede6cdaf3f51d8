import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from medstyle import ModelError, Refusal, Translator, UserError, Volume, translate_picture, translate_volume
from medstyle.inference import synthesise as rendering
from medstyle.inference.translate import prepare_source, style_of
from medstyle.networks.folder import ready_folder
from medstyle.phantom.studies import PhantomParams, draw_subject
from medstyle.transforms.align import onto_grid
from medstyle.transforms.intensity import foreground_mask
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


def test_pictures_keep_their_size(rng):
    translator = make_translator(("photo", "painting"))
    pixels = rng.integers(0, 256, (33, 21, 3), dtype=np.uint8)
    made = translate_picture(pixels, translator).image
    assert made.shape == pixels.shape
    assert made.dtype == np.uint8


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
    monkeypatch.setitem(rendering.CHUNK, "cpu", 1)
    translator = make_translator(style=("domain", "latent", "reference"), size=[48, 40])
    calls = []
    translator.members[0].style.register_forward_hook(lambda *_: calls.append(1))
    options = {"seed": {"seed": 1}, "reference": {"reference": head("mr_t2")}}.get(kind, {})
    translate_volume(source, translator, **options, uncertainty=True)
    assert len(calls) == 1


LARGE = """
import resource
import numpy as np, torch
torch.set_num_threads(1)
from medstyle import translate_volume
from tests.conftest import affine
from tests.inference.conftest import make_translator
from medstyle.imaging.volume import Volume
shape = ({slices}, 512, 512)
voxels = np.zeros(shape, np.float32)
y, x = np.mgrid[-1:1:512j, -1:1:512j].astype(np.float32)
for z in range({slices}):
    voxels[z] = ((x / 0.7) ** 2 + (y / 0.8) ** 2 < 1) * (300 + 60 * np.sin(9 * x + z / 40))
matrix = affine((0.5, 0.5, 0.5), (0, 0, 0))
matrix[0, 0] *= -1  # stored right to left: the axial grid is a copy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
translator = make_translator(widths=(2, 2), bottleneck_blocks=0, **{config})
result = translate_volume(Volume(voxels, matrix, "mr_t1"), translator)
assert result.image.voxels.shape == shape
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
# slices, and the network; in 3-D, where windows overlap, half as many take as long
LARGE_KINDS = {
    "2-D": (600, {}),
    "2.5-D": (600, {"neighbours": 3}),
    "3-D": (300, {"dimensions": 3, "size": [64, 256, 256]}),
}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LARGE_KINDS)
def test_a_large_scan_fits_into_memory(name):
    """Beside imports and the scan itself, at most 4.1 times the scan and 0.37 GB for windows,
    which do not grow with it: for 600 slices (629 MB), 4 GB in all on a CPU."""
    slices, config = LARGE_KINDS[name]
    code = LARGE.replace("{config}", repr(config)).replace("{slices}", str(slices))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, peak = (int(kilobytes) * 1024 for kilobytes in done.stdout.split())
    assert peak - before < 4.1 * slices * 512 * 512 * 4 + 0.37e9


class TestAnyContrast:
    """A model whose source is any contrast of a brain."""

    DOMAINS = ("brain", "mr_t1", "mr_t2", "ct")

    def test_every_contrast_is_taken_and_a_domain_that_is_known_changes_nothing(self):
        """T1, or CT in HU: the network sees the same as from a file whose domain nobody named."""
        model = make_translator(self.DOMAINS, neighbours=3)
        scan = head()
        plain = translate_volume(scan.with_voxels(scan.voxels, "brain"), model, "mr_t2").image
        assert np.array_equal(translate_volume(scan, model, "mr_t2").image.voxels, plain.voxels)
        hounsfield = scan.with_voxels(scan.voxels - 1024, "ct")
        assert np.allclose(translate_volume(hounsfield, model, "mr_t2").image.voxels, plain.voxels, atol=0.05)
        assert plain.domain == "mr_t2"

    def test_an_example_gives_its_grey_levels_and_moves_nothing(self):
        """Quantiles in the body become the example's; the order of the values stays."""
        model = make_translator(self.DOMAINS, neighbours=3)
        scan, example = head(), head("mr_t2", seed=3)
        example = example.with_voxels(example.voxels * 7 + 100 * (example.voxels > 50))
        plain = translate_volume(scan, model, "mr_t2").image.voxels
        alike = translate_volume(scan, model, "mr_t2", reference=example).image.voxels
        mask, own = (foreground_mask(v.transpose(2, 1, 0)).transpose(2, 1, 0) for v in (alike, example.voxels))
        found, wanted = (np.percentile(v[m], (10, 50, 90)) for v, m in ((alike, mask), (example.voxels, own)))
        np.testing.assert_allclose(found, wanted, rtol=0.15)
        inside = plain > 0
        order = np.argsort(plain[inside], kind="stable")
        assert (np.diff(alike[inside][order]) >= -1e-2).all()

    def test_wrong_examples_are_refused(self):
        model = make_translator(self.DOMAINS)
        with pytest.raises(ModelError, match="the reference is mr_t1, but an example of mr_t2 is needed"):
            translate_volume(head(), model, "mr_t2", reference=head())
        with pytest.raises(ModelError, match="not from reference"):  # HU mean the same everywhere
            translate_volume(head(), model, "ct", reference=head("ct"))
        flat = head("mr_t2").with_voxels(np.zeros((10, 48, 40), np.float32))
        with pytest.raises(Refusal, match="shows no body"):
            translate_volume(head(), model, "mr_t2", reference=flat)


READY_DOMAINS = ("mr_t1", "mr_t2", "mr_flair", "mr_pd", "ct")


@pytest.fixture(scope="module")
def phantom():
    """A head of the MNI152 phantom in each contrast, on a grid like that of a clinical scan."""
    params = PhantomParams(subjects=1, matrix=112, slices=24, spacing_mm=(2.0, 2.0, 5.0), domains=READY_DOMAINS)
    subject = draw_subject(params, 0)
    return {domain: subject.image(domain) for domain in READY_DOMAINS}


@pytest.mark.parametrize("target", READY_DOMAINS)
def test_the_ready_model_knows_each_target_better_than_a_copy(target, phantom):
    """On a head that is drawn by other code than in training, from the less similar contrast."""
    model = Translator.load("anybrain")
    mask = foreground_mask(phantom["mr_pd"].voxels.transpose(2, 1, 0)).transpose(2, 1, 0)

    def likeness(volume):
        return float(np.corrcoef(volume.voxels[mask], phantom[target].voxels[mask])[0, 1])

    given = min((phantom[name] for name in ("mr_t1", "mr_t2") if name != target), key=likeness)
    made = translate_volume(given.with_voxels(given.voxels * 500, "brain"), model, target).image
    assert made.domain == target
    assert likeness(made) > max(likeness(given), 0.4) + 0.05


def test_the_ready_model_is_small_and_says_where_it_is_from():
    folder = ready_folder("anybrain")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 16 * 2**20
    card = (folder / "MODEL_CARD.md").read_text()
    assert Translator.load("anybrain").sha256 in card
    for said in ("Apache-2.0", "10.1016/j.media.2023.102789", "not a medical device"):
        assert said in card


def test_a_folder_of_the_name_has_precedence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_translator().save(tmp_path / "anybrain")
    assert Translator.load("anybrain").config.domains == ("mr_t1", "mr_t2")
    assert ready_folder("models/anybrain") == Path("models/anybrain")
    with pytest.raises(ModelError, match="or the ready anybrain"):
        Translator.load("anybody")
