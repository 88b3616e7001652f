"""The weights that fine-tuning learns, and all that moves them: adapter, AdamW, running mean, loss scale.

    mean <- mean + (1 - d) (w - mean),  d = min(ema, (1 + step) / (10 + step))

The warm-up of the decay keeps a short run from averaging in its untrained start.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from raydr.config import Finetune
from raydr.diffusion import lora
from raydr.diffusion.model import Base
from raydr.diffusion.state import Ranks, State

# fp16: gradients of SD's loss lie near 1e-5, under half precision's 6e-5; scaled up they are kept. The scale is halved
# where it overflows (that step is skipped, as everywhere) and doubled after so many steps without.
FIRST_SCALE, GROW_AFTER = 2.0**16, 2000


class Weights:
    """Adds what `config` asks for to `base` (LoRA, or all of the UNet) and trains it; `close` takes it off."""

    def __init__(self, base: Base, config: Finetune, seed: int) -> None:
        self.base, self.config = base, config
        self._untrained: dict[str, Tensor] = {}
        if config.full:
            self._untrained = {name: value.cpu().clone() for name, value in base.unet.state_dict().items()}
            base.unet.requires_grad_(True)
            self.parameters = list(base.unet.parameters())
        else:
            self.parameters = lora.add(base.unet, config, seed)
            if config.train_text_encoder:
                self.parameters += lora.add_text(base.text_encoder, config, seed)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.999), weight_decay=config.weight_decay
        )
        self.mean = [parameter.detach().clone() for parameter in self.parameters] if config.ema else []
        self.scale, self._steady = (FIRST_SCALE if config.precision == "fp16" else 1.0), 0

    def close(self) -> None:
        """The base is what it was: the next generator of the same process starts from it."""
        if self.config.full:
            self.base.unet.load_state_dict(self._untrained)
            self.base.unet.requires_grad_(False)
        else:
            lora.remove(self.base.unet)
            if self.config.train_text_encoder:
                lora.remove_text(self.base.text_encoder)

    # -- one step ------------------------------------------------------------------------------

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def zeros(self) -> list[Tensor]:
        """A zero for each weight, to add gradients to."""
        return [torch.zeros_like(parameter) for parameter in self.parameters]

    def add_gradients(self, loss: Tensor, to: list[Tensor]) -> None:
        """Add the gradient of `loss` (scaled) to `to`; its graph stays for the backward pass of the whole loss."""
        found = torch.autograd.grad(loss * self.scale, self.parameters, retain_graph=True, allow_unused=True)
        for total, gradient in zip(to, found, strict=True):
            if gradient is not None:
                total += gradient

    def norm(self, ranks: Ranks, gradients: list[Tensor]) -> Tensor:
        """Norm of scaled `gradients` of this rank's share, summed over ranks; 0 for an empty list."""
        if not gradients:
            return torch.zeros(())
        ranks.sum(gradients)
        return torch.nn.utils.get_total_norm(gradients) / self.scale

    def gradients(self, ranks: Ranks, sums: Tensor) -> Tensor:
        """Sum gradients and the loss terms `sums` over ranks, undo the scale, clip; returns the norm before."""
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        ranks.sum([*gradients, sums])
        if self.scale != 1:
            torch._foreach_div_(gradients, self.scale)
        return torch.nn.utils.clip_grad_norm_(self.parameters, self.config.max_grad_norm)

    def acceptable(self, norm: Tensor) -> bool:
        """A gradient that is no number is, under fp16, first of all a scale too large."""
        return bool(torch.isfinite(norm)) or self.scale > 1

    def update(self, norm: Tensor, step: int) -> None:
        if not torch.isfinite(norm):
            self.scale, self._steady = self.scale / 2, 0
            return
        self.optimizer.step()
        if self.config.precision == "fp16":
            self._steady += 1
            if self._steady == GROW_AFTER:
                self.scale, self._steady = self.scale * 2, 0
        if self.mean:
            decay = min(self.config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(self.mean, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """The running mean in place of the weights, where there is one."""
        if not self.mean:
            yield
            return
        last = [parameter.detach().clone() for parameter in self.parameters]
        self._set(self.mean)
        try:
            yield
        finally:
            self._set(last)

    @torch.no_grad()
    def _set(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    # -- state ---------------------------------------------------------------------------------

    def _named(self) -> dict[str, Tensor]:
        if self.config.full:
            return dict(self.base.unet.state_dict())
        named = dict(lora.state(self.base.unet))
        if self.config.train_text_encoder:
            named |= {f"{lora.TEXT}{name}": value for name, value in lora.state(self.base.text_encoder).items()}
        return named

    def state(self) -> dict[str, Any]:
        """The fields of `State` that are these weights'; copies, so that they stay when training goes on."""
        return {
            "weights": {name: tensor.detach().cpu().clone() for name, tensor in self._named().items()},
            "optimizer": _on_cpu(self.optimizer.state_dict()),
            "ema": [value.cpu().clone() for value in self.mean],
            "scale": (self.scale, self._steady),
        }

    def restore(self, state: State) -> None:
        if self.config.full:
            self.base.unet.load_state_dict(state.weights)
        else:
            text = {name: value for name, value in state.weights.items() if name.startswith(lora.TEXT)}
            lora.load_state(self.base.unet, {name: v for name, v in state.weights.items() if name not in text})
            if text:
                lora.load_state(self.base.text_encoder, {name.removeprefix(lora.TEXT): v for name, v in text.items()})
        self.optimizer.load_state_dict(state.optimizer)
        self.scale, self._steady = state.scale
        if self.mean:
            self.mean = [value.to(p.device) for value, p in zip(state.ema, self.parameters, strict=True)]

    def save(self, folder: Path) -> None:
        """Write the generator's weights in diffusers' layout: a LoRA, or the whole UNet."""
        with self.averaged():
            if self.config.full:
                self.base.unet.save_pretrained(folder / "unet")
            else:
                lora.save(self.base.unet, folder, self.base.text_encoder if self.config.train_text_encoder else None)


def _on_cpu(value: Any) -> Any:
    """A copy of nested state, its tensors on the CPU: AdamW's of all of SD 1.5's UNet would take 6.9 GB of a GPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _on_cpu(item) for key, item in value.items()}
    return [_on_cpu(item) for item in value] if isinstance(value, list | tuple) else value
