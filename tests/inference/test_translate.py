import numpy as np
import pytest

from medstyle import Refusal, Translator, Volume, translate_picture, translate_volume
from medstyle.inference.ood import judge
from medstyle.inference.translate import prepare_source
from tests.conftest import affine


@pytest.fixture(scope="module")
def translator(run):
    return Translator.load(run.translator)


@pytest.fixture(scope="module")
def source(run):
    from medstyle import read_volume

    return read_volume(next((run.root / "data/scans").glob("*/mr_t1.nii.gz")), "mr_t1")


def test_the_output_lies_on_the_grid_of_its_source(translator, source):
    made = translate_volume(source, translator).image
    np.testing.assert_array_equal(made.affine, source.affine)
    assert made.voxels.shape == source.voxels.shape
    assert made.domain == "mr_t2"
    assert np.isfinite(made.voxels).all()
    assert made.voxels[0, 0, 0] == 0, "air stays air"


def test_the_same_input_gives_the_same_output(translator, source):
    one, other = (translate_volume(source, translator).image.voxels for _ in range(2))
    np.testing.assert_array_equal(one, other)


def test_storage_order_does_not_matter(translator, source):
    """The same head stored with reversed slices and columns gives the same synthetic head."""
    flipped = source.affine.copy()
    flipped[:3, 0] *= -1
    flipped[:3, 2] *= -1
    flipped[:3, 3] = (source.affine @ [source.voxels.shape[2] - 1, 0, source.voxels.shape[0] - 1, 1])[:3]
    mirrored = Volume(np.ascontiguousarray(source.voxels[::-1, :, ::-1]), flipped, "mr_t1")
    straight, turned = (translate_volume(v, translator).image.voxels for v in (source, mirrored))
    np.testing.assert_allclose(turned[::-1, :, ::-1], straight, atol=1e-3 * straight.max())


def test_gain_of_the_scanner_does_not_matter(translator, source):
    louder = source.with_voxels(source.voxels * 3)
    one, other = (translate_volume(v, translator).image.voxels for v in (source, louder))
    assert np.abs(other - one).mean() < 2e-3 * one.max()


def test_uncertainty_is_a_map_in_the_unit_of_the_target(translator, source):
    result = translate_volume(source, translator, uncertainty=True)
    assert result.uncertainty.voxels.shape == source.voxels.shape
    assert result.uncertainty.voxels.min() >= 0
    assert result.uncertainty.voxels.max() > 0


def test_an_empty_scan_is_refused(translator):
    empty = Volume(np.zeros((4, 16, 16), np.float32), affine((3, 3, 5), (0, 0, 0)), "mr_t1")
    with pytest.raises(Refusal, match="E_EMPTY"):
        translate_volume(empty, translator)


WRONG = {
    "noise": lambda v, rng: v.with_voxels(rng.rayleigh(100, v.voxels.shape).astype(np.float32)),
    "inverted": lambda v, rng: v.with_voxels(np.where(v.voxels > 50, v.voxels.max() - v.voxels, 0).astype(np.float32)),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_gate_tells_foreign_images_from_trained_ones(name, translator, source, rng):
    own = judge(prepare_source(source, translator).slices, translator)
    foreign = judge(prepare_source(WRONG[name](source, rng), translator).slices, translator)
    assert own.verdict == "ok"
    assert foreign.score > 1.5 * own.score
    assert foreign.verdict != "ok"


def test_pictures_keep_their_size(tmp_path, rng):
    from medstyle.networks.translator import Architecture, Networks, TranslatorConfig

    domains = ["photo", "painting"]
    architecture = Architecture(widths=(4, 6), bottleneck_blocks=0)
    reference = {"slice": {"centre": [0.0] * 21, "spread": [1.0] * 21, "largest": 1.0}}
    config = TranslatorConfig(architecture, domains, *domains, {}, {}, reference=reference)
    translator = Translator(config, Networks(architecture, domains))
    pixels = rng.integers(0, 256, (33, 21, 3), dtype=np.uint8)
    made = translate_picture(pixels, translator).image
    assert made.shape == pixels.shape
    assert made.dtype == np.uint8
