import numpy as np
import pytest

from raydr.diffusion import ecc


def probabilities(means, grade=3, spread=0.1):
    """(B, 2, 5): two members around each mean for `grade`, the rest elsewhere."""
    table = np.zeros((len(means), 2, 5))
    table[:, 0, grade] = np.array(means) - spread
    table[:, 1, grade] = np.array(means) + spread
    table[:, :, 0] = 1 - table[:, :, grade]
    return table


def test_the_best_are_kept_best_first():
    table = probabilities([0.5, 0.8, 0.75, 0.9, 0.2])
    assert ecc.choose(table, 3, keep=5, threshold=0.7).tolist() == [3, 1, 2]


def test_only_keep_are_looked_at():
    table = probabilities([0.8, 0.85, 0.75, 0.9])
    assert ecc.choose(table, 3, keep=2, threshold=0.7).tolist() == [3, 1]


def test_the_threshold_is_inclusive_and_of_the_mean():
    table = probabilities([0.75, 0.75 - 1e-6], spread=0.25)  # one member says .5, the other 1
    assert ecc.choose(table, 3, keep=2, threshold=0.75).tolist() == [0]


def test_there_is_no_upper_bound():
    assert ecc.choose(probabilities([1.0], spread=0.0), 3, keep=1, threshold=0.7).tolist() == [0]


def test_the_intended_grade_counts():
    table = probabilities([0.1, 0.9])
    assert ecc.choose(table, 0, keep=2, threshold=0.7).tolist() == [0]


def test_equal_means_keep_their_order():
    assert ecc.choose(probabilities([0.8] * 4), 3, keep=3, threshold=0.7).tolist() == [0, 1, 2]


def test_nothing_may_pass():
    assert ecc.choose(probabilities([0.3, 0.4]), 3, keep=2, threshold=0.7).tolist() == []


def test_the_control_looks_at_nothing():
    table = probabilities([0.1, 0.2, 0.9])
    assert ecc.choose(table, 3, keep=2, threshold=0.7, select=False).tolist() == [0, 1]
    assert ecc.choose(table, 3, keep=9, threshold=0.7, select=False).tolist() == [0, 1, 2]


@pytest.mark.parametrize("num_calls", [0, 1, 2, 7, 32])
@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_ranks_make_each_call_once(num_calls, world_size):
    shares = [list(ecc.share(num_calls, rank, world_size)) for rank in range(world_size)]
    assert sorted(call for share in shares for call in share) == list(range(num_calls))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
