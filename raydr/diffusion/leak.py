"""Where sampling starts: with as much of a photograph as the noisiest training latent still holds.

Training never shows a UNet pure noise. At step t a noisy latent is sqrt(a) z + sqrt(1 - a) e with
a = alphas_cumprod[t], and at the first sampling step the low frequencies of z still speak through the noise: at
t = 901 of Stable Diffusion's schedule sqrt(a) = .12, and the mean of e over 32 x 32 pixels has a standard deviation
of .03. A sampler that starts from e alone therefore says "average tint", and every image gets it (Lin et al. 2024,
section 3). Everaert et al. 2024 (Exploiting the Signal-Leak Bias in Diffusion Models, section 4) start from
sqrt(a) z' + sqrt(1 - a) e, where z' has the low-frequency statistics of the photographs: a Gaussian over the first
K x K coefficients of the cosine transform of each channel.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raydr.errors import UserError
from raydr.identity import seed_of

FILE = "signal_leak.safetensors"
# Coefficients per side and channel: tint, uneven light and the place of disc and macula; no vessel and no lesion.
COUNT = 4


def cosines(side: int, count: int) -> Tensor:
    """The first `count` rows of the orthonormal cosine transform (type II) of `side` values: float64 (count, side)."""
    position = torch.arange(side, dtype=torch.float64) + 0.5
    frequency = torch.arange(count, dtype=torch.float64)[:, None]
    scale = torch.where(frequency == 0, math.sqrt(1 / side), math.sqrt(2 / side))
    return scale * torch.cos(math.pi * position * frequency / side)


@dataclass(frozen=True)
class SignalLeak:
    """Mean (C, K, K) and covariance factor (C K K, C K K) of photographs' low frequencies, float32.

    `factor @ standard normal` has their covariance.
    """

    mean: Tensor
    factor: Tensor

    @classmethod
    def of(cls, latents: Tensor, count: int = COUNT) -> "SignalLeak":
        """Fitted to scaled latents (N, C, h, w) and their mirrors; h, w >= count."""
        rows, columns = cosines(latents.shape[-2], count), cosines(latents.shape[-1], count)
        both = torch.cat([latents, latents.flip(-1)]).double()
        coefficients = torch.einsum("nchw,yh,xw->ncyx", both, rows, columns)
        flat = coefficients.flatten(1)
        values, vectors = torch.linalg.eigh(torch.cov(flat.T, correction=0).reshape(flat.shape[1], -1))
        factor = vectors * values.clamp(min=0).sqrt()
        return cls(coefficients.mean(0).float(), factor.float())

    def draw(self, seeds: Sequence[int], side: int) -> Tensor:
        """float32 (B, C, side, side): each image's low frequencies from its own seed, other than its noise's."""
        channels, count, _ = self.mean.shape
        normal = [
            torch.randn(self.factor.shape[1], generator=torch.Generator().manual_seed(seed_of("signal-leak", seed)))
            for seed in seeds
        ]
        drawn = self.mean.flatten() + torch.stack(normal) @ self.factor.T
        basis = cosines(side, count).float()
        return torch.einsum("ncyx,yh,xw->nchw", drawn.reshape(len(seeds), channels, count, count), basis, basis)

    def save(self, folder: Path) -> None:
        save_file({"mean": self.mean.contiguous(), "factor": self.factor.contiguous()}, folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> "SignalLeak":
        """What `save` wrote; UserError where a generator's folder holds none."""
        if not (folder / FILE).is_file():
            raise UserError(
                f"The generator {folder.name} has no {FILE}, from which a sampler with signal_leak starts: train it "
                "with this version, or leave --sampler.signal-leak out"
            )
        return cls(**load_file(folder / FILE))
