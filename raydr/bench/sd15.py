"""Stages at the size of the paper: Stable Diffusion 1.5's shapes with random weights, 512 px, six graders; for GPUs.

Nothing is downloaded. What a weight holds changes no time, but such images mean nothing: their scores are no result.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from raydr.bench import flops
from raydr.bench.gpu import GRADERS, PX
from raydr.bench.workload import FULL, Sizes
from raydr.config import Ensemble, Finetune, Grader, Member, Recipe, Sampler, Synthesize
from raydr.diffusion.model import PHANTOM_BASE
from raydr.errors import UserError
from raydr.shapes import Shape
from raydr.sources import Ingest, PhantomSet

SIZES = replace(FULL, repeats=3, synthesis_shards=8, finetune_steps=96, prepared_steps=2, peer_batches=2)
QUICK = replace(SIZES, repeats=1, synthesis_shards=5, finetune_steps=24, peer_batches=1)
STAGES = ("synthesize", "finetune")
BATCH = 16


def check(what: str, shape: Shape) -> None:
    """UserError for a stage that is not measured at these shapes, and for a shape without a GPU."""
    if what not in STAGES:
        raise UserError(f"--sd15 belongs to bench {' and '.join(STAGES)}, not to bench {what}")
    if not shape.generator_gpus or not shape.train_gpus:
        raise UserError(
            f"--sd15 would take days on the CPUs of the shape {shape.name}: take --shape workstation and a GPU"
        )


def write(folder: Path) -> Path:
    """A base in diffusers' layout, 2 GB of bf16: random weights, the built-in tokenizer. One that is there stays."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    if (folder / "model_index.json").exists():
        return folder
    device = "cuda" if torch.cuda.is_available() else "cpu"  # which draws a billion numbers sooner
    torch.manual_seed(0)
    with torch.device(device):
        parts: dict[str, Any] = {
            "unet": UNet2DConditionModel(**flops.SD15_UNET),
            "vae": AutoencoderKL(**flops.SD15_VAE),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**flops.SD15_TEXT)),
        }
    for name, part in parts.items():
        part.to(torch.bfloat16).save_pretrained(folder / name)
    for name in ("tokenizer", "scheduler"):
        shutil.copytree(PHANTOM_BASE / name, folder / name, dirs_exist_ok=True)
    index = json.loads((PHANTOM_BASE / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))  # last: the folder is whole
    return folder


def recipe(sizes: Sizes, base: Path) -> Recipe:
    """The prepared run: photographs of 512 px, the paper's six graders (two steps each) and one generator."""
    graders = [Grader(name, head="lanet", px=PX, steps=2, batch=8, learning_rate=1e-4) for name in GRADERS]
    return Recipe(
        name="bench",
        ingest=Ingest(
            px=PX,
            shard_size=16,
            phantoms=(
                PhantomSet("DDR", "train", (16, 10, 16, 12, 12)),
                PhantomSet("DDR", "validation", (4,) * 5),
                PhantomSet("DDR", "test", (2,) * 5),
                PhantomSet("EyePACS", "prior", (8,) * 5),
            ),
        ),
        ensemble=Ensemble(members=tuple(Member(grader, k % 5, seed=k) for k, grader in enumerate(graders))),
        finetune=Finetune(
            base=str(base),
            grades=(3,),
            kinds=("plain",),
            px=PX,
            steps=sizes.prepared_steps,
            ecc_start=1,
            validate_every=0,
            batch_pairs=3,
            precision="bf16",
            learning_rate=1e-5,
            compiled=True,
        ),
        synthesize=Synthesize(
            count=sizes.synthesis_shards * BATCH,
            shard_size=BATCH,
            sampler=Sampler(steps=20, guidance=7.5, batch=BATCH, precision="bf16", compiled=True),
            band=(0.5, 0.95),
        ),
    )
