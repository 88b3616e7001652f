"""Fine-tune one generator: instance, prior and ECC loss on cached latents, the same on 1 to N ranks.

Every draw (photograph, flip, timestep, noise) is keyed by (seed, step, position in the global batch)
and every candidate by (seed, refresh step, call), never by rank: a resumed run repeats an undisturbed
one, and more ranks learn the same thing up to the order of float sums. Gradients are summed over ranks
by `Ranks.sum`, which for adapters of ~50,000 weights costs nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydr.config import Finetune, Sampler
from raydr.diffusion import ecc, losses, watch
from raydr.diffusion.compiling import compile_unet, plain_unet
from raydr.diffusion.draws import Draws
from raydr.diffusion.leak import SignalLeak
from raydr.diffusion.model import PRECISIONS, Base, from_uint8
from raydr.diffusion.sampler import PromptCache, decode, sample_latents
from raydr.diffusion.state import Alone, Photographs, Ranks, Spec, State
from raydr.diffusion.weights import Weights
from raydr.errors import UserError
from raydr.identity import seed_of
from raydr.prompts import instance_prompt


@dataclass
class Trainer:
    """Trains `spec` on `base`; call `run`. The adapter stays on the base until `close`."""

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
    # Who makes ECC's candidates; None: the model itself.
    candidates: ecc.Candidates | None = None
    # Looks for copies of photographs in the grids, on rank 0.
    probe: watch.Probe | None = None
    # Embeddings known beforehand, by prompt: (tokens, width) each.
    embeddings: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.prompts = PromptCache(self.base, {} if self.config.train_text_encoder else self.embeddings)
        self.rows = self.instance.of_grades(self.spec.grades)
        for grade in self.spec.grades:
            if not (self.instance.grades == grade).any():
                raise UserError(
                    f"There is no training photograph of grade {grade} to fine-tune on: leave it out of "
                    "finetune.grades, or ingest some"
                )
        timesteps, offset = self.base.scheduler.config.num_train_timesteps, self.config.noise_offset
        self.draws = Draws(self.spec, self.instance, self.rows, self.prior, timesteps, offset)
        if self.config.gradient_checkpointing:
            self.base.unet.enable_gradient_checkpointing()
        self.weights = Weights(self.base, self.config, seed_of("lora", self.spec.seed))
        if self.config.compiled:
            compile_unet(self.base)
        self.pool = ecc.Pool()
        self.step = 0
        self.losses: list[tuple[int, float]] = []  # (step, validation loss)
        self._trained_seconds = 0.0  # since the last refresh

    def close(self) -> None:
        if self.config.compiled:
            plain_unet(self.base)
        self.weights.close()

    # -- state ---------------------------------------------------------------------------------

    def state(self) -> State:
        """A copy: nothing in it changes when training goes on."""
        pool = self.pool
        return State(
            self.step, **self.weights.state(), pool=pool.latents, pool_grades=list(pool.grades), pool_step=pool.step,
            validation=list(self.losses),
        )  # fmt: skip

    def restore(self, state: State) -> None:
        self.weights.restore(state)
        self.step, self.losses = state.step, list(state.validation)
        self.pool = ecc.Pool(state.pool, list(state.pool_grades), state.pool_step)

    # -- one step ------------------------------------------------------------------------------

    def run(
        self,
        until: int | None = None,
        checkpoint: Callable[[State], None] | None = None,
        urgent: Callable[[], bool] = lambda: False,
    ) -> None:
        """Train to step `until` (default: config.steps).

        `checkpoint(state)` is called every config.checkpoint_every steps, and after any step where `urgent()`
        says so; every rank must get the same answer.
        """
        config = self.config
        until = config.steps if until is None else until
        while self.step < until:
            if self._refresh_due():
                self._refresh()
            started = time.perf_counter()
            terms = self._optimize()
            seconds = time.perf_counter() - started
            self._trained_seconds += seconds
            self.step += 1
            event = {"event": "step", "generator_id": self.spec.generator_id, "step": self.step, "steps": config.steps}
            event |= terms | {"step_seconds": seconds}
            if self._looks(self.step):
                # Shapes of their own, each a minute to compile, for a few passes.
                with torch.compiler.set_stance("force_eager"):
                    event |= self._look()
            self._tensorboard(event)
            self.on_event(event)
            due = config.checkpoint_every and self.step % config.checkpoint_every == 0
            if checkpoint and (urgent() or due):
                checkpoint(self.state())

    def _looks(self, step: int) -> bool:
        """Whether after `step` steps the run is looked at."""
        every = self.config.validate_every
        return step == self.config.steps or (every > 0 and step % every == 0)

    def _refresh_due(self) -> bool:
        config = self.config
        since = self.step - config.ecc_start
        return self.spec.kind == "ecc" and since >= 0 and since % config.ecc_every == 0 and self.pool.step != self.step

    def _optimize(self) -> dict[str, float]:
        config, size = self.config, self.config.batch_pairs
        has_pool = self.spec.kind == "ecc" and len(self.pool) > 0
        total = size * config.accumulation
        totals = (total, total, total if has_pool else 0)
        self.weights.zero_grad()
        sums = torch.zeros(3, device=self.base.device)
        # The ECC term's own gradient takes a backward pass more, so only where the run is looked at anyway.
        apart = self.weights.zeros() if has_pool and self._looks(self.step + 1) else []
        # This rank's share of the whole step, in passes of at most `size` pairs: more ranks, fewer passes.
        mine = range(self.ranks.rank, total, self.ranks.world_size)
        for start in range(0, len(mine), size):
            part = list(mine[start : start + size])
            latents, prompts, noise, timesteps = self._batch(part, has_pool)
            sizes = (len(part), len(part), len(part) if has_pool else 0)
            noisy = self.base.scheduler.add_noise(latents, noise, timesteps)
            target = losses.prediction_target(self.base.scheduler, latents, noise, timesteps).to(self.base.device)
            # A compiled graph survives one backward pass alone: its buffers are reused, and a second one is wrong
            # (measured: a norm of .09 for .14).
            with torch.compiler.set_stance("force_eager" if apart else "default"):
                predicted = self._predict(noisy, timesteps, prompts)
            weight = None
            if config.min_snr:
                weight = losses.min_snr_weight(self.base.scheduler, timesteps, config.min_snr).to(self.base.device)
            loss, terms = losses.three_terms(predicted, target, sizes, totals, config.w_prior, config.w_ecc, weight)
            if apart:
                self.weights.add_gradients(config.w_ecc * terms[2], apart)
            (loss * self.weights.scale).backward()
            sums += torch.stack([term.detach() for term in terms])
        of_ecc = self.weights.norm(self.ranks, apart)
        norm = self.weights.gradients(self.ranks, sums)
        # Before the update: weights that are no numbers must never reach a checkpoint.
        if not torch.isfinite(sums).all() or not self.weights.acceptable(norm):
            raise UserError(
                f"The loss of {self.spec.generator_id} or its gradient is no number at step {self.step + 1}: lower "
                f"finetune.learning_rate ({config.learning_rate}); the last checkpoint is kept"
            )
        self.weights.update(norm, self.step)
        names = ("instance", "prior", "ecc")
        values = {name: float(value) for name, value in zip(names, sums, strict=True)}
        if not has_pool:
            values.pop("ecc")
        if apart and 0 < float(norm) < float("inf"):
            # |grad of w_ecc MSE_ecc| / |grad of L|, before clipping; above 1 where the terms pull apart.
            values["ecc_grad_share"] = float(of_ecc / norm)
        loss = sums[0] + config.w_prior * sums[1] + config.w_ecc * sums[2]
        return values | {"loss": float(loss), "grad_norm": float(norm)}

    def _predict(self, noisy: Tensor, timesteps: Tensor, prompts: list[str]) -> Tensor:
        dtype = PRECISIONS[self.config.precision]
        noisy = noisy.to(self.base.device, dtype).contiguous(memory_format=torch.channels_last)
        words = self.base.words(prompts) if self.config.train_text_encoder else self.prompts.batch(prompts)
        return self.base.unet(noisy, timesteps.to(self.base.device), words.to(self.base.device, dtype)).sample

    def _batch(self, positions: list[int], has_pool: bool) -> tuple[Tensor, list[str], Tensor, Tensor]:
        """`Draws.batch` of this step."""
        return self.draws.batch(self.step, positions, self.pool if has_pool else None)

    # -- explicit class conditioning -------------------------------------------------------------

    def _refresh(self) -> None:
        """Replace the pool by this rank's and every other rank's accepted candidates."""
        assert self.judge is not None, "ECC needs an ensemble"
        started = time.perf_counter()
        self.base.unet.eval()
        source = self.candidates or self.own_candidates
        self.pool = ecc.refresh(
            self.config, self.spec.grades, self.step, source, self.judge, self._encode, self.ranks
        )  # fmt: skip
        seconds, trained = time.perf_counter() - started, self._trained_seconds
        self._trained_seconds = 0.0
        event = {
            "event": "ecc",
            "generator_id": self.spec.generator_id,
            "step": self.step,
            "ecc_candidates": self.pool.num_candidates,
            "ecc_pool": len(self.pool),
            "ecc_acceptance": len(self.pool) / max(1, self.pool.num_candidates),
            # What the refresh took, and what the steps since the one before took (the first has none before it).
            "ecc_seconds": seconds,
            "train_seconds": trained,
        }
        self._tensorboard(event)
        self.on_event(event)

    def _encode(self, images: np.ndarray) -> Tensor:
        return self.base.encode(from_uint8(torch.from_numpy(images)).to(self.base.device)).float().cpu()

    def own_candidates(self, grade: int, step: int, calls: Sequence[int]) -> np.ndarray:
        """uint8 (len(calls) * ecc_batch, H, W, 3) from the weights as they are now; see `ecc.Candidates`."""
        config = self.config
        seeds = [seed_of("ecc", self.spec.seed, step, call, k) for call in calls for k in range(config.ecc_batch)]
        return self.sample(grade, seeds, config.ecc_steps, config.ecc_guidance, config.ecc_batch * config.ecc_merge)

    def sample(self, grade: int, seeds: Sequence[int], steps: int, guidance: float, batch: int) -> np.ndarray:
        """uint8 (B, H, W, 3) images of `grade` under the instance prompt, from the weights as they are now."""
        sampler = Sampler(
            self.config.ecc_sampler, steps, guidance, batch, self.config.precision,
            signal_leak=self.config.ecc_signal_leak,
        )  # fmt: skip
        prompt = instance_prompt(self.spec.dataset, grade)
        if self.config.train_text_encoder:
            self.prompts.clear()
        leak = self.leak if sampler.signal_leak else None
        latents = sample_latents(self.base, self.prompts, prompt, seeds, sampler, self.config.px, leak=leak)
        return decode(self.base, latents, batch).cpu().numpy()

    @cached_property
    def leak(self) -> SignalLeak:
        """Low frequencies of all training photographs, whatever their grade: tint and light do not tell it."""
        return SignalLeak.of(self.instance.latents.means(range(len(self.instance.image_ids))))

    # -- watching --------------------------------------------------------------------------------

    def validation_loss(self) -> float | None:
        """`watch.validation_loss` of the weights that would be saved now."""
        spec = self.spec
        with self.weights.averaged():
            return watch.validation_loss(
                self.validation, spec.grades, spec.dataset, spec.seed, self.base.scheduler, self._predict
            )

    def _look(self) -> dict[str, Any]:
        """Validation loss and whether it turned, on every rank; grid and memorisation probe on rank 0."""
        found: dict[str, Any] = {}
        loss = self.validation_loss()
        if loss is not None:
            self.losses.append((self.step, loss))
            found["validation"] = loss
            best = watch.turned(self.losses)
            if best is not None:
                found |= {"turned_at": best[0], "lowest_validation": best[1]}
        if self.ranks.rank == 0 and (self.writer is not None or self.probe is not None):
            images = self.grid()
            if self.probe is not None:
                found |= watch.probed(self.probe, np.concatenate(list(images)))
            if self.writer is not None:
                name = f"{self.spec.generator_id}/grid"
                self.writer.add_image(name, watch.tiled(images), self.step, dataformats="HWC")
        return found

    def grid(self) -> np.ndarray:
        """uint8 (grades, watch.NUM_GRID, H, W, 3) from noise that never changes, of the weights to be saved now."""
        seeds = [seed_of("grid", self.spec.seed, k) for k in range(watch.NUM_GRID)]
        steps = min(watch.GRID_STEPS, self.config.ecc_steps)
        with self.weights.averaged():
            guidance, count = self.config.ecc_guidance, watch.NUM_GRID
            return np.stack([self.sample(grade, seeds, steps, guidance, count) for grade in self.spec.grades])

    def _tensorboard(self, event: dict[str, Any]) -> None:
        if self.writer is None:
            return
        for name, value in event.items():
            if isinstance(value, float):
                self.writer.add_scalar(f"{self.spec.generator_id}/{name}", value, event["step"])
