"""Memorisation gate: is a sample a photograph that the generator saw, mirrored or not?

Features are rows of any embedding in which a copy stays close: means of the diffusion model's VAE
latents, or vessel maps; not a grader's features, which call two healthy eyes the same. Distances are
root mean squares over the features, so that they do not grow with their number. A sample is compared
as it is and mirrored. The threshold is the first percentile, over the photographs, of the distance to
the nearest photograph of *another* patient under the very same search, so that about 1 % of honest
samples from as dense a set are flagged. (The first percentile over all pairs would flag nearly every
honest sample: the nearest of 1,719 strangers is closer than a hundredth of them.)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydr.errors import UserError

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 (B, H, W, 3) -> float32 (B, D)

# Entries of one distance matrix, 4 bytes each: bounds the memory of a search at 256 MB.
BLOCK = 2**26


@dataclass(frozen=True)
class Gate:
    """The photographs that a sample must not repeat, and how close is too close."""

    features: Tensor  # float32 (N, D), of photographs that base, prior or generator saw
    image_ids: tuple[str, ...]
    threshold: float  # RMS distance; samples nearer than this are flagged

    def check(self, features: np.ndarray, mirrored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Nearest photographs of samples given by their features and their mirror images', (B, D) each.

        Returns:
            positions into `image_ids` int64 (B,), distances float32 (B,), flagged bool (B,).
        """
        distance, position = nearest(features, mirrored, self.features)
        return position, distance, distance < self.threshold


def embed_both(embed: Embed, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of uint8 images (B, H, W, 3) and of their left-right mirror images: float32 (B, D) twice."""
    return embed(pixels), embed(np.ascontiguousarray(pixels[:, :, ::-1]))


def fit(
    features: np.ndarray,
    mirrored: np.ndarray,
    image_ids: Sequence[str],
    patient_ids: Sequence[str | None],
    quantile: float = 0.01,
    device: str | torch.device = "cpu",
) -> Gate:
    """The gate of N photographs with features and mirrored features (N, D).

    `patient_ids` keeps two photographs of a patient from setting the threshold (None: a patient of
    their own). Raises UserError with fewer than two patients.
    """
    units: dict[object, int] = {}
    patients = torch.tensor(
        [units.setdefault(p if p is not None else ("row", row), len(units)) for row, p in enumerate(patient_ids)]
    )
    if len(units) < 2:
        raise UserError("the memorisation gate needs photographs of at least two patients to set its threshold")
    reference = torch.as_tensor(features, dtype=torch.float32, device=device)
    strangers, _ = nearest(features, mirrored, reference, patients.to(device))
    return Gate(reference, tuple(image_ids), float(np.quantile(strangers, quantile)))


@torch.inference_mode()
def nearest(
    features: np.ndarray, mirrored: np.ndarray, reference: Tensor, patients: Tensor | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """RMS distance float32 (B,) to the nearest row of `reference` (N, D) and its position int64 (B,).

    The nearer of a sample and its mirror image counts. With `patients` int64 (N,) the samples are the
    reference rows themselves, and rows of the same patient are passed over.
    """
    norms = reference.square().sum(dim=1)
    distances, positions = [], []
    step = max(1, BLOCK // len(reference))
    for start in range(0, len(features), step):
        views = [
            torch.as_tensor(np.asarray(view[start : start + step]), dtype=torch.float32, device=reference.device)
            for view in (features, mirrored)
        ]
        # |x - y|^2 = |x|^2 + |y|^2 - 2 xy: one matrix product instead of B x N x D differences.
        squared = [torch.addmm(norms[None], x, reference.T, alpha=-2) + x.square().sum(1, keepdim=True) for x in views]
        best = torch.minimum(*squared)
        if patients is not None:
            best.masked_fill_(patients[start : start + step, None] == patients[None], torch.inf)
        position = best.argmin(dim=1)
        # Exact for the winner: near a copy the formula above loses all its digits.
        exact = torch.stack([(x - reference[position]).square().mean(dim=1) for x in views])
        distances.append(exact.amin(dim=0).sqrt().cpu())
        positions.append(position.cpu())
    return torch.cat(distances).numpy(), torch.cat(positions).numpy()
