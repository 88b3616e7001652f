"""The pool of scorers, where a shape asks for one; else the generator's own actor says what it made."""

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray

from raydr.cluster.sink import NOTHING, RAW, pack, pixels_of, unpack
from raydr.cluster.watched import Beat, Worker


class Scorer(Protocol):
    """Scores rows of a shard; the same numbers on every call, whatever else is asked for beside them."""

    # Smallest distance to a seen photograph at which an image is no memory of it.
    threshold: float

    def columns(
        self, lease: dict[str, Any], indices: Sequence[int], pixels: np.ndarray, beat: Beat
    ) -> dict[str, pa.Array]:
        """The columns SAID of RAW of uint8 `pixels` (B, px, px, 3)."""


class Score(Worker):
    """Actor of the scorers' pool: fills in what `maker(**arguments)`, a Scorer, says of a shard's pixels.

    Its starts are counted as a generator's are: a shard that ends its scorers is quarantined.
    """

    def __call__(self, batch: pa.Table) -> pa.Table:
        if self._refused:
            raise self._refused
        table = unpack(batch)
        if table is None:
            return batch
        lease = json.loads(table["plan"][0].as_py())
        self._token = secrets.token_hex(4)
        place = lease["generator_id"], lease["grade"], lease["number"]
        wanted = ray.get(self._quota().scoring.remote(*place, self._node, self._token))
        return pack(self.score(lease, table)) if wanted else NOTHING

    def score(self, lease: dict[str, Any], table: pa.Table) -> pa.Table:
        """`table` (schema RAW) with scores, but for rows that cannot be scored, which are quarantined."""
        started = time.perf_counter()
        where = {index: row for row, index in enumerate(table["index"].to_pylist())}

        def make(part: Sequence[int], beat: Beat) -> pa.Table:
            rows = table.take([where[index] for index in part])
            found = self._maker.columns(lease, part, pixels_of(rows), beat)
            for name, column in found.items():
                rows = rows.set_column(RAW.get_field_index(name), RAW.field(name), column.cast(RAW.field(name).type))
            return rows

        scored = self._survivors(lease, list(where), make)
        plan = json.dumps(lease | {"threshold": self._maker.threshold})
        scored = scored.set_column(0, RAW.field("plan"), pa.array([plan] * scored.num_rows))
        each = np.float32((time.perf_counter() - started) / scored.num_rows)
        seconds = pa.array(np.asarray(scored["seconds"]) + each)
        return scored.set_column(RAW.get_field_index("seconds"), RAW.field("seconds"), seconds)
