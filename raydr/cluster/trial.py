"""One batch on each device type before hours are spent: does it fit in the GPU's memory?

A generator gets `generator_gpus` of a GPU, so that share of its memory is what its batch may take.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import ray

from raydr import lineage, terminal
from raydr.cluster import placement, staging
from raydr.config import Recipe, Sampler
from raydr.errors import UserError
from raydr.grades import GRADES
from raydr.identity import fingerprint
from raydr.shapes import Shape
from raydr.storage import Run

# Drivers, kernels and fragments that PyTorch does not count: 0.6 GiB on an L4.
OUTSIDE_BYTES = 700_000_000


@dataclass(frozen=True)
class Outcome:
    """`peak` bytes of one batch, at most `limit` of which may be taken; `fits` is False also where it ran out."""

    device: str
    peak: int
    limit: int
    fits: bool


class Memory(Protocol):
    """What is asked of a device."""

    device: str  # torch's name
    name: str

    def limit(self) -> int:
        """Bytes that may be taken."""

    def peak(self) -> int:
        """Most bytes that were taken."""


class Cuda:
    """The GPU of this worker, of which `share` is ours: PyTorch itself runs out at that."""

    device = "cuda"

    def __init__(self, share: float) -> None:
        import torch

        self._share = min(1.0, share)
        self.name = torch.cuda.get_device_name()
        torch.cuda.set_per_process_memory_fraction(self._share)
        torch.cuda.reset_peak_memory_stats()

    def limit(self) -> int:
        import torch

        return int(torch.cuda.mem_get_info()[1] * self._share) - OUTSIDE_BYTES

    def peak(self) -> int:
        import torch

        return torch.cuda.max_memory_reserved()


def attempt(work: Callable[[str], None], memory: Memory) -> Outcome:
    """Run `work(device)` and compare what it took with what it may."""
    import torch

    try:
        work(memory.device)
    except torch.OutOfMemoryError:
        return Outcome(memory.name, memory.peak(), memory.limit(), False)
    peak, limit = memory.peak(), memory.limit()
    return Outcome(memory.name, peak, limit, peak <= limit)


def generate(recipe: Recipe, target: Run, device: str) -> None:
    """One compute batch of a generator, in its static shape, and its verdict; two steps take the memory of thirty."""
    from raydr.diffusion.model import load_base
    from raydr.diffusion.sampler import PromptCache, decode, sample_latents

    # No generator's statistics are at hand, and where an image starts takes no memory.
    config: Sampler = dataclasses.replace(recipe.synthesize.sampler, steps=2, signal_leak=False)
    precision = config.precision if device == "cuda" else "fp32"
    source = staging.local(recipe.finetune.base, recipe.finetune.revision, target)
    base = load_base(source, precision, recipe.finetune.revision, device)
    seeds = list(range(config.batch))
    latents = sample_latents(base, PromptCache(base), "a fundus photograph", seeds, config, recipe.finetune.px)
    pixels = decode(base, latents, config.batch).cpu().numpy()
    judges = _judges(recipe, device)
    judges.probabilities(np.resize(pixels, (recipe.synthesize.shard_size, *pixels.shape[1:])))


def _judges(recipe: Recipe, device: str) -> Any:
    """The scoring members as they are before training: as large as those that score."""
    from raydr.grading.backbones import build
    from raydr.grading.ensemble import Ensemble, Meta

    graders = [member.grader for member in recipe.ensemble.members if member.role == "score"]
    blank = [dataclasses.replace(grader, pretrained=False, weights="") for grader in graders]
    return Ensemble([(build(grader), Meta("trial", grader, seed=0)) for grader in blank], device)


def finetune(recipe: Recipe, target: Run, device: str) -> None:
    """One step of a generator of every grade, on latents of noise; for ECC with its term and a batch of candidates."""
    import torch

    from raydr.diffusion.ecc import Pool
    from raydr.diffusion.latents import LatentCache
    from raydr.diffusion.model import load_base
    from raydr.diffusion.state import Photographs, Spec
    from raydr.diffusion.training import Trainer

    config = dataclasses.replace(recipe.finetune, accumulation=1, validate_every=0, ecc_steps=2)
    source = staging.local(config.base, config.revision, target)
    base = load_base(source, config.precision, config.revision, device)
    side = config.px // base.latent_factor
    shape = (len(GRADES), 2, base.vae.config.latent_channels, side, side)
    latents = LatentCache(torch.randn(shape), torch.ones(shape))
    ids = tuple(map(str, GRADES))
    role = Photographs(ids, np.array(GRADES), ("DDR",) * len(ids), latents)
    kind = "ecc" if "ecc" in config.kinds else "plain"
    trainer = Trainer(base, config, Spec("trial", kind, tuple(GRADES), "DDR", 0), role, role)
    if kind == "ecc":
        trainer.pool = Pool(latents.mean[:, 0], list(GRADES))
    trainer.run(1)
    if kind == "ecc":
        _judges(recipe, device).probabilities(trainer.own_candidates(GRADES[0], 0, range(config.ecc_merge)))
    trainer.close()


WORK: dict[str, Callable[[Recipe, Run, str], None]] = {"synthesize": generate, "finetune": finetune}


@ray.remote(max_retries=1, max_calls=1)  # a process of its own: its memory goes with it
def attempt_on_gpu(recipe: Recipe, url: str, stage: str, share: float) -> Outcome | None:
    """None where torch sees no GPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    return attempt(lambda device: WORK[stage](recipe, Run(url), device), Cuda(share))


def refusal(stage: str, outcome: Outcome, recipe: Recipe, share: float) -> str | None:
    """The sentence for a batch that does not fit; None for one that does."""
    if outcome.fits:
        return None
    of = f"the {outcome.limit / 2**30:.1f} GiB that {share:g} of a {outcome.device} gives"
    if stage == "synthesize":
        what, config = f"a batch of {recipe.synthesize.sampler.batch} images", recipe.synthesize.sampler
        advice = f"lower synthesize.sampler.batch (now {config.batch}) or raise --shape.generator-gpus"
    else:
        what, advice = f"{recipe.finetune.batch_pairs} pairs of photographs", "set finetune.gradient_checkpointing"
        if recipe.finetune.gradient_checkpointing:
            advice = f"lower finetune.batch_pairs (now {recipe.finetune.batch_pairs}) and raise finetune.accumulation"
    took = f"{outcome.peak / 2**30:.1f} GiB were taken"
    return f"{stage}: {what} at {recipe.finetune.px} px do not fit in {of} ({took}): {advice}, or take a larger GPU"


def gpu_share(shape: Shape, stage: str) -> float:
    """GPUs of one worker of a stage that a GPU's memory decides; 0 for the others."""
    return {"synthesize": shape.generator_gpus, "finetune": shape.train_gpus}.get(stage, 0.0)


def check(recipe: Recipe, target: Run, shape: Shape, stages: Sequence[str], devices: Sequence[str]) -> None:
    """Try the stages that a GPU's memory decides on one GPU of each of `devices`, once a run; UserError if one fails.

    `devices` are Ray's accelerator types ("" = any). What was tried is kept in the run and not tried again.
    """
    for stage in (stage for stage in stages if gpu_share(shape, stage)):
        share = gpu_share(shape, stage)
        for device in devices:
            config = lineage.inside(recipe, stage), recipe.finetune.px, recipe.finetune.base
            judges = lineage.inside(recipe, "ensemble")
            key = f"cache/trials/{stage}-{fingerprint(stage, config, judges, share, device)}.json"
            if target.exists(key):
                outcome = Outcome(**target.read_json(key))
            else:
                found = _ask(recipe, target, stage, share, device)
                if found is None:
                    continue
                outcome = found
                target.replace_json(key, dataclasses.asdict(outcome))
                used = f"{outcome.peak / 2**30:.1f} of {outcome.limit / 2**30:.1f} GiB"
                terminal.note(f"{stage}: a trial batch took {used} on {outcome.device}")
            sentence = refusal(stage, outcome, recipe, share)
            if sentence:
                target.delete(key)  # tried again with the next start: a neighbour may have held the memory
                raise UserError(sentence)


def _ask(recipe: Recipe, target: Run, stage: str, share: float, device: str) -> Outcome | None:
    options: dict[str, Any] = placement.options(share)
    if device:
        options["resources"] = {f"{placement.ACCELERATOR}{device}": 0.001}
    return ray.get(
        attempt_on_gpu.options(num_cpus=1, num_gpus=share, **options).remote(recipe, target.url, stage, share)
    )
