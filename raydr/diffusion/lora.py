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

    names = [f".{name}" for name, _ in unet.named_modules()]
    for target in config.targets:  # peft passes over a misspelt one as long as another matches
        if not any(name.endswith(f".{target}") for name in names):
            raise UserError(
                f"finetune.targets: {target!r} matches no layer of the base's UNet; attention has to_q, to_k"
            )
    adapter = LoraConfig(
        r=config.rank, lora_alpha=config.alpha, init_lora_weights="gaussian", target_modules=list(config.targets)
    )
    with torch.random.fork_rng(devices=[]):  # peft draws from the process's generator
        torch.manual_seed(seed)
        unet.add_adapter(adapter)
    parameters = [p for p in unet.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def remove(unet: Any) -> None:
    """Take the adapter and its wrappers off again: the UNet is its base once more, layer names included."""
    unet.unload_lora()
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
        """Fuse the LoRA of `folder`, or take its whole UNet where it was fully fine-tuned (None: the plain base).

        Raises UserError for weights of another base, and leaves the UNet as it was.
        """
        if str(folder) == self.current:
            return
        values = self._values(folder) if folder is not None else {}
        for name, weight in self._originals.items():
            self._weights[name].copy_(weight)
        for name, value in values.items():
            self._originals.setdefault(name, self._weights[name].clone())
            self._weights[name].copy_(value)
        self.current = str(folder)

    def _values(self, folder: Path) -> dict[str, torch.Tensor]:
        """The weights that `folder` asks for, under the UNet's names; all is checked before anything is changed."""
        if (folder / FULL).is_file():
            values = load_file(folder / FULL)
        else:
            layers, scale = read(folder)
            values = {}
            for layer, (down, up) in layers.items():
                name = f"{layer}.weight"
                weight = self._originals.get(name, self._weights.get(name))
                if weight is None or weight.shape != (up.shape[0], down.shape[1]):
                    raise UserError(f"The LoRA in {folder} was made for another base: its layer {layer} does not fit")
                delta = scale * (up.to(weight.device).float() @ down.to(weight.device).float())
                values[name] = (weight.float() + delta).to(weight.dtype)
        for name, value in values.items():
            if name not in self._weights or self._weights[name].shape != value.shape:
                raise UserError(f"The UNet in {folder} was made for another base: its weight {name} does not fit")
        return values
