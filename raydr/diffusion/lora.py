"""Low-rank adapters: made by peft, stored in diffusers' own layout, fused exactly and reversibly.

    W' = W + (alpha / rank) B A

The file is what `StableDiffusionPipeline.load_lora_weights` reads, and what diffusers' training
scripts write is read here.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from raydr.config import Finetune
from raydr.errors import DamagedData, MissingInput, UserError

WEIGHTS = "pytorch_lora_weights.safetensors"
FULL = "unet/diffusion_pytorch_model.safetensors"


def add(unet: Any, config: Finetune, seed: int) -> list[torch.nn.Parameter]:
    """Add a fresh adapter (A gaussian, B zero: the model still equals its base) and return its weights.

    Adapter weights are float32 whatever the base computes in, as AdamW needs.
    """
    from peft import LoraConfig

    torch.manual_seed(seed)
    unet.add_adapter(
        LoraConfig(
            r=config.rank, lora_alpha=config.alpha, init_lora_weights="gaussian", target_modules=list(config.targets)
        )
    )
    parameters = [p for p in unet.parameters() if p.requires_grad]
    if not parameters:
        raise UserError(f"finetune.targets {config.targets} match no layer of the base's UNet")
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def remove(unet: Any) -> None:
    """Take the adapter off again, so that the same base can carry the next one."""
    unet.delete_adapters("default")
    unet.requires_grad_(False)


def state(unet: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights under peft's names."""
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(unet)


def load_state(unet: Any, values: dict[str, torch.Tensor]) -> None:
    from peft.utils import set_peft_model_state_dict

    set_peft_model_state_dict(unet, values)


def save(unet: Any, config: Finetune, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors` with keys `unet.{layer}.lora.{up,down}.weight` and alpha in metadata."""
    from diffusers.utils import convert_state_dict_to_diffusers

    weights = convert_state_dict_to_diffusers(state(unet))
    tensors = {f"unet.{name}": tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # diffusers reads rank and alpha back from this entry; without it alpha = rank is assumed.
    adapter = {f"unet.{key}": value for key, value in unet.peft_config["default"].to_dict().items()}
    adapter = {key: sorted(value) if isinstance(value, set) else value for key, value in adapter.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(adapter, sort_keys=True, default=str)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata=metadata)


def read(folder: Path) -> tuple[dict[str, tuple[torch.Tensor, torch.Tensor]], float]:
    """({layer: (down (r, in), up (out, r))}, alpha / rank) of a folder in diffusers' layout."""
    path = folder / WEIGHTS
    if not path.is_file():
        raise MissingInput(f"There is no LoRA {WEIGHTS} in {folder}: run `raydr finetune` first")
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        metadata = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("unet.")
        for marker, part in ((".lora.down", "down"), (".lora.up", "up"), (".lora_A", "down"), (".lora_B", "up")):
            if marker in name:
                layers.setdefault(name.split(marker)[0], {})[part] = tensor
    if not layers or any(set(pair) != {"up", "down"} for pair in layers.values()):
        raise DamagedData(f"{path} holds no complete LoRA layers in diffusers' layout: train the generator again")
    rank = next(iter(layers.values()))["down"].shape[0]
    scale = metadata.get("unet.lora_alpha", rank) / rank
    return {name: (pair["down"], pair["up"]) for name, pair in layers.items()}, scale


class Fused:
    """A UNet whose adapter is part of its weights; switching keeps the base's weights bit for bit.

    The originals of the touched layers are kept (for a LoRA 1 % of SD 1.5) and every switch starts from them:
    subtracting an adapter again would leave rounding errors that depend on what was loaded before.
    """

    def __init__(self, unet: torch.nn.Module) -> None:
        self._weights = dict(unet.named_parameters())
        self._originals: dict[str, torch.Tensor] = {}
        self.current: str | None = None

    @torch.no_grad()
    def switch(self, folder: Path | None) -> None:
        """Fuse the LoRA of `folder`, or take its whole UNet where it was fully fine-tuned (None: the plain base)."""
        if str(folder) == self.current:
            return
        for name, weight in self._originals.items():
            self._weights[name].copy_(weight)
        full = folder / FULL if folder is not None else None
        if full is not None and full.is_file():
            for key, value in load_file(full).items():
                self._originals.setdefault(key, self._weights[key].clone())
                self._weights[key].copy_(value)
        elif folder is not None:
            layers, scale = read(folder)
            for name, (down, up) in layers.items():
                key = f"{name}.weight"
                if key not in self._weights or self._weights[key].shape != (up.shape[0], down.shape[1]):
                    raise UserError(f"The LoRA in {folder} was made for another base: its layer {name} does not fit")
                weight = self._weights[key]
                self._originals.setdefault(key, weight.clone())
                delta = scale * (up.to(weight.device).float() @ down.to(weight.device).float())
                weight.copy_((self._originals[key].float() + delta).to(weight.dtype))
        self.current = str(folder)
