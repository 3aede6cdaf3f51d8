import numpy as np
import pytest

from medstyle.imaging.modality import DOMAINS, NORMALISATIONS, QUANTILES

CASES = [(d, n) for d, m in DOMAINS.items() for n in (["percentile"] if m.absolute else NORMALISATIONS)]
LANDMARKS = (-1.0, -0.9, -0.7, -0.6, -0.5, -0.4, -0.2, 0.0, 0.2, 0.5, 1.0)


@pytest.mark.parametrize(("domain", "normalisation"), CASES)
def test_normalisation_goes_both_ways(domain, normalisation, rng):
    modality = DOMAINS[domain]
    low, high = modality.range
    values = rng.uniform(low, min(high, 4000), (3, 20, 20)).astype(np.float32)
    for landmarks in ((), LANDMARKS):
        fingerprint = modality.fingerprint(values, None, normalisation, landmarks)
        scaled = modality.normalise(values, fingerprint)
        inside = (scaled > -1) & (scaled < 3)
        assert inside.mean() > 0.98
        back = modality.denormalise(scaled, fingerprint)
        np.testing.assert_allclose(back[inside], values[inside], rtol=1e-5, atol=(high - low) * 1e-6)


@pytest.mark.parametrize("domain", [name for name, m in DOMAINS.items() if m.absolute])
def test_absolute_units_are_never_scaled_by_the_image(domain, rng):
    modality = DOMAINS[domain]
    dark = rng.uniform(*modality.range, (4, 4)) * 0.1
    assert modality.fingerprint(dark) == modality.fingerprint(dark * 5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_gain_and_offset_of_mr_do_not_matter(normalisation, rng):
    modality = DOMAINS["mr_t1"]
    body = rng.gamma(3, 100, 5000).astype(np.float32)
    one, other = (
        modality.normalise(v, modality.fingerprint(v, None, normalisation, LANDMARKS)) for v in (body, body * 7 + 30)
    )
    np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_the_background_does_not_matter(normalisation):
    body = np.linspace(100, 200, 1000, dtype=np.float32)
    image = np.concatenate([np.zeros(9000, np.float32), body])
    modality = DOMAINS["mr_t1"]
    assert modality.fingerprint(image, image > 0, normalisation) == modality.fingerprint(body, None, normalisation)


def test_what_each_normalisation_calls_minus_one_and_one():
    body = np.linspace(0, 1000, 100_001)
    ends = {name: (f.values[0], f.values[-1]) for name, make in NORMALISATIONS.items() for f in [make(body, ())]}
    sd = 1000 / np.sqrt(12)
    expected = {"percentile": (5, 995), "zscore": (500 - 4 * sd, 500 + 4 * sd), "nyul": (5, 995)}
    assert set(expected) == set(ends)
    for name, end in ends.items():
        np.testing.assert_allclose(end, expected[name], rtol=1e-3)


def test_nyul_brings_any_rising_contrast_to_one_histogram(rng):
    body = rng.gamma(3, 100, 20_000)
    modality = DOMAINS["mr_flair"]
    for change in (np.sqrt, np.square, lambda v: v):
        values = change(body)
        scaled = modality.normalise(values, modality.fingerprint(values, None, "nyul", LANDMARKS))
        np.testing.assert_allclose(np.percentile(scaled, QUANTILES), LANDMARKS, atol=1e-3)


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
def test_few_different_values_still_have_an_inverse(normalisation):
    values = np.repeat([10.0, 10.0, 11.0], 100)
    for one in (values, values * 0 + 3):
        fingerprint = DOMAINS["mr_t1"].fingerprint(one, None, normalisation)
        assert (np.diff(fingerprint.values) > 0).all()
        assert (np.diff(fingerprint.scaled) > 0).all()
        np.testing.assert_allclose(fingerprint.backward(fingerprint.forward(one)), one, rtol=1e-4)
