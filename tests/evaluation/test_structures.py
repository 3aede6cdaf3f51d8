"""Anatomy is found in outputs by a segmenter that learned on real images."""

import numpy as np
import pytest
import torch


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
