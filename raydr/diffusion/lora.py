"""Low-rank adapters: made by peft, stored in diffusers' own layout, fused exactly and reversibly.

    W' = W + (alpha / rank) B A

The file is what `StableDiffusionPipeline.load_lora_weights` reads, and what diffusers' training
scripts write is read here.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from raydr.config import Finetune
from raydr.errors import DamagedData, MissingInput, UserError

WEIGHTS = "pytorch_lora_weights.safetensors"
FULL = "unet/diffusion_pytorch_model.safetensors"
# The two models of a pipeline that a file can adapt, by the beginning of its keys.
UNET, TEXT = "unet.", "text_encoder."
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
_MARKERS = {
    ".lora_linear_layer.down": "down",
    ".lora_linear_layer.up": "up",
    ".lora.down": "down",
    ".lora.up": "up",
    ".lora_A": "down",
    ".lora_B": "up",
}


def add(unet: Any, config: Finetune, seed: int) -> list[torch.nn.Parameter]:
    """Add a fresh adapter (A gaussian, B zero: the model still equals its base) and return its weights.

    Adapter weights are float32 whatever the base computes in, as AdamW needs.
    """
    names = [f".{name}" for name, _ in unet.named_modules()]
    for target in config.targets:  # peft passes over a misspelt one as long as another matches
        if not any(name.endswith(f".{target}") for name in names):
            raise UserError(
                f"finetune.targets: {target!r} matches no layer of the base's UNet; attention has to_q, to_k"
            )
    with torch.random.fork_rng(devices=[]):  # peft draws from the process's generator
        torch.manual_seed(seed)
        unet.add_adapter(_adapter(config, config.targets))
    return _trainable(unet)


def add_text(text_encoder: Any, config: Finetune, seed: int) -> list[torch.nn.Parameter]:
    """The same for the attention of the text encoder."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(_adapter(config, TEXT_TARGETS), text_encoder)
    return _trainable(text_encoder)


def _adapter(config: Finetune, targets: Sequence[str]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=config.rank, lora_alpha=config.alpha, init_lora_weights="gaussian", target_modules=list(targets)
    )


def _trainable(model: Any) -> list[torch.nn.Parameter]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.data = parameter.data.float()
    return parameters


def remove(unet: Any) -> None:
    """Take the adapter and its wrappers off again: the UNet is its base once more, layer names included."""
    unet.unload_lora()
    unet.requires_grad_(False)


def remove_text(text_encoder: Any) -> None:
    from diffusers.utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(text_encoder)
    del text_encoder.peft_config
    text_encoder.requires_grad_(False)


def state(model: Any) -> dict[str, torch.Tensor]:
    """The adapter's weights under peft's names."""
    from peft.utils import get_peft_model_state_dict

    return get_peft_model_state_dict(model)


def load_state(model: Any, values: dict[str, torch.Tensor]) -> None:
    from peft.utils import set_peft_model_state_dict

    set_peft_model_state_dict(model, values)


def save(unet: Any, folder: Path, text_encoder: Any = None) -> None:
    """Write `pytorch_lora_weights.safetensors`: keys `unet.{layer}.lora.{up,down}.weight`, alpha in the metadata.

    An adapted text encoder's keys begin with `text_encoder.text_model.`, as in published files.
    """
    from diffusers.utils import convert_state_dict_to_diffusers

    tensors: dict[str, torch.Tensor] = {}
    adapters: dict[str, Any] = {}
    for prefix, inner, model in ((UNET, "", unet), (TEXT, "text_model.", text_encoder)):
        if model is None:
            continue
        weights = convert_state_dict_to_diffusers(state(model))
        for name, tensor in weights.items():
            tensors[f"{prefix}{inner}{name.removeprefix(inner)}"] = tensor.detach().cpu().contiguous()
        # diffusers reads rank and alpha back from this entry; without it alpha = rank is assumed.
        adapters |= {f"{prefix}{key}": value for key, value in model.peft_config["default"].to_dict().items()}
    adapters = {key: sorted(value) if isinstance(value, set) else value for key, value in adapters.items()}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(adapters, sort_keys=True, default=str)}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS, metadata=metadata)


def read(folder: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor, float]]:
    """{layer: (down (r, in), up (out, r), alpha / rank)} of a folder in diffusers' layout.

    Layers are named `unet.{module}` and `text_encoder.{module}`, the latter without `text_model.`.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise MissingInput(f"There is no LoRA {WEIGHTS} in {folder}: run `raydr finetune` first")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
            metadata = dict(json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}")))
    except (SafetensorError, OSError, ValueError, TypeError, RecursionError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DamagedData(f"{path} is no readable LoRA ({reason}): train the generator again") from None
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        for marker, part in _MARKERS.items():
            if marker in key:
                layers.setdefault(_layer(key.split(marker)[0]), {})[part] = tensor
                break
    if not layers or any(set(pair) != {"up", "down"} for pair in layers.values()):
        raise DamagedData(f"{path} holds no complete LoRA layers in diffusers' layout: train the generator again")
    found = {}
    for name, pair in layers.items():
        shapes = pair["down"].shape, pair["up"].shape
        rank = shapes[0][0] if shapes[0] else 0
        alpha = metadata.get(f"{TEXT if name.startswith(TEXT) else UNET}lora_alpha", rank)
        if rank == 0 or len(shapes[1]) < 2 or shapes[1][1] != rank or not isinstance(alpha, int | float):
            raise DamagedData(f"{path} holds no low-rank pair for {name}: train the generator again")
        found[name] = (pair["down"], pair["up"], alpha / rank)
    return found


def _layer(key: str) -> str:
    """Old files name the UNet's layers without a prefix."""
    if key.startswith(TEXT):
        return TEXT + key.removeprefix(TEXT).removeprefix("text_model.")
    return UNET + key.removeprefix(UNET)


class Fused:
    """A base whose adapter is part of its weights; switching keeps the base's weights bit for bit.

    The originals of the touched layers are kept (for a LoRA 1 % of SD 1.5) and every switch starts from them:
    subtracting an adapter again would leave rounding errors that depend on what was loaded before.
    """

    def __init__(self, unet: torch.nn.Module, text_encoder: torch.nn.Module | None = None) -> None:
        self._weights = {f"{UNET}{name}": weight for name, weight in unet.named_parameters()}
        if text_encoder is not None:
            for name, weight in text_encoder.named_parameters():
                self._weights[TEXT + name.removeprefix("text_model.")] = weight
        self._originals: dict[str, torch.Tensor] = {}
        self._text = False
        self.current: str | None = None

    @torch.no_grad()
    def switch(self, folder: Path | None) -> bool:
        """Fuse the LoRA of `folder`, or take its whole UNet where it was fully fine-tuned (None: the plain base).

        Returns whether the text encoder changed: embeddings made before are then another generator's. Raises
        UserError for weights of another base, and leaves all weights as they were.
        """
        if str(folder) == self.current:
            return False
        values = self._values(folder) if folder is not None else {}
        for name, weight in self._originals.items():
            self._weights[name].copy_(weight)
        for name, value in values.items():
            self._originals.setdefault(name, self._weights[name].clone())
            self._weights[name].copy_(value)
        self.current = str(folder)
        before, self._text = self._text, any(name.startswith(TEXT) for name in values)
        return before or self._text

    def _values(self, folder: Path) -> dict[str, torch.Tensor]:
        """The weights that `folder` asks for; all is checked before anything is changed."""
        if (folder / FULL).is_file():
            values = {f"{UNET}{name}": value for name, value in load_file(folder / FULL).items()}
        else:
            values = {}
            for layer, (down, up, scale) in read(folder).items():
                name = f"{layer}.weight"
                weight = self._originals.get(name, self._weights.get(name))
                # A convolution's down has its kernel, and its up is 1 x 1.
                fits = up.shape[2:].numel() == 1 and weight is not None
                if weight is None or not fits or weight.shape != (up.shape[0], *down.shape[1:]):
                    raise UserError(
                        f"The LoRA in {folder} was made for another base: its layer {layer.removeprefix(UNET)} does "
                        "not fit"
                    )
                up, down = (part.to(weight.device).float().flatten(1) for part in (up, down))
                values[name] = (weight.float() + scale * (up @ down).view_as(weight)).to(weight.dtype)
        for name, value in values.items():
            if name not in self._weights or self._weights[name].shape != value.shape:
                raise UserError(
                    f"The UNet in {folder} was made for another base: its weight {name.removeprefix(UNET)} does not fit"
                )
        return values
