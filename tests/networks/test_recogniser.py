"""The recogniser that comes with the package: what it knows, and that it is silent on the rest."""

from pathlib import Path

import numpy as np
import pytest
import torch

from medstyle.imaging.volume import Volume, read_volume
from medstyle.networks.recogniser import (
    CONTRASTS,
    OFFSETS,
    READY,
    Look,
    Recogniser,
    load_recogniser,
    look,
    slices_of,
)
from medstyle.phantom.anatomy import smooth_noise
from medstyle.phantom.studies import PhantomParams, acquire, draw_subject

DATA = Path(__file__).parents[3] / "shared/data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the development data beside the project are absent")


def test_slices_are_those_of_the_planes(rng):
    cubes = rng.integers(0, 256, (72, 72, 72)).astype(np.uint8)
    found = slices_of(cubes)[:, :, 0] * 204
    assert found.shape == (3, len(OFFSETS), 72, 72)
    at = 36 + OFFSETS[1]
    for plane, own in enumerate((cubes[at], cubes[:, at], cubes[:, :, at])):
        assert np.allclose(found[plane, 1], own, atol=1e-3)


def test_the_order_of_slices_does_not_matter_but_the_planes_do(rng):
    network, _ = load_recogniser()
    slices = torch.from_numpy(rng.random((1, 3, 4, 2, 72, 72), np.float32))
    own, other, swapped = (network(one)[0] for one in (slices, slices[:, :, [2, 0, 3, 1]], slices[:, [1, 0, 2]]))
    assert torch.allclose(own, other, atol=1e-4)
    assert not torch.allclose(own, swapped, atol=1e-2)


def test_the_weights_are_small_and_finite():
    assert sum(p.numel() for p in Recogniser().parameters()) < 1e6
    assert (READY / "weights.safetensors").stat().st_size < 2e6
    network, calibration = load_recogniser()
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())
    assert all(0.8 <= sure < 1 for sure in calibration.sure)


@pytest.mark.parametrize("domain", ["mr_t1", "mr_t2", "mr_flair", "ct"])
def test_a_look_contradicts_other_contrasts_alone(domain):
    seen = Look(domain, "upright", 0.99, 0.99)
    assert [name for name in CONTRASTS if seen.contradicts(name)] == [n for n in CONTRASTS if n not in (domain, "")]
    assert not seen.contradicts(f"{domain}@north")
    assert not any(seen.contradicts(name) for name in ("brain", "photo"))
    assert not Look().contradicts(domain)


def test_what_is_no_head_is_not_judged(rng):
    shape, grid = (90, 90, 90), np.diag([2.0, 2.0, 2.0, 1.0])
    z, y, x = np.indices(shape) - 45
    ball = x**2 + y**2 + z**2 < 1600
    for voxels in (
        rng.rayleigh(1, shape),
        ball * (1 + 0.1 * smooth_noise(rng, shape, 5)),
        smooth_noise(rng, shape, 6) + 3,
        (x > 0) * 1.0,
    ):
        seen = look(Volume(voxels.astype(np.float32), grid, "mr_t1"))
        assert seen.contrast == ""
        assert not seen.turned
    assert look(Volume(np.ones((4, 90, 90), np.float32), grid, "mr_t1")) == Look()


def test_phantoms_are_never_mistaken():
    params = PhantomParams(domains=("mr_t1", "mr_t2", "mr_flair"))
    head = draw_subject(params, 3)
    for domain in params.domains:
        seen = look(acquire(params, head, domain)[0])
        assert not seen.contradicts(domain)
        assert not seen.turned


@real
def test_a_real_t1_is_recognised_and_turns_are_noticed():
    """FLAIR is seldom sure: it must not be taken for another contrast."""
    for name, domain, answers in (("t1", "mr_t1", {"mr_t1"}), ("flair", "mr_flair", {"", "mr_flair"})):
        scan = read_volume(DATA / "brain_t1_flair/sub-11" / f"{name}.nii.gz", domain)
        seen = look(scan)
        assert seen.contrast in answers
        assert not seen.turned
        axis = 2 - int(np.abs(scan.affine[2, :3]).argmax())
        assert look(scan.with_voxels(np.ascontiguousarray(np.flip(scan.voxels, axis)))).orientation == "upside down"
