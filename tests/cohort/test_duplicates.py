"""The same image under two names is found, however large the set; another one is not."""

import numpy as np
import pytest
import torch

from medstyle.cohort.duplicates import near_duplicates, volume_signature


def images(rng, number):
    rows = rng.normal(size=(number, 50)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_each_pair_of_the_same_image_is_named_once(rng, chunk):
    rows = images(rng, 10)
    rows[7] = rows[2]
    rows[9] = rows[4] + 1e-4 * rows[5]
    assert list(near_duplicates(rows, 0.999, chunk)) == [(2, 7), (4, 9)]
    assert list(near_duplicates(images(rng, 10), 0.999, chunk)) == []


def test_a_thumbnail_knows_no_brightness_and_no_contrast():
    stack = torch.rand(12, 1, 40, 36, generator=torch.Generator().manual_seed(0))
    one, other = volume_signature(stack), volume_signature(1.7 * stack + 0.2)
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(one, other, atol=1e-5)
    assert volume_signature(stack.flip(2)) @ one < 0.9
    assert np.isfinite(volume_signature(0 * stack)).all()
