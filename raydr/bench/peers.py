"""How others do the same work, to be measured in the same run: as processes of their own, like the bare loops.

published     the scheme of the published repository, re-created from its description (a stock pipeline call a batch,
              classifiers moved to the device and back for every batch, PNG level 6 inline, the best 12 of 16 in a band)
stock         diffusers' pipeline in a loop that saves PNGs and scores nothing
accelerate    a plain accelerate loop: every step encodes pixels and prompts again, as diffusers' own scripts do
"""

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from raydr import schema, selection, shards
from raydr.bench import workload
from raydr.cluster import ensemble, finetune, latents
from raydr.config import Recipe
from raydr.storage import Run

PUBLISHED_STEPS = 30  # PNDM, which calls the UNet 31 times for them
PUBLISHED_BATCH, PUBLISHED_KEEP = 16, 12
PUBLISHED_BAND = (0.5, 0.95)


def kept(scores: np.ndarray, keep: int, band: tuple[float, float]) -> np.ndarray:
    """Rows that the published script saves: of the `keep` highest scores (B,), those inside the band."""
    best = np.argsort(-scores, kind="stable")[:keep]
    return best[(scores[best] >= band[0]) & (scores[best] <= band[1])]


def stock_pipeline(recipe: Recipe, target: Run, device: str) -> tuple[Any, str, dict[str, Any], int]:
    """(StableDiffusionPipeline with PNDM and the run's LoRA, prompt, generator.json, grade)."""
    from diffusers import StableDiffusionPipeline
    from diffusers.schedulers import PNDMScheduler

    from raydr.diffusion.model import load_base

    base = load_base(recipe.finetune.base, recipe.synthesize.sampler.precision, recipe.finetune.revision, device)
    (generator,) = finetune.planned(recipe, target)
    folder = target.path(f"generators/{generator.generator_id}")
    record, grade = json.loads((folder / "generator.json").read_text()), generator.grades[0]
    pipe: Any = StableDiffusionPipeline(
        vae=base.vae,
        text_encoder=base.text_encoder,
        tokenizer=base.tokenizer,
        unet=base.unet,
        scheduler=PNDMScheduler.from_config(base.scheduler.config, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.load_lora_weights(str(folder))
    pipe.set_progress_bar_config(disable=True)
    return pipe, record["prompts"][str(grade)], record, grade


def generate(pipe: Any, prompt: str, recipe: Recipe, seed: int, px: int) -> list[Any]:
    """One call: a batch of PIL images."""
    import torch

    return pipe(
        prompt,
        num_images_per_prompt=PUBLISHED_BATCH,
        num_inference_steps=PUBLISHED_STEPS,
        guidance_scale=recipe.synthesize.sampler.guidance,
        height=px,
        width=px,
        generator=torch.Generator().manual_seed(seed),
    ).images


def published(url: str, recipe: Recipe, threads: int, batches: int, device: str) -> None:
    import torch

    from raydr.grading import pixels
    from raydr.grading.ensemble import score

    torch.set_num_threads(threads)
    target = Run(url)
    pipe, prompt, record, grade = stock_pipeline(recipe, target, device)
    judges = ensemble.load(recipe, target, ensemble.identity(recipe, target), "score", "cpu")
    folder = target.path("published")
    folder.mkdir()
    events, accepted = [], 0
    for number in range(batches + 1):
        images = generate(pipe, prompt, recipe, number, record["px"])
        outputs = []
        for model in judges.models:
            model.to(device)
        with torch.inference_mode():
            for model in judges.models:
                inputs = [pixels.to_input(torch.from_numpy(np.array(i))[None], model.px, device) for i in images]
                outputs.append(torch.softmax(model(torch.cat(inputs)), dim=1).cpu())
        for model in judges.models:
            model.to("cpu")
        rows = kept(score(torch.stack(outputs, dim=1).numpy(), grade), PUBLISHED_KEEP, PUBLISHED_BAND)
        for row in rows:
            images[row].save(folder / f"{number}-{row}.png", compress_level=6)
        accepted += len(rows)
        events.append((time.time(), float(len(images))))
    workload.save_progress(target, events, accepted=accepted, made=(batches + 1) * PUBLISHED_BATCH)


def stock(url: str, recipe: Recipe, threads: int, batches: int, device: str) -> None:
    import torch

    torch.set_num_threads(threads)
    target = Run(url)
    pipe, prompt, record, _ = stock_pipeline(recipe, target, device)
    folder = target.path("stock")
    folder.mkdir()
    events = []
    for number in range(batches + 1):
        for row, image in enumerate(generate(pipe, prompt, recipe, number, record["px"])):
            image.save(folder / f"{number}-{row}.png")
        events.append((time.time(), float(PUBLISHED_BATCH)))
    workload.save_progress(target, events)


def accelerate(url: str, recipe: Recipe, threads: int, device: str) -> None:
    import torch
    import torch.nn.functional as F
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    from raydr.diffusion import lora
    from raydr.diffusion.model import from_uint8, load_base
    from raydr.prompts import instance_prompt, prior_prompt

    torch.set_num_threads(threads)
    target, config = Run(url), recipe.finetune
    base = load_base(config.base, config.precision, config.revision, device)
    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    digests = real["sha256"].to_pylist()
    array = ensemble.image_array(target, config.px, [("real", schema.REAL)], digests)
    grades = np.asarray(real["grade"].fill_null(-1)).astype(np.int64)
    train = selection.part_of(real, "train", recipe.fold)
    instances, priors = train[grades[train] == config.grades[0]], latents.prior_rows(real, recipe.fold)
    dataset, rng = finetune.dataset_of(recipe, target), np.random.default_rng(0)

    def collate(pairs: list[tuple[int, int]]) -> tuple[torch.Tensor, list[str]]:
        rows = [a for a, _ in pairs] + [b for _, b in pairs]
        pixels = from_uint8(torch.from_numpy(array[array.positions([digests[row] for row in rows])]))
        prompts = [instance_prompt(dataset, config.grades[0])] * len(pairs)
        return pixels, prompts + [prior_prompt("EyePACS", int(grades[b]), rng) for _, b in pairs]

    count = config.steps * config.batch_pairs
    pairs = [(int(instances[k % len(instances)]), int(priors[k % len(priors)])) for k in range(count)]
    parameters = lora.add(base.unet, config, 0)
    optimizer = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    loader: Any = DataLoader(pairs, batch_size=config.batch_pairs, shuffle=True, collate_fn=collate)  # type: ignore
    accelerator = Accelerator(cpu=device == "cpu")
    unet, optimizer, loader = accelerator.prepare(base.unet, optimizer, loader)
    events = []
    for pixels, prompts in loader:
        with torch.no_grad():
            encoded = base.vae.encode(pixels.to(base.vae.dtype)).latent_dist.sample() * base.vae.config.scaling_factor
            words = base.embed(prompts)
        noise, timesteps = torch.randn_like(encoded), torch.randint(0, 1000, (len(encoded),), device=encoded.device)
        noisy = base.scheduler.add_noise(encoded, noise, timesteps)
        predicted = unet(noisy, timesteps, words).sample
        instance, prior = (F.mse_loss(a, b) for a, b in zip(predicted.chunk(2), noise.chunk(2), strict=True))
        accelerator.backward(instance + config.w_prior * prior)
        accelerator.clip_grad_norm_(parameters, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        events.append((time.time(), 2.0 * config.batch_pairs))
    workload.save_progress(target, events)


LOOPS: dict[str, Callable[..., None]] = {"published": published, "stock": stock, "accelerate": accelerate}
