import numpy as np
import pytest
from scipy.special import softmax

from raydr.grading import calibration

GRADES = np.repeat(np.arange(5), (174, 17, 124, 6, 25))


def test_folds_are_stratified_and_fixed_by_the_seed():
    folds = calibration.inner_folds(GRADES, 5, seed=1)
    assert folds.dtype == np.int8
    for grade in range(5):
        sizes = np.bincount(folds[grade == GRADES], minlength=5)
        assert sizes.max() - sizes.min() <= 1
    assert np.ptp(np.bincount(folds)) <= 1
    assert (folds == calibration.inner_folds(GRADES, 5, seed=1)).all()
    assert (folds != calibration.inner_folds(GRADES, 5, seed=2)).any()


def test_patients_stay_together():
    patients = [f"p{row // 2}" if row < 300 else None for row in range(len(GRADES))]
    folds = calibration.inner_folds(GRADES, 5, seed=1, groups=patients)
    assert all(folds[row] == folds[row + 1] for row in range(0, 300, 2))
    for grade in range(5):
        assert set(folds[grade == GRADES]) == set(range(5))


def test_temperature_undoes_a_scaling_of_the_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 5))
    p = softmax(logits, axis=1)
    grades = (rng.random((20_000, 1)) > p.cumsum(1)).sum(1).clip(0, 4)  # truly distributed as p
    for scale in (0.4, 1.0, 3.0):
        temperature = calibration.fit_temperature(softmax(scale * logits, axis=1), grades)
        assert temperature == pytest.approx(scale, rel=0.05)


def test_temper_divides_logits():
    logits = np.array([[1.0, 2.0, -1.0, 0.5, 0.0]])
    np.testing.assert_allclose(calibration.temper(softmax(logits, axis=1), 2.0), softmax(logits / 2, axis=1), rtol=1e-9)
    assert calibration.temper(np.full((2, 3, 5), 0.2, np.float32), 4.0).dtype == np.float32


def test_each_grade_weighs_the_same():
    """Repeating the healthy rows a hundredfold does not move the temperature."""
    rng = np.random.default_rng(1)
    p, grades = softmax(rng.normal(0, 2, (200, 5)), axis=1), np.arange(200) % 5
    repeated = np.concatenate([np.arange(200), np.tile(np.flatnonzero(grades == 0), 100)])
    assert calibration.fit_temperature(p[repeated], grades[repeated]) == pytest.approx(
        calibration.fit_temperature(p, grades), rel=1e-4
    )


def test_certainty_stays_within_bounds():
    p = np.eye(5) * 0.9 + 0.02
    assert calibration.fit_temperature(p, np.arange(5)) == pytest.approx(0.1, rel=0.05)
    assert calibration.fit_temperature(p, (np.arange(5) + 1) % 5) == pytest.approx(10, rel=0.05)
    assert calibration.fit_temperature(np.zeros((0, 5)), np.zeros(0)) == 1.0
