"""The work that is measured, and how far it had come when: equal for the pipeline and the bare loops.

Both arms commit the same shards (or log the same steps), so the times of modification of what they leave behind are
the two progress curves. Sizes are for two cores; a stage's unit of work is the demo's.
"""

import io
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from raydr import lineage, schema, shards
from raydr.bench.fits import Point, waves
from raydr.bench.meter import Recording
from raydr.config import Ensemble, Finetune, Grader, Member, Recipe, Sampler, Sweep, Synthesize
from raydr.fundus.phantom import render
from raydr.identity import rng_of, sha256
from raydr.images import encode
from raydr.sources import Ingest, PhantomSet
from raydr.storage import Run

PROGRESS = "progress.json"
# Larger than what they are prepared to, so that decoding and crop have something to do.
PHOTOGRAPH_PX, PREPARED_PX = (1200, 900), 256
SHARD = 16


@dataclass(frozen=True)
class Sizes:
    """How much of each stage a run of the command measures."""

    repeats: int = 5
    phantom_shards: int = 96  # of 64, so that the smaller tasks at the end are a tenth of the run
    photographs: tuple[int, int] = (256, 2048)
    synthesis_shards: int = 6  # of SHARD images
    finetune_steps: int = 32
    trials: int = 6
    trial_steps: int = 80
    score_batches: int = 6
    score_shards: int = 128  # of 64 images
    peer_batches: int = 2
    ensemble_steps: int = 120
    jpegs: int = 4
    # Steps of the generator whose images are scored: enough that some lie in the band.
    prepared_steps: int = 40


FULL = Sizes()
QUICK = Sizes(
    repeats=1,
    phantom_shards=8,
    photographs=(32, 96),
    synthesis_shards=6,
    finetune_steps=10,
    trials=4,
    trial_steps=12,
    score_batches=2,
    score_shards=8,
    peer_batches=1,
    ensemble_steps=12,
    jpegs=2,
    prepared_steps=4,
)


def recipe(sizes: Sizes) -> Recipe:
    """The prepared run: photographs, three graders and one generator."""
    grader = Grader(backbone="test_resnet", steps=sizes.ensemble_steps, learning_rate=6e-3)
    return Recipe(
        name="bench",
        ingest=Ingest(
            phantoms=(
                PhantomSet("DDR", "train", (80, 40, 70, 30, 40)),
                PhantomSet("DDR", "validation", (10,) * 5),
                PhantomSet("DDR", "test", (20,) * 5),
                PhantomSet("EyePACS", "prior", (30, 10, 20, 10, 10)),
            )
        ),
        ensemble=Ensemble(
            members=tuple(Member(replace(grader, px=px), inner_fold=k, seed=k) for k, px in enumerate((64, 48, 64)))
        ),
        finetune=Finetune(grades=(3,), kinds=("plain",), steps=sizes.prepared_steps, validate_every=0),
        synthesize=Synthesize(
            count=sizes.synthesis_shards * SHARD, shard_size=SHARD, sampler=Sampler(batch=SHARD), band=(0.5, 0.95)
        ),
        sweep=Sweep(arms=("oversampling",), num_seeds=sizes.trials, grader=replace(grader, steps=sizes.trial_steps)),
    )


def phantoms(num_shards: int, px: int = 64) -> Recipe:
    """`num_shards` full shards of phantoms, the five grades in equal shares."""
    size = 64
    counts = tuple(len(part) for part in np.array_split(np.arange(num_shards * size), 5))
    part = PhantomSet("DDR", "train", counts)  # type: ignore[arg-type]
    return Recipe(name="bench", ingest=Ingest(px=px, shard_size=size, phantoms=(part,)))


def sources(px: int = PREPARED_PX) -> Recipe:
    """Photographs from a folder, prepared to `px` in shards of 32."""
    return Recipe(name="bench", ingest=Ingest(source="folder", px=px, shard_size=32))


def write_photographs(
    folder: Path, count: int, known: Path | None = None, size: tuple[int, int] = PHOTOGRAPH_PX
) -> Path:
    """`count` JPEG files of (width, height) `size` in the folder reader's layout, no two alike (see `patterned`).

    Those that the folder `known` holds are linked from there.
    """
    for index in range(count):
        name = Path("train") / str(index % 5) / f"{index:06d}.jpg"
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            continue
        if known is not None and (known / name).exists():
            os.link(known / name, path)
        else:
            path.write_bytes(patterned(index, size))
    return folder


def patterned(index: int, size: tuple[int, int], quality: int = 90) -> bytes:
    """A lit disc of blotches in a black frame of `size` = (width, height) px, as JPEG bytes: no two indices alike.

    A thousand of these are drawn in the time of thirty phantoms, and decoding does not care what it decodes.
    """
    side = min(size)
    coarse = rng_of("pattern", index).integers(0, 120, (24, 24, 1)) + np.array([110, 40, 10])
    eye = Image.fromarray(coarse.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    disc = Image.new("L", (side, side))
    ImageDraw.Draw(disc).ellipse((2, 2, side - 3, side - 3), fill=255)
    frame = Image.new("RGB", size)
    frame.paste(eye, ((size[0] - side) // 2, (size[1] - side) // 2), disc)
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def jpeg(index: int, size: tuple[int, int], quality: int = 90) -> bytes:
    """A photograph of `size` = (width, height) px as JPEG bytes: a phantom at 192 px, enlarged."""
    pixels, _ = render(seed=987_654, index=index, grade=index % 5, px=192)
    side = min(size)
    frame = Image.new("RGB", size)
    eye = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
    frame.paste(eye, ((size[0] - side) // 2, (size[1] - side) // 2))
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def write_samples(target: Run, num_shards: int, px: int = 64) -> None:
    """Shards of 64 "generated" images for a scorer: phantoms, the same 128 again and again under other names."""
    images = [encode(render(seed=987_656, index=k, grade=3, px=px)[0]) for k in range(128)]
    for number in range(num_shards):
        indices = range(64 * number, 64 * (number + 1))
        chosen = [images[index % len(images)] for index in indices]
        rows = {
            "sample_id": [lineage.sample_id("plain-g3-phantom", 3, index) for index in indices],
            "generator_id": "plain-g3-phantom",
            "kind": "plain",
            "grade": 3,
            "index": list(indices),
            "image": chosen,
            "sha256": [sha256(image) for image in chosen],
            "synthetic": True,
        }
        key = lineage.shard_key("plain-g3-phantom", 3, number)
        shards.commit(target, key, fill(rows, 64, schema.SYNTHETIC), schema.SYNTHETIC, "bench")


def fill(rows: dict[str, Any], count: int, table_schema: pa.Schema) -> pa.Table:
    """A table of `count` rows from lists and constants by column; columns that nobody names are null."""
    columns = {}
    for field in table_schema:
        value = rows.get(field.name)
        values = value if isinstance(value, list | np.ndarray | pa.Array | pa.ChunkedArray) else [value] * count
        columns[field.name] = values if isinstance(values, pa.Array) else pa.array(list(values), field.type)
    return pa.table(columns, schema=table_schema)


def two_workers(base: Recipe) -> Recipe:
    """Twice the pairs a step, so that each of two ranks has what one process had."""
    return replace(base, finetune=replace(base.finetune, batch_pairs=2 * base.finetune.batch_pairs))


def training(base: Recipe, steps: int) -> Recipe:
    return replace(base, finetune=replace(base.finetune, steps=steps, ecc_start=max(1, steps // 2)))


# -- how far it had come when ---------------------------------------------------------------------


def committed(run: Run, table: str, started: float) -> list[Point]:
    """(rows committed so far, seconds since `started`) of a local run, from its commit records."""
    records = shards.commits(run, table)
    times = sorted((run.path(shards.record_key(key)).stat().st_mtime, record.rows) for key, record in records.items())
    return cumulative([(moment, rows) for moment, rows in times], started)


def cumulative(events: list[tuple[float, float]], started: float) -> list[Point]:
    """(units so far, seconds since `started`) of events (time, units)."""
    points, total = [], 0.0
    for moment, units in sorted(events):
        total += units
        points.append((total, moment - started))
    return points


def logged(folder: Path, units: float) -> list[tuple[float, float]]:
    """(time, `units`) of every training step that TensorBoard files below `folder` hold, but for the last.

    The last step's entry also waits for the closing validation.
    """
    from tensorboard.compat.proto.event_pb2 import Event

    first_seen: dict[tuple[str, int], float] = {}
    for path in sorted(folder.rglob("events.out.tfevents.*")):
        data, position = path.read_bytes(), 0
        # Each record: length (8 bytes), its checksum (4), the event, a checksum (4).
        while position + 12 <= len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            event = Event.FromString(data[position + 12 : position + 12 + length])
            position += 16 + length
            if event.step:
                key = (str(path.parent), event.step)
                first_seen[key] = min(event.wall_time, first_seen.get(key, event.wall_time))
    return [(moment, units) for moment in sorted(first_seen.values())[:-1]]


def commits(target: Run, table: str, width: int = 1) -> Callable[[Recording], list[Point]]:
    """Progress of a run whose shards of `table` are its units' marks, made by `width` workers in step."""
    return lambda record: waves(committed(target, table, record.started), width)


def steps(target: Run, samples: float) -> Callable[[Recording], list[Point]]:
    """Progress of a training of `samples` a step."""
    return lambda record: cumulative(logged(target.path("logs"), samples), record.started)


def progress(target: Run) -> Callable[[Recording], list[Point]]:
    """Progress of a loop that ended with `save_progress`."""
    return lambda record: cumulative(target.read_json(PROGRESS)["events"], record.started)


def save_progress(run: Run, events: list[tuple[float, float]], **more: Any) -> None:
    run.replace_json(PROGRESS, {"events": events} | more)
