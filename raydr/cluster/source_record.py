"""One object per ingested source, written once: what was listed, and what was decided about every photograph.

    sources/DDR.parquet     the rows of the source's listing with split, fold and reason of their absence
                            (columns), and how it was read (`raydr.source` in the schema's metadata)

From here on the source is settled: a killed ingest goes on from this file alone, and the same command again compares
its listing with it.
"""

import dataclasses
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydr.fundus.readers.rows import Row
from raydr.identity import fingerprint
from raydr.parquet import to_parquet
from raydr.schema import REAL
from raydr.storage import Run

FOLDER = "sources"
LISTED = pa.schema(
    [
        ("path", pa.string()),
        ("image_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),  # as listed; null = the source has none
        ("patient_id", pa.string()),
        ("grade", pa.int8()),
        ("gradable", pa.bool_()),
        ("stratum", pa.string()),
        ("num_bytes", pa.int64()),
    ]
)
DECIDED = pa.schema(
    [
        ("file_sha256", pa.string()),  # of the source file; null where it could not be used
        ("final_split", pa.string()),  # null = not in `real`
        ("fold", pa.int8()),
        ("left_out", pa.string()),  # reason; null = in `real`
        ("because_of", pa.string()),  # the photograph that a dropped duplicate repeats
    ]
)
SCHEMA = pa.schema([*LISTED, *DECIDED])
# A staged row: the photograph as it will be stored, its split perhaps still open, and the hash of its file.
STAGED = pa.schema([*REAL, ("file_sha256", pa.string())])


@dataclass(frozen=True)
class Source:
    """How a source is read and settled: its identity, but for the three fields at the end."""

    reader: str
    dataset: str
    role: str | None
    # Settings that change rows or pixels (`settle.Options`, px, crop, shard size).
    settings: dict[str, Any]
    num_listed: int
    num_rejected: int
    # Hash of the rejected entries, so that a label row that lost its file is noticed.
    rejected: str
    path: str = ""
    # Unix time of the listing, seconds: files changed since are read again before they are trusted.
    listed_at: float = 0.0
    # What the search for duplicates found, and why there are no folds: for the summary.
    findings: dict[str, Any] = field(default_factory=dict)

    @property
    def shard_size(self) -> int:
        return int(self.settings["shard_size"])

    @property
    def keys(self) -> list[str]:
        """The planned shards of `real`."""
        return [shard_key("real", self.dataset, k) for k in range(self.num_shards)]

    @property
    def num_shards(self) -> int:
        return -(-self.num_listed // self.shard_size)

    def part(self, number: int) -> slice:
        """Rows of the shard `number`."""
        return slice(number * self.shard_size, (number + 1) * self.shard_size)

    @property
    def identity(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        return {name: value for name, value in fields.items() if name not in ("path", "listed_at", "findings")}


@dataclass(frozen=True)
class Record:
    """A settled source."""

    source: Source
    rows: list[Row]
    # One entry a row, as DECIDED.
    decided: list[dict[str, Any]] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Identity of the source's shards in `real`."""
        return fingerprint("source", self.source.identity, [row.values() for row in self.rows], self.decided)


def slug(dataset: str) -> str:
    """`dataset` as a plain name; a hash keeps apart what would become equal."""
    plain = re.sub(r"[^A-Za-z0-9_.+@-]+", "-", dataset).lstrip(".+@-")[:80]
    return plain if plain == dataset else f"{plain or 'set'}-{fingerprint(dataset)[:6]}"


def shard_key(table: str, dataset: str, number: int) -> str:
    """`real/DDR-000012.parquet`, `staging/DDR/000012.parquet`."""
    return f"{table}/{slug(dataset)}{'-' if table == 'real' else '/'}{number:06d}.parquet"


def record_key(dataset: str) -> str:
    return f"{FOLDER}/{slug(dataset)}.parquet"


def rows_table(rows: Sequence[Row], decided: Sequence[dict[str, Any]]) -> pa.Table:
    columns = [pa.array([getattr(row, item.name) for row in rows], item.type) for item in LISTED]
    columns += [pa.array([entry[item.name] for entry in decided], item.type) for item in DECIDED]
    return pa.table(columns, schema=SCHEMA)


def store(run: Run, record: Record) -> Record:
    """Write the record unless one is there; the one that stands."""
    metadata = {"raydr.source": json.dumps(dataclasses.asdict(record.source), sort_keys=True)}
    table = rows_table(record.rows, record.decided).replace_schema_metadata(metadata)
    if run.create(record_key(record.source.dataset), to_parquet(table)):
        return record
    there = load(run, record.source.dataset)
    assert there is not None
    return there


def load(run: Run, dataset: str) -> Record | None:
    """The settled source of this name, or None."""
    key = record_key(dataset)
    if not run.exists(key):
        return None
    table = pq.read_table(io.BytesIO(run.read(key)))
    rows = [Row(**row) for row in table.select(LISTED.names).to_pylist()]
    return Record(_source(table.schema), rows, table.select(DECIDED.names).to_pylist())


def sources(run: Run) -> list[Source]:
    """How every settled source of the run was read, by name."""
    keys = [key for key, _ in run.list(FOLDER) if key.endswith(".parquet")]
    return [_source(pq.read_schema(io.BytesIO(data))) for data in run.read_many(keys).values()]


def _source(schema: pa.Schema) -> Source:
    return Source(**json.loads(schema.metadata[b"raydr.source"]))
