"""A table of millions of rows on paper: seconds to plan, to resume, to verify, to select from and to report on it.

The sink's own commit makes the first shards. The rest of a tree are their bytes again under other keys, each with its
commit record and its start, not synced to the disk: a plan, a listing, a hash and a filter take what they would take of
156,250 different shards, and ten million rows are there in minutes instead of hours of fsync.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from raydr import schema, shards, terminal
from raydr.bench import workload
from raydr.config import Recipe
from raydr.identity import canonical, sha256
from raydr.images import encode
from raydr.leases import Attempt, Leases, Target
from raydr.ledger import ATTEMPTS, stem
from raydr.report import status
from raydr.storage import Run

GENERATOR, GRADE = "plain-g3-sleeping", 3
SHARD, SIDE = 64, 16
# So many shards are made by `shards.commit` itself; the rest repeat them.
TEMPLATES = 16
FINGERPRINT = "sleeping"


def measure(folder: Path, sizes: Sequence[int]) -> Iterator[dict[str, Any]]:
    """One tree that grows to each of `sizes` rows (at least one shard), looked at whenever it has one."""
    target, written = Run(str(folder / "tree")), 0
    for rows in sorted(sizes):
        wanted = max(1, rows // SHARD)
        clock = terminal.Clock()
        grow(target, written, wanted)
        made, written = wanted - written, wanted
        row: dict[str, Any] = {"rows": written * SHARD, "write_seconds_a_shard": clock.seconds / max(1, made)}
        row |= look(target, written)
        row["rss_bytes"] = psutil.Process().memory_info().rss
        terminal.line("bench", ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
        yield row


def look(target: Run, num_shards: int) -> dict[str, Any]:
    """Seconds of each command's work on a tree of which as many shards again are still to be made."""
    wanted = Target(GENERATOR, GRADE, 2 * num_shards, 0, 2 * num_shards)
    keys = [wanted.key(number) for number in range(2 * num_shards)]
    found: dict[str, Any] = {}
    found["plan_seconds"], todo = timed(lambda: shards.pending(keys, FINGERPRINT, shards.commits(target, "synthetic")))
    assert len(todo) == num_shards, (len(todo), num_shards)
    found["resume_seconds"], lease = timed(lambda: Leases(target, [wanted], "none", 3).lease(0, "node", "token"))
    assert lease is not None
    assert lease["number"] == num_shards, lease
    _forget_start(target, lease["key"])
    found["verify_seconds"], problems = timed(lambda: shards.verify(target))
    assert not problems, problems[:3]
    found["select_seconds"], chosen = timed(lambda: select(target))
    found["selected"] = chosen.num_rows
    found["status_seconds"], lines = timed(lambda: status.rows(target, Recipe(name="scaling")))
    assert int(lines[0][2]) == num_shards * SHARD, lines
    return found


def select(target: Run) -> pa.Table:
    """Ids, grades and scores of the paper's band: no image is opened."""
    band = (pc.field("score") >= 0.7) & (pc.field("score") <= 0.9) & (pc.field("grade") == GRADE)
    columns = ["sample_id", "grade", "index", "sha256", "score", "blank", "valid_fundus", "nearest_distance"]
    return shards.read(target, "synthetic", schema.SYNTHETIC, columns, band)


def grow(target: Run, start: int, stop: int) -> None:
    """Add the shards `start`..`stop` - 1."""
    key = Target(GENERATOR, GRADE, 1, 0, 1).key
    with terminal.bar("tree", stop - start, "shards") as bar:
        for number in range(start, min(stop, TEMPLATES)):
            commit_shard(target, number)
            _start(target, key(number))
        done = shards.commits(target, "synthetic")
        known = [done[key(number)] for number in range(min(stop, TEMPLATES))]
        data = [target.read(record.key) for record in known]
        for number in range(max(start, TEMPLATES), stop):
            template = number % TEMPLATES
            record = dataclasses.replace(known[template], key=key(number))
            target.create(record.key, data[template], sync=False)
            target.create(shards.record_key(record.key), canonical(record).encode(), sync=False)
            _start(target, record.key)
            if number % 500 == 0:
                bar.to(number - start)


def commit_shard(target: Run, number: int) -> None:
    """What the sink commits, with one grey image for all rows."""
    indices = list(range(number * SHARD, (number + 1) * SHARD))
    image = encode(np.full((SIDE, SIDE, 3), 90, np.uint8))
    scores = np.random.default_rng(number).random(SHARD).astype(np.float32)
    rows = {
        "sample_id": [f"{GENERATOR}/g{GRADE}/{index}" for index in indices],
        "generator_id": GENERATOR,
        "kind": "plain",
        "grade": GRADE,
        "index": indices,
        "seed": indices,
        "prompt": "a sleeping model",
        "image": image,
        "sha256": sha256(image),
        "blank": False,
        "valid_fundus": True,
        "nearest_image_id": "none",
        "nearest_distance": 1.0,
        "ensemble_id": "e-none",
        "probabilities": [[[0.2] * 5]] * SHARD,
        "score": scores,
        "synthetic": True,
    }
    accepted = int(((scores >= 0.7) & (scores <= 0.9)).sum())
    extra = {"accepted": accepted, "band": [0.7, 0.9], "seconds": 1.0, "ended": 0.0, "threshold": 0.0}
    extra |= {"node": "none", "host": "nowhere"}
    key = Target(GENERATOR, GRADE, 1, 0, 1).key(number)
    shards.commit(target, key, workload.fill(rows, SHARD, schema.SYNTHETIC), schema.SYNTHETIC, FINGERPRINT, extra)


def _start(target: Run, key: str) -> None:
    """The note of a start, as an earlier session left it; its folder first, which `record_start` would sync."""
    os.makedirs(target.path(f"{ATTEMPTS}/{stem(key)}"), exist_ok=True)
    shards.record_start(target, key, Attempt("earlier", 0, "none", "0").label())


def _forget_start(target: Run, key: str) -> None:
    for name, _ in target.list(f"{ATTEMPTS}/{stem(key)}"):
        target.delete(name)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    clock = terminal.Clock()
    answer = work()
    return clock.seconds, answer
