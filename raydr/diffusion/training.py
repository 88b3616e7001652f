"""Fine-tune one generator: instance, prior and ECC loss on cached latents, the same on 1 to N ranks.

Every draw (photograph, flip, timestep, noise) is keyed by (seed, step, position in the global batch)
and every candidate by (seed, refresh step, call), never by rank: a resumed run repeats an undisturbed
one, and more ranks learn the same thing up to the order of float sums. Gradients are summed over ranks
by `Ranks.sum`, which for adapters of ~50,000 weights costs nothing.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydr.config import Finetune, Sampler
from raydr.diffusion import ecc, lora, losses
from raydr.diffusion.model import PRECISIONS, Base, from_uint8
from raydr.diffusion.sampler import PromptCache, decode, sample_latents
from raydr.diffusion.state import Alone, Photographs, Ranks, Spec, State
from raydr.errors import UserError
from raydr.identity import rng_of, seed_of
from raydr.prompts import instance_prompt, prior_prompt

# Held-out photographs and timesteps of the validation loss: 16 x 4 terms, standard error ~2 %.
NUM_VALIDATION, VALIDATION_TIMESTEPS = 16, (100, 300, 500, 700)


@dataclass
class Trainer:
    """Trains `spec` on `base`; call `run`. The adapter stays on the base's UNet until `close`."""

    base: Base
    config: Finetune
    spec: Spec
    instance: Photographs
    prior: Photographs
    validation: Photographs | None = None
    # images uint8 (B, H, W, 3) -> probabilities (B, M, 5)
    judge: Callable[[np.ndarray], np.ndarray] | None = None
    ranks: Ranks = field(default_factory=Alone)
    on_event: Callable[[dict[str, Any]], None] = lambda event: None
    writer: Any = None  # a TensorBoard SummaryWriter, on rank 0

    def __post_init__(self) -> None:
        self.prompts = PromptCache(self.base)
        self.rows = self.instance.of_grades(self.spec.grades)
        for grade in self.spec.grades:
            if not (self.instance.grades == grade).any():
                raise UserError(
                    f"There is no training photograph of grade {grade} to fine-tune on: leave it out of "
                    "finetune.grades, or ingest some"
                )
        if self.config.full:
            self.base.unet.requires_grad_(True)
            self.parameters = list(self.base.unet.parameters())
        else:
            self.parameters = lora.add(self.base.unet, self.config, seed_of("lora", self.spec.seed))
        if self.config.gradient_checkpointing:
            self.base.unet.enable_gradient_checkpointing()
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.config.learning_rate, betas=(0.9, 0.999), weight_decay=self.config.weight_decay
        )
        self.pool: Tensor | None = None
        self.pool_grades: list[int] = []
        self.pool_step = -1
        self.step = 0

    def close(self) -> None:
        if not self.config.full:
            lora.remove(self.base.unet)

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> State:
        weights = dict(self.base.unet.state_dict()) if self.config.full else lora.state(self.base.unet)
        weights = {name: tensor.detach().cpu().clone() for name, tensor in weights.items()}
        # A copy: the optimizer's own moments would go on changing under whoever keeps the state.
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        return State(self.step, weights, optimizer, self.pool, list(self.pool_grades), self.pool_step)

    def restore(self, state: State) -> None:
        if self.config.full:
            self.base.unet.load_state_dict(state.weights)
        else:
            lora.load_state(self.base.unet, state.weights)
        self.optimizer.load_state_dict(state.optimizer)
        self.step, self.pool = state.step, state.pool
        self.pool_grades, self.pool_step = list(state.pool_grades), state.pool_step

    # -- one step ------------------------------------------------------------------------------

    def run(self, until: int | None = None, checkpoint: Callable[[State], None] | None = None) -> None:
        """Train to step `until` (default: config.steps); `checkpoint(state)` every config.checkpoint_every."""
        config = self.config
        until = config.steps if until is None else until
        while self.step < until:
            if self._refresh_due():
                self._refresh()
            terms = self._optimize()
            self.step += 1
            event = {"event": "step", "generator_id": self.spec.generator_id, "step": self.step, "steps": config.steps}
            event |= terms
            last = self.step == config.steps
            if last or (config.validate_every and self.step % config.validate_every == 0):
                event["validation"] = self.validation_loss()
            self._tensorboard(event)
            self.on_event(event)
            if checkpoint and config.checkpoint_every and self.step % config.checkpoint_every == 0:
                checkpoint(self.state())

    def _refresh_due(self) -> bool:
        config = self.config
        since = self.step - config.ecc_start
        return self.spec.kind == "ecc" and since >= 0 and since % config.ecc_every == 0 and self.pool_step != self.step

    def _optimize(self) -> dict[str, float]:
        config, size = self.config, self.config.batch_pairs
        has_pool = self.spec.kind == "ecc" and self.pool is not None and len(self.pool) > 0
        total = size * config.accumulation
        totals = (total, total, total if has_pool else 0)
        self.optimizer.zero_grad(set_to_none=True)
        sums = torch.zeros(3, device=self.base.device)
        for start in range(0, total, size):
            mine = list(range(start + self.ranks.rank, start + size, self.ranks.world_size))
            if not mine:
                continue
            latents, prompts, noise, timesteps = self._batch(mine, has_pool)
            sizes = (len(mine), len(mine), len(mine) if has_pool else 0)
            noisy = self.base.scheduler.add_noise(latents, noise, timesteps)
            target = losses.prediction_target(self.base.scheduler, latents, noise, timesteps).to(self.base.device)
            predicted = self._predict(noisy, timesteps, prompts)
            weight = None
            if config.min_snr:
                weight = losses.min_snr_weight(self.base.scheduler, timesteps, config.min_snr).to(self.base.device)
            loss, terms = losses.three_terms(predicted, target, sizes, totals, config.w_prior, config.w_ecc, weight)
            loss.backward()
            sums += torch.stack([term.detach() for term in terms])
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.ranks.sum([*gradients, sums])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, config.max_grad_norm)
        # Before the update: weights that are no numbers must never reach a checkpoint.
        if not torch.isfinite(sums).all() or not torch.isfinite(norm):
            raise UserError(
                f"The loss of {self.spec.generator_id} or its gradient is no number at step {self.step + 1}: lower "
                f"finetune.learning_rate ({config.learning_rate}); the last checkpoint is kept"
            )
        self.optimizer.step()
        names = ("instance", "prior", "ecc")
        values = {name: float(value) for name, value in zip(names, sums, strict=True)}
        if not has_pool:
            values.pop("ecc")
        loss = sums[0] + config.w_prior * sums[1] + config.w_ecc * sums[2]
        return values | {"loss": float(loss), "grad_norm": float(norm)}

    def _predict(self, noisy: Tensor, timesteps: Tensor, prompts: list[str]) -> Tensor:
        dtype = PRECISIONS[self.config.precision]
        noisy = noisy.to(self.base.device, dtype).contiguous(memory_format=torch.channels_last)
        words = self.prompts.batch(prompts).to(self.base.device, dtype)
        return self.base.unet(noisy, timesteps.to(self.base.device), words).sample

    def _batch(self, positions: list[int], has_pool: bool) -> tuple[Tensor, list[str], Tensor, Tensor]:
        """Latents (B, C, h, w), prompts, noise and timesteps: instances, then priors, then pool images."""
        latents, prompts, noises, timesteps = [], [], [], []
        num_timesteps = self.base.scheduler.config.num_train_timesteps
        for role in ("instance", "prior", "ecc")[: 3 if has_pool else 2]:
            for position in positions:
                rng = rng_of("finetune", self.spec.seed, self.step, role, position)
                noise_rng = torch.Generator().manual_seed(seed_of("noise", self.spec.seed, self.step, role, position))
                shape = self.instance.latents.mean.shape[2:]
                posterior, noise = torch.randn((2, *shape), generator=noise_rng)
                if self.config.noise_offset:
                    noise = noise + self.config.noise_offset * torch.randn((shape[0], 1, 1), generator=noise_rng)
                if role == "instance":
                    row = int(self.rows[rng.integers(len(self.rows))])
                    image = self.instance.latents.sample([row], [int(rng.integers(2))], posterior[None])[0]
                    prompt = instance_prompt(self.spec.dataset, int(self.instance.grades[row]))
                elif role == "prior":
                    row = int(rng.integers(len(self.prior.image_ids)))
                    image = self.prior.latents.sample([row], [int(rng.integers(2))], posterior[None])[0]
                    grade = int(self.prior.grades[row])
                    prompt = prior_prompt(self.prior.datasets[row], grade if grade >= 0 else None, rng)
                else:
                    assert self.pool is not None
                    k = int(rng.integers(len(self.pool)))
                    image = self.pool[k].flip(-1) if rng.integers(2) else self.pool[k]
                    prompt = instance_prompt(self.spec.dataset, self.pool_grades[k])
                latents.append(image)
                prompts.append(prompt)
                noises.append(noise)
                timesteps.append(int(rng.integers(num_timesteps)))
        return torch.stack(latents), prompts, torch.stack(noises), torch.tensor(timesteps)

    # -- explicit class conditioning -------------------------------------------------------------

    def _refresh(self) -> None:
        """Replace the pool by this rank's and every other rank's accepted candidates."""
        assert self.judge is not None, "ECC needs an ensemble"
        config, accepted = self.config, []
        self.base.unet.eval()
        for call in ecc.share(config.ecc_calls, self.ranks.rank, self.ranks.world_size):
            grade = self.spec.grades[call % len(self.spec.grades)]
            images = self._candidates(grade, call)
            kept = ecc.choose(self.judge(images), grade, config.ecc_keep, config.ecc_threshold, config.ecc_select)
            if len(kept):
                pixels = from_uint8(torch.from_numpy(images[kept])).to(self.base.device)
                accepted.append((call, grade, self.base.encode(pixels).float().cpu()))
        calls = sorted((item for rank in self.ranks.gather(accepted) for item in rank), key=lambda item: item[0])
        self.pool = torch.cat([latents for _, _, latents in calls]) if calls else None
        self.pool_grades = [grade for _, grade, latents in calls for _ in range(len(latents))]
        self.pool_step = self.step
        num_candidates = config.ecc_calls * config.ecc_batch
        event = {
            "event": "ecc",
            "generator_id": self.spec.generator_id,
            "step": self.step,
            "ecc_candidates": num_candidates,
            "ecc_pool": len(self.pool_grades),
            "ecc_acceptance": len(self.pool_grades) / num_candidates,
        }
        self._tensorboard(event)
        self.on_event(event)

    def _candidates(self, grade: int, call: int) -> np.ndarray:
        """uint8 (ecc_batch, H, W, 3) from the weights as they are now."""
        config = self.config
        seeds = [seed_of("ecc", self.spec.seed, self.step, call, k) for k in range(config.ecc_batch)]
        return self.sample(grade, seeds, config.ecc_steps, config.ecc_guidance, config.ecc_batch)

    def sample(self, grade: int, seeds: Sequence[int], steps: int, guidance: float, batch: int) -> np.ndarray:
        """uint8 (B, H, W, 3) images of `grade` under the instance prompt, from the weights as they are now."""
        sampler = Sampler(steps=steps, guidance=guidance, batch=batch, precision=self.config.precision)
        prompt = instance_prompt(self.spec.dataset, grade)
        latents = sample_latents(self.base, self.prompts, prompt, seeds, sampler, self.config.px)
        return decode(self.base, latents, batch).cpu().numpy()

    # -- watching --------------------------------------------------------------------------------

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """Mean squared error on held-out photographs of the grades, with noise and timesteps that never change."""
        if self.validation is None:
            return None
        rows = self.validation.of_grades(self.spec.grades)[:NUM_VALIDATION]
        if not len(rows):
            return None
        errors = []
        for timestep in VALIDATION_TIMESTEPS:
            rng = torch.Generator().manual_seed(seed_of("validation", self.spec.seed, timestep))
            latents = self.validation.latents.mean[torch.from_numpy(rows), 0]
            noise = torch.randn(latents.shape, generator=rng)
            timesteps = torch.full((len(rows),), timestep)
            noisy = self.base.scheduler.add_noise(latents, noise, timesteps)
            target = losses.prediction_target(self.base.scheduler, latents, noise, timesteps)
            prompts = [instance_prompt(self.spec.dataset, int(self.validation.grades[row])) for row in rows]
            predicted = self._predict(noisy, timesteps, prompts).float().cpu()
            errors.append(float((predicted - target).square().mean()))
        return float(np.mean(errors))

    def _tensorboard(self, event: dict[str, Any]) -> None:
        if self.writer is None:
            return
        for name, value in event.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{self.spec.generator_id}/{name}", value, event["step"])
        if event.get("validation") is not None:
            grade = self.spec.grades[0]
            seeds = [seed_of("grid", self.spec.seed, k) for k in range(4)]
            images = self.sample(grade, seeds, min(10, self.config.ecc_steps), self.config.ecc_guidance, 4)
            grid = np.concatenate(list(images), axis=1)
            self.writer.add_image(f"{self.spec.generator_id}/grid", grid, event["step"], dataformats="HWC")
