"""The arithmetic of comparisons, against values computed by hand."""

import math
from itertools import combinations

import pytest

from raydr.bench.fits import abba, at, fit, moved, ratios, steady, waves


def test_a_line_through_two_points():
    line = fit([(10, 7.0), (30, 12.0)])
    assert (line.start, line.each) == pytest.approx((4.5, 0.25))
    assert math.isnan(line.error)


def test_least_squares_by_hand():
    # x = 1, 2, 3, 4; y = 2, 3, 5, 6: mean 2.5 and 4, Sxy = 7, Sxx = 5, so b = 1.4, a = .5;
    # residuals .1, -.3, .3, -.1: sum of squares .2, error sqrt(.2 / 2 / 5).
    line = fit([(1, 2.0), (2, 3.0), (3, 5.0), (4, 6.0)])
    assert (line.start, line.each, line.error) == pytest.approx((0.5, 1.4, math.sqrt(0.02)))


def test_one_size_gives_no_line():
    with pytest.raises(ValueError, match="two different sizes"):
        fit([(5, 1.0), (5, 2.0)])


def test_steady_drops_the_warm_up_but_keeps_two_sizes():
    points = [(k, float(k)) for k in range(1, 11)]
    assert [x for x, _ in steady(points)] == [3, 4, 5, 6, 7, 8, 9, 10]
    assert steady([(1, 9.0), (100, 20.0)]) == [(1, 9.0), (100, 20.0)]


def test_workers_in_step_are_read_by_their_waves():
    # Two workers that take 2 s a shard: a shard a second.
    marks = [(1, 2.0), (2, 2.0), (3, 4.0), (4, 4.0)]
    assert fit(marks).each == pytest.approx(0.8)  # the bias that `waves` is there for
    assert fit(waves(marks, 2)).each == pytest.approx(1.0)
    assert waves([*marks, (5, 6.0)], 2) == [(2, 2.0), (4, 4.0)]
    assert waves(marks, 1) == marks
    assert waves(marks, 4) == marks  # one wave is no line


@pytest.mark.parametrize(("x", "y"), [(-1, 2.0), (0, 2.0), (1, 3.0), (3, 7.0), (4, 10.0), (9, 10.0)])
def test_interpolation_holds_the_ends(x, y):
    assert at([(0, 2.0), (2, 4.0), (4, 10.0)], x) == y


def test_arms_alternate_so_that_a_drift_cancels():
    assert [arm[0] for _, arm in abba(4)] == list("pbbppbbp")
    assert [pair for pair, _ in abba(2)] == [0, 0, 1, 1]
    # A machine that slows down by one second a run costs both arms the same over two pairs.
    position = {"pipeline": 0, "bare": 0}
    for number, (_, arm) in enumerate(abba(4)):
        position[arm] += number
    assert position["pipeline"] == position["bare"]


def test_ratios_are_of_neighbours():
    found = ratios([2.0, 4.0, 1.0], [1.9, 3.0, 1.1])
    assert found.values == pytest.approx((0.95, 0.75, 1.1))
    assert (found.median, found.low, found.high) == pytest.approx((0.95, 0.75, 1.1))
    assert math.isnan(ratios([0.0], [1.0]).median)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0.90, 0.91, 0.92], [0.95, 0.96, 0.97], "up"),
        ([0.95, 0.96, 0.97], [0.90, 0.91, 0.92], "down"),
        ([0.90, 0.95, 0.92], [0.94, 0.96, 0.97], ""),  # they overlap
        ([0.950, 0.951, 0.952], [0.953, 0.954, 0.955], ""),  # apart, but by less than anyone cares for
        ([0.5, 0.5], [0.9, 0.9], ""),  # two pairs part by chance in every third comparison
    ],
)
def test_moved_beyond_noise(before, after, verdict):
    assert moved(before, after) == verdict


def test_the_chance_of_a_false_alarm_is_what_the_docstring_says():
    ranks = [0.1 * k for k in range(10)]
    alarms = sum(
        bool(moved(list(five), [value for value in ranks if value not in five])) for five in combinations(ranks, 5)
    )
    assert alarms == 2
    assert math.comb(10, 5) == 252
