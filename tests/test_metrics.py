"""raydr.metrics against scikit-learn, hand-computed values, and the stated behaviour of absent grades."""

import numpy as np
import pytest
from sklearn import metrics as reference

from raydr import metrics


@pytest.fixture
def graded():
    """400 images: long-tailed grades, probabilities that lean to the truth, argmax predictions."""
    rng = np.random.default_rng(7)
    grades = rng.choice(5, 400, p=[0.5, 0.05, 0.35, 0.03, 0.07])
    probabilities = rng.dirichlet(np.ones(5), 400) + 0.5 * np.eye(5)[grades] * rng.random((400, 1))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    assert set(grades) == set(range(5))
    return grades, probabilities.argmax(axis=1), probabilities


def test_matrix_metrics_equal_scikit_learn(graded):
    grades, predictions, _ = graded
    matrix = metrics.confusion(grades, predictions)
    assert matrix.dtype == np.int64
    assert np.array_equal(matrix, reference.confusion_matrix(grades, predictions, labels=range(5)))
    assert metrics.recalls(matrix) == pytest.approx(reference.recall_score(grades, predictions, average=None))
    assert metrics.precisions(matrix) == pytest.approx(reference.precision_score(grades, predictions, average=None))
    assert metrics.balanced_accuracy(matrix) == pytest.approx(reference.balanced_accuracy_score(grades, predictions))
    assert metrics.accuracy(matrix) == pytest.approx(reference.accuracy_score(grades, predictions))
    assert metrics.macro_f1(matrix) == pytest.approx(reference.f1_score(grades, predictions, average="macro"))
    assert metrics.matthews(matrix) == pytest.approx(reference.matthews_corrcoef(grades, predictions))
    kappa = reference.cohen_kappa_score(grades, predictions, weights="quadratic")
    assert metrics.quadratic_weighted_kappa(matrix) == pytest.approx(kappa)


def test_probability_metrics_equal_scikit_learn(graded):
    grades, _, probabilities = graded
    assert metrics.macro_auc(grades, probabilities) == pytest.approx(
        reference.roc_auc_score(grades, probabilities, multi_class="ovr", average="macro")
    )
    tied = np.round(probabilities[:, 2], 1)
    assert metrics.binary_auc(grades == 2, tied) == pytest.approx(reference.roc_auc_score(grades == 2, tied))
    one_hot = np.eye(5)[grades]
    per_class = sum(reference.brier_score_loss(one_hot[:, g], probabilities[:, g]) for g in range(5))
    assert metrics.brier(grades, probabilities) == pytest.approx(per_class)


@pytest.mark.parametrize("threshold", [metrics.REFERABLE, metrics.SIGHT_THREATENING])
def test_referral_equals_scikit_learn(graded, threshold):
    grades, predictions, probabilities = graded
    values = metrics.summary(grades, predictions, probabilities)
    name = {2: "referable", 3: "sight_threatening"}[threshold]
    truth, verdict = grades >= threshold, predictions >= threshold
    assert values[f"{name}_sensitivity"] == pytest.approx(reference.recall_score(truth, verdict))
    assert values[f"{name}_specificity"] == pytest.approx(reference.recall_score(~truth, ~verdict))
    assert values[f"{name}_auc"] == pytest.approx(
        reference.roc_auc_score(truth, probabilities[:, threshold:].sum(axis=1))
    )


def test_calibration_error_by_hand():
    # Confidence .9 twice, one right: bin (.8, .9]; confidence .5 once, right: bin (.4, .5].
    probabilities = np.array([[0.9, 0.1, 0, 0, 0], [0.9, 0.1, 0, 0, 0], [0.1, 0.5, 0.4, 0, 0]])
    count, confidence, right = metrics.reliability(np.array([0, 1, 1]), probabilities, num_bins=10)
    assert count.tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 2, 0]
    assert confidence[8] == pytest.approx(0.9)
    assert right[8] == pytest.approx(0.5)
    assert np.isnan(confidence[0])
    # (1 x |.5 - 1| + 2 x |.9 - .5|) / 3
    assert metrics.expected_calibration_error(np.array([0, 1, 1]), probabilities, 10) == pytest.approx(1.3 / 3)


def test_accuracy_at_priors_weighs_recalls_with_the_ddr_test_split():
    # By hand: (1880 x 1 + 189 x 0 + 1344 x .5 + 71 x 0 + 275 x 1) / 3759
    assert metrics.accuracy_at_priors(np.array([1, 0, 0.5, 0, 1])) == pytest.approx(2827 / 3759)
    assert metrics.accuracy_at_priors(np.full(5, 0.3), (1, 2, 3, 4, 5)) == pytest.approx(0.3)


def test_absent_grades_are_nan_and_leave_the_averages():
    grades, predictions = np.array([0, 0, 2, 2]), np.array([0, 1, 2, 2])
    matrix = metrics.confusion(grades, predictions)
    assert metrics.recalls(matrix) == pytest.approx([0.5, np.nan, 1, np.nan, np.nan], nan_ok=True)
    assert metrics.precisions(matrix) == pytest.approx([1, 0, 1, np.nan, np.nan], nan_ok=True)
    assert metrics.balanced_accuracy(matrix) == 0.75
    # scikit-learn averages F1 over the union of true and predicted labels too: (2/3 + 0 + 1) / 3
    assert metrics.macro_f1(matrix) == pytest.approx(5 / 9)
    assert np.isnan(metrics.accuracy_at_priors(metrics.recalls(matrix)))
    assert metrics.accuracy_at_priors(metrics.recalls(matrix), (3, 0, 1, 0, 0)) == pytest.approx(0.625)
    assert np.isnan(metrics.binary_at(matrix, 3)[0])
    probabilities = np.eye(5)[predictions]
    assert metrics.macro_auc(grades, probabilities) == pytest.approx((0.75 + 1) / 2)


def test_degenerate_sets():
    empty = metrics.confusion(np.array([], int), np.array([], int))
    assert np.isnan(metrics.accuracy(empty))
    assert np.isnan(metrics.balanced_accuracy(empty))
    assert np.isnan(metrics.quadratic_weighted_kappa(empty))
    assert np.isnan(metrics.expected_calibration_error(np.array([], int), np.zeros((0, 5))))
    assert np.isnan(metrics.brier(np.array([], int), np.zeros((0, 5))))
    constant = metrics.confusion(np.array([0, 1, 2]), np.array([1, 1, 1]))
    assert metrics.matthews(constant) == 0
    single = metrics.confusion(np.array([1, 1]), np.array([1, 1]))
    assert np.isnan(metrics.quadratic_weighted_kappa(single))
    assert np.isnan(metrics.binary_auc(np.array([True, True]), np.array([0.1, 0.2])))


@pytest.mark.parametrize("bad", [np.array([0, 5]), np.array([-1, 0]), np.array([0.0, 1.0])])
def test_values_that_are_no_grades_are_refused(bad):
    with pytest.raises(AssertionError):
        metrics.confusion(np.array([0, 1]), bad)


def test_summary_is_complete_and_finite(graded):
    values = metrics.summary(*graded)
    assert all(np.isfinite(list(values.values())))
    assert values["recall_3"] == metrics.recalls(metrics.confusion(*graded[:2]))[3]
    assert values["precision_3"] == metrics.precisions(metrics.confusion(*graded[:2]))[3]
    assert len(values) == 9 + 6 + 5 + 5


def test_members_disagree_by_the_spread_of_the_intended_grade():
    said = np.full((3, 2, 5), 0.1)
    said[0, :, 1] = 0.2, 0.6
    said[1, :, 3] = 0.9, 0.9
    said[2, :, 3] = 0.0, 1.0
    np.testing.assert_allclose(metrics.disagreement(said, np.array([1, 3, 3])), [0.2, 0.0, 0.5], atol=1e-6)
    assert metrics.disagreement(said[:, :1], 3).tolist() == [0, 0, 0]
