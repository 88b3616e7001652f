"""The generator pool: what runs on the nodes between a ticket and a shard's raw pixels and scores."""

import itertools
import json
import os
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray

from raydr import lineage, schema, shards
from raydr.cluster import device, ensemble, latents, session, staging, telemetry
from raydr.cluster.sink import NOTHING, RAW, SAID, pack
from raydr.cluster.watched import Beat, Worker
from raydr.config import Recipe
from raydr.kinds import sampled
from raydr.leases import LATER
from raydr.storage import Run

# Seconds between a ticket's first questions while the shards in flight may suffice; then one.
FIRST_WAITS = (0.05, 0.1, 0.2, 0.5)


class Maker(Protocol):
    """Makes rows of a shard; the same bytes on every call, whatever else is asked for beside them."""

    # Smallest distance to a seen photograph at which an image is no memory of it; None where scorers know it.
    threshold: float | None

    def rows(self, lease: dict[str, Any], indices: Sequence[int], beat: Beat) -> pa.Table:
        """Rows of schema RAW for `indices`, without `plan` and `seconds`; calls `beat` whenever a step is done.

        Where a pool of scorers follows, the columns SAID are null.
        """


class Generate(Worker):
    """Actor of the generators' pool: leases a shard per ticket and has `maker(**arguments)`, a Maker, make its rows."""

    def __init__(
        self, maker: type, arguments: dict[str, Any], url: str, quota: str, hang_seconds: float, shard_size: int
    ) -> None:
        super().__init__(maker, arguments, url, quota, hang_seconds)
        self._shard_size = shard_size

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        if self._refused:
            raise self._refused
        self._token = secrets.token_hex(4)
        lease: Any = LATER
        for wait in itertools.chain(FIRST_WAITS, itertools.repeat(1.0)):
            lease = ray.get(self._quota().lease.remote(int(batch["id"][0]), self._node, self._token))
            if lease != LATER:
                break
            time.sleep(wait)
        # A row says that the ticket came back empty: the driver would wait in vain for an empty block.
        return NOTHING if lease is None else pack(self.make(lease))

    def make(self, lease: dict[str, Any]) -> pa.Table:
        """The rows of one shard (schema RAW) but for those that cannot be made, which are quarantined."""
        started = time.perf_counter()
        first = lease["number"] * self._shard_size
        indices = range(first, first + self._shard_size)
        table = self._survivors(lease, indices, lambda part, beat: self._maker.rows(lease, part, beat))
        plan = lease | {"threshold": self._maker.threshold, "node": self._node, "host": os.uname().nodename}
        seconds = np.full(table.num_rows, (time.perf_counter() - started) / table.num_rows, np.float32)
        table = table.append_column("plan", pa.array([json.dumps(plan)] * table.num_rows))
        return table.append_column("seconds", pa.array(seconds)).select(RAW.names).cast(RAW)


class Diffusion:
    """The maker of every real run: samples on one device and, with `judges`, has a Judge there say what it made."""

    def __init__(
        self, url: str, recipe: Recipe, ensemble_id: str, gpu: bool, num_threads: int, judges: bool = True
    ) -> None:
        import torch

        from raydr.diffusion.lora import Fused
        from raydr.diffusion.model import load_base
        from raydr.diffusion.sampler import PromptCache

        self._run, self._recipe = Run(url), recipe
        self._device = device.of_worker(gpu, num_threads)
        self._device_name = (
            torch.cuda.get_device_name() if self._device == "cuda" else torch.backends.cpu.get_cpu_capability()
        )
        config = recipe.synthesize.sampler
        precision = config.precision if self._device == "cuda" else "fp32"
        source = staging.local(recipe.finetune.base, recipe.finetune.revision, self._run)
        self._base = load_base(source, precision, recipe.finetune.revision, self._device)
        for part in (self._base.unet, self._base.vae):
            part.to(memory_format=torch.channels_last)
        if config.compiled:
            from raydr.diffusion.compiling import compile_parts

            compile_parts(self._base, session.node_cache(self._run) / "inductor")
        self._fused = Fused(self._base.unet, self._base.text_encoder)
        self._prompts = PromptCache(self._base)
        self._judge = Judge(url, recipe, ensemble_id, gpu, num_threads) if judges else None
        self.threshold = self._judge.threshold if self._judge else None
        self._records: dict[str, dict[str, Any]] = {}

    def rows(self, lease: dict[str, Any], indices: Sequence[int], beat: Beat) -> pa.Table:
        from raydr.diffusion.leak import SignalLeak
        from raydr.diffusion.sampler import decode, sample_latents

        config, generator_id, grade = self._recipe.synthesize, lease["generator_id"], lease["grade"]
        if generator_id not in self._records:
            folder = self._run.folder(f"generators/{generator_id}", session.node_cache(self._run))
            record = json.loads((folder / "generator.json").read_text())
            sampler = sampled(config.sampler, record["kind"])
            leak = SignalLeak.load(folder) if sampler.signal_leak else None
            # An imported pipeline is the base itself and adds nothing to it.
            weights = folder if record.get("adapter", True) else None
            self._records[generator_id] = record | {"weights": weights, "sampler": sampler, "leak": leak}
        record = self._records[generator_id]
        if self._fused.switch(record["weights"]):  # an adapted text encoder: the embeddings are another's
            self._prompts.clear()
        seeds = [lineage.sample_seed(self._recipe, record["seed"], grade, index) for index in indices]
        prompt, size = record["prompts"][str(grade)], config.sampler.batch
        images = []
        for start in range(0, len(seeds), size):
            part = seeds[start : start + size]
            with telemetry.timed("synthesize", "sample"):
                latents = sample_latents(
                    self._base, self._prompts, prompt, part, record["sampler"], record["px"], beat, record["leak"]
                )
                images.append(decode(self._base, latents, size).cpu().numpy())
        pixels, count = np.concatenate(images), len(indices)
        if self._judge:
            said = self._judge.columns(lease, indices, pixels, beat)
        else:
            said = {name: pa.nulls(count, RAW.field(name).type) for name in SAID}
        return pa.table(
            {
                "index": pa.array(indices, pa.int64()),
                "seed": pa.array(seeds, pa.uint64()),
                "prompt": [prompt] * count,
                "pixels": pa.array([image.tobytes() for image in pixels], pa.large_binary()),
                "device": [self._device_name] * count,
                **said,
            }
        )


class Judge:
    """The scorer of every real run: the ensemble and the memorisation gate on one device."""

    def __init__(self, url: str, recipe: Recipe, ensemble_id: str, gpu: bool, num_threads: int) -> None:
        target = Run(url)
        self._where = where = device.of_worker(gpu, num_threads)
        self._judges = ensemble.load(recipe, target, ensemble_id, "score", where)
        self._gate = gate(recipe, target)
        self.threshold = float(self._gate.threshold)

    def columns(
        self, lease: dict[str, Any], indices: Sequence[int], pixels: np.ndarray, beat: Beat
    ) -> dict[str, pa.Array]:
        """SAID of `pixels`, see scorer.Scorer."""
        from raydr.grading.ensemble import score

        with telemetry.timed("synthesize", "score"):
            probabilities = self._judges.probabilities(pixels)
        beat()
        with telemetry.timed("synthesize", "memorisation gate"):
            nearest_ids, distances, _ = self._gate.check(pixels, self._where)
        return {
            "probabilities": pa.array(probabilities.tolist(), RAW.field("probabilities").type),
            "score": pa.array(score(probabilities, lease["grade"])),
            "nearest_image_id": pa.array(nearest_ids, pa.string()),
            "nearest_distance": pa.array(distances),
        }


def gate(recipe: Recipe, target: Run) -> Any:
    """The memorisation gate over every photograph that a generator of this run may have seen."""
    from raydr.grading import nearest

    table = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    seen = table.take(latents.prior_rows(table, recipe.fold))
    digests = seen["sha256"].to_pylist()
    # At the side that it is looked at: 100,000 photographs of 512 px would be 79 GB on every node, these are 4.9. (PIL
    # shrinks these and torch the samples, which moves a distance by .03, of a threshold of .66.)
    array = ensemble.image_array(target, min(recipe.finetune.px, nearest.MOST), [("real", schema.REAL)], digests)
    return nearest.fit(array, array.positions(digests), seen["image_id"].to_pylist(), seen["patient_id"].to_pylist())
