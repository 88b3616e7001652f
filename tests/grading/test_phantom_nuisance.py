"""What a grader learns of phantoms is their lesions: the same eyes without them tell it nothing of the grade."""

import numpy as np
import pytest

from raydr.config import Grader
from raydr.fundus.phantom import render
from raydr.grading import training


def phantoms(seed: int, per_grade: int, lesions: bool = True) -> tuple[np.ndarray, np.ndarray]:
    grades = np.repeat(np.arange(5), per_grade)
    return np.stack([render(seed, i, int(g), lesions=lesions)[0] for i, g in enumerate(grades)]), grades


@pytest.mark.slow
def test_a_phantom_trained_grader_is_at_chance_without_lesions():
    images, grades = phantoms(711, 300)
    grader = Grader(backbone="test_resnet", steps=300, learning_rate=6e-3)
    model = training.train(grader, images, np.arange(len(grades)), grades, seed=1).model
    sick, truth = phantoms(712, 100)
    healthy, _ = phantoms(712, 100, lesions=False)
    rows = np.arange(len(truth))
    assert training.evaluate(model, sick, rows, truth)["balanced_accuracy"] > 0.85
    assert abs(training.evaluate(model, healthy, rows, truth)["balanced_accuracy"] - 0.2) <= 0.03
    # Every eye being called healthy would hide a trace of the grade: the probabilities must not hold one either.
    said = training.predict(model, healthy, rows)[:, 1:].sum(1)
    means = np.array([said[truth == grade].mean() for grade in range(5)])
    error = said.std() / np.sqrt(100)
    assert np.ptp(means) < 6 * error, means
