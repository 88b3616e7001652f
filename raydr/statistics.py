"""Uncertainty of differences between arms: a paired two-level bootstrap, Fieller, TOST, Holm (paper section 8).

Arms are compared on the same test images and the same training seeds, so every draw of the bootstrap
resamples both once and applies them to all arms: an arm's draws may be subtracted from another's.

    replicate r   the whole chain: cohort, ensemble, generators   (R of them)
      seed s      one grader training in every arm                (S per replicate)
      image i     a test photograph, resampled within its grade   (n_g per grade)

A level of n units is resampled by n - 1 draws with replacement (Rao and Wu 1988): n draws of n units
underestimate a variance by the factor (n - 1) / n, which is a third for three replicates. A level of
one unit cannot vary: intervals are then conditional on it, and the caller has to say so. `interval`
widens what few replicates leave too narrow. Simulated coverage of a nominal 95 % interval, 3 replicates x
10 seeds x 500 images: .995, .945, .925 as the spread between replicates grows from nil to dominant (unwidened:
.995, .895, .82); one replicate, 3 or 10 seeds: .97.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

from raydr.grades import NUM_GRADES

# Draws of one matrix product: 256 x 4,000 image weights are 4 MB, which stays in cache.
CHUNK = 256


@dataclass(frozen=True)
class Replicate:
    """Right and wrong verdicts of one replicate's arms on its test images.

    grades: int (images,). hits: bool (arms, seeds, images), True where a verdict is right; arms and
    seeds in the same order everywhere. clusters: int (images,) patient of each image, resampled as a
    whole within a grade; None where every image is its own.
    """

    grades: np.ndarray
    hits: np.ndarray
    clusters: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.hits.ndim == 3, self.hits.shape
        assert self.hits.shape[2] == len(self.grades), (self.hits.shape, self.grades.shape)
        assert self.clusters is None or len(self.clusters) == len(self.grades)

    def recalls(self) -> np.ndarray:
        """Mean over seeds of the per-grade recall: float64 (arms, 5), nan for an absent grade."""
        found = [self.hits[:, :, self.grades == g] for g in range(NUM_GRADES)]
        return np.stack([h.mean(axis=(1, 2)) if h.shape[2] else np.full(len(self.hits), np.nan) for h in found], axis=1)


@dataclass(frozen=True)
class Bootstrap:
    """Per-grade recalls, mean over seeds: of each replicate float64 (R, arms, 5), resampled float32 (arms, D, 5)."""

    replicates: np.ndarray
    draws: np.ndarray

    @property
    def estimate(self) -> np.ndarray:
        """Mean over replicates: float64 (arms, 5)."""
        return self.replicates.mean(axis=0)


@dataclass(frozen=True)
class Interval:
    """A value with its bootstrap interval, standard error and two-sided p of "it is 0"."""

    value: float
    low: float
    high: float
    standard_error: float
    p: float


def two_level_bootstrap(
    replicates: Sequence[Replicate], num_draws: int = 10_000, seed: int = 0, shared_images: bool = False
) -> Bootstrap:
    """Resample replicates, seeds within them and images within grades; the same draw for every arm.

    `shared_images`: the replicates were tested on the same photographs in the same order, so a draw
    resamples those once for all replicates (resampling them apart would shrink the interval). Absent
    grades have nan recalls. A replicate picked twice in a draw gets fresh seeds and images for each.
    """
    assert replicates, "at least one replicate"
    num_arms = len(replicates[0].hits)
    assert all(len(replicate.hits) == num_arms for replicate in replicates)
    rng = np.random.default_rng(seed)
    strata = [_strata(replicate) for replicate in replicates]
    num_picks = max(len(replicates) - 1, 1)
    draws = np.zeros((num_draws, num_arms, NUM_GRADES), np.float32)
    for start in range(0, num_draws, CHUNK):
        chunk = draws[start : start + CHUNK]
        picked = rng.integers(len(replicates), size=(len(chunk), num_picks))
        common = [_image_weights(rng, stratum, len(chunk)) for stratum in strata[0]] if shared_images else None
        for pick in range(num_picks):
            for index, replicate in enumerate(replicates):
                rows = np.flatnonzero(picked[:, pick] == index)
                if len(rows) == 0:
                    continue
                seeds = resampling_weights(rng, replicate.hits.shape[1], len(rows))
                for grade, stratum in enumerate(strata[index]):
                    weights = common[grade][rows] if common else _image_weights(rng, stratum, len(rows))
                    chunk[rows, :, grade] += _recall(weights, stratum, seeds) / num_picks
    return Bootstrap(np.stack([replicate.recalls() for replicate in replicates]), draws.transpose(1, 0, 2))


def resampling_weights(rng: np.random.Generator, num_units: int, num_draws: int) -> np.ndarray:
    """How often each of n units occurs in n - 1 draws with replacement, over n - 1: float32 (num_draws, n).

    Rows sum to 1; a single unit always weighs 1. Counting is a bincount of indices: 40 million weights
    take half a second, `Generator.multinomial` several.
    """
    if num_units == 1:
        return np.ones((num_draws, 1), np.float32)
    picks = rng.integers(num_units, size=(num_draws, num_units - 1), dtype=np.int32)
    picks += np.arange(0, num_draws * num_units, num_units, dtype=np.int32)[:, None]
    counts = np.bincount(picks.ravel(), minlength=num_draws * num_units)
    return counts.reshape(num_draws, num_units).astype(np.float32) / np.float32(num_units - 1)


def difference(bootstrap: Bootstrap, a: int, b: int, confidence: float = 0.95) -> Interval:
    """Balanced accuracy of arm `a` minus that of arm `b` (rows of the bootstrap), over the grades present."""
    per_replicate, draws = _over_grades(bootstrap, a, b)
    return interval(per_replicate.mean(), draws, confidence, per_replicate)


def _over_grades(bootstrap: Bootstrap, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
    """Difference of two arms' balanced accuracies: of each replicate float64 (R,), and of each draw float32 (D,)."""
    present = ~np.isnan(bootstrap.estimate[a])
    per_replicate = (bootstrap.replicates[:, a] - bootstrap.replicates[:, b])[:, present].mean(axis=1)
    draws = (bootstrap.draws[a] - bootstrap.draws[b])[:, present].mean(axis=1)
    return per_replicate, draws


def share(
    bootstrap: Bootstrap, a: int, whole: int, baseline: int, confidence: float = 0.95
) -> tuple[float, float, float] | None:
    """Share of the step from `baseline` to `whole` that arm `a` takes: (share, low, high), of balanced accuracy.

    Fieller's interval (1954): every share for which a - baseline - share (whole - baseline) is not told from 0, so it
    holds 0 just where the interval of a - baseline does, and 1 just where that of a - whole does. None where the step
    itself is not shown to be positive, for then no bounds exist.
    """
    step, part = (_over_grades(bootstrap, arm, baseline) for arm in (whole, a))
    if interval(step[0].mean(), step[1], confidence, step[0]).low <= 0:
        return None

    def left(share: float) -> Interval:
        per_replicate, draws = (x - share * y for x, y in zip(part, step, strict=True))
        return interval(per_replicate.mean(), draws, confidence, per_replicate)

    value = float(part[0].mean() / step[0].mean())
    return value, _crossing(lambda share: left(share).low, value), _crossing(lambda share: left(share).high, value)


def _crossing(falls: Callable[[float], float], near: float) -> float:
    """Where a function that falls from above 0 to below is 0."""
    low, high = near - 1, near + 1
    while falls(low) <= 0:
        low -= high - low
    while falls(high) >= 0:
        high += high - low
    return float(optimize.brentq(falls, low, high, xtol=1e-6))


def interval(
    value: float, draws: np.ndarray, confidence: float = 0.95, per_replicate: np.ndarray | None = None
) -> Interval:
    """Percentile interval of `draws` (D,); p is twice the smaller tail beyond 0, at least 2 / (D + 1).

    With `per_replicate` (R >= 2 values) the draws are stretched about `value` by t_nu / z, nu the
    Satterthwaite degrees of freedom of a variance of which the part between replicates has R - 1.
    """
    draws = np.asarray(draws, float)
    if per_replicate is not None and len(per_replicate) > 1:
        draws = value + (draws - value) * _stretch(draws, per_replicate, confidence)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, [tail, 1 - tail])
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    p = min(1.0, 2 * (1 + beyond) / (len(draws) + 1))
    return Interval(float(value), float(low), float(high), float(draws.std(ddof=1)), float(p))


def _stretch(draws: np.ndarray, per_replicate: np.ndarray, confidence: float) -> float:
    num = len(per_replicate)
    between = np.var(per_replicate, ddof=1) / num
    if between == 0:
        return 1.0
    freedom = (num - 1) * max(1.0, draws.var() / between) ** 2
    quantile = 0.5 + confidence / 2
    return float(stats.t.ppf(quantile, freedom) / stats.norm.ppf(quantile))


def minimum_detectable_difference(standard_error: float, power: float = 0.8, alpha: float = 0.05) -> float:
    """True difference that a two-sided test at `alpha` finds with probability `power`: 2.80 SE by default."""
    return float((stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)) * standard_error)


@dataclass(frozen=True)
class Equivalence:
    """Mean of paired differences, its interval at 1 - 2 alpha, and the larger p of the two one-sided tests."""

    mean: float
    low: float
    high: float
    p: float
    equivalent: bool


def tost(differences: Sequence[float], margin: float, alpha: float = 0.05) -> Equivalence:
    """Are paired `differences` within (-margin, margin)? Two one-sided t-tests (Schuirmann 1987); needs two or more.

    Equivalence is claimed where p < alpha, which is where the interval lies inside the margin.
    """
    values = np.asarray(differences, dtype=np.float64)
    assert len(values) >= 2, "one difference has no spread"
    assert margin > 0, margin
    mean, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    if error == 0:
        p = 0.0 if abs(mean) < margin else 1.0
        return Equivalence(mean, mean, mean, p, p < alpha)
    t = stats.t(len(values) - 1)
    p = float(max(t.sf((mean + margin) / error), t.cdf((mean - margin) / error)))
    reach = float(t.ppf(1 - alpha)) * error
    return Equivalence(mean, mean - reach, mean + reach, p, p < alpha)


def holm(p: Sequence[float]) -> np.ndarray:
    """Holm's step-down adjusted p values (1979), in the order given: float64 (n,)."""
    values = np.asarray(p, float)
    order = np.argsort(values, kind="stable")
    stepped = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(stepped, 1)
    return adjusted


@dataclass(frozen=True)
class _Stratum:
    """One grade of one replicate, summed over clusters: hits float32 (clusters, arms, seeds), sizes (clusters,)."""

    hits: np.ndarray
    sizes: np.ndarray


def _strata(replicate: Replicate) -> list[_Stratum]:
    strata = []
    for grade in range(NUM_GRADES):
        of_grade = replicate.grades == grade
        hits = replicate.hits[:, :, of_grade].transpose(2, 0, 1).astype(np.float32)
        sizes = np.ones(len(hits), np.float32)
        if replicate.clusters is not None and len(hits):
            _, cluster, counts = np.unique(replicate.clusters[of_grade], return_inverse=True, return_counts=True)
            summed = np.zeros((len(counts), *hits.shape[1:]), np.float32)
            np.add.at(summed, cluster, hits)
            hits, sizes = summed, counts.astype(np.float32)
        strata.append(_Stratum(hits, sizes))
    return strata


def _image_weights(rng: np.random.Generator, stratum: _Stratum, num_draws: int) -> np.ndarray:
    """float32 (num_draws, clusters); no columns for an absent grade."""
    if len(stratum.sizes) == 0:
        return np.empty((num_draws, 0), np.float32)
    return resampling_weights(rng, len(stratum.sizes), num_draws)


def _recall(weights: np.ndarray, stratum: _Stratum, seeds: np.ndarray) -> np.ndarray:
    """Recall (draws, arms) under image `weights` (draws, clusters) and seed weights (draws, seeds)."""
    num_clusters, num_arms, num_seeds = stratum.hits.shape
    if num_clusters == 0:
        return np.full((len(weights), num_arms), np.nan, np.float32)
    found = weights @ stratum.hits.reshape(num_clusters, -1)
    found = found.reshape(-1, num_arms, num_seeds) / (weights @ stratum.sizes)[:, None, None]
    return (found @ seeds[:, :, None])[:, :, 0]
