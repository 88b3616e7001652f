"""Latents of photographs, encoded once: the VAE's posterior moments of each image and of its mirror.

Training draws a fresh sample from the posterior at every step, so caching changes nothing in
distribution. The memorisation gate uses the means.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydr.diffusion.model import Base, from_uint8


@dataclass
class LatentCache:
    """Scaled means and standard deviations, float32 (N, 2, C, h, w): [:, 0] the image, [:, 1] its mirror."""

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def sample(self, rows: Sequence[int], flips: Sequence[int], noise: Tensor) -> Tensor:
        """Scaled posterior samples (B, C, h, w) for standard normal `noise` of that shape."""
        index = torch.as_tensor(rows), torch.as_tensor(flips)
        return self.mean[index] + self.std[index] * noise

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        save_file({"mean": self.mean.contiguous(), "std": self.std.contiguous()}, temporary)
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "LatentCache":
        return cls(**load_file(path))


@torch.inference_mode()
def encode(
    base: Base, images: Callable[[slice], np.ndarray], count: int, batch: int = 32, on_event: Callable | None = None
) -> LatentCache:
    """Moments of `count` photographs; `images(slice)` gives uint8 (B, H, W, 3)."""
    means, stds = [], []
    scaling = base.vae.config.scaling_factor
    for start in range(0, count, batch):
        pixels = torch.from_numpy(np.ascontiguousarray(images(slice(start, min(count, start + batch)))))
        x = from_uint8(pixels).to(base.device, base.vae.dtype)
        both = torch.cat([x, x.flip(3)]).contiguous(memory_format=torch.channels_last)
        posterior = base.vae.encode(both).latent_dist
        means.append(torch.stack((posterior.mean * scaling).float().cpu().chunk(2), dim=1))
        stds.append(torch.stack((posterior.std * scaling).float().cpu().chunk(2), dim=1))
        if on_event:
            on_event({"event": "latents", "done": start + len(x), "total": count})
    return LatentCache(torch.cat(means), torch.cat(stds))
