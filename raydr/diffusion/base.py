"""Build the small Stable-Diffusion-shaped base that ships with raydr, from nothing but phantoms.

    raydr base phantom --to FOLDER

Tokenizer, CLIP text model, AutoencoderKL (f = 2, 6 channels: at f = 4 microaneurysms vanish),
UNet2DConditionModel and scheduler in diffusers layout, 64 px, about 4.3 M weights. Two cohorts of
phantoms with seeds that no recipe may use: one in EyePACS's proportions with unlabelled prompts, one
in APTOS's whose prompts carry stage words with p = 0.7 (drawn with equal shares per grade). No DDR
phantom is seen. How many rare-grade phantoms that was is written to `base.json` and shown by the
report. Every phase resumes from FOLDER's `work` directory.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raydr.diffusion.cohorts import BaseConfig, cohorts, proportional, render_all
from raydr.diffusion.model import PHANTOM_BASE, from_uint8
from raydr.diffusion.parts import TOKENS, build_parts
from raydr.errors import UserError
from raydr.grades import APTOS_COUNTS, EYEPACS_COUNTS
from raydr.identity import rng_of, seed_of
from raydr.prompts import prior_prompt

# Latent diffusion's 1e-6 is for nets trained a hundred times longer; 1e-4 keeps the latents smooth enough
# (posterior std about .1 at unit scale) for a decoder that must bear a small UNet's errors.
KL_WEIGHT = 1e-4


def _checkpoint(path: Path, step: int, **parts: Any) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save({"step": step, **{name: part.state_dict() for name, part in parts.items()}}, temporary)
    temporary.replace(path)


def _resume(path: Path, **parts: Any) -> int:
    if not path.exists():
        return 0
    stored = torch.load(path, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(stored[name])
    return stored["step"]


def _cosine(optimizer: torch.optim.Optimizer, step: int, steps: int, peak: float) -> None:
    rate = peak * min(1.0, (step + 1) / 100) * (0.05 + 0.95 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))))
    for group in optimizer.param_groups:
        group["lr"] = rate


def _kept(path: Path, make: Callable[[], torch.Tensor]) -> torch.Tensor:
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        torch.save(make(), temporary)
        temporary.replace(path)
    return torch.load(path, weights_only=True)


def _pixel_loss(error: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    # Exudates and new vessels differ from haemorrhages by colour more than by brightness.
    colour = (error - error.mean(1, keepdim=True)).abs()
    return (weight * (error.abs() + 2 * error.square() + 2 * colour)).mean()


def train_vae(
    config: BaseConfig, vae: Any, images: np.ndarray, masks: np.ndarray, work: Path, on_event: Callable
) -> None:
    """Lesion-weighted L1 + MSE, L1 on the colour differences, and a faint KL term.

    First on photographs as they come, then, with a learning rate of its own, on equal shares of the grades: one
    phantom in ten is severe or worse, and without that their new vessels came back in the wrong red (an
    independent grader's recall of proliferative DR .52 after 1,600 steps, mild .94).
    """
    grades = np.array([row["grade"] for row in cohorts(config)])
    pools = [np.flatnonzero(grades == grade) for grade in range(5)]
    vae.to(memory_format=torch.channels_last).train()
    for phase, steps in (("vae", config.vae_steps), ("vae-balanced", config.vae_balanced_steps)):
        optimizer = torch.optim.AdamW(vae.parameters(), lr=config.vae_learning_rate, weight_decay=1e-4)
        start = _resume(work / f"{phase}.pt", vae=vae, optimizer=optimizer)
        for step in range(start, steps):
            rng = rng_of(f"base-{phase}", config.seed, step)
            torch.manual_seed(seed_of(f"base-{phase}", config.seed, step))
            if phase == "vae":
                rows = rng.integers(0, len(images), config.batch)
            else:
                rows = np.array([rng.choice(pools[(step + k) % 5]) for k in range(config.batch)])
            x = from_uint8(torch.from_numpy(images[rows])).contiguous(memory_format=torch.channels_last)
            weight = 1 + config.lesion_weight * torch.from_numpy(masks[rows])[:, None].float()
            with torch.autocast("cpu", torch.bfloat16):
                posterior = vae.encode(x).latent_dist
                y = vae.decode(posterior.sample()).sample
            error = y.float() - x
            # Per pixel, as the rest of the loss is. 1e-2 drowned five of six channels in noise (posterior std
            # .7-1.4 at unit scale), and with them the colour of small lesions.
            loss = _pixel_loss(error, weight) + KL_WEIGHT * posterior.kl().float().mean() / x[0].numel()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
            _cosine(optimizer, step, steps, config.vae_learning_rate)
            optimizer.step()
            if (step + 1) % 50 == 0:
                psnr = -10 * math.log10(float(error.detach().square().mean()) / 4)
                on_event({"phase": phase, "step": step + 1, "loss": float(loss.detach()), "psnr_db": psnr})
                _checkpoint(work / f"{phase}.pt", step + 1, vae=vae, optimizer=optimizer)
    vae.eval()


@torch.no_grad()
def make_deterministic(vae: Any) -> None:
    """Make the encoder's posterior a point: the UNet is trained on its means, so samples must equal them."""
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = -30  # log variance, at the clamp of diffusers' distribution


@torch.no_grad()
def encode_all(vae: Any, images: np.ndarray) -> torch.Tensor:
    """Unscaled latent means, float32 (2N, 4, 32, 32): the images, then their mirrors."""
    latents = []
    for flip in (False, True):
        for start in range(0, len(images), 64):
            batch = images[start : start + 64]
            x = from_uint8(torch.from_numpy(np.ascontiguousarray(batch[:, :, ::-1] if flip else batch)))
            latents.append(vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean)
    return torch.cat(latents)


def train_unet(config: BaseConfig, parts: tuple, latents: torch.Tensor, work: Path, on_event: Callable) -> Any:
    """Epsilon prediction with min-SNR weighting (gamma 5) and an exponential moving average of the weights.

    One draw in ten has the empty prompt, for classifier-free guidance. Returns the averaged module.
    """
    tokenizer, text, _, unet, scheduler = parts
    rows = cohorts(config)
    pools = [np.array([i for i, row in enumerate(rows) if not row["labelled"]])]
    pools += [np.array([i for i, row in enumerate(rows) if row["labelled"] and row["grade"] == g]) for g in range(5)]
    model = torch.nn.ModuleDict({"unet": unet, "text": text})
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.997))
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=1e-2)
    unet.to(memory_format=torch.channels_last)
    start = _resume(work / "unet.pt", model=model, average=average, optimizer=optimizer)
    alphas = scheduler.alphas_cumprod
    for step in range(start, config.unet_steps):
        rng = rng_of("base-unet", config.seed, step)
        noise_rng = torch.Generator().manual_seed(seed_of("base-unet", config.seed, step))
        half = config.batch // 2
        picks = [int(rng.choice(pools[0])) for _ in range(half)]
        picks += [int(rng.choice(pools[1 + (step * half + i) % 5])) for i in range(config.batch - half)]
        prompts = []
        for i in picks:
            prompt = prior_prompt(rows[i]["dataset"], rows[i]["grade"] if rows[i]["labelled"] else None, rng)
            prompts.append("" if rng.random() < 0.1 else prompt)
        x = latents[torch.tensor(picks) + torch.from_numpy(rng.integers(0, 2, config.batch)) * len(rows)]
        t = torch.randint(0, 1000, (config.batch,), generator=noise_rng)
        noise = torch.randn(x.shape, generator=noise_rng)
        noisy = scheduler.add_noise(x, noise, t).contiguous(memory_format=torch.channels_last)
        ids = tokenizer(
            prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).input_ids
        with torch.autocast("cpu", torch.bfloat16):
            predicted = unet(noisy, t, text(ids).last_hidden_state).sample
        snr = alphas[t] / (1 - alphas[t])
        loss = ((predicted.float() - noise).square().mean((1, 2, 3)) * torch.clamp(5 / snr, max=1)).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        _cosine(optimizer, step, config.unet_steps, config.learning_rate)
        optimizer.step()
        average.update_parameters(model)
        if (step + 1) % 50 == 0:
            on_event({"phase": "unet", "step": step + 1, "loss": float(loss.detach())})
            _checkpoint(work / "unet.pt", step + 1, model=model, average=average, optimizer=optimizer)
    return average.module


def save(config: BaseConfig, parts: tuple, folder: Path) -> None:
    """Write the pipeline as fp16 safetensors in diffusers layout, and base.json with its history."""
    from diffusers import PNDMScheduler

    _, text, vae, unet, scheduler = parts
    text.half().save_pretrained(folder / "text_encoder")
    vae.half().save_pretrained(folder / "vae")
    unet.half().save_pretrained(folder / "unet")
    PNDMScheduler.from_config(scheduler.config, skip_prk_steps=True, steps_offset=1).save_pretrained(
        folder / "scheduler"
    )
    index = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "PNDMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    seen = {
        dataset: proportional(config.num_phantoms, counts)
        for dataset, counts in (("EyePACS (unlabelled)", EYEPACS_COUNTS), ("APTOS (labelled)", APTOS_COUNTS))
    }
    record = {"config": asdict(config), "phantoms_seen_by_grade": seen}
    (folder / "base.json").write_text(json.dumps(record, indent=2) + "\n")


def build(
    config: BaseConfig, folder: Path = PHANTOM_BASE, work: Path | None = None, on_event: Callable[[dict], None] = print
) -> None:
    """Render, train and save the base; the same call again goes on where it was cut.

    Raises UserError where `work` holds the halves of another configuration.
    """
    work = work or folder / "work"
    work.mkdir(parents=True, exist_ok=True)
    settings = work / "config.json"
    if settings.exists() and json.loads(settings.read_text()) != asdict(config):
        raise UserError(f"{work} holds a build with other settings: delete it, or build in another folder")
    settings.write_text(json.dumps(asdict(config)))
    images, masks = render_all(config, work, on_event)
    parts = build_parts(config.seed, folder)
    tokenizer, _, vae, _, scheduler = parts
    train_vae(config, vae, images, masks, work, on_event)
    make_deterministic(vae)
    latents = _kept(work / "latents.pt", lambda: encode_all(vae, images))
    # Registered in the VAE's config, as Stable Diffusion does, so that any loader scales alike.
    scaling = round(1 / float(latents[: len(images)].std()), 5)
    vae.register_to_config(scaling_factor=scaling)
    average = train_unet(config, parts, latents * scaling, work, on_event)
    save(config, (tokenizer, average["text"], vae, average["unet"], scheduler), folder)


def reconstruct(vae: Any, images: np.ndarray) -> np.ndarray:
    """uint8 images (N, H, W, 3) after encode and decode: what the VAE alone loses."""
    from raydr.diffusion.model import to_uint8

    out = []
    with torch.no_grad():
        for start in range(0, len(images), 64):
            x = from_uint8(torch.from_numpy(images[start : start + 64]))
            out.append(to_uint8(vae.decode(vae.encode(x).latent_dist.mean).sample).numpy())
    return np.concatenate(out)
