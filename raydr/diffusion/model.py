"""Load a Stable Diffusion pipeline's parts from a folder or a hub id: one path for every base.

The built-in small base ("phantom") and Stable Diffusion 1.x/2.x are read by the same lines; nothing
below knows which one it holds.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raydr.errors import UserError
from raydr.identity import fingerprint, sha256

PHANTOM_BASE = Path(__file__).parent.parent / "assets" / "phantom-base"
# What a UNet may predict: the noise, or the velocity sqrt(a) eps - sqrt(1 - a) x0.
PREDICTIONS = ("epsilon", "v_prediction")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Base:
    """The parts of a latent diffusion model. All frozen until a caller says otherwise."""

    tokenizer: Any
    text_encoder: Any  # CLIPTextModel
    vae: Any  # AutoencoderKL
    unet: Any  # UNet2DConditionModel, or None where it was not asked for
    scheduler: Any  # adds training's noise; its config holds betas and the prediction type
    solver: str = "PNDMScheduler"  # diffusers' class that the base ships to sample with

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    @property
    def latent_factor(self) -> int:
        """Image px per latent px."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def to(self, device: str | torch.device) -> "Base":
        for part in (self.text_encoder, self.vae, self.unet):
            part.to(device)
        return self

    @torch.no_grad()
    def embed(self, prompts: list[str]) -> torch.Tensor:
        """Prompt embeddings (B, tokens, width), padded to the tokenizer's full length as SD does."""
        return self.words(prompts)

    def words(self, prompts: list[str]) -> torch.Tensor:
        """`embed` with gradients, for a text encoder that learns."""
        ids = self.tokenizer(
            prompts,
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids
        return self.text_encoder(ids.to(self.text_encoder.device)).last_hidden_state

    @torch.no_grad()
    def encode(self, images: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Scaled latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1]; the mean without a generator."""
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        latents = posterior.mean if generator is None else posterior.sample(generator)
        return latents * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """uint8 RGB images (B, H, W, 3) of scaled latents (B, C, h, w)."""
        images = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        return to_uint8(images)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [-1, 1] -> uint8 (B, H, W, 3), rounded to nearest."""
    return ((images.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def from_uint8(images: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def resolve(base: str) -> str:
    return str(PHANTOM_BASE) if base == "phantom" else base


def load_base(
    base: str, precision: str = "fp32", revision: str | None = None, device: str = "cpu", with_unet: bool = True
) -> Base:
    """Load `base` ("phantom", a folder in diffusers layout, or a hub id), frozen and in eval mode.

    Without its UNet (None) a base still encodes photographs and prompts, in a fifth of the memory.

    Weights are read as safetensors only. Raises UserError when the folder lacks a part or the hub
    is out of reach.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from diffusers.schedulers import DDPMScheduler, PNDMScheduler
    from transformers import CLIPTextModel, CLIPTokenizer

    source = resolve(base)
    dtype = PRECISIONS[precision]
    common: dict[str, Any] = {"revision": revision} if not Path(source).exists() else {}
    words = Path(source) / "tokenizer"
    if not common and not any((words / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        # transformers would go on with an empty vocabulary, and every prompt would mean the same.
        raise UserError(f"The base model in the folder {source} has no tokenizer/vocab.json: name a complete one")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(source, subfolder="tokenizer", **common)
        text_encoder = CLIPTextModel.from_pretrained(
            source, subfolder="text_encoder", dtype=dtype, use_safetensors=True, **common
        )
        vae = AutoencoderKL.from_pretrained(source, subfolder="vae", torch_dtype=dtype, use_safetensors=True, **common)
        unet = None
        if with_unet:
            unet = UNet2DConditionModel.from_pretrained(
                source, subfolder="unet", torch_dtype=dtype, use_safetensors=True, **common
            )
        config = DDPMScheduler.load_config(source, subfolder="scheduler", **common)
    except OSError as error:
        where = f"the folder {source}" if Path(source).exists() else f"the hub id {source!r}"
        raise UserError(
            f"The base model could not be loaded from {where} ({str(error).splitlines()[0]}): name a folder in "
            "diffusers layout with safetensors weights, or a hub id while online"
        ) from error
    _require_prediction(source, config)
    make: Any = PNDMScheduler if config.get("_class_name") == "PNDMScheduler" else DDPMScheduler
    scheduler = make.from_config(config)
    parts: list[Any] = [text_encoder, vae, *([unet] if unet is not None else [])]
    for part in parts:
        part.requires_grad_(False)
        part.eval()
        part.to(device=device)
    if torch.device(device).type == "cuda":  # cuDNN's kernels for half precision want it; on a CPU last bits would move
        for part in parts[1:]:
            part.to(memory_format=torch.channels_last)
    return Base(tokenizer, text_encoder, vae, unet, scheduler, str(config.get("_class_name", Base.solver)))


def _require_prediction(source: str, config: dict[str, Any]) -> None:
    kind = config.get("prediction_type", "epsilon")
    if kind not in PREDICTIONS:
        raise UserError(
            f"The scheduler of the base model {source} has prediction_type {kind!r}, and fine-tuning knows "
            f"{' and '.join(PREDICTIONS)}: mend scheduler/scheduler_config.json, or name another base"
        )


def check_base(base: str) -> None:
    """UserError for a folder that is not there, or whose scheduler predicts what nobody knows; loads no weights.

    A hub id is taken at its word until it is loaded.
    """
    folder = Path(resolve(base))
    if not folder.is_dir():
        if folder.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1:
            raise UserError(f"There is no folder {base} with a base model: mend finetune.base")
        return
    config = folder / "scheduler" / "scheduler_config.json"
    if not config.is_file():
        raise UserError(f"The base model in the folder {folder} has no {config.name}: name a complete one")
    _require_prediction(str(folder), json.loads(config.read_text()))


def base_fingerprint(base: str, revision: str | None = None) -> str:
    """Identity of a base: content hash of a folder's weights and configs, or hub id and revision."""
    folder = Path(resolve(base))
    if not folder.exists():
        return fingerprint("hub", base, revision)
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".json", ".safetensors", ".txt"))
    if not files:
        raise UserError(f"The base folder {folder} holds no model: build it with `raydr base phantom` or name another")
    return fingerprint([(str(path.relative_to(folder)), sha256(path.read_bytes())) for path in files])
