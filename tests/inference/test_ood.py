from dataclasses import replace

import numpy as np
import pytest
import torch

from medstyle import Translator, translate_volume
from medstyle.inference.ood import assess, oddities
from medstyle.inference.translate import prepare_source
from medstyle.phantom.studies import PhantomParams, acquire, draw_subject
from medstyle.transforms.descriptors import Reference, statistics_of
from tests.inference.conftest import ANYTHING, Plain, make_translator

BODY = np.ones((2, 8, 8), bool)
ODD = {
    "as usual": (lambda x: x.clamp(-1, 1), ()),
    "constant": (lambda x: 0 * x + 0.3, ("constant",)),
    "out of range": (lambda x: 3 * x, ("outside the range",)),
    "both": (lambda x: 0 * x + 7, ("outside the range", "constant")),
}


@pytest.mark.parametrize("name", ODD)
def test_output_that_is_no_image_is_named(name, source):
    function, words = ODD[name]
    result = translate_volume(source, make_translator(generator=Plain(function)))
    assert len(result.warnings) == len(words)
    for word, warning in zip(words, result.warnings, strict=True):
        assert word in warning


def test_what_lies_outside_the_body_is_not_judged():
    output = torch.linspace(-1, 1, 128).view(2, 1, 8, 8).clone()
    body = BODY.copy()
    body[:, :4] = False
    output[:, :, :4] = 50
    assert oddities(output, body) == ()
    assert oddities(output)


def test_a_domain_is_judged_by_its_own_statistics():
    strict = Reference(ANYTHING._replace(largest=1e-3), ANYTHING)
    reference = {"mr_t1": Reference(ANYTHING, ANYTHING), "mr_t2": strict}
    translator = make_translator(reference=reference)
    slices = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert assess(slices, translator).verdict == "ok"
    assert assess(slices, translator, "mr_t2").verdict == "refuse"


WRONG = {
    "noise": lambda v, rng: v.with_voxels(rng.rayleigh(100, v.voxels.shape).astype(np.float32)),
    "inverted": lambda v, rng: v.with_voxels(np.where(v.voxels > 50, v.voxels.max() - v.voxels, 0).astype(np.float32)),
}


HEADS = PhantomParams(matrix=48, slices=8, spacing_mm=(4.8, 4.8, 12.0), lesions=4)


@pytest.fixture(scope="module")
def trained(run):
    """A translator that knows twelve heads: among three, as in the tiny run, any may be odd."""
    translator = Translator.load(run.translator)
    scans = [acquire(HEADS, draw_subject(HEADS, index), "mr_t1")[0] for index in range(12)]
    known = statistics_of(prepare_source(scan, translator).slices.numpy() for scan in scans)
    translator.config = replace(translator.config, reference={"mr_t1": Reference(known, ANYTHING)})
    return translator


@pytest.mark.parametrize("name", WRONG)
def test_the_gate_tells_foreign_images_from_trained_ones(name, trained, rng):
    scan = acquire(HEADS, draw_subject(HEADS, 12), "mr_t1")[0]
    own = assess(prepare_source(scan, trained).slices, trained)
    foreign = assess(prepare_source(WRONG[name](scan, rng), trained).slices, trained)
    assert own.verdict == "ok"
    assert foreign.score > 1.5 * own.score
    assert foreign.verdict != "ok"
