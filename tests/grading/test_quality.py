import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import euclidean_distances, polynomial_kernel

from raydr.grading import quality
from raydr.grading.quality import coverage, kid, precision_recall, radii


def normal(num, dims=8, shift=0.0, seed=0, scale=1.0):
    values = np.random.default_rng(seed).normal(shift, scale, (num, dims))
    return torch.from_numpy(values)


def line(*values):
    return torch.tensor(values, dtype=torch.float64)[:, None]


# KID


def test_kid_is_the_unbiased_mmd_of_sklearn_s_kernel():
    x, y = normal(17, seed=1), normal(11, seed=2, shift=0.5)
    xx, yy, xy = (polynomial_kernel(a, b, degree=3, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    by_hand = (xx.sum() - np.trace(xx)) / (17 * 16) + (yy.sum() - np.trace(yy)) / (11 * 10) - 2 * xy.mean()
    assert kid(x, y)[0] == pytest.approx(by_hand, rel=1e-10)


def test_kid_is_torch_fidelity_s():
    metric = pytest.importorskip("torch_fidelity.metric_kid", reason="torch-fidelity is not installed")
    x, y = normal(20, seed=1), normal(20, seed=2, shift=0.3)
    kernels = [metric.kernel_poly(a.numpy(), b.numpy(), **{
        "kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1
    }) for a, b in ((x, x), (x, y), (y, y))]  # fmt: skip
    assert kid(x, y)[0] == pytest.approx(metric.mmd2(*kernels), rel=1e-10)


def test_kid_by_hand():
    # D = 1: k(a, b) = (ab + 1)^3; x = {0, 1}, y = {0, 2}: k_x = 1, k_y = 1, k_xy = (1 + 1 + 1 + 27) / 4.
    assert kid(line(0, 1), line(0, 2))[0] == pytest.approx(1 + 1 - 2 * 30 / 4)


def test_kid_is_zero_on_average_for_equal_distributions_and_grows_with_the_shift():
    equal = [kid(normal(30, seed=s), normal(30, seed=s + 1000), 2)[0] for s in range(100)]
    assert abs(np.mean(equal)) < 3 * np.std(equal) / np.sqrt(100)
    assert min(equal) < 0  # unbiased
    shifted = [kid(normal(200, seed=1), normal(200, seed=2, shift=shift), 2)[0] for shift in (0, 0.3, 0.6)]
    assert shifted == sorted(shifted)


@pytest.mark.parametrize(("shift", "low", "high"), [(0.0, 1.0, 2.2), (0.7, 0.75, 1.35)])
def test_the_error_is_the_spread_between_samples(shift, low, high):
    """100 pairs of sets: what one pair says of its error, against the spread over all (known to 7 %)."""
    found = [kid(normal(40, seed=s), normal(30, seed=s + 1000, shift=shift), 20) for s in range(100)]
    spread = np.std([value for value, _ in found])
    assert low < np.mean([error for _, error in found]) / spread < high


def test_the_error_is_the_same_every_time():
    x, y = normal(20), normal(20, seed=3)
    assert kid(x, y) == kid(x, y)


# Precision, recall, coverage


def test_radii_are_distances_to_the_kth_other_row():
    x = line(0, 1, 3, 7)
    assert radii(x, 1).tolist() == [1, 1, 2, 4]
    assert radii(x, 3).tolist() == [7, 6, 4, 7]
    doubled = line(0, 0, 5)
    assert radii(doubled, 1).tolist() == [0, 0, 5]


def test_precision_and_recall_by_hand():
    # Photographs at 0, 1, 2 (k = 1: balls of radius 1), images at 2.5, 3.5, 9 (radii 1, 1, 5.5).
    precision, recall = precision_recall(line(2.5, 3.5, 9), line(0, 1, 2), k=1)
    assert precision == pytest.approx(1 / 3)  # 2.5 is within 1 of 2; 3.5 and 9 are not
    assert recall == pytest.approx(1 / 3)  # 2 is within 1 of 2.5; 0 and 1 are not, 9's ball reaches down to 3.5


def test_coverage_by_hand():
    # Radii of 0, 1, 2, 10 for k = 1: 1, 1, 1, 8. Images at 1.5 and 30: 1 and 2 have one, 10 too (8.5 > 8: not).
    assert coverage(line(1.5, 30), line(0, 1, 2, 10), k=1) == pytest.approx(2 / 4)
    assert coverage(line(2.5, 30), line(0, 1, 2, 10), k=1) == pytest.approx(2 / 4)  # 2, and 10 at 7.5 < 8


def test_against_sklearn_s_distances_and_torch_fidelity():
    x, y = normal(60, seed=1), normal(50, seed=2, shift=0.4)
    near, own_x, own_y = euclidean_distances(x, y), euclidean_distances(x), euclidean_distances(y)
    ball_x, ball_y = np.sort(own_x, axis=1)[:, 3], np.sort(own_y, axis=1)[:, 3]
    expected = (near <= ball_y[None]).any(1).mean(), (near <= ball_x[:, None]).any(0).mean()
    assert precision_recall(x, y) == pytest.approx(expected)
    assert 0.1 < expected[0] < 1
    ball_y = np.sort(own_y, axis=1)[:, 5]
    assert coverage(x, y) == pytest.approx((near.min(axis=0) <= ball_y).mean())
    metric = pytest.importorskip("torch_fidelity.metric_prc", reason="torch-fidelity is not installed")
    assert metric.calculate_precision_recall_full(x, y, 3) == pytest.approx(expected)


def test_each_number_sees_its_own_flaw():
    photographs = normal(200).numpy()
    fresh = quality.quality(normal(200, seed=1).numpy(), photographs)
    collapsed = quality.quality(normal(200, seed=1, scale=0.1).numpy(), photographs)
    unreal = quality.quality(normal(200, seed=1, shift=4).numpy(), photographs)
    assert fresh.coverage > 0.9
    assert fresh.diversity == pytest.approx(1, abs=0.1)
    assert abs(fresh.kid) < 3 * fresh.kid_error
    assert collapsed.precision == 1
    assert collapsed.recall < 0.1
    assert collapsed.diversity == pytest.approx(0.1, abs=0.02)
    assert collapsed.kid > 3 * collapsed.kid_error
    assert (unreal.precision, unreal.recall, unreal.coverage) == (0, 0, 0)
    assert unreal.kid > 100 * abs(fresh.kid)
    assert (fresh.num_images, fresh.num_photographs) == (200, 200)


def test_too_few_are_not_compared():
    few, many = normal(5).numpy(), normal(6).numpy()
    assert quality.quality(few, many) is None
    assert quality.quality(many, few) is None
    assert quality.quality(many, many) is not None
