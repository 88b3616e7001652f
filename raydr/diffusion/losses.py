"""The fine-tuning loss (Zhang et al., MICCAI 2025; paper 2):

    L = MSE_instance + w_prior MSE_prior + w_ecc MSE_ecc

All three parts go through the UNet in one concatenated pass and are split by explicit sizes: a
three-way chunk, as in the published code, misaligns the terms on a short batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def prediction_target(scheduler: Any, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the UNet predicts: noise (epsilon) or velocity sqrt(a) eps - sqrt(1 - a) x0 (v_prediction)."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    assert kind == "v_prediction", kind
    alpha = scheduler.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1)
    return alpha.sqrt() * noise - (1 - alpha).sqrt() * latents


def min_snr_weight(scheduler: Any, timesteps: Tensor, gamma: float) -> Tensor:
    """Min-SNR-gamma weights (B,) (Hang et al. 2023, eq. 5): min(snr, g)/snr, over snr + 1 for velocity."""
    alpha = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha / (1 - alpha)
    weight = torch.clamp(snr, max=gamma)
    return weight / (snr if scheduler.config.prediction_type == "epsilon" else snr + 1)


def sum_of_squares(predicted: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sum over images of each one's mean squared error; a scalar, 0 for an empty batch.

    A sum, not a mean: ranks divide by the count over all ranks, so an empty share on one of them
    (an ECC pool smaller than the number of ranks) leaves the loss exact.
    """
    error = (predicted.float() - target.float()).square().flatten(1).mean(1)
    return (error if weight is None else error * weight).sum()


def three_terms(
    predicted: Tensor,
    target: Tensor,
    sizes: Sequence[int],
    totals: Sequence[int],
    w_prior: float,
    w_ecc: float,
    weight: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """Loss of one rank's share and its three unweighted terms.

    `predicted` and `target` (B, C, h, w) hold instance, prior and ECC images in this order, `sizes` of
    each; `totals` are the sizes over all ranks and passes of the step. Summed over ranks and passes the
    result is L exactly.
    """
    assert sum(sizes) == len(predicted) == len(target), (sizes, len(predicted))
    weights = [None] * 3 if weight is None else list(weight.split(list(sizes)))
    terms = [
        sum_of_squares(p, t, w) / max(1, total)
        for p, t, w, total in zip(predicted.split(list(sizes)), target.split(list(sizes)), weights, totals, strict=True)
    ]
    return terms[0] + w_prior * terms[1] + w_ecc * terms[2], terms
