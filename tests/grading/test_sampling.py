import numpy as np
import pytest

from raydr.errors import UserError
from raydr.grading import sampling

# DDR's proportions, a tenth of them.
GRADES = np.repeat(np.arange(5), (439, 44, 313, 17, 64))


def test_balanced_draws_are_permutations_of_the_grades_in_every_block_of_five():
    drawn = GRADES[sampling.draws(GRADES, "balanced", 1003, seed=7)]
    blocks = np.sort(drawn[:1000].reshape(200, 5), axis=1)
    assert (blocks == np.arange(5)).all()
    assert len(drawn) == 1003


def test_balanced_over_present_grades_only():
    grades = np.array([0, 0, 0, 3, 2, 2])
    drawn = grades[sampling.draws(grades, "balanced", 30, seed=0)]
    assert np.bincount(drawn, minlength=5).tolist() == [10, 0, 10, 10, 0]


def test_a_grade_shows_each_of_its_images_before_it_repeats_one():
    positions = sampling.draws(GRADES, "balanced", 5 * 44, seed=3)
    mild = positions[GRADES[positions] == 1]
    assert sorted(mild) == np.flatnonzero(GRADES == 1).tolist()


def test_instance_draws_show_every_image_once_per_epoch_in_another_order():
    n = len(GRADES)
    positions = sampling.draws(GRADES, "instance", 2 * n, seed=5)
    first, second = positions[:n], positions[n:]
    assert sorted(first) == sorted(second) == list(range(n))
    assert (first != second).any()


def test_sqrt_shares():
    shares = sampling.shares(np.array([100, 0, 25, 4, 1]), "sqrt")
    np.testing.assert_allclose(shares, np.array([10, 0, 5, 2, 1]) / 18)
    drawn = GRADES[sampling.draws(GRADES, "sqrt", 500, seed=1)]
    expected = np.sqrt(np.bincount(GRADES)) / np.sqrt(np.bincount(GRADES)).sum()
    for num_draws in (50, 137, 500):  # every prefix keeps the shares, not only the whole
        assert np.abs(np.bincount(drawn[:num_draws], minlength=5) - num_draws * expected).max() < 2


def test_paper_sampler_reproduces_the_published_shares():
    """DDR's five folds with 5,000 synthetic mild and severe: 1.8/24/1.8/70.5/1.8 % of the draws (paper.md 7)."""
    real = np.array([4353, 408, 3100, 132, 605])
    mixed = real + np.array([0, 5000, 0, 5000, 0])
    np.testing.assert_allclose(100 * sampling.shares(mixed, "paper", real), [1.8, 24, 1.8, 70.5, 1.8], atol=0.06)
    np.testing.assert_allclose(sampling.shares(real, "paper", real), np.full(5, 0.2))


def test_paper_draws_follow_these_shares():
    grades, real = np.repeat(np.arange(5), (20, 30, 20, 20, 20)), np.array([20, 10, 20, 20, 20])
    drawn = grades[sampling.draws(grades, "paper", 20_000, seed=0, real_counts=real)]
    np.testing.assert_allclose(np.bincount(drawn) / 20_000, np.array([1, 3, 1, 1, 1]) / 7, atol=0.01)


def test_the_grades_of_two_arms_come_in_the_same_order():
    """Only the images differ: another arm holds 500 more of grade 3 and draws the same grade at each step."""
    other = np.concatenate([GRADES, np.full(500, 3)])
    one = sampling.draws(GRADES, "balanced", 640, seed=2)
    two = sampling.draws(other, "balanced", 640, seed=2)
    assert (GRADES[one] == other[two]).all()
    assert (one != two).any()


def test_seed_decides():
    one, same, other = (sampling.draws(GRADES, "balanced", 100, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert one.dtype == np.int64


def test_errors():
    with pytest.raises(UserError, match="nothing to draw from"):
        sampling.draws(np.zeros(0, np.int64), "balanced", 10, 0)
    with pytest.raises(UserError, match="unknown sampler 'fair'"):
        sampling.draws(GRADES, "fair", 10, 0)
    with pytest.raises(UserError, match="grade 1 has no real image"):
        sampling.shares(np.array([1, 1, 0, 0, 0]), "paper", np.array([1, 0, 0, 0, 0]))
