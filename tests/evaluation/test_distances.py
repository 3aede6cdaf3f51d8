import numpy as np
import pytest

from medstyle.evaluation.distances import frechet, kernel_distance, set_distances, squared_mmd


def gaussian(rng, mean, covariance, count):
    """Draw samples whose mean and covariance are exactly these."""
    mean, root = np.asarray(mean, float), np.linalg.cholesky(covariance)
    raw = rng.normal(size=(count, len(mean)))
    raw -= raw.mean(axis=0)
    white = np.linalg.solve(np.linalg.cholesky(np.cov(raw.T)), raw.T).T
    return white @ root.T + mean


def test_the_frechet_distance_of_gaussians_is_the_closed_form(rng):
    from scipy.linalg import sqrtm

    a, b = (m @ m.T + np.eye(4) for m in rng.normal(size=(2, 4, 4)))
    first, second = gaussian(rng, [0, 1, 2, 3], a, 60), gaussian(rng, [1, 1, 0, 3], b, 40)
    expected = 1 + 4 + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet(first, second) == pytest.approx(expected)
    assert frechet(first, first + np.array([3, 0, 0, 4])) == pytest.approx(25)
    assert frechet(first, 3 * first) == pytest.approx(4 * np.trace(a) + 4 * 14)  # 3A^(1/2) - A^(1/2), and 2 x the mean


@pytest.mark.parametrize("count", [5, 50])  # fewer and more samples than features
def test_a_set_is_at_no_distance_from_itself_in_any_order(rng, count):
    features = rng.normal(size=(count, 20))
    assert frechet(features, rng.permutation(features)) == pytest.approx(0, abs=1e-9)
    other = rng.normal(size=(count, 20))
    assert frechet(features, other) == pytest.approx(frechet(other, features))
    assert frechet(features, other) > 1


def test_the_kernel_distance_is_its_definition(rng):
    x, y = rng.normal(size=(7, 3)), rng.normal(1, 1, size=(5, 3))

    def k(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3

    def within(s):
        return sum(k(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j) / (len(s) * (len(s) - 1))

    expected = within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (7 * 5)
    assert squared_mmd(x, y) == pytest.approx(expected)


def test_sets_of_one_kind_are_at_no_distance_in_the_mean(rng):
    values = [squared_mmd(*rng.normal(size=(2, 12, 6))) for _ in range(400)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 20, "unbiased, even from 12 samples"
    assert min(values) < 0
    mean, sd = kernel_distance(*rng.normal(size=(2, 200, 6)))
    assert abs(mean) < 3 * sd
    features = rng.normal(size=(2, 40, 6))
    assert kernel_distance(*features) == kernel_distance(*features), "the draws are seeded"


def test_distances_grow_with_what_is_done_to_a_set(rng):
    real, seen = rng.normal(size=(2, 80, 10))
    others = rng.normal(size=(80, 10))
    found = set_distances({"near": others + 0.5, "far": others + 1, "narrow": 0.2 * others}, real, seen)
    assert list(found) == ["near", "far", "narrow", "training targets"]
    for measure in ("fd_local", "kid_local"):
        floor, near, far, narrow = (found[n][measure] for n in ("training targets", "near", "far", "narrow"))
        assert floor < near < far, measure
        assert floor < narrow, measure
    scaled = set_distances({"near": 7 * (others + 0.5)}, 7 * real, 7 * seen)
    assert scaled["near"] == pytest.approx(found["near"]), "the unit of the features does not matter"
    assert set_distances({"near": others[:3]}, real, seen) == {}
