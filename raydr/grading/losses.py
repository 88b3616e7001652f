"""Losses of the imbalance arms. Logits (B, 5) float32, targets (B, 5) probabilities: one-hot or soft.

Counts n (5,) are the images per grade *after* mixing in synthetic ones. Grades without an image weigh
nothing and count as one image inside a logarithm. Weighted losses divide by the sum of the weights
in the batch, as torch.nn.CrossEntropyLoss does, so the scale of the weights cancels and a learning rate
means the same for every loss.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raydr import config
from raydr.treatments import check_combination, parameter

LDAM_SCALE = 30.0
LDAM_MAX_MARGIN = 0.5
# The deferred weights of LDAM-DRW start at this share of the steps (160 of 200 epochs in the original).
DRW_START = 0.8


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor | None = None) -> Tensor:
    """- sum_c t_c w_c log p_c, summed over the batch and divided by sum t_c w_c."""
    log_p = F.log_softmax(logits, dim=1)
    weighted = targets if weights is None else targets * weights
    return -(weighted * log_p).sum() / weighted.sum()


def focal(logits: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Lin et al. 2017, eq. 4, without alpha: mean of - sum_c t_c (1 - p_c)^gamma log p_c."""
    log_p = F.log_softmax(logits, dim=1)
    # With gamma < 1 the slope of (1 - p)^gamma is infinite at p = 1, where confident batches end up.
    return -(targets * (1 - log_p.exp()).clamp_min(1e-8).pow(gamma) * log_p).sum(dim=1).mean()


def inverse_frequency_weights(counts: np.ndarray) -> np.ndarray:
    """1 / n_g, scaled to a mean of 1 over the present grades; float64 (5,)."""
    n = np.asarray(counts, dtype=np.float64)
    weights = np.divide(1.0, n, out=np.zeros_like(n), where=n > 0)
    return weights / weights[n > 0].mean()


def class_balanced_weights(counts: np.ndarray, beta: float) -> np.ndarray:
    """Cui et al. 2019, eq. 2: (1 - beta) / (1 - beta^n_g), scaled to a mean of 1 over the present grades."""
    n = np.asarray(counts, dtype=np.float64)
    weights = np.where(n > 0, (1 - beta) / (1 - np.power(beta, np.maximum(n, 1))), 0.0)
    return weights / weights[n > 0].mean()


def ldam_margins(counts: np.ndarray, max_margin: float = LDAM_MAX_MARGIN) -> np.ndarray:
    """Cao et al. 2019, eq. 13: C / n_g^(1/4), C such that the rarest present grade gets `max_margin`."""
    n = np.asarray(counts, dtype=np.float64)
    margins = np.where(n > 0, np.power(np.maximum(n, 1), -0.25), 0.0)
    return margins * (max_margin / margins.max())


def ldam(
    logits: Tensor, targets: Tensor, margins: Tensor, weights: Tensor | None = None, scale: float = LDAM_SCALE
) -> Tensor:
    """Cross entropy with the target's logit lowered by scale x margin.

    `logits` are scale x cosine, as `backbones.CosineLinear` gives them, so this is Cao et al.'s
    scale x (cosine - margin).
    """
    return cross_entropy(logits - scale * margins * targets, targets, weights)


def log_prior(counts: np.ndarray) -> np.ndarray:
    """log of n_g / n; a grade without images counts as one image. float64 (5,)."""
    n = np.maximum(np.asarray(counts, dtype=np.float64), 1)
    return np.log(n / n.sum())


def joint(binary_loss: Tensor, grade_loss: Tensor, sigma1: Tensor, sigma2: Tensor) -> Tensor:
    """LANet's adaptive loss (paper.md 7): exp(-s1) CE_bin + s1 + exp(-s2) CE_5 + s2; scalars."""
    return torch.exp(-sigma1) * binary_loss + sigma1 + torch.exp(-sigma2) * grade_loss + sigma2


def binary_targets(targets: Tensor) -> Tensor:
    """(B, 5) grade probabilities -> (B, 2): no DR, any DR."""
    return torch.stack([targets[:, 0], 1 - targets[:, 0]], dim=1)


@dataclass(frozen=True)
class Loss:
    """`loss(logits, targets, progress)`, progress in [0, 1) = share of the training done."""

    function: Callable[[Tensor, Tensor, float], Tensor]

    def __call__(self, logits: Tensor, targets: Tensor, progress: float = 0.0) -> Tensor:
        return self.function(logits, targets, progress)


def make_loss(grader: config.Grader, counts: np.ndarray, device: str | torch.device = "cpu") -> Loss:
    """The loss `grader` names, for a training set with `counts` (5,) images per grade after mixing."""
    check_combination(grader)
    value = parameter(grader)

    def tensor(values: np.ndarray) -> Tensor:
        return torch.as_tensor(values, dtype=torch.float32, device=device)

    if grader.loss in ("ce", "logit_adjustment_post"):
        return Loss(lambda logits, targets, progress: cross_entropy(logits, targets))
    if grader.loss == "focal":
        return Loss(lambda logits, targets, progress: focal(logits, targets, value))
    if grader.loss == "inverse_frequency":
        weights = tensor(inverse_frequency_weights(counts))
        return Loss(lambda logits, targets, progress: cross_entropy(logits, targets, weights))
    if grader.loss == "class_balanced":
        weights = tensor(class_balanced_weights(counts, value))
        return Loss(lambda logits, targets, progress: cross_entropy(logits, targets, weights))
    if grader.loss == "ldam":
        margins = tensor(ldam_margins(counts))
        return Loss(lambda logits, targets, progress: ldam(logits, targets, margins))
    if grader.loss == "ldam_drw":
        margins, weights = tensor(ldam_margins(counts)), tensor(class_balanced_weights(counts, value))
        return Loss(
            lambda logits, targets, progress: ldam(logits, targets, margins, weights if progress >= DRW_START else None)
        )
    # Balanced softmax (Ren et al. 2020, eq. 4) is logit adjustment (Menon et al. 2021, eq. 10) at tau = 1.
    tau = 1.0 if grader.loss == "balanced_softmax" else value
    shift = tensor(tau * log_prior(counts))
    return Loss(lambda logits, targets, progress: cross_entropy(logits + shift, targets))
