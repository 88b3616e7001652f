"""Stable Diffusion 1.5's shapes on a GPU, random weights, no download: generation, scoring and LoRA steps with MFU.

The kernels are the stages' own (sampler, ensemble, Trainer); what a weight holds changes no time.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from raydr import terminal
from raydr.bench import flops
from raydr.bench.results import Result
from raydr.config import Finetune, Grader, Sampler
from raydr.diffusion.latents import LatentCache
from raydr.diffusion.model import PRECISIONS, Base
from raydr.diffusion.sampler import PromptCache, decode, sample_latents
from raydr.diffusion.state import Photographs, Spec
from raydr.diffusion.training import Trainer
from raydr.errors import UserError
from raydr.grading.backbones import build
from raydr.grading.ensemble import Ensemble, Meta

# The paper's six scorers.
GRADERS = ("vgg16_bn", "vgg16_bn", "vgg16_bn", "densenet121", "inception_v3", "inception_v3")
PX = 512


class Wordless(Base):
    """A base whose prompts are noise: it needs no vocabulary."""

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> torch.Tensor:
        width = self.unet.config.cross_attention_dim
        shape = (len(prompts), 77, width)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(len(prompts)))
        return noise.to(self.device, next(self.unet.parameters()).dtype)


def sd15(device: str, precision: str) -> Wordless:
    """Stable Diffusion 1.5 with random weights."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.schedulers import PNDMScheduler

    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    with torch.device(device):
        unet: Any = UNet2DConditionModel(**flops.SD15_UNET)
        vae: Any = AutoencoderKL(**flops.SD15_VAE)
    for part in (unet, vae):
        part.requires_grad_(False).eval().to(dtype=PRECISIONS[precision], memory_format=torch.channels_last)
    return Wordless(None, None, vae, unet, PNDMScheduler(skip_prk_steps=True, **betas))


def run(result: Result, device: str = "cuda") -> None:
    """Fill `result.values` with rates, MFU and peak memory. UserError without a GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("raydr bench gpu needs a GPU, and torch sees none on this machine: run it where there is one")
    result.machine["gpu"] = torch.cuda.get_device_name() if device == "cuda" else "none"
    peak = flops.peak_flops(device, torch.bfloat16)
    result.add("peak bf16", peak / 1e12, "TFLOP/s", f"matrix product on {result.machine['gpu']}")
    base, sampler = sd15(device, "bf16"), Sampler(name="base", steps=30, guidance=7.5, batch=16, precision="bf16")
    generation(result, base, sampler, PX, peak, "eager")
    generation(result, base, dataclasses.replace(sampler, name="dpm++", steps=20), PX, peak, "eager, 20 steps of DPM++")
    graders = [Grader(backbone=name, head="lanet", px=PX) for name in GRADERS]
    scoring(result, graders, PX, 16, device, peak)
    config = Finetune(px=PX, batch_pairs=3, precision="bf16", learning_rate=1e-5, grades=(3,), kinds=("plain",))
    config = dataclasses.replace(config, gradient_checkpointing=True)
    tuning(result, base, config, 64, peak)
    compiled = dataclasses.replace(base, unet=torch.compile(base.unet, mode="max-autotune-no-cudagraphs"))
    generation(result, compiled, sampler, PX, peak, "compiled")


def rate(work: Callable[[], Any], device: str, units: int, calls: int = 2) -> float:
    """Units a second of `work`, which makes `units` a call; a first call warms up."""
    work()
    _settle(device)
    started = time.perf_counter()
    for _ in range(calls):
        work()
    _settle(device)
    return calls * units / (time.perf_counter() - started)


def _settle(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _say(result: Result, name: str, per_second: float, unit: str, each: float, peak: float) -> None:
    result.add(name, per_second, f"{unit}/s", f"{each / 1e12:.3g} TFLOP each, MFU {each * per_second / peak:.1%}")
    terminal.line("bench", f"{name}: {per_second:.3g} {unit}/s, MFU {each * per_second / peak:.1%}")


def generation(result: Result, base: Base, sampler: Sampler, px: int, peak: float, how: str) -> float:
    """Images/s of one batch after the other, decoded; FLOPs as the uncompiled modules have them."""
    prompts, seeds = PromptCache(base), list(range(sampler.batch))

    def once() -> Any:
        return decode(base, sample_latents(base, prompts, "an image", seeds, sampler, px), sampler.batch)

    # A counter sees through no compiled graph; its work is that of the modules inside.
    plain = dataclasses.replace(base, unet=getattr(base.unet, "_orig_mod", base.unet))
    one = dataclasses.replace(sampler, steps=1, batch=1)
    latents = sample_latents(plain, prompts, "an image", [0], one, px)
    decoding = flops.count(lambda: decode(plain, latents, 1))
    step = flops.count(lambda: sample_latents(plain, prompts, "an image", [0], one, px))
    calls = sampler.steps + (sampler.name == "base")  # PNDM repeats its second step
    each = calls * step + decoding
    found = rate(once, base.device.type, sampler.batch)
    _say(result, f"generation, {how}", found, "images", each, peak)
    return found


def scoring(result: Result, graders: list[Grader], px: int, batch: int, device: str, peak: float) -> float:
    """Images/s of the ensemble from uint8 pixels."""
    members = [(build(grader, seed=k), Meta(str(k), grader, k)) for k, grader in enumerate(graders)]
    judges = Ensemble(members, device)
    images = np.random.default_rng(0).integers(0, 255, (batch, px, px, 3), dtype=np.uint8)
    each = flops.count(lambda: judges.probabilities(images)) / batch
    found = rate(lambda: judges.probabilities(images), device, batch)
    _say(result, f"scoring, {len(graders)} graders", found, "images", each, peak)
    return found


def tuning(result: Result, base: Base, config: Finetune, num_photographs: int, peak: float, steps: int = 3) -> float:
    """Samples/s (an instance and a prior image are two) of the Trainer on cached latents, and its peak memory."""
    side = config.px // base.latent_factor
    shape = (num_photographs, 2, base.unet.config.in_channels, side, side)
    cache = LatentCache(torch.randn(shape), torch.full(shape, 0.1))
    ids = tuple(f"DDR/{k}" for k in range(num_photographs))
    grades = np.full(num_photographs, config.grades[0], dtype=np.int64)
    photographs = Photographs(ids, grades, ("DDR",) * num_photographs, cache)
    config = dataclasses.replace(config, steps=10_000, ecc_start=5_000, validate_every=0)
    trainer = Trainer(base, config, Spec("bench", "plain", config.grades, "DDR", 1), photographs, photographs)
    samples = 2 * config.batch_pairs
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    each = flops.count(lambda: trainer.run(trainer.step + 1)) / samples
    found = rate(lambda: trainer.run(trainer.step + 1), base.device.type, samples, steps)
    trainer.close()
    _say(result, "LoRA, cached latents", found, "samples", each, peak)
    if base.device.type == "cuda":
        held = torch.cuda.max_memory_allocated() / 2**30
        result.add("LoRA, peak memory", held, "GiB", f"{config.batch_pairs} pairs of {config.px} px; bar 24")
    return found
