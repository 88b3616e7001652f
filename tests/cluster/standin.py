"""A maker of images that takes milliseconds, and whose rows raise, crash or hang where a test wants it.

OUT/standin.json: {"load": seconds to get ready, "seconds": a shard, "sink_seconds": of its sink,
"raise": [sample ids], "crash": [...], "hang": [...], "score_seconds": a shard's, "score_raise": [...],
"score_crash": [...], "once": bool}; "once" spares a row that has crashed or hung its process before.
While there is a file OUT/hold, every shard in flight waits.
"""

import os
import time

import numpy as np
import pyarrow as pa

from raydr.cluster import sink
from raydr.cluster.sink import RAW, SAID
from raydr.identity import rng_of, seed_of
from raydr.lineage import Generator, sample_id
from raydr.storage import Run

PX = 16
GENERATORS = (Generator("plain-g1-standin", "plain", (1,), 5, ""), Generator("ecc-g3-standin", "ecc", (3,), 6, ""))
ENSEMBLE = "e-standin"


def pixels_of(name):
    """uint8 (PX, PX, 3): a reddish disc on black, with noise of its own."""
    axis = (np.arange(PX) + 0.5) / PX * 2 - 1
    disc = (np.hypot(axis[:, None], axis[None, :]) < 0.9)[..., None]
    noise = rng_of("standin", name).integers(-30, 30, (PX, PX, 3))
    return ((np.array([150, 90, 50]) + noise) * disc).astype(np.uint8)


def score_of(name):
    return float(np.float32(rng_of("standin score", name).uniform()))


def commit_shard(table, url, **more):
    """The real sink, in the middle of a sleep: long enough to be caught at work."""
    plan = plan_of(Run(url))
    time.sleep(plan.get("sink_seconds", 0.0) / 2)
    told = sink.commit_shard(table, url, **more)
    time.sleep(plan.get("sink_seconds", 0.0) / 2)
    return told


class Standin:
    threshold = 0.0

    def __init__(self, url, recipe, ensemble_id, gpu, num_threads, judges=True):
        self._run, self._judges = Run(url), judges
        self._plan = plan_of(self._run)
        time.sleep(self._plan.get("load", 0.0))

    def rows(self, lease, indices, beat):
        names = [sample_id(lease["generator_id"], lease["grade"], index) for index in indices]
        for name in names:
            time.sleep(self._plan.get("seconds", 0.0) / 8)
            beat()
            while self._run.exists("hold"):
                time.sleep(0.05)
                beat()
            if name in self._plan.get("raise", ()):
                raise RuntimeError(f"poison in {name}")
            if self._first_time("crash", name):
                os.kill(os.getpid(), 11)
            while self._first_time("hang", name):
                time.sleep(3600)
        pixels = [pixels_of(name).tobytes() for name in names]
        return pa.table(
            {
                "index": pa.array(indices, pa.int64()),
                "seed": pa.array([seed_of(name) for name in names], pa.uint64()),
                "prompt": ["standin"] * len(names),
                "pixels": pa.array(pixels, pa.large_binary()),
                "device": ["none"] * len(names),
                **(
                    said_of(names)
                    if self._judges
                    else {name: pa.nulls(len(names), RAW.field(name).type) for name in SAID}
                ),
            }
        )

    def _first_time(self, what, name):
        return first_time(self._run, self._plan, what, name)


class Judge:
    """The pool that scores, as Standin itself would."""

    threshold = 0.0

    def __init__(self, url, recipe, ensemble_id, gpu, num_threads):
        self._run = Run(url)
        self._plan = plan_of(self._run)

    def columns(self, lease, indices, pixels, beat):
        names = [sample_id(lease["generator_id"], lease["grade"], index) for index in indices]
        for name, image in zip(names, pixels, strict=True):
            assert (image == pixels_of(name)).all(), "the pixels of another row"
            time.sleep(self._plan.get("score_seconds", 0.0) / 8)
            beat()
            if name in self._plan.get("score_raise", ()):
                raise RuntimeError(f"cannot judge {name}")
            if first_time(self._run, self._plan, "score_crash", name):
                os.kill(os.getpid(), 11)
        return said_of(names)


def plan_of(run):
    return run.read_json("standin.json") if run.exists("standin.json") else {}


def first_time(run, plan, what, name):
    """Whether `what` shall happen to the row now: every time, or with "once" the first."""
    if name not in plan.get(what, ()):
        return False
    first = run.create(f"{what}-{name.replace('/', '-')}", b"")
    return first or not plan.get("once")


def said_of(names):
    return {
        "probabilities": pa.array([[[0.2] * 5]] * len(names), RAW.field("probabilities").type),
        "score": pa.array([score_of(name) for name in names], pa.float32()),
        "nearest_image_id": pa.array(["nobody"] * len(names)),
        "nearest_distance": pa.array(np.ones(len(names), np.float32)),
    }
