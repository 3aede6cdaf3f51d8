"""Noise is measured and lowered, shading flattened, in the body and not in the air."""

import numpy as np
import pytest

from medstyle.transforms.prepare import Preparation
from tests.transforms.test_prepare import head


def test_denoising_lowers_the_error(rng):
    import torch

    from medstyle.transforms.intensity import FILTERS, Denoise

    volume, clean, body = head(rng, sigma=25)
    array = volume.voxels.transpose(2, 1, 0)
    for method in FILTERS:
        out = np.asarray(Denoise(method, rician=True)(torch.from_numpy(array.copy())[None])[0]).transpose(2, 1, 0)
        before, after = (float(np.abs(v - clean)[body].mean()) for v in (volume.voxels, out))
        assert after < 0.6 * before, method


@pytest.mark.parametrize("cut", [0, 1])
def test_the_noise_is_measured_in_the_body(rng, cut):
    from medstyle.transforms.intensity import noise_sigma

    volume, _, body = head(rng, sigma=25)
    array = volume.voxels.transpose(2, 1, 0)[cut:, cut:]
    assert noise_sigma(array) == pytest.approx(25, rel=0.15)
    assert noise_sigma(array * body.transpose(2, 1, 0)[cut:, cut:]) == pytest.approx(25, rel=0.15)
    assert noise_sigma(array * 0) == 0


def test_the_filters_are_the_choices_of_params():
    from typing import get_args, get_type_hints

    from medstyle.transforms.intensity import FILTERS

    assert get_args(get_type_hints(Preparation)["denoise"]) == ("none", *FILTERS)


def test_bias_field_is_flattened(rng):
    import torch

    from medstyle.transforms.intensity import CorrectBias

    volume, _, body = head(rng, sigma=5)
    shading = np.linspace(0.7, 1.3, 64, dtype=np.float32)[None, None, :]
    shaded = volume.voxels * shading
    out = np.asarray(CorrectBias()(torch.from_numpy(shaded.transpose(2, 1, 0).copy())[None])[0]).transpose(2, 1, 0)
    ring = body & (volume.voxels < 500)

    def slope(voxels):
        return abs(np.corrcoef(voxels[ring], np.broadcast_to(shading, voxels.shape)[ring])[0, 1] * voxels[ring].std())

    assert slope(out) < 0.35 * slope(shaded)
    single = CorrectBias()(torch.from_numpy(shaded[5:6].transpose(2, 1, 0).copy())[None])
    assert single.shape == (1, 64, 64, 1)
