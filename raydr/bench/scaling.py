"""Synthesis on paper: sleeping models, so that what is measured is the framework alone.

    actors   images/s against generator actors; a perfect pool makes actors / seconds shards a second
    plan     the driver's CPU, memory and time to the first commit against planned rows
    tree     seconds to plan, resume, verify, select and report against rows that are there (see bench.trees)

An actor takes about 93 MB, so the curve ends at 64 of them. What lies beyond is derived: a line through the driver's
CPU-seconds against shards says how many shards a second one driver can pass on, and so how many GPUs it can feed.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from raydr import terminal
from raydr.bench import trees, workload
from raydr.bench.fits import fit
from raydr.bench.meter import recording
from raydr.bench.results import Result
from raydr.bench.trees import GENERATOR, GRADE, SHARD, SIDE
from raydr.cluster import session, synthesize
from raydr.config import Recipe, Sampler, Synthesize
from raydr.errors import UserError
from raydr.leases import Target
from raydr.shapes import Shape
from raydr.storage import Run

SLEEP_SECONDS = 2.0
MAKERS = "makers"
# Of a quarter each.
SINK_CPUS = 2
# Images a second of one H100 at SD 1.5's shapes, 30 guided steps in batches of 16: `bench gpu` measured 7.15 compiled.
ASSUMED_RATE = 7.0
GPUS = (1, 8, 64)
# More of one core the driver should not be busy with, or it is late for what it does not do often.
BUSY = 0.5


@dataclass(frozen=True)
class Sizes:
    """Where the curves are measured; an empty one is left out."""

    actors: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    planned: tuple[int, ...] = (10_000, 100_000, 1_000_000, 10_000_000)
    rows: tuple[int, ...] = (100_000, 1_000_000, 10_000_000)
    shards_each: int = 8  # of an actor

    def __post_init__(self) -> None:
        for number in (*self.actors, *self.planned, *self.rows):
            if number < 1:
                raise UserError(f"bench scaling takes sizes from 1, not {number}")


FULL = Sizes()
QUICK = Sizes(actors=(1, 2), planned=(10_000, 100_000), rows=(1_280, 6_400), shards_each=4)


def discs(seed: int, count: int) -> np.ndarray:
    """uint8 (count, SIDE, SIDE, 3): reddish discs that pass for fundus photographs, or no quota would ever be met."""
    axis = (np.arange(SIDE) + 0.5) / SIDE * 2 - 1
    disc = np.hypot(axis[:, None], axis[None, :]) < 1
    noise = np.random.default_rng(seed).integers(0, 20, (count, SIDE, SIDE, 1))
    return ((np.array([180, 90, 50]) + noise) * disc[:, :, None]).astype(np.uint8)


class Sleeping:
    """A maker (see cluster.generator) that makes discs and takes `seconds` a shard.

    The first shards wait until `of` makers are there: 32 of them import for a minute on two cores, and what the first
    ones do meanwhile is no pool's rate. `folder` is where they count each other.
    """

    threshold = 0.0

    def __init__(self, seconds: float, folder: str = "", of: int = 0) -> None:
        self._seconds, self._folder, self._of = seconds, Path(folder), of

    def rows(self, lease: dict[str, Any], indices: Sequence[int], beat: Any) -> pa.Table:
        if self._of:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / str(os.getpid())).touch()
            while len(os.listdir(self._folder)) < self._of:
                beat()
                time.sleep(0.1)
            self._of = 0
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
    assert target.local is not None
    how = {"seconds": seconds, "folder": str(target.local / MAKERS), "of": actors}
    work = synthesize.Work(recipe(), target, [wanted], "e-none", Sleeping, how)
    # What the actors leave is for sinks: with more, Ray starts a process for each of a hundred, on two cores at once.
    synthesize.drive(work, Shape(generators=actors, generator_cpus=(session.cpus() - SINK_CPUS) / actors))


def run(folder: Path, result: Result, sizes: Sizes) -> None:
    """Fill `result.scaling`; starts a Ray session with as many logical CPUs as the largest pool needs."""
    if sizes.actors or sizes.planned:
        with session.session(Shape(address="local", num_cpus=max((*sizes.actors, 2)) + 4, dashboard=False)):
            for number in sizes.actors:
                rows = result.scaling.setdefault("actors", [])
                rows.append(against_actors(folder, number, sizes.shards_each))
            for number in sizes.planned:
                result.scaling.setdefault("plan", []).append(against_planned(folder, number))
    rows = result.scaling.get("actors", [])
    speedups(result, rows)
    if len({row["shards"] for row in rows}) > 1:
        reach(result, rows)
    for row in trees.measure(folder, sizes.rows):
        result.scaling.setdefault("tree", []).append(row)


def speedups(result: Result, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows[1:]:
        first = rows[0]
        speedup = row["images_per_second"] / first["images_per_second"]
        name = f"{row['actors']} sleeping actors over {first['actors']}"
        result.add(name, speedup, "x", f"of {row['actors'] / first['actors']:g}")


def reach(result: Result, rows: Sequence[dict[str, Any]]) -> None:
    """What one driver could feed, from the CPU that a shard more costs it: derived, and said to be."""
    line = fit([(row["shards"], row["driver_cpu_seconds"]) for row in rows])
    most = max(row["actors"] for row in rows)
    result.add(
        "driver's CPU a shard", 1000 * line.each, "ms", f"line through runs of {rows[0]['actors']}..{most} actors"
    )
    images = SHARD * BUSY / line.each
    says = f"derived: shards of {SHARD}, the driver busy for {BUSY:.0%} of one core"
    result.add("images one driver can pass on", images, "images/s", says)
    result.add("H100s one driver can feed", images / ASSUMED_RATE, "GPUs", f"assumes {ASSUMED_RATE:g} images/s each")
    for gpus in GPUS:
        rate = min(gpus * ASSUMED_RATE, images)
        rests = f"assumes {ASSUMED_RATE:g} images/s a GPU (SD 1.5, 30 guided steps, 512 px, compiled: `bench gpu`)"
        if gpus > most:
            rests += f", and that what held to {most} actors holds to {gpus}"
        result.add(f"images a day on {gpus} H100", rate * 86_400, "images", rests)


def all_there(target: Run) -> float:
    """When the last of the makers came, in seconds since 1970."""
    assert target.local is not None
    return max(file.stat().st_mtime for file in (target.local / MAKERS).iterdir())


def against_actors(folder: Path, actors: int, shards_each: int) -> dict[str, Any]:
    target = Run(str(folder / f"actors-{actors}"))
    count = actors * shards_each
    with recording() as record:
        cpu = time.process_time()
        stream(target, actors, Target(GENERATOR, GRADE, count, 0, count), SLEEP_SECONDS)
        cpu = time.process_time() - cpu
    cpu -= record.watching
    points = workload.committed(target, "synthetic", record.started)
    # From the moment at which the last maker was there to the last commit: the first shards' commits come late, since
    # sinks start with them, and a line through all commits takes their catching up for speed.
    kept = [(0.0, all_there(target) - record.started), points[-1]]
    line, work = fit(kept), fit(record.cpu_points(kept))
    row = {
        "actors": actors,
        "images_per_second": 1 / line.each,
        "efficiency": SLEEP_SECONDS / (line.each * SHARD * actors),
        "startup_seconds": kept[0][1],
        "shards": count,
        "driver_cpu_seconds": cpu,
        "cpu_seconds_an_image": work.each,
        # Near the number of cores this machine is what bends the curve, and not the pool.
        "cores_busy": work.each / line.each,
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
