"""Explicit class conditioning: candidates from the current model, kept where graders agree (paper 3).

A refresh makes `ecc_calls` batches of `ecc_batch` images with the instance prompt. Of each batch the
`ecc_keep` with the highest summed probability of the intended grade are looked at, and of those the
ones whose ensemble mean reaches `ecc_threshold` replace the pool. An empty pool turns the term off
until the next refresh.
"""

from collections.abc import Callable

import numpy as np
from torch import Tensor

# (grade, refresh step, call number) -> images uint8 (B, H, W, 3), scaled latents (B, C, h, w)
Candidates = Callable[[int, int, int], tuple[np.ndarray, Tensor]]


def choose(probabilities: np.ndarray, grade: int, keep: int, threshold: float, select: bool = True) -> np.ndarray:
    """Positions kept of one batch of candidates, best first.

    Args:
        probabilities: (B, M, 5), every member's softmax.
        grade: the intended one.
        keep: how many of the batch are looked at (12 of 16 in the paper).
        threshold: least ensemble mean of the intended grade (0.7), inclusive, without upper bound.
        select: False keeps the first `keep` unseen (the control without semantics).
    """
    if not select:
        return np.arange(min(keep, len(probabilities)))
    mean = probabilities[:, :, grade].mean(axis=1)
    best = np.argsort(-mean, kind="stable")[:keep]
    return best[mean[best] >= threshold]


def share(num_calls: int, rank: int, world_size: int) -> range:
    """The calls that `rank` makes; together the ranks make each call once."""
    return range(rank, num_calls, world_size)
