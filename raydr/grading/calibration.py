"""Inner folds and temperature: what an ensemble member is held back from, and what that is used for."""

import numpy as np
from scipy.optimize import minimize_scalar

from raydr.grades import NUM_GRADES
from raydr.identity import rng_of

# Temperatures outside are not believed: a handful of held-out images can ask for infinity.
BOUNDS = (0.1, 10.0)


def inner_folds(
    grades: np.ndarray, num_folds: int, seed: int, groups: np.ndarray | list[str | None] | None = None
) -> np.ndarray:
    """Fold of each row, int8 (n,), stratified by grade and equal for equal arguments.

    `groups` (n,) keeps rows of a patient together (None = a patient of its own), stratified by the
    patient's worst grade. Within each grade the folds' sizes differ by at most one (patients, with groups).
    """
    grades = np.asarray(grades, dtype=np.int64)
    given = [None] * len(grades) if groups is None else list(groups)
    # A row without a patient is one of its own.
    names = [("row", row) if name is None else name for row, name in enumerate(given)]
    unit_of: dict[object, int] = {}
    units = np.array([unit_of.setdefault(name, len(unit_of)) for name in names], dtype=np.int64)
    worst = np.zeros(len(unit_of), dtype=np.int64)
    np.maximum.at(worst, units, grades)
    fold_of_unit, start = np.zeros(len(unit_of), dtype=np.int8), 0
    for grade in range(NUM_GRADES):
        members = rng_of("inner-folds", seed, grade).permutation(np.flatnonzero(worst == grade))
        # Each grade goes on where the one before stopped: else fold 0 would collect every remainder.
        fold_of_unit[members] = (start + np.arange(len(members))) % num_folds
        start += len(members)
    return fold_of_unit[units]


def temper(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(log p / T) over the last axis: what dividing the logits by T gives, in the input's dtype."""
    logits = np.log(np.maximum(probabilities.astype(np.float64), 1e-30)) / temperature
    scaled = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (scaled / scaled.sum(axis=-1, keepdims=True)).astype(probabilities.dtype)


def fit_temperature(probabilities: np.ndarray, grades: np.ndarray) -> float:
    """Temperature within [0.1, 10] that minimises the cross entropy of `probabilities` (n, 5) (Guo et al. 2017).

    Each grade weighs the same: held-out rows are long-tailed, and 870 healthy photographs would otherwise
    set the temperature of 26 severe ones. Returns 1 without rows.
    """
    grades = np.asarray(grades, dtype=np.int64)
    if len(grades) == 0:
        return 1.0
    counts = np.bincount(grades, minlength=NUM_GRADES)
    weights = 1 / counts[grades] / (counts > 0).sum()

    def loss(log_temperature: float) -> float:
        p = temper(probabilities.astype(np.float64), float(np.exp(log_temperature)))
        return float(-(weights * np.log(np.maximum(p[np.arange(len(grades)), grades], 1e-30))).sum())

    found = minimize_scalar(loss, bounds=tuple(np.log(BOUNDS)), method="bounded", options={"xatol": 1e-6})
    return float(np.exp(found.x))
