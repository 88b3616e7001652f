"""Stable Diffusion 1.5's shapes on a GPU, random weights, no download: generation, scoring and LoRA steps with MFU.

The kernels are the stages' own (sampler, ensemble, Trainer); what a weight holds changes no time.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydr import terminal
from raydr.bench import flops
from raydr.bench.results import Result
from raydr.bench.steps import trainer
from raydr.config import Finetune, Grader, Sampler
from raydr.diffusion.compiling import compile_parts
from raydr.diffusion.model import PRECISIONS, Base
from raydr.diffusion.sampler import PromptCache, decode, sample_latents
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
    cached, uncached = (tuning(result, base, config, 64, peak, live=live) for live in (False, True))
    result.add("LoRA, cached over uncached", cached / uncached, "x", "pixels one at a time, words free; bar 1.4")
    tuning(result, base, dataclasses.replace(config, batch_pairs=16), 64, peak)  # launches weigh less
    tuning(result, base, dataclasses.replace(config, compiled=True), 64, peak)
    # Last: the parts stay compiled.
    generation(result, base, dataclasses.replace(sampler, compiled=True), PX, peak, "compiled")


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
    """Images/s of one batch after the other, decoded; FLOPs as the uncompiled modules have them.

    With `sampler.compiled` the parts of `base` are compiled as the generators' are, and stay so.
    """
    prompts, seeds = PromptCache(base), list(range(sampler.batch))

    def once() -> Any:
        return decode(base, sample_latents(base, prompts, "an image", seeds, sampler, px), sampler.batch)

    one = dataclasses.replace(sampler, steps=1, batch=1)
    latents = sample_latents(base, prompts, "an image", [0], one, px)
    decoding = flops.count(lambda: decode(base, latents, 1))
    step = flops.count(lambda: sample_latents(base, prompts, "an image", [0], one, px))
    calls = sampler.steps + (sampler.name == "base")  # PNDM repeats its second step
    each = calls * step + decoding
    if sampler.compiled:  # only now: a counter sees through no compiled graph
        compile_parts(base, Path(tempfile.gettempdir()) / "raydr-bench-inductor")
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


def tuning(
    result: Result,
    base: Base,
    config: Finetune,
    num_photographs: int,
    peak: float,
    steps: int = 3,
    live: bool = False,
) -> float:
    """Samples/s (an instance and a prior image are two) of the Trainer on cached latents, and its peak memory.

    `live`: without the cache, every photograph through the VAE as it is drawn, one at a time.
    """
    run = trainer(base, config, num_photographs, live)
    samples = 2 * config.batch_pairs
    # A counter sees through no compiled graph.
    with torch.compiler.set_stance("force_eager"):
        each = flops.count(lambda: run.run(run.step + 1)) / samples
    if base.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    found = rate(lambda: run.run(run.step + 1), base.device.type, samples, steps)
    run.close()
    how = f"{config.batch_pairs} pairs{', compiled' if config.compiled else ''}"
    name = f"LoRA, {'uncached' if live else 'cached latents'}, {how}"
    _say(result, name, found, "samples", each, peak)
    if base.device.type == "cuda":
        held = torch.cuda.max_memory_allocated() / 2**30
        result.add(f"{name}, peak memory", held, "GiB", f"{config.px} px; bar 24 for 3 pairs")
    return found
