"""raydr.paired_tests against statsmodels, scikit-learn and DeLong's equations written out."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar

from raydr import paired_tests


def test_mcnemar_equals_statsmodels():
    rng = np.random.default_rng(8)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.7
    table = [[(a & b).sum(), (a & ~b).sum()], [(~a & b).sum(), (~a & ~b).sum()]]
    found = paired_tests.mcnemar(a, b)
    assert (found.only_a, found.only_b) == (table[0][1], table[1][0])
    assert found.p_exact == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    asymptotic = statsmodels_mcnemar(table, exact=False, correction=True)
    assert (found.chi2, found.p_chi2) == pytest.approx((asymptotic.statistic, asymptotic.pvalue))
    assert paired_tests.mcnemar(a, a).p_exact == 1


def test_delong_equals_its_definition():
    rng = np.random.default_rng(10)
    positive = rng.random(120) < 0.3
    a = np.round(positive + rng.normal(0, 1, 120), 1)  # rounded, so that there are ties
    b = np.round(0.5 * positive + 0.5 * a + rng.normal(0, 1, 120), 1)
    found = paired_tests.delong(positive, a, b)
    assert found.auc_a == pytest.approx(roc_auc_score(positive, a))
    assert found.auc_b == pytest.approx(roc_auc_score(positive, b))
    # DeLong et al. 1988, equations 3-6, written out over all pairs.
    rows, columns = [], []
    for score in (a, b):
        pairs = score[positive][:, None] - score[~positive][None, :]
        wins = (pairs > 0) + 0.5 * (pairs == 0)
        rows.append(wins.mean(axis=1))
        columns.append(wins.mean(axis=0))
    s = np.cov(rows) / positive.sum() + np.cov(columns) / (~positive).sum()
    error = np.sqrt(s[0, 0] + s[1, 1] - 2 * s[0, 1])
    assert found.standard_error == pytest.approx(error)
    assert found.p == pytest.approx(2 * stats.norm.sf(abs(found.auc_a - found.auc_b) / error))
    assert np.isnan(paired_tests.delong(positive, a, 2 * a).p)
