"""The end of the synthesis stream: raw pixels and scores -> one committed shard. Runs on the nodes, on little CPU."""

import json
import math
import time
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raydr import acceptance, lineage, metrics, schema, shards
from raydr.cluster import session, telemetry
from raydr.config import Recipe
from raydr.fundus import plausible
from raydr.identity import sha256
from raydr.images import encode
from raydr.storage import Run

# What travels from the generator to the sink: raw pixels and scores, one row a sample.
RAW = pa.schema(
    [
        ("plan", pa.string()),  # the lease as JSON, equal in every row of a shard
        ("index", pa.int64()),
        ("seed", pa.uint64()),
        ("prompt", pa.string()),
        ("pixels", pa.large_binary()),
        ("probabilities", pa.list_(pa.list_(pa.float32()))),
        ("score", pa.float32()),
        ("nearest_image_id", pa.string()),
        ("nearest_distance", pa.float32()),
        ("device", pa.string()),
        ("seconds", pa.float32()),
    ]
)

# What is said of pixels: null until they are scored.
SAID = ("probabilities", "score", "nearest_image_id", "nearest_distance")
# What a ticket that got no shard brings back.
NOTHING = pa.table({"shard": pa.array([b""], pa.large_binary())})


def pack(table: pa.Table) -> pa.Table:
    """A shard as one row, which no stage can split or merge."""
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_stream(buffer, table.schema) as stream:
        stream.write_table(table)
    data = buffer.getvalue()
    ends = pa.py_buffer(np.array([0, data.size], np.int64))
    return pa.table({"shard": pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, data])})


def unpack(batch: pa.Table) -> pa.Table | None:
    """The shard that `pack` made one row of, not copied; None for NOTHING."""
    assert batch.num_rows == 1, f"{batch.num_rows} shards in one call"
    buffer = batch["shard"][0].as_buffer()
    return pa.ipc.open_stream(buffer).read_all() if buffer.size else None


def pixels_of(table: pa.Table) -> np.ndarray:
    """uint8 (B, px, px, 3) of rows of RAW."""
    px = math.isqrt(len(table["pixels"][0].as_py()) // 3)
    return np.stack([np.frombuffer(row, np.uint8).reshape(px, px, 3) for row in table["pixels"].to_pylist()])


def commit_shard(
    batch: pa.Table, url: str, recipe: Recipe, ensemble_id: str, quota: str, versions: str
) -> dict[str, list[Any]]:
    """Encode a shard's images losslessly and commit it; tells the quota what was accepted."""
    table = unpack(batch)
    if table is None:
        return {"rows": [0], "accepted": [0], "generator_id": [""], "grade": [-1]}
    config, target = recipe.synthesize, Run(url)
    lease = json.loads(table["plan"][0].as_py())
    assert len(set(table["plan"].to_pylist())) == 1, "rows of two shards"
    # Fewer where a row could not be made: the generator has quarantined it.
    planned = range(lease["number"] * config.shard_size, (lease["number"] + 1) * config.shard_size)
    indices = table["index"].to_pylist()
    assert sorted(set(indices)) == indices, "a shard's rows are doubled or out of order"
    assert set(indices) <= set(planned), (indices[0], indices[-1], lease)
    pixels = pixels_of(table)
    images = [encode(image) for image in pixels]
    count, generator_id, grade = table.num_rows, lease["generator_id"], lease["grade"]
    blank, fundus = plausible.is_blank(pixels), plausible.is_fundus(pixels)
    sampler = {
        "name": config.sampler.name,
        "steps": config.sampler.steps,
        "guidance": config.sampler.guidance,
        "batch": config.sampler.batch,
    }
    rows = pa.table(
        {
            "sample_id": [lineage.sample_id(generator_id, grade, i) for i in table["index"].to_pylist()],
            "generator_id": [generator_id] * count,
            "kind": [generator_id.split("-")[0]] * count,
            "fold": pa.array([recipe.fold] * count, pa.int8()),
            "grade": pa.array([grade] * count, pa.int8()),
            "index": table["index"],
            "seed": table["seed"],
            "prompt": table["prompt"],
            "sampler": pa.array([sampler] * count, schema.SAMPLER),
            "image": pa.array(images, pa.large_binary()),
            "sha256": [sha256(image) for image in images],
            "blank": blank,
            "valid_fundus": fundus,
            "nearest_image_id": table["nearest_image_id"],
            "nearest_distance": table["nearest_distance"],
            "ensemble_id": [ensemble_id] * count,
            "probabilities": table["probabilities"],
            "score": table["score"],
            "device": table["device"],
            "versions": [versions] * count,
            "synthetic": [True] * count,
            "disagreement": metrics.disagreement(np.array(table["probabilities"].to_pylist()), grade),
        }
    )
    scores, distances = np.asarray(table["score"]), np.asarray(table["nearest_distance"])
    accepted = int(acceptance.accepted(blank, fundus, scores, distances, config.band, lease["threshold"]).sum())
    extra = {"accepted": accepted, "band": list(config.band)}
    extra |= {"seconds": float(np.sum(table["seconds"])), "ended": time.time()}
    extra |= {name: lease[name] for name in ("threshold", "node", "host")}
    identity = lineage.synthetic_fingerprint(recipe, generator_id, ensemble_id)
    with telemetry.timed("synthesize", "commit"):
        shards.commit(target, lease["key"], rows, schema.SYNTHETIC, identity, extra)
    telemetry.shard(generator_id.split("-")[0], grade, scores.tolist(), accepted)
    actor = ray.get_actor(quota, namespace=session.NAMESPACE)
    ray.get(actor.finish.remote(generator_id, grade, lease["number"], accepted, count))
    return {"rows": [count], "accepted": [accepted], "generator_id": [generator_id], "grade": [grade]}
