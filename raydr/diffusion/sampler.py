"""Noise to images: one seed an image, one static batch shape, guidance in one pass of 2B.

An image's noise comes from its own seed on the CPU, so it does not know its batch, actor or device.
Short batches are padded to the static shape, so every image sees the same kernels: on one device type
and one set of library versions its pixels are equal whatever else was in the batch.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raydr.config import Sampler
from raydr.diffusion.leak import SignalLeak
from raydr.diffusion.model import PRECISIONS, Base

# What "base" takes as it is shipped. Others draw noise as they go, which no seed of an image holds, or count noise in
# another scale; for those PNDM stands, which Stable Diffusion was published with.
SHIPPED = ("PNDMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")


def make_scheduler(base: Base, sampler: Sampler) -> Any:
    """The solver named by `sampler`, with the base's betas and prediction type."""
    from diffusers import schedulers
    from diffusers.schedulers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

    config = base.scheduler.config
    if sampler.name == "dpm++":
        return DPMSolverMultistepScheduler.from_config(config, algorithm_type="dpmsolver++", solver_order=2)
    if sampler.name == "ddim":
        return DDIMScheduler.from_config(config, set_alpha_to_one=False, clip_sample=False)
    if base.solver in SHIPPED:
        return getattr(schedulers, base.solver).from_config(config)
    return PNDMScheduler.from_config(config, skip_prk_steps=True)


def noise_for(seeds: Sequence[int], shape: tuple[int, int, int]) -> Tensor:
    """Standard normal latents (B, C, h, w), each image's from its own seed; float32 on the CPU."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class PromptCache:
    """Embeddings of the handful of prompts of a run, made once and kept on the base's device: (tokens, width) each.

    `known` ones may lie anywhere: those of the latent cache are read to the CPU.
    """

    def __init__(self, base: Base, known: Mapping[str, Tensor] | None = None) -> None:
        self._base = base
        self._known = {prompt: embedding.to(base.device) for prompt, embedding in (known or {}).items()}

    def clear(self) -> None:
        """Forget all: the text encoder has changed."""
        self._known.clear()

    def __getitem__(self, prompt: str) -> Tensor:
        if prompt not in self._known:
            self._known[prompt] = self._base.embed([prompt])[0]
        return self._known[prompt]

    def batch(self, prompts: Sequence[str]) -> Tensor:
        """(B, tokens, width)"""
        return torch.stack([self[prompt] for prompt in prompts])


def is_guided(scheduler: Any, sampler: Sampler, timestep: int) -> bool:
    """Whether the noise level sigma = sqrt((1 - a) / a), a = alphas_cumprod[t], lies in the guidance interval.

    Guidance at high noise costs diversity and at low noise nothing is left for it to do: Kynkaanniemi et al. 2024,
    section 3, guide in (low, high] only.
    """
    kept = float(scheduler.alphas_cumprod[timestep])
    low, high = sampler.guidance_interval
    return low < ((1 - kept) / kept) ** 0.5 <= high


@torch.inference_mode()
def sample_latents(
    base: Base,
    prompts: PromptCache,
    prompt: str,
    seeds: Sequence[int],
    sampler: Sampler,
    px: int,
    on_step: Callable[[], None] = lambda: None,
    leak: SignalLeak | None = None,
) -> Tensor:
    """Scaled latents (B, C, h, w) for `seeds`, at most `sampler.batch` of them; the rest is padding.

    `on_step` is called after each denoising step. `leak` is needed where `sampler.signal_leak` is set.
    """
    count = len(seeds)
    assert 0 < count <= sampler.batch, (count, sampler.batch)
    padded = [*seeds, *[seeds[-1]] * (sampler.batch - count)]
    side = px // base.latent_factor
    dtype, device = PRECISIONS[sampler.precision], base.device
    scheduler = make_scheduler(base, sampler)
    scheduler.set_timesteps(sampler.steps)
    latents = noise_for(padded, (base.unet.config.in_channels, side, side))
    if sampler.signal_leak:
        assert leak is not None, "sampler.signal_leak needs the generator's statistics"
        kept = scheduler.alphas_cumprod[int(scheduler.timesteps[0])]
        latents = kept.sqrt() * leak.draw(padded, side) + (1 - kept).sqrt() * latents
    latents = latents.to(device) * scheduler.init_noise_sigma
    guided = sampler.guidance != 1
    words = prompts.batch(["", prompt] if guided else [prompt]).to(dtype)
    words = words.repeat_interleave(sampler.batch, dim=0)
    for timestep in scheduler.timesteps:
        both = guided and is_guided(scheduler, sampler, int(timestep))
        inputs = scheduler.scale_model_input(latents, timestep).to(dtype)
        inputs = torch.cat([inputs] * 2) if both else inputs
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, dtype, enabled=dtype != base.unet.dtype):
            predicted = base.unet(inputs, timestep, words if both or not guided else words[sampler.batch :]).sample
        predicted = predicted.float()
        if both:
            without, with_prompt = predicted.chunk(2)
            predicted = without + sampler.guidance * (with_prompt - without)
        latents = scheduler.step(predicted, timestep, latents).prev_sample
        on_step()
    return latents[:count]


@torch.inference_mode()
def decode(base: Base, latents: Tensor, batch: int) -> Tensor:
    """uint8 RGB (B, H, W, 3); decoded in the static shape `batch`, for the same reason as above."""
    count = len(latents)
    padded = torch.cat([latents, latents[-1:].expand(batch - count, *latents.shape[1:])]) if count < batch else latents
    return base.decode(padded.contiguous(memory_format=torch.channels_last))[:count]
