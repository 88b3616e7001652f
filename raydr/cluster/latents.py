"""`real` -> `latents`, `embeddings`: what the frozen parts of the base say of photographs and prompts, computed once.

    from raydr.cluster import latents
    latents.run(recipe, "out")

One shard of `real` gives one shard of `latents` with the VAE's posterior moments of each photograph and its mirror;
training draws a fresh sample at every step. Keys hold what identifies the numbers (base, px, precision, the shard of
`real`), so another base or a redone photograph never meets old latents, and a grown `real` costs the new shards only.
"""

import io
import json
import math
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from raydr import prompts, schema, selection, shards
from raydr.cluster import device, ensemble, placement, session, staging
from raydr.config import Recipe
from raydr.errors import DamagedData, MissingInput, UserError
from raydr.identity import fingerprint, sha256
from raydr.shapes import Shape
from raydr.storage import Run

# Splits that fine-tuning reads; test photographs are never encoded.
SPLITS = ("train", "validation", "prior")
# Photographs of one pass through the VAE (and as many mirrors) up to 256 px; SD 1.5's takes 20 GiB for 32 of 512 px
# in bf16, so larger ones go in fewer at a time.
BATCH, BATCH_PX = 32, 256

# -- on the nodes ---------------------------------------------------------------------------------


class Encode:
    """Actor of the encoder pool: one plan in, one committed shard out. The UNet is never loaded."""

    def __init__(self, url: str, recipe: Recipe, gpu: bool, num_threads: int) -> None:
        self._gpu, self._num_threads = gpu, num_threads
        self._run, self._config, self._px = Run(url), recipe.finetune, recipe.finetune.px
        self._base: Any = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """{rows: [photographs encoded], refused: [the sentence for the user, or ""]}"""
        try:
            return {"rows": [self.make(json.loads(str(batch["plan"][0])))], "refused": [""]}
        except UserError as error:
            return {"rows": [0], "refused": [str(error)]}

    def make(self, plan: dict[str, Any]) -> int:
        """Commit the shard of `plan`; returns how many photographs it holds."""
        if self._base is None:
            from raydr.diffusion.model import load_base

            config = self._config
            where = device.of_worker(self._gpu, self._num_threads)
            source = staging.local(config.base, config.revision, self._run)
            self._base = load_base(source, config.precision, config.revision, where, with_unet=False)
        table, columns = self._embed(plan) if "prompts" in plan else self._encode(plan)
        shards.commit(self._run, plan["key"], table, columns, plan["key"])
        return table.num_rows if columns is schema.LATENTS else 0

    def _encode(self, plan: dict[str, Any]) -> tuple[pa.Table, pa.Schema]:
        from raydr.diffusion.latents import encode
        from raydr.images import decode

        data = self._run.read(plan["real"])
        if sha256(data) != plan["sha256"]:
            raise DamagedData(f"{plan['real']} in {self._run.url} is damaged: run `raydr repair`, then `raydr ingest`")
        source = pq.read_table(io.BytesIO(data), columns=["sha256", "image"]).take(plan["rows"])
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            pixels = np.stack(list(pool.map(lambda data: decode(data, self._px), source["image"].to_pylist())))
        batch = max(1, BATCH * BATCH_PX**2 // max(self._px, BATCH_PX) ** 2)
        cache = encode(self._base, lambda part: pixels[part], len(pixels), batch)
        channels, height, width = cache.shape
        count = len(pixels)
        return pa.table(
            {
                "sha256": source["sha256"],
                "channels": pa.array([channels] * count, pa.int32()),
                "height": pa.array([height] * count, pa.int32()),
                "width": pa.array([width] * count, pa.int32()),
                "mean": pa.array([row.numpy().tobytes() for row in cache.mean], pa.large_binary()),
                "std": pa.array([row.numpy().tobytes() for row in cache.std], pa.large_binary()),
            }
        ), schema.LATENTS

    def _embed(self, plan: dict[str, Any]) -> tuple[pa.Table, pa.Schema]:
        words = [self._base.embed([prompt])[0].float().cpu().numpy() for prompt in plan["prompts"]]
        return pa.table(
            {
                "prompt": plan["prompts"],
                "tokens": pa.array([len(row) for row in words], pa.int32()),
                "width": pa.array([row.shape[1] for row in words], pa.int32()),
                "values": pa.array([row.tobytes() for row in words], pa.large_binary()),
            }
        ), schema.EMBEDDINGS


def load(target: Run, name: str, digests: list[str], is_first: bool, wait: Any) -> Any:
    """The `LatentCache` of these photographs, in their order; on each node read once into a file that ranks map.

    `name` is their `identity`. `is_first` is true for one rank a node, which makes the file; `wait()` returns when
    every rank has called it.
    """
    from raydr.diffusion.latents import LatentCache

    path = session.node_cache(target) / "latents" / f"{fingerprint(name, digests)}.safetensors"
    if is_first and not path.exists():
        _gather(target, name, digests).save(path)
    wait()
    return LatentCache.load(path)


def _gather(target: Run, name: str, digests: list[str]) -> Any:
    import torch

    from raydr.diffusion.latents import LatentCache

    rows: dict[str, list[int]] = {}
    for position, digest in enumerate(digests):
        rows.setdefault(digest, []).append(position)
    means = stds = None
    for batch in shards.dataset(target, f"latents/{name}", schema.LATENTS).to_batches(batch_size=64):
        for row in batch.to_pylist():
            shape = (2, row["channels"], row["height"], row["width"])
            if means is None or stds is None:
                means, stds = (np.empty((len(digests), *shape), np.float32) for _ in range(2))
            for position in rows.pop(row["sha256"], []):
                means[position] = np.frombuffer(row["mean"], np.float32).reshape(shape)
                stds[position] = np.frombuffer(row["std"], np.float32).reshape(shape)
    if rows or means is None or stds is None:
        raise MissingInput(f"{target.url} lacks the latents of {len(rows)} photographs: run `raydr finetune` again")
    return LatentCache(torch.from_numpy(means), torch.from_numpy(stds))


def embeddings(recipe: Recipe, target: Run, base: str) -> dict[str, Any]:
    """{prompt: (tokens, width) float32} of every prompt that training and sampling use; `base` is its fingerprint."""
    import torch

    table = shards.read(target, f"embeddings/{words_identity(recipe, base)}", schema.EMBEDDINGS)
    return {
        row["prompt"]: torch.from_numpy(
            np.frombuffer(row["values"], np.float32).reshape(row["tokens"], row["width"]).copy()
        )
        for row in table.to_pylist()
    }


# -- on the driver --------------------------------------------------------------------------------


def base_of(recipe: Recipe) -> str:
    """Fingerprint of the base; a node that has a staged copy alone could not compute it."""
    from raydr.diffusion.model import base_fingerprint

    return base_fingerprint(recipe.finetune.base, recipe.finetune.revision)


def identity(recipe: Recipe, base: str) -> str:
    """What the numbers depend on beside the photograph: base (its fingerprint), side and precision."""
    return fingerprint("latents", base, recipe.finetune.px, recipe.finetune.precision)[:12]


def words_identity(recipe: Recipe, base: str) -> str:
    return fingerprint("words", base, recipe.finetune.precision)[:12]


def plans(recipe: Recipe, target: Run) -> list[dict[str, Any]]:
    """One plan a shard of `real` that fine-tuning reads, and one for all prompts."""
    base = base_of(recipe)
    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    wanted = np.isin(np.asarray(real["split"].to_pylist(), dtype=object), SPLITS)
    name, found, start = identity(recipe, base), [], 0
    for key, record in shards.commits(target, "real").items():  # `read` gives rows in this order
        rows = np.flatnonzero(wanted[start : start + record.rows])
        start += record.rows
        if len(rows):
            stem = key.removeprefix("real/").removesuffix(".parquet")
            where = f"latents/{name}/{stem}-{record.sha256[:12]}.parquet"
            found.append({"key": where, "real": key, "sha256": record.sha256, "rows": rows.tolist()})
    datasets = sorted({str(name) for name in real["dataset"].filter(pa.array(wanted)).to_pylist()})
    words, folder = prompts.every_prompt(datasets), f"embeddings/{words_identity(recipe, base)}"
    found.append({"key": f"{folder}/{fingerprint(words)[:12]}.parquet", "prompts": words})
    return found


def run(recipe: Recipe, out: str | Run, shape: Shape | None = None) -> dict[str, int]:
    """Encode what is not there yet; returns {photographs, encoded}. Resumes."""
    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    wanted = plans(recipe, target)
    done = {**shards.commits(target, "latents"), **shards.commits(target, "embeddings")}
    todo = [plan for plan in wanted if plan["key"] not in done]
    total = sum(len(plan.get("rows", ())) for plan in wanted)
    left = sum(len(plan.get("rows", ())) for plan in todo)
    if todo:
        size = min(shape.generators, math.ceil(len(todo) / 4))
        with session.metered("latents", total, "photographs") as meter:
            finished = total - left
            stream = ray.data.from_items(
                [{"plan": json.dumps(plan)} for plan in todo], override_num_blocks=len(todo)
            ).map_batches(
                Encode,
                fn_constructor_kwargs={
                    "url": target.url,
                    "recipe": recipe,
                    "gpu": shape.train_gpus > 0,
                    # Not by what is left to encode: other threads sum in another order.
                    "num_threads": max(1, session.cpus() // shape.generators),
                },
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=size),
                num_cpus=shape.generator_cpus,
                num_gpus=shape.train_gpus or None,
                **placement.options(shape.train_gpus),
            )
            for row in stream.iter_rows():
                if row["refused"]:
                    raise UserError(row["refused"])
                finished += row["rows"]
                session.report_to(meter, done=finished)
    return {"photographs": total, "encoded": left}


def run_here(recipe: Recipe, target: Run, num_threads: int) -> None:
    """`run` in this process alone, without Ray."""
    done = {**shards.commits(target, "latents"), **shards.commits(target, "embeddings")}
    todo = [plan for plan in plans(recipe, target) if plan["key"] not in done]
    worker = Encode(target.url, recipe, False, num_threads) if todo else None
    for plan in todo:
        assert worker is not None
        worker.make(plan)


def parts(recipe: Recipe, target: Run, ranks: Any, base: str) -> dict[str, Any]:
    """{train, prior, validation: Photographs} with their latents, for one rank; `base` is its fingerprint."""
    from raydr.diffusion.state import Photographs

    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    name, found = identity(recipe, base), {}
    for part in ("train", "prior", "validation"):
        rows = prior_rows(real, recipe.fold) if part == "prior" else selection.part_of(real, part, recipe.fold)
        if not len(rows):  # a recipe without held-out photographs
            continue
        table = real.take(rows)
        digests = table["sha256"].to_pylist()
        cache = load(target, name, digests, ranks.local_rank == 0, lambda: ranks.gather(None))
        grades = np.asarray(table["grade"].fill_null(-1)).astype(np.int64)
        ids, datasets = tuple(table["image_id"].to_pylist()), tuple(table["dataset"].to_pylist())
        found[part] = Photographs(ids, grades, datasets, cache)
    return found


def prior_rows(real: pa.Table, fold: int | None) -> np.ndarray:
    """The paper's prior set: every photograph that may be learnt from, ungraded ones of the prior sets too."""
    rows = np.flatnonzero(np.asarray(real["split"].to_pylist(), dtype=object) == "prior")
    return np.concatenate([selection.part_of(real, "train", fold), rows])
