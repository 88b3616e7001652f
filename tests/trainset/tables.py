"""Runs with `real` and `synthetic` alone, written through shards.commit with tiny images."""

from functools import cache

import numpy as np
import pyarrow as pa

from raydr import identity, images, lineage, schema, shards
from raydr.storage import Run

THRESHOLD = 0.5


@cache
def picture(number: int) -> bytes:
    rng = np.random.default_rng(number)
    return images.encode(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))


def write_real(run: Run, counts, split="train", dataset="DDR", fold=None) -> None:
    """`counts` photographs per grade, 64 a shard."""
    rows = []
    for grade, count in enumerate(counts):
        for index in range(count):
            data = picture(1000 * grade + index)
            row = dict.fromkeys(schema.REAL.names)
            row |= {"image_id": f"{dataset}/{split}-{grade}-{index}", "dataset": dataset, "split": split, "fold": fold}
            row |= {"grade": grade, "gradable": True, "image": data, "width": 4, "height": 4}
            row |= {"sha256": identity.sha256(data), "patient_id": f"p{index}"}
            rows.append(row)
    for number, start in enumerate(range(0, len(rows), 64)):
        table = pa.Table.from_pylist(rows[start : start + 64], schema=schema.REAL)
        shards.commit(run, f"real/{dataset}-{split}-{number:06d}.parquet", table, schema.REAL, "real")


def write_samples(run: Run, generator: str, grade: int, scores, number=0, indices=None, threshold=THRESHOLD, **columns):
    """One shard: a sample a score; `columns` overrides whole columns."""
    count = len(scores)
    indices = list(range(number * count, (number + 1) * count)) if indices is None else indices
    pictures = [picture(index % 16) for index in indices]
    values = {item.name: pa.nulls(count, item.type) for item in schema.SYNTHETIC}
    values |= {
        "sample_id": [lineage.sample_id(generator, grade, index) for index in indices],
        "generator_id": [generator] * count,
        "kind": [generator.split("-")[0]] * count,
        "grade": pa.array([grade] * count, pa.int8()),
        "index": pa.array(indices, pa.int64()),
        "image": pa.array(pictures, pa.large_binary()),
        "sha256": [identity.sha256(data) for data in pictures],
        "blank": [False] * count,
        "valid_fundus": [True] * count,
        "nearest_distance": pa.array([1.0] * count, pa.float32()),
        "ensemble_id": ["e-1"] * count,
        "probabilities": pa.array([[[0.2] * 5] * 2] * count, schema.SYNTHETIC.field("probabilities").type),
        "score": pa.array(scores, pa.float32()),
    }
    key = lineage.shard_key(generator, grade, number)
    extra = {"accepted": 0, "seconds": 1.0, "threshold": threshold}
    return shards.commit(run, key, pa.table(values | columns), schema.SYNTHETIC, generator, extra)


def write_scores(run: Run, ensemble_id: str, generator: str, grade: int, scores, number=0):
    """The scores of another ensemble for the shard that `write_samples` made."""
    table = pa.table(
        {
            "sample_id": [lineage.sample_id(generator, grade, number * len(scores) + k) for k in range(len(scores))],
            "ensemble_id": [ensemble_id] * len(scores),
            "probabilities": pa.array([[[0.2] * 5]] * len(scores), schema.SCORES.field("probabilities").type),
            "score": pa.array(scores, pa.float32()),
            "disagreement": pa.array([0.0] * len(scores), pa.float32()),
        }
    )
    key = f"scores/{ensemble_id}/{generator}/g{grade}-{number:06d}.parquet"
    return shards.commit(run, key, table, schema.SCORES, ensemble_id)


def write_many(run: Run, num_rows: int) -> None:
    """`num_rows` samples of grades 1 and 3 in shards of 64, scores uniform in [0, 1]."""
    rng = np.random.default_rng(0)
    for number in range(-(-num_rows // 64)):
        grade = (1, 3)[number % 2]
        write_samples(run, f"plain-g{grade}-0", grade, rng.random(64), number // 2)


def spoil_images(run: Run, prefix: str) -> int:
    """Write over the stored image pages of every shard below `prefix`; returns the bytes that were spoiled."""
    import pyarrow.parquet as pq

    spoiled = 0
    for path in sorted(run.path(prefix).rglob("*.parquet")):
        group = pq.read_metadata(path).row_group(0)
        chunk = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "image")
        with open(path, "r+b") as file:
            file.seek(chunk.data_page_offset)
            file.write(b"\xff" * chunk.total_compressed_size)
        spoiled += chunk.total_compressed_size
    return spoiled
