"""McNemar's test of two graders' verdicts and DeLong's of their scores, on the same images (paper section 8)."""

from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class McNemar:
    """only_a, only_b: images that one arm alone grades right; p values of "both are equally often right"."""

    only_a: int
    only_b: int
    p_exact: float
    chi2: float
    p_chi2: float


def mcnemar(hits_a: np.ndarray, hits_b: np.ndarray) -> McNemar:
    """McNemar's test on paired right/wrong verdicts, bool (n,): exact binomial and corrected chi-squared."""
    only_a = int((hits_a & ~hits_b).sum())
    only_b = int((~hits_a & hits_b).sum())
    discordant = only_a + only_b
    if discordant == 0:
        return McNemar(0, 0, 1.0, 0.0, 1.0)
    chi2 = max(abs(only_a - only_b) - 1, 0) ** 2 / discordant
    exact = float(stats.binomtest(only_a, discordant).pvalue)
    return McNemar(only_a, only_b, exact, chi2, float(stats.chi2.sf(chi2, 1)))


@dataclass(frozen=True)
class DeLong:
    """AUCs of two scores on the same images; standard error and two-sided p of their difference."""

    auc_a: float
    auc_b: float
    standard_error: float
    p: float


def delong(positive: np.ndarray, score_a: np.ndarray, score_b: np.ndarray) -> DeLong:
    """DeLong's test (1988), placements by midranks (Sun and Xu 2014); bool (n,), floats (n,), (n,).

    p is nan where the difference has no variance (identical orderings). Needs two of each class.
    """
    positive = np.asarray(positive, bool)
    num_positive, num_negative = int(positive.sum()), int((~positive).sum())
    assert num_positive >= 2, "DeLong needs two positive images"
    assert num_negative >= 2, "DeLong needs two negative images"
    scores = np.stack([score_a, score_b]).astype(float)
    ranks = stats.rankdata(scores, axis=1)
    # V10: share of negatives below each positive; V01: share of positives above each negative.
    v10 = (ranks[:, positive] - stats.rankdata(scores[:, positive], axis=1)) / num_negative
    v01 = 1 - (ranks[:, ~positive] - stats.rankdata(scores[:, ~positive], axis=1)) / num_positive
    auc_a, auc_b = v10.mean(axis=1)
    contrast = np.array([1, -1])
    variance = contrast @ (np.cov(v10) / num_positive + np.cov(v01) / num_negative) @ contrast
    error = float(np.sqrt(max(variance, 0)))
    p = float(2 * stats.norm.sf(abs(auc_a - auc_b) / error)) if error > 1e-12 else float("nan")
    return DeLong(float(auc_a), float(auc_b), error, p)
