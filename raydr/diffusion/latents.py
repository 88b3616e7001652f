"""Latents of photographs, encoded once: the VAE's posterior moments of each image and of its mirror.

Training draws a fresh sample from the posterior at every step, so caching changes nothing in
distribution. The memorisation gate uses the means.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydr.diffusion.model import Base, from_uint8


class Latents(Protocol):
    """Where training takes a photograph's latents from."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, h, w) of one latent."""

    def sample(self, rows: Sequence[int], flips: Sequence[int], noise: Tensor) -> Tensor:
        """Scaled posterior samples (B, C, h, w) for standard normal `noise` of that shape."""

    def means(self, rows: Sequence[int]) -> Tensor:
        """Scaled posterior means (B, C, h, w), unmirrored."""


@dataclass
class LatentCache:
    """Scaled means and standard deviations, float32 (N, 2, C, h, w): [:, 0] the image, [:, 1] its mirror."""

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.mean.shape[2:])  # type: ignore[return-value]

    def sample(self, rows: Sequence[int], flips: Sequence[int], noise: Tensor) -> Tensor:
        index = torch.as_tensor(rows), torch.as_tensor(flips)
        return self.mean[index] + self.std[index] * noise

    def means(self, rows: Sequence[int]) -> Tensor:
        return self.mean[torch.as_tensor(rows), 0]

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own: on a shared disk every node may be writing this file.
        with tempfile.TemporaryDirectory(prefix=".part-", dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            save_file({"mean": self.mean.contiguous(), "std": self.std.contiguous()}, temporary)
            temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "LatentCache":
        return cls(**load_file(path))


@dataclass
class LiveLatents:
    """The same without a cache: every photograph goes through the VAE each time it is drawn.

    What the cache is measured against; it needs the decoded photographs, uint8 (N, H, W, 3).
    """

    base: Base
    pixels: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        side = self.pixels.shape[1] // self.base.latent_factor
        return int(self.base.vae.config.latent_channels), side, side

    @torch.no_grad()
    def _moments(self, rows: Sequence[int], flips: Sequence[int]) -> tuple[Tensor, Tensor]:
        images = [self.pixels[row][:, :: -1 if flip else 1] for row, flip in zip(rows, flips, strict=True)]
        return moments(self.base, from_uint8(torch.from_numpy(np.stack(images))))

    def sample(self, rows: Sequence[int], flips: Sequence[int], noise: Tensor) -> Tensor:
        mean, std = self._moments(rows, flips)
        return mean + std * noise

    def means(self, rows: Sequence[int]) -> Tensor:
        return self._moments(rows, [0] * len(rows))[0]


def moments(base: Base, images: Tensor) -> tuple[Tensor, Tensor]:
    """Scaled posterior mean and standard deviation, float32 on the CPU, of images (B, 3, H, W) in [-1, 1]."""
    images = images.to(base.device, base.vae.dtype).contiguous(memory_format=torch.channels_last)
    posterior = base.vae.encode(images).latent_dist
    scaling = base.vae.config.scaling_factor
    return (posterior.mean * scaling).float().cpu(), (posterior.std * scaling).float().cpu()


@torch.inference_mode()
def encode(
    base: Base, images: Callable[[slice], np.ndarray], count: int, batch: int = 32, on_event: Callable | None = None
) -> LatentCache:
    """Moments of `count` photographs; `images(slice)` gives uint8 (B, H, W, 3)."""
    means, stds = [], []
    for start in range(0, count, batch):
        x = from_uint8(torch.from_numpy(np.ascontiguousarray(images(slice(start, min(count, start + batch))))))
        mean, std = moments(base, torch.cat([x, x.flip(3)]))
        means.append(torch.stack(mean.chunk(2), dim=1))
        stds.append(torch.stack(std.chunk(2), dim=1))
        if on_event:
            on_event({"event": "latents", "done": start + len(x), "total": count})
    return LatentCache(torch.cat(means), torch.cat(stds))
