"""Scans of simulated heads: known answers of the signal equations, one tissue in all contrasts."""

from dataclasses import replace

import numpy as np
import pytest

from medstyle.phantom.contrasts import HU, LEVEL, PROTOCOLS, any_contrast, draw_tissues, hidden, image, target
from medstyle.phantom.heads import INDEX, draw_head, label_map
from tests.phantom.conftest import SPACING, toy_labels

CONTRASTS = [*PROTOCOLS, "ct"]


def signal_of(domain):
    if domain == "ct":
        return lambda values: values[:, HU]
    return lambda values: PROTOCOLS[domain].signal(*values.T[:3])


@pytest.fixture(scope="module")
def drawn():
    rng = np.random.default_rng(2)
    head = draw_head(rng, label_map(toy_labels(), SPACING), (30, 60, 56), (4.0, 4.0, 5.0))
    lesion = np.zeros((1, len(head.inside)), np.float32)
    white = np.flatnonzero(head.share("wm_deep") == 1)
    lesion[0, white[: len(white) // 2]] = 1.0
    head = replace(head, lesions=lesion, lesion_kinds=("plaque",))
    return head, draw_tissues(rng, head)


@pytest.mark.parametrize("domain", CONTRASTS)
@pytest.mark.parametrize("tissue", ["gm", "wm_deep", "csf", "bone"])
def test_a_tissue_has_the_signal_of_the_equation_and_texture_around_it(domain, tissue, drawn):
    """In voxels of one tissue alone: exactly, where the water content does not deviate."""
    head, tissues = drawn
    values, signal = tissues.at(1.0), signal_of(domain)
    pure = (head.tissues == INDEX[tissue]).all(0) & (head.lesions[0] == 0)
    assert pure.sum() > 20
    even = image(replace(head, water=0 * head.water), values, tissues.lesions, signal)[pure]
    expected = signal(values)[INDEX[tissue]]
    assert np.allclose(even, expected, rtol=1e-5, atol=1e-6)
    found = image(head, values, tissues.lesions, signal)[pure]
    scale = 40.0 if domain == "ct" else signal(values).max()
    assert abs(found.mean() - expected) < 0.05 * scale
    if tissue in ("gm", "wm_deep"):
        assert found.std() > 1e-3 * scale, "there is texture"


@pytest.mark.parametrize("domain", CONTRASTS)
def test_one_change_of_a_tissue_shows_in_every_contrast(domain, drawn):
    """Long T1 and T2 and little absorption: dark in T1 and CT, bright in T2, FLAIR and PD."""
    head, tissues = drawn
    sick = head.volume(head.lesions[0]) > 0
    healthy = replace(head, lesions=head.lesions[:0], lesion_kinds=())
    without = target(healthy, replace(tissues, lesions=tissues.lesions[:0]), domain)
    change = (target(head, tissues, domain) - without)[sick].mean()
    assert change * (-1 if domain in ("mr_t1", "ct") else 1) > 0
    assert abs(change) > (2 if domain == "ct" else 0.03 * LEVEL)


def test_random_contrasts_differ_and_are_functions_of_the_generator(drawn):
    head, tissues = drawn
    one, again, other = (any_contrast(np.random.default_rng(seed), head, tissues) for seed in (5, 5, 6))
    assert np.array_equal(one, again)
    assert not np.allclose(one, other)
    for seed in range(12):
        scan = any_contrast(np.random.default_rng(seed), head, tissues)
        assert np.isfinite(scan).all()
        assert scan.min() >= 0
        inside = scan.ravel()[head.inside]
        assert inside.mean() > 1.5 * np.delete(scan.ravel(), head.inside).mean(), "the head is no noise"


def test_a_share_of_the_heads_is_stripped_defaced_or_cropped(drawn):
    head, _ = drawn
    masks = [hidden(np.random.default_rng(seed), head) for seed in range(40)]
    assert 15 < sum(mask is None for mask in masks) < 33
    brain = head.volume(head.share("gm", "wm", "wm_middle", "wm_deep")) > 0.9
    bone = head.volume(head.share("bone")) > 0.9
    stripped = [mask for mask in masks if mask is not None and mask[bone].all()]
    assert stripped, "some show the brain alone"
    assert all(mask[brain].mean() < 0.05 for mask in stripped)


def test_artefacts_are_scaled(drawn):
    """Without them the background is nearly dark and nothing but sequences and windows is drawn."""
    head, tissues = drawn
    air = np.ones(int(np.prod(head.shape)), bool)
    air[head.inside] = False
    scans = {a: [any_contrast(np.random.default_rng(s), head, tissues, a).ravel() for s in range(10)] for a in (0, 1)}
    noise = {a: np.mean([scan[air].mean() for scan in of]) for a, of in scans.items()}
    assert noise[0] < 0.5 * noise[1]
