import numpy as np
import pytest
import torch

from medstyle import translate_volume
from medstyle.imaging.modality import Fingerprint
from medstyle.inference.uncertainty import SHIFTS, spread
from medstyle.networks.conformal import FLOOR, Interval
from tests.inference.conftest import Plain, make_translator


@pytest.fixture
def x(rng):
    return torch.from_numpy(rng.normal(0, 1, (2, 1, 24, 32)).astype(np.float32))


@pytest.mark.parametrize("members", [1, 3])
def test_the_mean_is_the_output_without_it(x, members):
    translator = make_translator(members=members)
    style = translator.style()
    mean, deviation = spread(translator, x, style)
    torch.testing.assert_close(mean, translator(x, style=style), rtol=0, atol=0)
    assert deviation.shape == mean.shape
    assert deviation.min() >= 0


def test_it_is_the_standard_deviation_over_members_and_views(x):
    """Streamed sums give what a list of all samples gives, also where the output is large against
    its spread."""
    translator = make_translator(members=3, mirror=False)
    for number, networks in enumerate(translator.members):
        networks.generator = Plain(lambda image, n=number: 100 + n + 0 * image)
    _, deviation = spread(translator, x, translator.style())
    torch.testing.assert_close(deviation, torch.full_like(x, float(np.std([0, 1, 2]))), rtol=1e-4, atol=0)


@pytest.mark.parametrize("shape", [(1, 1, 20, 22), (1, 1, 6, 20, 22)], ids=str)
def test_views_that_cannot_matter_do_not(shape, rng):
    """A map of pixels commutes with every view, up to the edge of the image: nothing wraps
    around."""
    translator = make_translator(generator=Plain(lambda image: image**3), dimensions=len(shape) - 2)
    image = torch.from_numpy(rng.normal(0, 1, shape).astype(np.float32))
    assert spread(translator, image, translator.style())[1].max() < 1e-6


class Counting(Plain):
    def forward(self, x, s):
        self.calls = [*getattr(self, "calls", []), tuple(x.shape)]
        return x


@pytest.mark.parametrize("mirror", [True, False])
def test_the_mirror_is_for_translators_that_allow_it(x, mirror):
    counting = Counting(None)
    translator = make_translator(generator=counting, mirror=mirror)
    spread(translator, x, translator.style())
    assert len(counting.calls) == 1 + len(SHIFTS) + mirror


def test_nothing_is_augmented_without_being_asked(source):
    counting = Counting(None)
    translator = make_translator(generator=counting)
    translate_volume(source, translator)
    slices = sum(shape[0] for shape in counting.calls)
    assert slices == len(source.voxels)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_it_is_a_map_in_the_unit_of_the_target(source, dimensions):
    size = [8, 24, 24] if dimensions == 3 else [48, 40]
    translator = make_translator(dimensions=dimensions, size=size, members=2)
    one = translate_volume(source, translator, uncertainty=True)
    assert one.uncertainty.voxels.shape == source.voxels.shape
    assert one.uncertainty.voxels.min() >= 0
    assert one.uncertainty.voxels.max() > 0
    translator.config.fingerprints["mr_t2"] = Fingerprint((0.0, 8000.0))
    louder = translate_volume(source, translator, uncertainty=True)
    np.testing.assert_allclose(louder.uncertainty.voxels, 10 * one.uncertainty.voxels, rtol=1e-4)
    plain = translate_volume(source, translator)
    np.testing.assert_allclose(plain.image.voxels, louder.image.voxels, rtol=1e-5, atol=1e-2)


@pytest.mark.parametrize("fingerprint", [(0.0, 800.0), (0.0, 8000.0)])
def test_the_interval_is_in_the_unit_of_the_target_and_within_the_body(source, fingerprint):
    translator = make_translator(size=[48, 40], interval=Interval(9, 2.5, 0.1))
    translator.config.fingerprints["mr_t2"] = Fingerprint(fingerprint)
    found = translate_volume(source, translator, uncertainty=True)
    body = source.voxels != 0
    sigma, half = found.uncertainty.voxels, found.interval.voxels
    inside = half > 0
    assert (inside & body).sum() > 0.95 * body.sum()
    assert (inside & ~body).sum() < 0.05 * body.sum()
    expected = 2.5 * (sigma + FLOOR * sigma[inside].mean())
    np.testing.assert_allclose(half[inside], expected[inside], rtol=1e-3)
    assert found.warnings == translate_volume(source, translator).warnings


CASES = {
    "no calibration": ({"interval": Interval(3)}, {}, "too few subjects for a 90 % interval: 3 of at least 9"),
    "another direction": ({}, {"target": "mr_t1"}, "no interval: it was calibrated for mr_t1 to mr_t2"),
    "another style": (
        {"style": ("domain", "latent")},
        {"seed": 1},
        "no interval: it was calibrated for mr_t1 to mr_t2",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_without_an_interval_the_output_says_why(source, name):
    config, options, why = CASES[name]
    translator = make_translator(size=[48, 40], **{"interval": Interval(9, 2.5, 0.1), **config})
    found = translate_volume(source, translator, uncertainty=True, **options)
    assert found.interval is None
    assert [note for note in found.warnings if note.startswith(why)]
    assert not [note for note in translate_volume(source, translator, **options).warnings if "interval" in note]
