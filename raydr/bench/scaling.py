"""Synthesis on paper: sleeping models, so that what is measured is the framework alone.

    actors   images/s against generator actors; a perfect pool makes actors / seconds shards a second
    plan     the driver's CPU, memory and time to the first commit against planned rows
    tree     seconds to list, resume, verify and select against rows that are there, written by the sink's own commit

One Data actor takes about 93 MB, so beyond 16 the curve is extrapolated from the driver's CPU a shard.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc

from raydr import schema, shards, terminal
from raydr.bench import workload
from raydr.bench.fits import fit, steady
from raydr.bench.meter import recording
from raydr.bench.results import Result
from raydr.cluster import session, synthesize
from raydr.config import Recipe, Sampler, Synthesize
from raydr.identity import sha256
from raydr.images import encode
from raydr.leases import Target
from raydr.shapes import Shape
from raydr.storage import Run

GENERATOR, GRADE = "plain-g3-sleeping", 3
SHARD = 64
SLEEP_SECONDS = 2.0
SIDE = 16
ACTORS = (1, 2, 4, 8, 16)
PLANNED = (10_000, 100_000, 1_000_000, 10_000_000)
ROWS = (12_800, 102_400)


def discs(seed: int, count: int) -> np.ndarray:
    """uint8 (count, SIDE, SIDE, 3): reddish discs that pass for fundus photographs, or no quota would ever be met."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    disc = np.hypot(axis[:, None], axis[None, :]) < 1
    noise = np.random.default_rng(seed).integers(0, 20, (count, SIDE, SIDE, 1))
    return ((np.array([180, 90, 50]) + noise) * disc[:, :, None]).astype(np.uint8)


class Sleeping:
    """A maker (see cluster.generator) that makes discs and takes `seconds` a shard."""

    threshold = 0.0

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def rows(self, lease: dict[str, Any], indices: Sequence[int], beat: Any) -> pa.Table:
        time.sleep(self._seconds)
        count = len(indices)
        pixels = discs(indices[0], count)
        return pa.table(
            {
                "index": pa.array(indices, pa.int64()),
                "seed": pa.array(indices, pa.uint64()),
                "prompt": ["a sleeping model"] * count,
                "pixels": pa.array([image.tobytes() for image in pixels], pa.large_binary()),
                "probabilities": pa.array([[[0.2] * 5]] * count, pa.list_(pa.list_(pa.float32()))),
                "score": pa.array([0.8] * count, pa.float32()),
                "nearest_image_id": ["none"] * count,
                "nearest_distance": pa.array([1.0] * count, pa.float32()),
                "device": ["none"] * count,
            }
        )


def recipe() -> Recipe:
    sampler = Sampler(batch=SHARD)
    return Recipe(name="scaling", synthesize=Synthesize(sampler=sampler, shard_size=SHARD, band=(0.0, 1.0)))


def stream(target: Run, actors: int, wanted: Target, seconds: float) -> None:
    """Synthesis itself, with a model that sleeps."""
    work = synthesize.Work(recipe(), target, [wanted], "e-none", Sleeping, {"seconds": seconds})
    synthesize.drive(work, Shape(generators=actors, generator_cpus=0.5))


def run(folder: Path, result: Result, quick: bool = False) -> None:
    """Fill `result.scaling`; starts a Ray session with as many logical CPUs as the largest pool needs."""
    actors, planned, rows = (ACTORS, PLANNED, ROWS) if not quick else (ACTORS[:2], PLANNED[:2], (1_280, 6_400))
    with session.session(Shape(num_cpus=max(actors) + 4, dashboard=False)):
        result.scaling["actors"] = [against_actors(folder, number, 4 if quick else 8) for number in actors]
        result.scaling["plan"] = [against_planned(folder, number) for number in planned]
    result.scaling["tree"] = against_rows(folder, rows)
    first = result.scaling["actors"][0]["images_per_second"]
    for row in result.scaling["actors"][1:]:
        speedup = row["images_per_second"] / first
        result.add(f"{row['actors']} sleeping actors over one", speedup, "x", f"of {row['actors']}")


def against_actors(folder: Path, actors: int, shards_each: int) -> dict[str, Any]:
    target = Run(str(folder / f"actors-{actors}"))
    count = actors * shards_each
    with recording() as record:
        cpu = time.process_time()
        stream(target, actors, Target(GENERATOR, GRADE, count, 0, count), SLEEP_SECONDS)
        cpu = time.process_time() - cpu
    points = workload.committed(target, "synthetic", record.started)
    # Shards land in waves as wide as the pool: a line through whole waves alone is not bent by the last one's rest.
    waves = points[actors - 1 :: actors]
    line = fit(steady(waves if len(waves) > 1 else points))
    row = {
        "actors": actors,
        "images_per_second": 1 / line.each,
        "efficiency": SLEEP_SECONDS / (line.each * SHARD * actors),
        "startup_seconds": points[0][1] - SLEEP_SECONDS,
        "driver_cpu_seconds_a_shard": cpu / count,
        "cpu_seconds_an_image": record.cpu_seconds / (count * SHARD),
        "peak_bytes": record.peak_bytes,
        "others": record.others,
    }
    terminal.line(
        "bench", f"{actors} actors: {row['images_per_second']:.0f} images/s, {row['efficiency']:.2f} of perfect"
    )
    return row


def against_planned(folder: Path, planned: int, wanted: int = 20) -> dict[str, Any]:
    """A budget of `planned` rows of which `wanted` shards are made: what the plan alone costs the driver."""
    target = Run(str(folder / f"plan-{planned}"))
    before = psutil.Process().memory_info().rss
    cpu, started = time.process_time(), time.time()
    stream(target, 2, Target(GENERATOR, GRADE, 1, wanted * SHARD, max(wanted, planned // SHARD)), 0.1)
    cpu, seconds = time.process_time() - cpu, time.time() - started
    after = psutil.Process().memory_info().rss
    points = workload.committed(target, "synthetic", started)
    row = {
        "planned_rows": planned,
        "driver_cpu_seconds": cpu,
        "driver_rss_bytes": after,
        "driver_rss_growth_bytes": after - before,
        "first_commit_seconds": points[0][1],
        "seconds": seconds,
        "shards_made": len(points),
    }
    terminal.line("bench", f"{planned} rows planned: first commit after {points[0][1]:.1f} s, driver {cpu:.1f} CPU-s")
    return row


def against_rows(folder: Path, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """One tree that grows to each of `sizes` rows, looked at whenever it has one."""
    target, found, written = Run(str(folder / "tree")), [], 0
    for rows in sizes:
        clock = terminal.Clock()
        with terminal.bar("tree", rows // SHARD, "shards") as bar:
            for number in range(written, rows // SHARD):
                commit_shard(target, number)
                bar.to(number)
        spent, made = clock.seconds, rows // SHARD - written
        written = rows // SHARD
        row: dict[str, Any] = {"rows": written * SHARD, "write_seconds_a_shard": spent / max(1, made)}
        wanted = Target(GENERATOR, GRADE, 2 * written, 0, 2 * written)
        keys = [wanted.key(number) for number in range(2 * written)]
        row["plan_seconds"], todo = timed(lambda: shards.pending(keys, "sleeping", shards.commits(target, "synthetic")))  # noqa: B023
        assert len(todo) == written, (len(todo), written)
        row["verify_seconds"], problems = timed(lambda: shards.verify(target))
        assert not problems, problems[:3]
        row["select_seconds"], chosen = timed(lambda: select(target))
        row["selected"] = chosen.num_rows
        found.append(row)
        terminal.line("bench", ", ".join(f"{name} {value:.4g}" for name, value in row.items()))
    return found


def select(target: Run) -> pa.Table:
    """Ids, grades and scores of the paper's band: no image is opened."""
    band = (pc.field("score") >= 0.7) & (pc.field("score") <= 0.9) & (pc.field("grade") == GRADE)
    columns = ["sample_id", "grade", "index", "sha256", "score", "blank", "valid_fundus", "nearest_distance"]
    return shards.read(target, "synthetic", schema.SYNTHETIC, columns, band)


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
    key = Target(GENERATOR, GRADE, 1, 0, 1).key(number)
    table = workload.fill(rows, SHARD, schema.SYNTHETIC)
    shards.commit(target, key, table, schema.SYNTHETIC, "sleeping", {"accepted": 0})


def timed(work: Any) -> tuple[float, Any]:
    clock = terminal.Clock()
    answer = work()
    return clock.seconds, answer
