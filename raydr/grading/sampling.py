"""Which image fills which draw of a training: one schedule for every sampler.

Grade g with share p_g of the draws owns the times (j + u_j) / p_g, j = 0, 1, ..., u_j uniform in [0, 1);
sorted over all grades these times are the schedule. So every stretch of draws holds each grade within
two of its share, not just on average: with equal shares each block of five is a permutation of the
grades, and with the shares of the data each epoch shows every image exactly once. Inside a grade the
images come in reshuffled epochs. The grade sequence depends on seed and shares alone, so that two arms
with balanced draws show the same grades at the same steps and differ only in the images.
"""

import numpy as np

from raydr.errors import UserError
from raydr.grades import NUM_GRADES
from raydr.identity import rng_of

SAMPLERS = ("instance", "sqrt", "balanced", "paper")


def counts_of(grades: np.ndarray) -> np.ndarray:
    """Images per grade: int64 (5,)."""
    return np.bincount(np.asarray(grades, dtype=np.int64), minlength=NUM_GRADES).astype(np.int64)


def shares(counts: np.ndarray, sampler: str, real_counts: np.ndarray | None = None) -> np.ndarray:
    """Share of the draws per grade, float64 (5,) summing to 1; grades without images get 0.

    `counts` (5,) are the images after mixing. "instance" draws in their proportion, "sqrt" in that of
    their square roots, "balanced" equally. "paper" repeats the published flaw (paper.md 7): each image
    weighs 1 / real count of its grade although synthetic ones were added, so a grade's share grows
    with its synthetic images; a grade with no real image has no such weight and raises UserError.
    """
    counts = np.asarray(counts, dtype=np.float64)
    if counts.sum() == 0:
        raise UserError("nothing to draw from: no image has a grade")
    if sampler == "instance":
        weights = counts
    elif sampler == "sqrt":
        weights = np.sqrt(counts)
    elif sampler == "balanced":
        weights = (counts > 0).astype(np.float64)
    elif sampler == "paper":
        real = counts if real_counts is None else np.asarray(real_counts, dtype=np.float64)
        if ((counts > 0) & (real == 0)).any():
            grade = int(np.flatnonzero((counts > 0) & (real == 0))[0])
            raise UserError(
                f"sampler 'paper' weighs by real counts, but grade {grade} has no real image: use 'balanced'"
            )
        weights = np.divide(counts, real, out=np.zeros_like(counts), where=real > 0)
    else:
        raise UserError(f"unknown sampler {sampler!r}: use one of {', '.join(SAMPLERS)}")
    return weights / weights.sum()


def draws(
    grades: np.ndarray, sampler: str, num_draws: int, seed: int, real_counts: np.ndarray | None = None
) -> np.ndarray:
    """Positions into `grades` in the order in which a training draws them: int64 (num_draws,).

    `grades` (n,) integers 0-4 after mixing. "paper" draws independently with replacement, as torch's
    WeightedRandomSampler does; the others follow the schedule of the module docstring.
    """
    grades = np.asarray(grades, dtype=np.int64)
    p = shares(counts_of(grades), sampler, real_counts)
    if sampler == "paper":
        per_image = p[grades] / counts_of(grades)[grades]
        return rng_of("draws", seed, sampler).choice(len(grades), size=num_draws, p=per_image / per_image.sum())
    times, positions = [], []
    for grade in np.flatnonzero(p):
        rng = rng_of("draws", seed, int(grade))
        # Two more than its share: a prefix of the merged schedule can hold a grade that much early.
        num_events = int(np.ceil(num_draws * p[grade])) + 2
        times.append((np.arange(num_events) + rng.random(num_events)) / p[grade])
        own = np.flatnonzero(grades == grade)
        epochs = [rng.permutation(own) for _ in range(-(-num_events // len(own)))]
        positions.append(np.concatenate(epochs)[:num_events])
    order = np.argsort(np.concatenate(times), kind="stable")[:num_draws]
    return np.concatenate(positions)[order]
