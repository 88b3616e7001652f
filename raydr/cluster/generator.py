"""The generator pool: what runs on the nodes between a ticket and a shard's raw pixels and scores."""

import contextlib
import faulthandler
import json
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray

from raydr import lineage, schema, shards
from raydr.cluster import device, ensemble, latents, session, staging, telemetry
from raydr.cluster.quota import SHORT_ID
from raydr.cluster.sink import NOTHING, RAW
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.leases import TABLE
from raydr.storage import Run

Beat = Callable[[], None]


class Maker(Protocol):
    """Makes rows of a shard; the same bytes on every call, whatever else is asked for beside them."""

    # Smallest distance to a seen photograph at which an image is no memory of it.
    threshold: float

    def rows(self, lease: dict[str, Any], indices: Sequence[int], beat: Beat) -> pa.Table:
        """Rows of schema RAW for `indices`, without `plan` and `seconds`; calls `beat` whenever a step is done."""


class Watchdog:
    """Ends this process when no beat comes for `seconds` while something is watched."""

    def __init__(self, seconds: float, on_hang: Callable[[str, str], None]) -> None:
        self._seconds, self._on_hang = seconds, on_hang
        self._last: float | None = None
        threading.Thread(target=self._look, name="raydr-watchdog", daemon=True).start()

    def beat(self) -> None:
        self._last = time.monotonic()
        # Code that hangs without giving up the interpreter stops our thread too; this one needs no interpreter.
        faulthandler.dump_traceback_later(2 * self._seconds + 5, exit=True, file=2)

    @contextlib.contextmanager
    def watching(self) -> Iterator[Beat]:
        self.beat()
        try:
            yield self.beat
        finally:
            self._last = None
            faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, self._seconds / 4))
            last = self._last
            if last is not None and time.monotonic() - last > self._seconds:
                self._on_hang("hung", f"no step was finished for {self._seconds:g} s")
                os._exit(1)


class Generate:
    """Actor of the pool: leases a shard per ticket and has `maker(**arguments)` make its rows."""

    def __init__(
        self, maker: type, arguments: dict[str, Any], url: str, quota: str, shard_size: int, hang_seconds: float
    ) -> None:
        self._refused: UserError | None = None
        try:
            self._maker: Maker = maker(**arguments)
        except UserError as error:  # of what a constructor raises Ray keeps a traceback; the first call says it
            self._refused = error
        self._run, self._quota_name, self._shard_size = Run(url), quota, shard_size
        self._node = ray.get_runtime_context().get_node_id()[:SHORT_ID]
        self._token = ""
        self._watchdog = Watchdog(hang_seconds, self._say)

    def _quota(self) -> Any:
        return ray.get_actor(self._quota_name, namespace=session.NAMESPACE)

    def _say(self, kind: str, words: str) -> None:
        # The process ends after this, whether the quota hears of it or not.
        with contextlib.suppress(ray.exceptions.RayError, ValueError):
            ray.get(self._quota().note.remote(self._token, kind, words), timeout=5)

    def __call__(self, batch: dict[str, np.ndarray]) -> pa.Table:
        if self._refused:
            raise self._refused
        self._token = secrets.token_hex(4)
        lease: Any = ray.get(self._quota().lease.remote(int(batch["id"][0]), self._node, self._token))
        # A row says that the ticket came back empty: the driver would wait in vain for an empty block.
        return NOTHING if lease is None else self.make(lease)

    def make(self, lease: dict[str, Any]) -> pa.Table:
        """The rows of one shard (schema RAW) but for those that cannot be made, which are quarantined."""
        started = time.perf_counter()
        first = lease["number"] * self._shard_size
        with self._watchdog.watching() as beat:
            parts, poison = isolate(
                lambda indices: self._maker.rows(lease, indices, beat), range(first, first + self._shard_size)
            )
        if not parts:  # then it is not the rows: this process or its device is broken
            self._say("raised", f"every row raised, the last {poison[-1][1]}")
            os._exit(1)
        for index, reason in poison:
            name = lineage.sample_id(lease["generator_id"], lease["grade"], index)
            shards.quarantine(self._run, TABLE, name, "raised", reason)
        table = pa.concat_tables(parts).combine_chunks()
        plan = lease | {"threshold": self._maker.threshold, "node": self._node, "host": os.uname().nodename}
        seconds = np.full(table.num_rows, (time.perf_counter() - started) / table.num_rows, np.float32)
        table = table.append_column("plan", pa.array([json.dumps(plan)] * table.num_rows))
        return table.append_column("seconds", pa.array(seconds)).select(RAW.names).cast(RAW)


def isolate(
    make: Callable[[Sequence[int]], pa.Table], indices: Sequence[int]
) -> tuple[list[pa.Table], list[tuple[int, str]]]:
    """(tables of the rows that can be made, [(index, error) of those that raise]), found by halving.

    Pixels do not depend on neighbours, so the good rows are what they would have been. A user's mistakes are
    no fault of a row: they are raised.
    """
    try:
        return [make(indices)], []
    except UserError:
        raise
    except Exception as error:  # whatever a model or a codec raises: it is written down, and counted at the end
        if len(indices) == 1:
            return [], [(indices[0], f"{type(error).__name__}: {str(error)[:300]}")]
    half = len(indices) // 2
    left, right = isolate(make, indices[:half]), isolate(make, indices[half:])
    return left[0] + right[0], left[1] + right[1]


class Diffusion:
    """The maker of every real run: samples, scores and checks for memorised photographs on one device."""

    def __init__(self, url: str, recipe: Recipe, ensemble_id: str, gpu: bool, num_threads: int) -> None:
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
        self._judges = ensemble.load(recipe, self._run, ensemble_id, "score", self._device)
        self._records: dict[str, dict[str, Any]] = {}
        self._gate = gate(recipe, self._run)
        self.threshold = float(self._gate.threshold)

    def rows(self, lease: dict[str, Any], indices: Sequence[int], beat: Beat) -> pa.Table:
        from raydr.diffusion.leak import SignalLeak
        from raydr.diffusion.sampler import decode, sample_latents
        from raydr.grading.ensemble import score

        config, generator_id, grade = self._recipe.synthesize, lease["generator_id"], lease["grade"]
        if generator_id not in self._records:
            folder = self._run.folder(f"generators/{generator_id}", session.node_cache(self._run))
            leak = SignalLeak.load(folder) if config.sampler.signal_leak else None
            self._records[generator_id] = json.loads((folder / "generator.json").read_text()) | {
                "folder": folder,
                "leak": leak,
            }
        record = self._records[generator_id]
        if self._fused.switch(record["folder"]):  # an adapted text encoder: the embeddings are another's
            self._prompts.clear()
        seeds = [lineage.sample_seed(self._recipe, record["seed"], grade, index) for index in indices]
        prompt, size = record["prompts"][str(grade)], config.sampler.batch
        images = []
        for start in range(0, len(seeds), size):
            part = seeds[start : start + size]
            with telemetry.timed("synthesize", "sample"):
                latents = sample_latents(
                    self._base, self._prompts, prompt, part, config.sampler, record["px"], beat, record["leak"]
                )
                images.append(decode(self._base, latents, size).cpu().numpy())
        pixels = np.concatenate(images)
        with telemetry.timed("synthesize", "score"):
            probabilities = self._judges.probabilities(pixels)
        beat()
        with telemetry.timed("synthesize", "memorisation gate"):
            nearest_ids, distances, _ = self._gate.check(pixels)
        count = len(indices)
        return pa.table(
            {
                "index": pa.array(indices, pa.int64()),
                "seed": pa.array(seeds, pa.uint64()),
                "prompt": [prompt] * count,
                "pixels": pa.array([image.tobytes() for image in pixels], pa.large_binary()),
                "probabilities": pa.array(probabilities.tolist(), RAW.field("probabilities").type),
                "score": score(probabilities, grade),
                "nearest_image_id": nearest_ids,
                "nearest_distance": distances,
                "device": [self._device_name] * count,
            }
        )


def gate(recipe: Recipe, target: Run) -> Any:
    """The memorisation gate over every photograph that a generator of this run may have seen."""
    from raydr.grading import nearest

    table = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    seen = table.take(latents.prior_rows(table, recipe.fold))
    digests = seen["sha256"].to_pylist()
    array = ensemble.image_array(target, recipe.finetune.px, [("real", schema.REAL)], digests)
    return nearest.fit(array, array.positions(digests), seen["image_id"].to_pylist(), seen["patient_id"].to_pylist())
