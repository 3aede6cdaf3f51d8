"""A translator is calibrated on validation subjects that have both domains."""

import json

import numpy as np
import pytest

from medstyle.data.store import SliceStore
from medstyle.inference.calibrate import calibrate, calibration_subjects, errors_of
from medstyle.networks.conformal import Interval
from tests.data.conftest import make_store
from tests.inference.conftest import Plain, make_translator


@pytest.fixture(scope="module")
def twelve(tmp_path_factory) -> SliceStore:
    return make_store(tmp_path_factory.mktemp("store"), validation=12)


@pytest.mark.parametrize("config", [{}, {"neighbours": 3}, {"contrasts": ["mr_flair"]}, {"dimensions": 3}], ids=str)
def test_the_interval_covers_all_but_the_worst_subjects(twelve, config):
    """Of 12 subjects the rank is 12: the one that needs most decides."""
    translator = make_translator(size=[6, 24, 24] if "dimensions" in config else [24, 24], **config)
    interval = calibrate(translator, twelve)
    assert interval.subjects == 12
    errors = list(errors_of(translator, twelve, "validation", twelve.subjects("validation")))
    covered = [(one.error <= interval.factor * one.scale * (1 + 1e-6)).mean() for one in errors]
    constant = [(one.error <= interval.constant).mean() for one in errors]
    assert min(covered) == pytest.approx(0.9, abs=2e-3)
    assert min(constant) == pytest.approx(0.9, abs=2e-3)
    assert calibrate(translator, twelve) == interval


def test_the_errors_are_those_of_the_output(twelve):
    """A generator that makes the target has none; the scale is that of the views."""
    exact = make_translator(generator=Plain(lambda image: -image), size=[24, 24])
    [one] = errors_of(exact, twelve, "validation", ["validation-0"])
    assert one.error.max() < 0.011, "targets are cut at -0.99"
    wrong = make_translator(generator=Plain(lambda image: -image + 0.25), size=[24, 24])
    [one] = errors_of(wrong, twelve, "validation", ["validation-3"])
    assert np.median(one.error) == pytest.approx(0.25, abs=2e-3)


def test_with_too_few_nothing_is_computed(tmp_path):
    store = make_store(tmp_path, validation=8)
    never = make_translator(generator=Plain(lambda image: pytest.fail("translates")))
    assert calibrate(never, store) == Interval(8)


def test_without_a_default_style_there_is_no_interval(twelve):
    assert calibrate(make_translator(style=("reference",), size=[24, 24]), twelve) == Interval()


def test_the_person_is_the_unit(tmp_path):
    """Two sessions of one person are one subject, and those without a target are none."""
    make_store(tmp_path, validation=10)
    path = tmp_path / "index.json"
    text = path.read_text()
    for number in (0, 1):
        text = text.replace(f'"validation-{number}"', f'"validation-0_ses-{number}"')
    index = json.loads(text)
    rows = index["rows"]["validation"]["mr_t2"]
    index["rows"]["validation"]["mr_t2"] = [row for row in rows if row[0] != "validation-9"]
    path.write_text(json.dumps(index))
    found = calibration_subjects(make_translator(), SliceStore.open(tmp_path), "validation")
    assert found == ["validation-0_ses-0", *(f"validation-{number}" for number in range(2, 9))]
