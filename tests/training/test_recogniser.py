"""The training of the recogniser: its truth about orientations, its calibration, its folder."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from medstyle.errors import OutputError
from medstyle.networks.recogniser import CONTRASTS, ORIENTATIONS, load_recogniser
from medstyle.training.recogniser import (
    BY_ORIENTATION,
    FALSE_ALARMS,
    TURNS,
    Examples,
    Judged,
    calibrate,
    fit,
    judge,
    report,
    train,
    varied,
)
from tests.phantom.conftest import SPACING, toy_labels


def test_half_of_the_turns_differ_only_in_left_and_right():
    assert [len(turns) for turns in BY_ORIENTATION] == [2, 2, 2, 42]
    small = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    assert len({turn(small).tobytes() for turn in TURNS}) == 48
    for number, axis in ((1, 0), (2, 1)):
        one = BY_ORIENTATION[number][0](small)
        assert any(np.array_equal(one, np.flip(turn(small), axis)) for turn in BY_ORIENTATION[0])


def test_a_variation_stays_in_range_and_is_drawn_anew(rng):
    cubes = rng.integers(0, 256, (72, 72, 72)).astype(np.uint8)
    found = [varied(rng, cubes) for _ in range(8)]
    assert all(one.shape == cubes.shape and one.dtype == np.uint8 for one in found)
    assert len({one.tobytes() for one in found}) == 8


def overconfident(n=4000, seed=0):
    """Return logits that are right in nine of ten scans, and sure by far too much."""
    rng = np.random.default_rng(seed)
    columns = []
    for names in (CONTRASTS, ORIENTATIONS):
        truth = rng.integers(len(names), size=n)
        said = np.where(rng.random(n) < 0.9, truth, rng.integers(len(names), size=n))
        margin = np.where(said == truth, 16 * rng.random(n) ** 0.5, 9 * rng.random(n))
        columns.append((np.eye(len(names))[said] * margin[:, None], truth))
    (a, x), (b, y) = columns
    return Judged(*(torch.from_numpy(one).float() for one in (a, b)), *(torch.from_numpy(one) for one in (x, y)))


def test_calibration_softens_and_bounds_clear_wrong_answers():
    judged = overconfident()
    calibration = calibrate(judged)
    assert min(calibration.temperatures) > 1
    found = report(judged, calibration)
    for what in ("contrast", "orientation"):
        assert found[f"{what}: clear and wrong, of those with an answer"] <= 1.5 * FALSE_ALARMS
        assert found[f"{what}: clear and right, of those with an answer"] > 0.1


def test_the_network_learns_what_distinguishes_its_examples():
    """One contrast has a bright core in a dark shell, the other a dark core in a bright shell."""
    cubes = np.zeros((2, 72, 72, 72), np.uint8)
    cubes[:, 12:60, 12:60, 12:60] = np.array([60, 200], np.uint8)[:, None, None, None]
    cubes[:, 20:52, 20:52, 20:52] = np.array([200, 60], np.uint8)[:, None, None, None]
    examples = Examples(np.repeat(cubes, 4, 0), np.repeat([0, 1], 4), np.zeros(8, bool))
    network = fit(examples, steps=40, seed=0)
    judged = judge(network, examples)
    assert (judged.contrast.argmax(1) == judged.true_contrast).float().mean() > 0.8
    assert (judged.orientation.argmax(1) == ORIENTATIONS.index("")).all()


def test_one_call_makes_a_folder_that_can_be_used(tmp_path):
    image = sitk.GetImageFromArray(toy_labels().astype(np.int16))
    image.SetSpacing(SPACING.tolist())
    (tmp_path / "labels").mkdir()
    sitk.WriteImage(image, str(tmp_path / "labels/one.nii.gz"))
    train(tmp_path / "labels", tmp_path / "out", heads=1, held=1, steps=(2, 1))
    network, calibration = load_recogniser(tmp_path / "out")
    assert not network.training
    assert min(calibration.sure) >= 0.8
    assert json.loads((tmp_path / "out/contrast.json").read_text())["scans"] == 7
    with pytest.raises(OutputError, match="exists already"):
        train(tmp_path / "labels", tmp_path / "out", heads=1, held=1, steps=(2, 1))
