"""Tickets: what a stream of unknown length is made of. Whoever takes one asks the quota what to do."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa
import ray
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from raydr.cluster import placement
from raydr.cluster.packing import READER_CPUS

SCHEMA = pa.schema([("id", pa.int64())])


def tickets(count: int) -> ray.data.Dataset:
    """`count` rows {"id": number}, a block each.

    `ray.data.range` reads with a whole CPU on any node: where a generator of half a CPU sits on every 1-CPU node
    none is free, and Ray waits for ever.
    """
    return ray.data.read_datasource(
        Tickets(count), override_num_blocks=count, num_cpus=READER_CPUS, **placement.options()
    )


class Tickets(Datasource):
    """Read tasks that the driver pickles by reference.

    Ray Data makes all of them before the first block. Those of its own RangeDatasource hold three functions by value
    each, 1.8 ms of the driver's CPU a ticket: 28 s for a plan of a million images in shards of 64.
    """

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def estimate_inmemory_data_size(self) -> int:
        return 8 * self._count

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        metadata = BlockMetadata(num_rows=1, size_bytes=8, input_files=None, exec_stats=None)
        return [ReadTask(partial(_blocks, number), metadata, schema=SCHEMA) for number in range(self._count)]


def _blocks(number: int) -> Iterator[pa.Table]:
    yield pa.table({"id": [number]}, schema=SCHEMA)
