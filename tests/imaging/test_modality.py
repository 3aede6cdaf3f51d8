import numpy as np
import pytest

from medstyle.imaging.modality import DOMAINS


@pytest.mark.parametrize("domain", DOMAINS)
def test_normalisation_goes_both_ways(domain, rng):
    modality = DOMAINS[domain]
    low, high = modality.range
    values = rng.uniform(low, min(high, 4000), (3, 20, 20)).astype(np.float32)
    fingerprint = modality.fingerprint(values)
    scaled = modality.normalise(values, fingerprint)
    inside = (scaled > -1) & (scaled < 3)
    assert inside.mean() > 0.98
    back = modality.denormalise(scaled, fingerprint)
    np.testing.assert_allclose(back[inside], values[inside], rtol=1e-5, atol=(high - low) * 1e-6)


@pytest.mark.parametrize("domain", [name for name, m in DOMAINS.items() if m.normalisation == "fixed"])
def test_absolute_units_are_never_scaled_by_the_image(domain, rng):
    modality = DOMAINS[domain]
    dark = rng.uniform(*modality.range, (4, 4)) * 0.1
    assert modality.fingerprint(dark) == modality.fingerprint(dark * 5)


def test_mr_percentiles_ignore_the_background():
    body = np.linspace(100, 200, 1000, dtype=np.float32)
    image = np.concatenate([np.zeros(9000, np.float32), body])
    fingerprint = DOMAINS["mr_t1"].fingerprint(image, image > 0)
    assert fingerprint.low == pytest.approx(100.5)
    assert fingerprint.high == pytest.approx(199.5)
