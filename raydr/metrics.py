"""Grading metrics (paper section 8) from true grades, predicted grades and probabilities.

`confusion` counts once; most metrics are functions of that 5 x 5 matrix (rows: true grade, columns:
predicted grade). Where a set lacks a grade, that grade's recall is nan, and averages over grades
(balanced accuracy, macro F1, macro AUC) run over the grades for which the term is defined; they are nan
only where none is. So a metric of a set with absent grades never silently counts a grade as 0 or 1.
"""

from collections.abc import Sequence

import numpy as np

from raydr.grades import DDR_TEST_COUNTS, GRADES, NUM_GRADES

REFERABLE = 2  # moderate or worse
SIGHT_THREATENING = 3  # severe or worse


def disagreement(probabilities: np.ndarray, grade: int | np.ndarray) -> np.ndarray:
    """Standard deviation over members of the intended grade's probability: float32 (B,), 0 for a single member.

    `probabilities` (B, M, 5); `grade` is one intended grade or one per image (B,). The score is their mean
    (grading.ensemble.score).
    """
    assert (probabilities.ndim, probabilities.shape[-1]) == (3, NUM_GRADES), probabilities.shape
    grades = np.broadcast_to(np.asarray(grade, dtype=np.int64), len(probabilities))
    return probabilities[np.arange(len(probabilities)), :, grades].std(axis=1).astype(np.float32)


def confusion(grades: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Counts int64 (5, 5): [true grade, predicted grade]. Both inputs hold integers 0-4, shape (n,)."""
    grades, predictions = np.asarray(grades), np.asarray(predictions)
    assert grades.shape == predictions.shape == (len(grades),), (grades.shape, predictions.shape)
    if len(grades) == 0:
        return np.zeros((NUM_GRADES, NUM_GRADES), np.int64)
    for name, values in (("grades", grades), ("predictions", predictions)):
        assert values.dtype.kind in "iu", f"{name} are {values.dtype}, not integers"
        assert np.isin(values, GRADES).all(), f"{name} outside 0-4"
    cells = grades.astype(np.int64) * NUM_GRADES + predictions
    return np.bincount(cells, minlength=NUM_GRADES**2).reshape(NUM_GRADES, NUM_GRADES)


def recalls(matrix: np.ndarray) -> np.ndarray:
    """Per grade, the share of its images graded so: float64 (5,), nan where the grade is absent."""
    return _ratio(np.diag(matrix), matrix.sum(axis=1))


def precisions(matrix: np.ndarray) -> np.ndarray:
    """Per grade, the share of such verdicts that are right: float64 (5,), nan where none was given."""
    return _ratio(np.diag(matrix), matrix.sum(axis=0))


def balanced_accuracy(matrix: np.ndarray) -> float:
    """Mean recall over the grades that are present; nan for an empty set."""
    return _nanmean(recalls(matrix))


def accuracy(matrix: np.ndarray) -> float:
    """Share of right verdicts; nan for an empty set."""
    total = matrix.sum()
    return float(np.trace(matrix) / total) if total else float("nan")


def accuracy_at_priors(recalls: np.ndarray, counts: Sequence[int] = DDR_TEST_COUNTS) -> float:
    """Accuracy that these recalls (5,) would give on a set with `counts` images per grade.

    nan where a grade with a positive count has no recall: its share cannot be guessed.
    """
    share = np.asarray(counts, float) / np.sum(counts)
    wanted = share > 0
    return float(np.dot(share[wanted], np.asarray(recalls, float)[wanted]))


def quadratic_weighted_kappa(matrix: np.ndarray) -> float:
    """Cohen's kappa with weights (i - j)^2 (Cohen 1968); nan where chance disagreement is 0."""
    grade = np.arange(NUM_GRADES)
    weight = (grade[:, None] - grade[None, :]) ** 2
    total = matrix.sum()
    expected = np.outer(matrix.sum(axis=1), matrix.sum(axis=0)) / total if total else np.zeros_like(matrix)
    chance = (weight * expected).sum()
    return float(1 - (weight * matrix).sum() / chance) if chance else float("nan")


def macro_f1(matrix: np.ndarray) -> float:
    """Mean of 2 TP / (2 TP + FP + FN) over the grades that occur in the truth or the predictions."""
    return _nanmean(_ratio(2 * np.diag(matrix), matrix.sum(axis=0) + matrix.sum(axis=1)))


def matthews(matrix: np.ndarray) -> float:
    """Multi-class Matthews correlation (Gorodkin 2004); 0 where truth or predictions are one grade."""
    matrix = matrix.astype(float)
    true, predicted, total = matrix.sum(axis=1), matrix.sum(axis=0), matrix.sum()
    covariance = np.trace(matrix) * total - true @ predicted
    scale = np.sqrt((total**2 - predicted @ predicted) * (total**2 - true @ true))
    return float(covariance / scale) if scale else 0.0


def binary_auc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve (ties count half); `positive` bool (n,), `score` (n,); nan with one class."""
    positive = np.asarray(positive, bool)
    score = np.asarray(score, float)
    low = np.sort(score[~positive])
    high = score[positive]
    if len(low) == 0 or len(high) == 0:
        return float("nan")
    wins = np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")
    return float(wins.sum() / (2 * len(low) * len(high)))


def macro_auc(grades: np.ndarray, probabilities: np.ndarray) -> float:
    """Mean one-versus-rest AUC over the grades present (and not the only one); probabilities (n, 5)."""
    return _nanmean(np.array([binary_auc(grades == g, probabilities[:, g]) for g in range(NUM_GRADES)]))


def binary_at(matrix: np.ndarray, threshold: int) -> tuple[float, float]:
    """(sensitivity, specificity) of "grade >= threshold" as the predicted grades decide it."""
    diseased = matrix[threshold:].sum()
    healthy = matrix[:threshold].sum()
    sensitivity = matrix[threshold:, threshold:].sum() / diseased if diseased else float("nan")
    specificity = matrix[:threshold, :threshold].sum() / healthy if healthy else float("nan")
    return float(sensitivity), float(specificity)


def reliability(
    grades: np.ndarray, probabilities: np.ndarray, num_bins: int = 15
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top-label reliability over equal-width confidence bins ((k/K, (k+1)/K], the first closed).

    Returns (count int64, mean confidence, share right), each (num_bins,); the last two nan in empty bins.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == grades
    index = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    count = np.bincount(index, minlength=num_bins)
    return (
        count,
        _ratio(np.bincount(index, confidence, num_bins), count),
        _ratio(np.bincount(index, right, num_bins), count),
    )


def expected_calibration_error(grades: np.ndarray, probabilities: np.ndarray, num_bins: int = 15) -> float:
    """Count-weighted |confidence - accuracy| over the bins of `reliability` (Guo et al. 2017), 0-1."""
    count, confidence, right = reliability(grades, probabilities, num_bins)
    filled = count > 0
    if not filled.any():
        return float("nan")
    return float(np.abs(confidence - right)[filled] @ count[filled] / count.sum())


def brier(grades: np.ndarray, probabilities: np.ndarray) -> float:
    """Multi-class Brier score: mean over images of the squared distance to the one-hot truth, 0-2."""
    if len(grades) == 0:
        return float("nan")
    truth = np.eye(NUM_GRADES)[np.asarray(grades)]
    return float(((probabilities - truth) ** 2).sum(axis=1).mean())


def summary(grades: np.ndarray, predictions: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Every scalar metric of the report by name; grades and predictions int (n,), probabilities (n, 5)."""
    probabilities = np.asarray(probabilities, float)
    matrix = confusion(grades, predictions)
    recall, precision = recalls(matrix), precisions(matrix)
    values = {
        "balanced_accuracy": balanced_accuracy(matrix),
        "accuracy": accuracy(matrix),
        "accuracy_at_ddr_priors": accuracy_at_priors(recall),
        "quadratic_weighted_kappa": quadratic_weighted_kappa(matrix),
        "macro_f1": macro_f1(matrix),
        "matthews": matthews(matrix),
        "macro_auc": macro_auc(grades, probabilities),
        "expected_calibration_error": expected_calibration_error(grades, probabilities),
        "brier": brier(grades, probabilities),
    }
    for name, threshold in (("referable", REFERABLE), ("sight_threatening", SIGHT_THREATENING)):
        values[f"{name}_sensitivity"], values[f"{name}_specificity"] = binary_at(matrix, threshold)
        values[f"{name}_auc"] = binary_auc(grades >= threshold, probabilities[:, threshold:].sum(axis=1))
    values |= {f"recall_{g}": float(recall[g]) for g in range(NUM_GRADES)}
    values |= {f"precision_{g}": float(precision[g]) for g in range(NUM_GRADES)}
    return values


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole as float64, nan where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(part), np.nan), where=np.asarray(whole) != 0)


def _nanmean(values: np.ndarray) -> float:
    defined = ~np.isnan(values)
    return float(values[defined].mean()) if defined.any() else float("nan")
