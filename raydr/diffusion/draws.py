"""What a step of fine-tuning learns from: photographs, mirrors, noise, timesteps and prompts, drawn by position.

Every draw is keyed by (seed, step, role, position in the global batch), never by rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raydr.diffusion.ecc import Pool
from raydr.diffusion.state import Photographs, Spec
from raydr.identity import rng_of, seed_of
from raydr.prompts import instance_prompt, prior_prompt


@dataclass(frozen=True)
class Draws:
    """The draws of one generator's training."""

    spec: Spec
    instance: Photographs
    rows: np.ndarray  # of `instance`: those of the generator's grades
    prior: Photographs
    num_timesteps: int
    noise_offset: float

    def batch(self, step: int, positions: Sequence[int], pool: Pool | None) -> tuple[Tensor, list[str], Tensor, Tensor]:
        """Latents (B, C, h, w), prompts, noise and timesteps: instances, then priors, then pool images."""
        latents, prompts, noises, timesteps = [], [], [], []
        shape = self.instance.latents.shape
        for role in ("instance", "prior", "ecc")[: 2 if pool is None else 3]:
            for position in positions:
                rng = rng_of("finetune", self.spec.seed, step, role, position)
                noise_rng = torch.Generator().manual_seed(seed_of("noise", self.spec.seed, step, role, position))
                posterior, noise = torch.randn((2, *shape), generator=noise_rng)
                if self.noise_offset:
                    noise = noise + self.noise_offset * torch.randn((shape[0], 1, 1), generator=noise_rng)
                if role == "instance":
                    row = int(self.rows[rng.integers(len(self.rows))])
                    image = self.instance.latents.sample([row], [int(rng.integers(2))], posterior[None])[0]
                    prompt = instance_prompt(self.spec.dataset, int(self.instance.grades[row]))
                elif role == "prior":
                    row = int(rng.integers(len(self.prior.image_ids)))
                    image = self.prior.latents.sample([row], [int(rng.integers(2))], posterior[None])[0]
                    grade = int(self.prior.grades[row])
                    prompt = prior_prompt(self.prior.datasets[row], grade if grade >= 0 else None, rng)
                else:
                    assert pool is not None
                    assert pool.latents is not None
                    k = int(rng.integers(len(pool)))
                    image = pool.latents[k].flip(-1) if rng.integers(2) else pool.latents[k]
                    prompt = instance_prompt(self.spec.dataset, pool.grades[k])
                latents.append(image)
                prompts.append(prompt)
                noises.append(noise)
                timesteps.append(int(rng.integers(self.num_timesteps)))
        return torch.stack(latents), prompts, torch.stack(noises), torch.tensor(timesteps)
