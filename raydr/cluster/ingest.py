"""Sources -> `real`, as shards that are committed exactly once (Ray Data).

from raydr.cluster import ingest
ingest.run(recipe, "out")
"""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raydr import lineage, schema, shards
from raydr.cluster import session
from raydr.config import Recipe
from raydr.fundus.phantom import render
from raydr.fundus.phash import phash
from raydr.identity import rng_of, sha256
from raydr.images import encode
from raydr.storage import Run

# -- on the nodes ---------------------------------------------------------------------------------


def render_shard(batch: dict[str, np.ndarray], url: str, recipe: Recipe) -> dict[str, list[Any]]:
    """Render, encode and commit one shard of phantoms; returns what was committed."""
    plan = json.loads(batch["plan"][0])
    part = recipe.ingest.phantoms[plan["set"]]
    seed, px = lineage.phantom_seed(recipe, plan["set"]), recipe.ingest.px
    rows = []
    for index, grade in zip(plan["indices"], plan["grades"], strict=True):
        pixels, ledger = render(seed, index, grade, px, part.dataset)
        data = encode(pixels)
        rows.append(
            {
                "image_id": f"{part.dataset}/{part.split}-{index:06d}",
                "dataset": part.dataset,
                "split": part.split,
                "fold": None,
                "patient_id": None,
                "grade": grade,
                "gradable": True,
                "stratum": "phantom",
                "image": data,
                "width": px,
                "height": px,
                "source_width": None,
                "source_height": None,
                "sha256": sha256(data),
                "phash": phash(pixels),
                "lesions": json.dumps(ledger, separators=(",", ":")),
            }
        )
    table = pa.Table.from_pylist(rows, schema=schema.REAL)
    fingerprint = lineage.phantom_fingerprint(recipe, plan["set"])
    record = shards.commit(Run(url), plan["key"], table, schema.REAL, fingerprint)
    return {"key": [record.key], "rows": [record.rows]}


# -- on the driver --------------------------------------------------------------------------------


def plan_phantoms(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Shards of every phantom set; grades are shuffled over the set so that shards look alike."""
    for position, part in enumerate(recipe.ingest.phantoms):
        seed = lineage.phantom_seed(recipe, position)
        grades = rng_of("phantom-grades", seed).permutation(np.repeat(np.arange(5), part.counts))
        size = recipe.ingest.shard_size
        for number, start in enumerate(range(0, len(grades), size)):
            indices = list(range(start, min(start + size, len(grades))))
            yield {
                "key": f"real/phantom-{part.dataset}-{part.split}-{number:06d}.parquet",
                "set": position,
                "indices": indices,
                "grades": [int(grades[index]) for index in indices],
            }


def run(recipe: Recipe, out: str | Run) -> dict[str, Any]:
    """Write the phantom sets of `recipe` into `real`; returns counts per split. Resumes."""
    target = out if isinstance(out, Run) else Run(out)
    plans = list(plan_phantoms(recipe))
    done = shards.commits(target, "real")
    todo = []
    for plan in plans:
        fingerprint = lineage.phantom_fingerprint(recipe, plan["set"])
        todo += [plan] if shards.pending([plan["key"]], fingerprint, done) else []
    total = sum(len(plan["indices"]) for plan in plans)
    if todo:
        rows = [{"plan": json.dumps(plan)} for plan in todo]
        source = ray.data.from_items(rows, override_num_blocks=len(rows))
        committed = source.map_batches(
            render_shard, batch_size=1, fn_kwargs={"url": target.url, "recipe": recipe}, num_cpus=1
        )
        finished = total - sum(len(plan["indices"]) for plan in todo)
        with session.metered("ingest", total, "photographs") as meter:
            for row in committed.iter_rows():
                finished += row["rows"]
                session.report_to(meter, done=finished)
    shards.complete(target, "real", [plan["key"] for plan in plans])
    counts = {part.split: list(part.counts) for part in recipe.ingest.phantoms}
    return {"photographs": total, "rendered": sum(len(plan["indices"]) for plan in todo), "counts": counts}


def fingerprint_of(target: Run) -> str:
    """Identity of the photographs in a run: hash of every committed shard of `real`."""
    from raydr.identity import fingerprint

    return fingerprint(sorted((key, record.sha256) for key, record in shards.commits(target, "real").items()))
