"""The arithmetic of a comparison: start-up and steady state apart, ratios of neighbours, what moved. Pure.

    T(N) = a + b N        a = start-up, seconds;  b = steady state, seconds a unit

On a shared machine only neighbours in time may be compared: pipeline and bare loop run in the order ABBA, each pair
gives one ratio, and the median of the ratios is the efficiency.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

__all__ = ["Line", "Ratios", "abba", "at", "fit", "median", "moved", "ratios", "steady", "waves"]

Point = tuple[float, float]  # (units done, seconds since the start)


@dataclass(frozen=True)
class Line:
    """T = start + each N, and the standard error of `each` (nan from two points)."""

    start: float
    each: float
    error: float = math.nan


def fit(points: Sequence[Point]) -> Line:
    """Least squares over (N, T); at least two different N. ValueError otherwise."""
    n = len(points)
    mean_x, mean_y = sum(x for x, _ in points) / max(1, n), sum(y for _, y in points) / max(1, n)
    square = sum((x - mean_x) ** 2 for x, _ in points)
    if square == 0:
        raise ValueError(f"a line needs two different sizes, not {sorted({x for x, _ in points})}")
    each = sum((x - mean_x) * (y - mean_y) for x, y in points) / square
    start = mean_y - each * mean_x
    rest = sum((y - start - each * x) ** 2 for x, y in points)
    return Line(start, each, math.sqrt(rest / (n - 2) / square) if n > 2 else math.nan)


def steady(points: Sequence[Point], warm_up: float = 0.2) -> list[Point]:
    """`points` without the first share `warm_up` of the units: caches fill and workers start there. Keeps two sizes."""
    ordered = sorted(points)
    kept = [point for point in ordered if point[0] > warm_up * ordered[-1][0]]
    return kept if len({x for x, _ in kept}) >= 2 else list(ordered)


def waves(points: Sequence[Point], width: int) -> list[Point]:
    """The last of each `width` of `points`, or all points where that leaves fewer than two.

    Workers that take equally long finish together. A line through all of their marks is too flat: through two waves
    of two it reads 1.25 times the rate, through three 1.09 times.
    """
    kept = list(points)[width - 1 :: width]
    return kept if len(kept) >= 2 else list(points)


def at(series: Sequence[Point], x: float) -> float:
    """Linear interpolation of (x, y) `series`, sorted by x, held constant outside."""
    if x <= series[0][0]:
        return series[0][1]
    for (x0, y0), (x1, y1) in pairwise(series):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return series[-1][1]


def abba(repeats: int) -> list[tuple[int, str]]:
    """(pair, arm) in the order in which they run: a drift of the machine falls on both arms alike."""
    order: list[tuple[int, str]] = []
    for pair in range(repeats):
        arms = ("pipeline", "bare") if pair % 2 == 0 else ("bare", "pipeline")
        order += [(pair, arm) for arm in arms]
    return order


@dataclass(frozen=True)
class Ratios:
    """Efficiencies of the pairs: their median, and the lowest and highest."""

    values: tuple[float, ...]
    median: float
    low: float
    high: float


def ratios(pipeline: Sequence[float], bare: Sequence[float]) -> Ratios:
    """b_bare / b_pipeline of each pair, from seconds a unit: 1 = the pipeline costs nothing; nan for no seconds."""
    values = tuple(theirs / ours if ours else math.nan for ours, theirs in zip(pipeline, bare, strict=True))
    return Ratios(values, median(values), min(values), max(values))


def moved(before: Sequence[float], after: Sequence[float], at_least: float = 0.02) -> str:
    """ "up", "down", or "" where `after` cannot be told from `before`.

    Moved means that no ratio of one lies inside the other and the medians differ by `at_least`. By chance alone
    5 + 5 ratios part like that in 2 / C(10, 5) = .8 % of comparisons, 3 + 3 in 10 %, so fewer than 3 never count.
    """
    if min(len(before), len(after)) < 3 or abs(median(after) - median(before)) < at_least:
        return ""
    if min(after) > max(before):
        return "up"
    return "down" if max(after) < min(before) else ""
