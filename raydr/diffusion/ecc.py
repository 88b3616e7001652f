"""Explicit class conditioning: candidates from the current model, kept where graders agree (paper 3).

A refresh makes `ecc_calls` batches of `ecc_batch` images with the instance prompt. Of each batch the
`ecc_keep` with the highest summed probability of the intended grade are looked at, and of those the
ones whose ensemble mean reaches `ecc_threshold` replace the pool. An empty pool turns the term off
until the next refresh.

What makes it cheaper (both off by default, as in the paper): `ecc_merge` calls are made in one compute batch,
and with `ecc_pool` a refresh ends once so many images are in the pool. Ranks then work in rounds, and the pool
is the accepted part of the first calls that suffice, so it does not depend on the number of ranks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from raydr.config import Finetune
from raydr.diffusion.state import Ranks

# (grade, refresh step, call numbers) -> uint8 images (len(calls) * ecc_batch, H, W, 3), call by call. The model
# itself by default; spare GPUs may do it.
Candidates = Callable[[int, int, Sequence[int]], np.ndarray]


@dataclass
class Pool:
    """Accepted candidates: scaled latents (N, C, h, w) and their grades; `step` is that of the refresh."""

    latents: Tensor | None = None
    grades: list[int] = field(default_factory=list)
    step: int = -1
    # Candidates among which these were found.
    num_candidates: int = 0

    def __len__(self) -> int:
        return len(self.grades)


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


def groups(num_calls: int, num_grades: int, merge: int) -> list[tuple[int, ...]]:
    """The calls of each compute batch: up to `merge` of one grade (call c is for grade c mod num_grades), in order."""
    found = []
    for first in range(num_grades):
        calls = range(first, num_calls, num_grades)
        found += [tuple(calls[start : start + merge]) for start in range(0, len(calls), merge)]
    return sorted(found)


def refresh(
    config: Finetune,
    grades: Sequence[int],
    step: int,
    candidates: Candidates,
    judge: Callable[[np.ndarray], np.ndarray],
    encode: Callable[[np.ndarray], Tensor],
    ranks: Ranks,
) -> Pool:
    """The pool of a refresh at `step`, the same on every rank.

    Args:
        candidates: see `Candidates`.
        judge: uint8 images (B, H, W, 3) -> probabilities (B, M, 5).
        encode: uint8 images (B, H, W, 3) -> scaled latents (B, C, h, w), float32 on the CPU.
    """
    batches, size = groups(config.ecc_calls, len(grades), config.ecc_merge), config.ecc_batch
    pool, parts = Pool(step=step), []
    # One round for everything, unless the refresh may end early.
    per_round = ranks.world_size if config.ecc_pool else len(batches)
    for start in range(0, len(batches), per_round):
        mine = []
        for number in share(min(per_round, len(batches) - start), ranks.rank, ranks.world_size):
            calls = batches[start + number]
            grade = grades[calls[0] % len(grades)]
            images = candidates(grade, step, calls)
            probabilities = judge(images)
            for k in range(len(calls)):
                part = slice(k * size, (k + 1) * size)
                kept = choose(probabilities[part], grade, config.ecc_keep, config.ecc_threshold, config.ecc_select)
                latents = encode(images[part][kept]) if len(kept) else None
                mine.append((start + number, k, grade, latents))
        for _, _, grade, latents in sorted((x for rank in ranks.gather(mine) for x in rank), key=lambda x: x[:2]):
            if config.ecc_pool and len(pool) >= config.ecc_pool:
                break
            pool.num_candidates += size
            if latents is not None:
                parts.append(latents)
                pool.grades += [grade] * len(latents)
        if config.ecc_pool and len(pool) >= config.ecc_pool:
            break
    pool.latents = torch.cat(parts) if parts else None
    return pool
