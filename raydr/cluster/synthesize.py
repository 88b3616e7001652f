"""Generators -> `synthetic`: tickets -> generate and score -> encode and commit, one streaming execution.

    from raydr.cluster import synthesize
    synthesize.run(recipe, "out")

Every sample is written, whatever its score; the band is chosen afterwards by `selection`.
"""

import json
import math
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raydr import lineage, schema, shards
from raydr.cluster import ensemble, finetune, placement, session, telemetry
from raydr.cluster.quota import Quota, Target
from raydr.cluster.sink import RAW, commit_shard
from raydr.config import Recipe
from raydr.errors import BudgetExhausted, MissingInput, UserError
from raydr.identity import fingerprint
from raydr.shapes import Shape
from raydr.storage import Run

# -- on the nodes ---------------------------------------------------------------------------------


class Generate:
    """Actor of the generator pool: leases a shard per ticket, samples it, scores it, gates it."""

    def __init__(self, url: str, recipe: Recipe, ensemble_id: str, quota: str, gpu: bool, num_threads: int) -> None:
        import torch

        from raydr.diffusion.lora import Fused
        from raydr.diffusion.model import load_base
        from raydr.diffusion.sampler import PromptCache

        torch.set_num_threads(num_threads)
        self._run, self._recipe, self._quota_name = Run(url), recipe, quota
        self._device = "cuda" if gpu and torch.cuda.is_available() else "cpu"
        self._device_name = (
            torch.cuda.get_device_name() if self._device == "cuda" else torch.backends.cpu.get_cpu_capability()
        )
        config = recipe.synthesize.sampler
        precision = config.precision if self._device == "cuda" else "fp32"
        self._base = load_base(recipe.finetune.base, precision, recipe.finetune.revision, self._device)
        for part in (self._base.unet, self._base.vae):
            part.to(memory_format=torch.channels_last)
        self._fused = Fused(self._base.unet)
        self._prompts = PromptCache(self._base)
        self._judges = ensemble.load(recipe, self._run, ensemble_id, "score", self._device)
        self._records: dict[str, dict[str, Any]] = {}
        self._gate = gate(recipe, self._run)
        self._node = ray.get_runtime_context().get_node_id()[:12]

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        quota = ray.get_actor(self._quota_name, namespace=session.NAMESPACE)
        lease: Any = ray.get(quota.lease.remote(int(batch["id"][0]), self._node))
        return RAW.empty_table() if lease is None else self.make(lease)

    def make(self, lease: dict[str, Any]) -> pa.Table:
        """All rows of one shard (schema RAW); the same bytes on every call."""
        from raydr.diffusion.sampler import decode, sample_latents
        from raydr.grading.ensemble import score

        config, started = self._recipe.synthesize, time.perf_counter()
        generator_id, grade = lease["generator_id"], lease["grade"]
        if generator_id not in self._records:
            folder = self._run.folder(f"generators/{generator_id}", session.node_cache(self._run))
            self._records[generator_id] = json.loads((folder / "generator.json").read_text()) | {"folder": folder}
        record = self._records[generator_id]
        self._fused.switch(record["folder"])
        first = lease["number"] * config.shard_size
        indices = list(range(first, first + config.shard_size))
        seeds = [lineage.sample_seed(self._recipe, record["seed"], grade, index) for index in indices]
        prompt, size = record["prompts"][str(grade)], config.sampler.batch
        images = []
        for start in range(0, len(seeds), size):
            part = seeds[start : start + size]
            with telemetry.timed("synthesize", "sample"):
                latents = sample_latents(self._base, self._prompts, prompt, part, config.sampler, record["px"])
                images.append(decode(self._base, latents, size).cpu().numpy())
        pixels = np.concatenate(images)
        with telemetry.timed("synthesize", "score"):
            probabilities = self._judges.probabilities(pixels)
        with telemetry.timed("synthesize", "memorisation gate"):
            nearest_ids, distances, _ = self._gate.check(pixels)
        count = len(indices)
        return pa.table(
            {
                "plan": [json.dumps(lease | {"threshold": self._gate.threshold})] * count,
                "index": indices,
                "seed": pa.array(seeds, pa.uint64()),
                "prompt": [prompt] * count,
                "pixels": pa.array([image.tobytes() for image in pixels], pa.large_binary()),
                "probabilities": pa.array(probabilities.tolist(), RAW.field("probabilities").type),
                "score": score(probabilities, grade),
                "nearest_image_id": nearest_ids,
                "nearest_distance": distances,
                "device": [self._device_name] * count,
                "seconds": np.full(count, (time.perf_counter() - started) / count, np.float32),
            },
            schema=RAW,
        )


def gate(recipe: Recipe, target: Run) -> Any:
    """The memorisation gate over every photograph that a generator of this run may have seen."""
    from raydr.grading import nearest

    table = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    seen = table.take(finetune.prior_rows(table, recipe.fold))
    digests = seen["sha256"].to_pylist()
    array = ensemble.image_array(target, recipe.finetune.px, [("real", schema.REAL)], digests)
    return nearest.fit(array, array.positions(digests), seen["image_id"].to_pylist(), seen["patient_id"].to_pylist())


# -- on the driver --------------------------------------------------------------------------------


def targets(recipe: Recipe, generators: list[lineage.Generator]) -> list[Target]:
    config = recipe.synthesize
    least = math.ceil(config.count / config.shard_size)
    most = max(least, config.max_images // config.shard_size) if config.accepted else least
    return [Target(g.generator_id, grade, least, config.accepted, most) for g in generators for grade in g.grades]


def versions() -> str:
    import diffusers
    import torch
    import transformers

    return f"torch {torch.__version__}, diffusers {diffusers.__version__}, transformers {transformers.__version__}"


def ready(recipe: Recipe, target: Run) -> None:
    """MissingInput where photographs, generators or the ensemble are not there."""
    if not shards.completed(target, "real"):
        raise MissingInput(f"{target.url} has no complete `real` table: run `raydr ingest` first")
    for generator in finetune.planned(recipe, target):
        if not target.uploaded(f"generators/{generator.generator_id}"):
            raise MissingInput(f"{target.url} lacks the generator {generator.generator_id}: run `raydr finetune` first")
    ensemble.require(recipe, target)


def run(recipe: Recipe, out: str | Run, shape: Shape | None = None) -> dict[str, Any]:
    """Generate until every target is met; returns counts and acceptance per generator and grade. Resumes.

    Raises BudgetExhausted when `max_images` ended before a quota was met.
    """
    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    config = recipe.synthesize
    ready(recipe, target)
    generators = finetune.planned(recipe, target)
    ensemble_id = ensemble.identity(recipe, target)
    wanted = targets(recipe, generators)
    done = shards.commits(target, "synthetic")
    for item in wanted:
        identity = lineage.synthetic_fingerprint(recipe, item.generator_id, ensemble_id)
        keys = [lineage.shard_key(item.generator_id, item.grade, number) for number in range(item.least)]
        shards.pending(keys, identity, done)  # refuses shards of another configuration
    name = f"quota-{fingerprint(target.url, time.time())}"
    quota = Quota.options(name=name, namespace=session.NAMESPACE, **session.here()).remote(  # type: ignore[attr-defined]
        target.url, wanted, config.max_starts
    )
    try:
        state = ray.get(quota.state.remote())
        if not state["met"]:
            _stream(recipe, target, shape, ensemble_id, name, wanted, quota)
            state = ray.get(quota.state.remote())
    finally:
        ray.kill(quota)
    if state["exhausted"]:
        raise BudgetExhausted(
            f"synthesize.max_images ended before the quota of {config.accepted} accepted images was met for "
            f"{', '.join(state['exhausted'])}: raise it, widen the band, or train the generator further"
        )
    if not any(row["accepted"] for row in state["targets"]) and config.accepted:
        raise UserError(f"No image lies in the band {config.band}: widen synthesize.band")
    return {"targets": state["targets"], "images": sum(row["shards"] for row in state["targets"]) * config.shard_size}


def _stream(
    recipe: Recipe, target: Run, shape: Shape, ensemble_id: str, name: str, wanted: list[Target], quota: Any
) -> None:
    """One streaming execution: tickets are as many as the budget allows; it ends when the quotas are met."""
    config = recipe.synthesize
    num_tickets = sum(item.most for item in wanted)
    gpu = shape.generator_gpus > 0
    total = sum(item.least for item in wanted) * config.shard_size
    stream = (
        ray.data.range(num_tickets, override_num_blocks=num_tickets)
        .map_batches(
            Generate,
            fn_constructor_kwargs={
                "url": target.url,
                "recipe": recipe,
                "ensemble_id": ensemble_id,
                "quota": name,
                "gpu": gpu,
                "num_threads": max(1, session.cpus() // shape.generators) if not gpu else 4,
            },
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                size=min(shape.generators, num_tickets), max_tasks_in_flight_per_actor=2
            ),
            num_cpus=shape.generator_cpus,
            num_gpus=shape.generator_gpus or None,
            **placement.options(shape.generator_gpus),
        )
        .map_batches(
            commit_shard,  # type: ignore[arg-type]  # takes a pyarrow table, by batch_format
            batch_size=None,
            batch_format="pyarrow",
            zero_copy_batch=True,
            fn_kwargs={
                "url": target.url,
                "recipe": recipe,
                "ensemble_id": ensemble_id,
                "quota": name,
                "versions": versions(),
            },
            num_cpus=0.25,
            **placement.options(),
        )
    )
    made = accepted = 0
    with session.metered("synthesize", total, "images") as meter:
        for row in stream.iter_rows():
            made, accepted = made + row["rows"], accepted + row["accepted"]
            session.report_to(meter, done=made, text=f"{accepted} in band")
            state = ray.get(quota.state.remote())
            telemetry.quota(state["targets"], wanted)
            if state["met"]:
                break
