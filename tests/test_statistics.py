"""raydr.statistics against scipy and statsmodels values, closed forms and simulated truths."""

import time

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

from raydr import statistics
from raydr.statistics import Replicate, two_level_bootstrap

GRADES = np.repeat(np.arange(5), 40)


def hits(rng, arms=2, seeds=4, share=0.7, grades=GRADES):
    return rng.random((arms, seeds, len(grades))) < share


def test_estimate_is_the_mean_of_recalls_over_seeds_and_replicates():
    rng = np.random.default_rng(0)
    replicates = [Replicate(GRADES, hits(rng)) for _ in range(3)]
    result = two_level_bootstrap(replicates, 10)
    expected = np.mean([r.hits[1, :, GRADES == 3].mean() for r in replicates])
    assert result.estimate[1, 3] == pytest.approx(expected)
    assert result.draws.shape == (2, 10, 5)
    assert result.draws.mean(axis=1) == pytest.approx(result.estimate, abs=0.1)


def test_one_seed_has_the_standard_error_of_stratified_sampling():
    # One replicate, one seed: only images vary. Variance of a grade's recall is s^2 / n with n - 1 draws.
    rng = np.random.default_rng(1)
    replicate = Replicate(GRADES, hits(rng, seeds=1))
    result = two_level_bootstrap([replicate], 20_000)
    paired = replicate.hits[0, 0].astype(int) - replicate.hits[1, 0]
    variance = sum(paired[g == GRADES].var(ddof=1) / 40 for g in range(5)) / 25
    found = statistics.difference(result, 0, 1)
    assert found.standard_error == pytest.approx(np.sqrt(variance), rel=0.03)
    assert found.value == pytest.approx(paired.mean())
    # Nearly normal: the percentile interval is about +- 1.96 SE.
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.standard_error, rel=0.05)


def test_seed_level_variance():
    # Seeds differ, images do not: the variance of the mean over S seeds is s^2 / S (two-sided n - 1 draws).
    right = np.zeros((2, 5, len(GRADES)), bool)
    for seed, share in enumerate([0.5, 0.6, 0.7, 0.8, 1.0]):
        right[0, seed] = np.arange(len(GRADES)) % 10 < 10 * share
    result = two_level_bootstrap([Replicate(GRADES, right)], 20_000)
    seed_variance = np.var([0.5, 0.6, 0.7, 0.8, 1.0], ddof=1) / 5
    found = statistics.difference(result, 0, 1)
    assert found.value == pytest.approx(0.72)
    assert found.standard_error**2 >= seed_variance
    assert found.standard_error == pytest.approx(np.sqrt(seed_variance), rel=0.12)


def test_replicate_level_variance_and_stretch():
    # Three replicates, each wholly right or wrong in half of the images of arm a: only replicates vary.
    shares = np.array([0.4, 0.5, 0.9])
    replicates = []
    for share in shares:
        right = np.zeros((2, 1, len(GRADES)), bool)
        right[0, 0] = np.arange(len(GRADES)) % 10 < 10 * share
        replicates.append(Replicate(GRADES, right))
    result = two_level_bootstrap(replicates, 20_000)
    draws = (result.draws[0] - result.draws[1]).mean(axis=1)
    between = shares.var(ddof=1) / 3
    assert draws.std() == pytest.approx(np.sqrt(between), rel=0.1)
    found = statistics.difference(result, 0, 1)
    freedom = 2 * (draws.var() / between) ** 2
    assert found.standard_error == pytest.approx(draws.std() * stats.t.ppf(0.975, freedom) / 1.95996, rel=0.02)
    assert found.high - found.low > 2 * 1.96 * np.sqrt(between)


def test_pairing_shrinks_the_interval():
    rng = np.random.default_rng(2)
    shared = rng.random(len(GRADES)) < 0.7
    nearly = shared.copy()
    nearly[::20] = ~nearly[::20]
    paired = Replicate(GRADES, np.stack([shared, nearly])[:, None])
    shuffled = nearly.reshape(5, 40)[:, rng.permutation(40)].reshape(-1)
    unpaired = Replicate(GRADES, np.stack([shared, shuffled])[:, None])
    narrow = statistics.difference(two_level_bootstrap([paired], 2000), 0, 1)
    wide = statistics.difference(two_level_bootstrap([unpaired], 2000), 0, 1)
    assert narrow.value == pytest.approx(wide.value)
    assert narrow.standard_error < 0.6 * wide.standard_error


def test_shared_images_keep_their_common_error():
    # The same verdicts in every replicate: replicates add nothing, the image error must not shrink by sqrt(3).
    rng = np.random.default_rng(3)
    replicate = Replicate(GRADES, hits(rng, seeds=1))
    one = statistics.difference(two_level_bootstrap([replicate], 4000), 0, 1)
    apart = statistics.difference(two_level_bootstrap([replicate] * 3, 4000), 0, 1)
    shared = statistics.difference(two_level_bootstrap([replicate] * 3, 4000, shared_images=True), 0, 1)
    assert shared.standard_error == pytest.approx(one.standard_error, rel=0.06)
    assert apart.standard_error < 0.8 * one.standard_error


def test_clusters_widen_the_interval():
    # Twins: each photograph twice. Resampled as patients the error is that of the 20 patients a grade.
    rng = np.random.default_rng(4)
    singles = rng.random((2, 1, 100)) < 0.7
    twins = np.repeat(singles, 2, axis=2)
    patients = np.repeat(np.arange(100), 2)
    naive = statistics.difference(two_level_bootstrap([Replicate(GRADES, twins)], 8000), 0, 1)
    clustered = statistics.difference(two_level_bootstrap([Replicate(GRADES, twins, patients)], 8000), 0, 1)
    alone = statistics.difference(two_level_bootstrap([Replicate(np.repeat(np.arange(5), 20), singles)], 8000), 0, 1)
    assert clustered.value == pytest.approx(alone.value)
    assert clustered.standard_error == pytest.approx(alone.standard_error, rel=0.05)
    assert clustered.standard_error > 1.3 * naive.standard_error


def test_absent_grade_and_repeatability():
    rng = np.random.default_rng(5)
    grades = np.repeat([0, 1, 2], 30)
    replicate = Replicate(grades, hits(rng, grades=grades))
    first = two_level_bootstrap([replicate], 300, seed=9)
    assert np.isnan(first.estimate[:, 3:]).all()
    assert np.isnan(first.draws[:, :, 3:]).all()
    assert np.isfinite(statistics.difference(first, 0, 1).standard_error)
    again = two_level_bootstrap([replicate], 300, seed=9)
    assert np.array_equal(first.draws, again.draws, equal_nan=True)


def test_coverage_of_a_nominal_95_percent_interval():
    # Truth 0 by symmetry; image effects shared by the arms, seed effects of each arm.
    rng = np.random.default_rng(6)
    covered = 0
    for trial in range(200):
        image, seed = rng.normal(0, 1, 200), rng.normal(0, 0.2, (2, 3, 5))
        right = 1 + image + seed[:, :, GRADES] + rng.normal(0, 0.5, (2, 3, 200)) > 0
        found = statistics.difference(two_level_bootstrap([Replicate(GRADES, right)], 400, seed=trial), 0, 1)
        covered += found.low <= 0 <= found.high
    assert covered >= 184  # 95 % of 200 less two binomial standard errors


def test_weights_sum_to_one_and_have_the_variance_of_sampling():
    weights = statistics.resampling_weights(np.random.default_rng(0), 6, 40_000)
    assert weights.sum(axis=1) == pytest.approx(np.ones(40_000), abs=1e-5)
    # n - 1 = 5 draws over 6 units: variance of a share is (1/6)(5/6)/5
    assert weights.var(axis=0) == pytest.approx(np.full(6, 1 / 36), rel=0.05)
    assert np.array_equal(statistics.resampling_weights(np.random.default_rng(0), 1, 3), np.ones((3, 1)))


def test_interval_by_hand():
    draws = np.linspace(-1, 3, 4001)
    found = statistics.interval(1.0, draws, confidence=0.9)
    assert (found.low, found.high) == pytest.approx((-0.8, 2.8))
    assert found.p == pytest.approx(2 * (1 + 1001) / 4002)
    assert statistics.interval(5.0, draws + 4).p == pytest.approx(2 / 4002)


def test_minimum_detectable_difference_has_the_asked_for_power():
    effect = statistics.minimum_detectable_difference(1.0)
    assert effect == pytest.approx(2.8016, abs=1e-3)
    # A z test whose statistic has unit error: 2 groups of n = 2 with sd 1 give SE 1.
    assert NormalIndPower().power(effect, nobs1=2, alpha=0.05) == pytest.approx(0.8, abs=1e-6)


def test_holm_equals_statsmodels():
    p = [0.01, 0.04, 0.03, 0.005, 0.9, 0.03]
    assert statistics.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert statistics.holm([0.02]) == pytest.approx([0.02])
    assert statistics.holm([]).shape == (0,)


def bootstrap_of(*arms, replicates=0.0):
    """Bootstrap of arms whose draws (D,) are given, the same in every grade."""
    draws = np.stack([np.repeat(np.asarray(draw, np.float64)[:, None], 5, axis=1) for draw in arms])
    centres = draws.mean(axis=1)
    spread = np.array([-1.0, 0.0, 1.0])[:, None, None] * np.broadcast_to(replicates, (3, len(arms)))[:, :, None]
    return statistics.Bootstrap(centres[None] + spread, draws)


def test_share_is_fieller_s_interval():
    # Baseline, arm and ceiling with correlated normal draws; one unstretched set of draws, so Fieller's formula holds.
    rng = np.random.default_rng(3)
    noise = rng.multivariate_normal([0, 0, 0], np.array([[4, 2, 2], [2, 5, 3], [2, 3, 6]]) * 1e-5, 400_000)
    base, arm, top = (np.array([0.80, 0.83, 0.86]) + noise).T
    found = statistics.share(bootstrap_of(base, arm, top), 1, 2, 0)
    gain, step, z = arm - base, top - base, stats.norm.ppf(0.975)
    (v11, v12), (_, v22) = np.cov(gain, step)
    # 0 lies in the interval of gain - share step where (gain - share step)^2 <= z^2 var.
    bounds = np.roots(
        [
            step.mean() ** 2 - z**2 * v22,
            2 * (z**2 * v12 - gain.mean() * step.mean()),
            gain.mean() ** 2 - z**2 * v11,
        ]
    )
    assert found == pytest.approx((0.5, bounds.min(), bounds.max()), abs=0.01)


@pytest.mark.parametrize("seed", range(20))
def test_share_and_differences_agree_about_zero_and_one(seed):
    # Three replicates whose spread widens the differences each in its own way: the old ratio of draws disagreed.
    rng = np.random.default_rng(seed)
    arms = [0.8 + rng.normal(0, 0.004, 4000), 0.8 + rng.normal(rng.normal(0, 0.02), 0.006, 4000)]
    arms.append(0.86 + rng.normal(0, 0.004, 4000))
    made = bootstrap_of(*arms, replicates=rng.normal(0, 0.005, (3, 3)))
    found = statistics.share(made, 1, 2, 0)
    step = statistics.difference(made, 2, 0)
    assert (found is None) == (step.low <= 0)
    if found is None:
        return
    value, low, high = found
    assert low <= value <= high
    from_baseline, from_whole = statistics.difference(made, 1, 0), statistics.difference(made, 1, 2)
    assert (low > 0, high < 0) == (from_baseline.low > 0, from_baseline.high < 0)
    assert (low > 1, high < 1) == (from_whole.low > 0, from_whole.high < 0)


def test_an_arm_that_is_the_baseline_or_the_whole_has_the_share_0_or_1():
    rng = np.random.default_rng(4)
    made = bootstrap_of(0.8 + rng.normal(0, 0.01, 1000), 0.9 + rng.normal(0, 0.01, 1000))
    assert statistics.share(made, 0, 1, 0) == pytest.approx((0, 0, 0), abs=1e-5)
    assert statistics.share(made, 1, 1, 0) == pytest.approx((1, 1, 1), abs=1e-5)
    assert statistics.share(made, 1, 0, 1) is None


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(AssertionError):
        Replicate(GRADES, np.ones((2, 3, 7), bool))
    with pytest.raises(AssertionError):
        two_level_bootstrap([])


@pytest.mark.slow
def test_ten_thousand_draws_of_twenty_arms_take_under_ten_seconds():
    rng = np.random.default_rng(0)
    grades = np.repeat(np.arange(5), 800)
    replicate = Replicate(grades, hits(rng, arms=20, seeds=10, grades=grades))
    start = time.process_time()
    two_level_bootstrap([replicate], 10_000)
    assert time.process_time() - start < 10


def test_tost_is_that_of_statsmodels():
    from statsmodels.stats.weightstats import DescrStatsW

    values = [0.002, -0.004, 0.001, 0.003, -0.001]
    found = statistics.tost(values, 0.01)
    p, _, _ = DescrStatsW(values).ttost_mean(-0.01, 0.01)
    assert found.p == pytest.approx(p, rel=1e-9)
    low, high = DescrStatsW(values).tconfint_mean(alpha=0.1)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.equivalent


@pytest.mark.parametrize(
    ("values", "equivalent"),
    [
        ([0.02, 0.03, 0.02, 0.03], False),  # different
        ([0.05, -0.05, 0.04, -0.04], False),  # nobody knows: the interval is wider than the margin
        ([0.0, 0.0, 0.0], True),
        ([0.02, 0.02], False),
        ([-0.009, -0.0092, -0.0091, -0.009, -0.0091], True),
    ],
)
def test_equivalence_is_claimed_only_inside_the_margin(values, equivalent):
    found = statistics.tost(values, 0.01)
    assert found.equivalent == equivalent
    assert found.equivalent == (found.low > -0.01 and found.high < 0.01)
