"""A Trainer on random photographs, for measuring its steps: what a weight or a latent holds changes no time."""

import dataclasses

import numpy as np
import torch

from raydr.config import Finetune
from raydr.diffusion.latents import LatentCache, Latents, LiveLatents
from raydr.diffusion.model import Base
from raydr.diffusion.state import Photographs, Spec
from raydr.diffusion.training import Trainer
from raydr.prompts import every_prompt


def trainer(base: Base, config: Finetune, num_photographs: int, live: bool = False) -> Trainer:
    """Of the first of `config.grades`, without ECC and looks; `live` sends every photograph through the VAE again.

    Prompts are embedded beforehand, unless `live` (then at their first use).
    """
    source: Latents
    if live:
        shape = (num_photographs, config.px, config.px, 3)
        source = LiveLatents(base, np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8))
    else:
        side = config.px // base.latent_factor
        moments = (num_photographs, 2, base.unet.config.in_channels, side, side)
        source = LatentCache(torch.randn(moments), torch.full(moments, 0.1))
    ids = tuple(f"DDR/{k}" for k in range(num_photographs))
    grades = np.full(num_photographs, config.grades[0], dtype=np.int64)
    photographs = Photographs(ids, grades, ("DDR",) * num_photographs, source)
    config = dataclasses.replace(config, kinds=("plain",), steps=10_000, ecc_start=5_000, validate_every=0)
    words = {} if live else {prompt: base.embed([prompt])[0].float().cpu() for prompt in every_prompt(["DDR"])}
    spec = Spec("bench", "plain", config.grades[:1], "DDR", 1)
    return Trainer(base, config, spec, photographs, photographs, embeddings=words)
