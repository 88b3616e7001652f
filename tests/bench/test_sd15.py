"""Stages at SD 1.5's shapes: the base that is written loads as any other, the work is the paper's."""

import json

import torch

from raydr.bench import flops, sd15
from raydr.config import Finetune
from raydr.diffusion.model import PHANTOM_BASE, load_base


def test_the_base_is_a_base(tmp_path, monkeypatch):
    for name, part in (("SD15_UNET", "unet"), ("SD15_VAE", "vae"), ("SD15_TEXT", "text_encoder")):
        config = json.loads((PHANTOM_BASE / part / "config.json").read_text())
        drop = ("architectures", "model_type", "dtype", "transformers_version")
        kept = {key: value for key, value in config.items() if not key.startswith("_") and key not in drop}
        monkeypatch.setattr(flops, name, kept)
    folder = sd15.write(tmp_path / "sd15")
    base = load_base(str(folder), "bf16")
    assert base.unet.dtype == torch.bfloat16
    assert base.embed(["an image"]).shape[-1] == base.unet.config.cross_attention_dim
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.stat().st_mtime_ns
    assert sd15.write(folder) == folder
    assert weights.stat().st_mtime_ns == before


def test_the_work_is_the_papers(tmp_path):
    recipe = sd15.recipe(sd15.SIZES, tmp_path)
    assert [member.grader.backbone for member in recipe.ensemble.members].count("vgg16_bn") == 3
    assert (len(recipe.ensemble.members), recipe.finetune.px, recipe.ingest.px) == (6, 512, 512)
    assert recipe.synthesize.count == sd15.SIZES.synthesis_shards * recipe.synthesize.sampler.batch
    assert recipe.finetune.batch_pairs == 3
    assert recipe.finetune.rank == Finetune().rank
