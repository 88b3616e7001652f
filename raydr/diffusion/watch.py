"""Watching a fine-tuning run: validation loss that noise cannot move, when it turns, grids, and memorisation.

All of it is drawn from fixed seeds, so that two steps of a run differ by their weights alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydr.diffusion import losses
from raydr.diffusion.state import Photographs
from raydr.identity import seed_of
from raydr.prompts import instance_prompt

# Held-out photographs and timesteps of the validation loss: 16 x 4 terms, standard error ~2 %.
NUM_VALIDATION, VALIDATION_TIMESTEPS = 16, (100, 300, 500, 700)
# Images of a grid, and steps of its sampler (fewer where ECC's own candidates take fewer).
NUM_GRID, GRID_STEPS = 4, 10
# The loss has turned when each of the last so many lies this share above the lowest before them: noise and
# timesteps are fixed, so what moves is the model; half a percent is where drift of the prior term stays below.
PATIENCE, RISE = 2, 0.005

# uint8 images (B, H, W, 3) -> (nearest photograph's id (B,), distance (B,), closer than strangers are (B,))
Probe = Callable[[np.ndarray], tuple[Sequence[str], np.ndarray, np.ndarray]]
# (noisy latents (B, C, h, w), timesteps (B,), prompts) -> what the UNet predicts (B, C, h, w)
Predict = Callable[[Tensor, Tensor, list[str]], Tensor]


@torch.no_grad()
def validation_loss(
    photographs: Photographs | None, grades: Sequence[int], dataset: str, seed: int, scheduler: Any, predict: Predict
) -> float | None:
    """Mean squared error on held-out photographs of `grades`, with noise and timesteps that never change.

    None where there is no such photograph.
    """
    if photographs is None:
        return None
    rows = [int(row) for row in photographs.of_grades(grades)[:NUM_VALIDATION]]
    if not rows:
        return None
    latents = photographs.latents.means(rows)
    prompts = [instance_prompt(dataset, int(photographs.grades[row])) for row in rows]
    errors = []
    for timestep in VALIDATION_TIMESTEPS:
        rng = torch.Generator().manual_seed(seed_of("validation", seed, timestep))
        noise = torch.randn(latents.shape, generator=rng)
        timesteps = torch.full((len(rows),), timestep)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        target = losses.prediction_target(scheduler, latents, noise, timesteps)
        predicted = predict(noisy, timesteps, prompts).float().cpu()
        errors.append(float((predicted - target).square().mean()))
    return float(np.mean(errors))


def turned(validation: Sequence[tuple[int, float]]) -> tuple[int, float] | None:
    """(step, loss) of the lowest validation loss, if the last PATIENCE ones all lie RISE above it; else None."""
    if len(validation) <= PATIENCE:
        return None
    best = min(validation[:-PATIENCE], key=lambda item: item[1])
    return best if all(loss > best[1] * (1 + RISE) for _, loss in validation[-PATIENCE:]) else None


def tiled(images: np.ndarray) -> np.ndarray:
    """One picture (R * H, N * W, 3) of R rows of images (R, N, H, W, 3)."""
    return np.concatenate([np.concatenate(list(row), axis=1) for row in images])


def probed(probe: Probe, images: np.ndarray) -> dict[str, Any]:
    """What the memorisation probe says of a grid: the closest photograph, and how many images are copies."""
    image_ids, distances, flagged = probe(images)
    nearest = int(np.argmin(distances))
    return {
        "nearest_image_id": image_ids[nearest],
        "nearest_distance": float(distances[nearest]),
        "memorised": int(np.sum(flagged)),
    }
