"""Work and limits: FLOPs counted by torch, peaks measured on the spot, shares of the peak (MFU).

Two FLOPs a multiply-add. Stable Diffusion 1.5's shapes are counted on torch's meta device: no weights, no download,
no computing.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from raydr.bench.fits import median

# UNet, VAE and text encoder of Stable Diffusion 1.5, as their published config.json have them.
SD15_UNET: dict[str, Any] = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
SD15_VAE: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
SD15_TEXT: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "projection_dim": 768,
}
MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}


def count(work: Callable[[], Any]) -> int:
    """FLOPs of one call of `work`, its backward passes included."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def peak_flops(device: str, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of square matrix products on `device` with the process's threads: the median of `repeats`."""
    side = MATMUL_SIDE[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    seconds = []
    for number in range(repeats + 1):
        _settle(device)
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        _settle(device)
        if number:  # the first call chooses kernels
            seconds.append(time.perf_counter() - started)
    return 2 * side**3 / median(seconds)


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peaks(device: str = "cpu") -> dict[str, float]:
    """{precision: FLOP/s} measured on the spot."""
    return {name: peak_flops(device, dtype) for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))}


def sd15(lora_rank: int = 8) -> dict[str, int]:
    """FLOPs of Stable Diffusion 1.5's parts at 512 px, batch 1, and of one LoRA step."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from peft import LoraConfig
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**SD15_UNET)
        vae: Any = AutoencoderKL(**SD15_VAE)
        text: Any = CLIPTextModel(CLIPTextConfig(**SD15_TEXT))
        for part in (unet, vae, text):
            part.requires_grad_(False)
        latents, images = torch.randn(1, 4, 64, 64), torch.randn(1, 3, 512, 512)
        words, timestep, ids = torch.randn(1, 77, 768), torch.zeros(1), torch.zeros(1, 77, dtype=torch.long)
        found = {
            "unet": count(lambda: unet(latents, timestep, words)),
            "vae_decode": count(lambda: vae.decode(latents)),
            "vae_encode": count(lambda: vae.encode(images)),
            "text": count(lambda: text(ids)),
        }
        targets = ["to_q", "to_k", "to_v", "to_out.0"]
        # Weights without values: a gaussian start needs numbers that the meta device does not have.
        unet.add_adapter(LoraConfig(r=lora_rank, lora_alpha=lora_rank, target_modules=targets, init_lora_weights=False))
        found["lora_step"] = count(lambda: unet(latents, timestep, words).sample.sum().backward())
    return found


def image_flops(parts: dict[str, int], steps: int, guided: bool = True) -> int:
    """FLOPs of one image: `steps` UNet passes (two with guidance) and one decoding."""
    return steps * (2 if guided else 1) * parts["unet"] + parts["vae_decode"]
