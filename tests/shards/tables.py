"""The table of scores that the tests of shards write, read and damage: here, or in a process of its own."""

import io
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq

from raydr import shards
from raydr.schema import SCORES
from raydr.storage import Run

FINGERPRINT = "0123456789abcdef"
PLAN = [f"scores/e1/g1-{shard:06d}.parquet" for shard in range(3)]
ROWS = 8

# The same table in a process of its own: argv = url, first shard, one past the last, score offset.
WRITER = """
import sys
import pyarrow as pa
from raydr import shards
from raydr.schema import SCORES
from raydr.storage import Run

def table(shard, offset=0.0, rows=8):
    return pa.table({
        "sample_id": [f"g/g1/{shard * 8 + row}" for row in range(rows)],
        "ensemble_id": ["e1"] * rows,
        "probabilities": [[[0.1, 0.2, 0.3, 0.2, 0.2]] * 2] * rows,
        "score": [offset + shard + row / 100 for row in range(rows)],
        "disagreement": [0.0] * rows,
    })

if __name__ == "__main__":
    run, offset = Run(sys.argv[1]), float(sys.argv[4])
    print("ready", flush=True)
    sys.stdin.readline()
    for shard in range(int(sys.argv[2]), int(sys.argv[3])):
        key = f"scores/e1/g1-{shard:06d}.parquet"
        record = shards.commit(run, key, table(shard, offset), SCORES, "0123456789abcdef")
        print(record.sha256, flush=True)
"""


def make(shard: int, offset: float = 0.0, rows: int = ROWS) -> pa.Table:
    """Rows of `scores`, score = offset + shard + row / 100."""
    return pa.table(
        {
            "sample_id": [f"g/g1/{shard * ROWS + row}" for row in range(rows)],
            "ensemble_id": ["e1"] * rows,
            "probabilities": [[[0.1, 0.2, 0.3, 0.2, 0.2]] * 2] * rows,
            "score": [offset + shard + row / 100 for row in range(rows)],
            "disagreement": [0.0] * rows,
        }
    )


def commit_all(run: Run) -> None:
    """What a stage does: plan minus commits."""
    for key in shards.pending(PLAN, FINGERPRINT, shards.commits(run, "scores")):
        shards.commit(run, key, make(PLAN.index(key)), SCORES, FINGERPRINT)


def writer(run: Run, first: int, end: int, offset: float = 0.0, failpoint: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, run.url, str(first), str(end), str(offset)]
    environment = os.environ | {"RAYDR_FAILPOINT": failpoint, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def flip(run: Run, key: str) -> None:
    """Change one bit of the last page (of `score`): the footer stays readable, the checksum does not fit."""
    data = bytearray(run.read(key))
    column = pq.read_metadata(io.BytesIO(data)).row_group(0).column(3)
    data[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
    run.replace(key, bytes(data))
