"""How a shard is laid out: one Parquet file of one row group that any reader of Parquet opens."""

import io
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydr import identity

# What `inspect` raises for bytes that are no shard, or no longer one.
UNREADABLE = (pa.ArrowException, OSError, KeyError, ValueError)


def schema_hash(schema: pa.Schema) -> str:
    """16 hex digits that change with the names, order and types of the columns."""
    return identity.fingerprint([[item.name, _kind(item.type)] for item in schema])


def _kind(kind: pa.DataType) -> Any:
    # str() would not do: Parquet gives back list<item: float> as list<element: float>.
    if pa.types.is_struct(kind):
        return [[item.name, _kind(item.type)] for item in kind]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return ["list", _kind(kind.value_type)]
    return str(kind)


def to_parquet(table: pa.Table) -> bytes:
    """One Parquet file of one row group, built in memory; equal tables give equal bytes.

    Columns named `image` are encoded already: stored as they are, without dictionary or statistics.
    The rest is zstd. Every page carries a checksum.
    """
    leaves = {leaf: item.name for item in table.schema for leaf in _leaves(item.name, item.type)}
    others = [leaf for leaf, column in leaves.items() if column != "image"]
    buffer = io.BytesIO()
    pq.write_table(
        table,
        buffer,
        row_group_size=max(1, table.num_rows),
        compression={leaf: "none" if column == "image" else "zstd" for leaf, column in leaves.items()},
        use_dictionary=others,
        write_statistics=others,
        write_page_checksum=True,
    )
    return buffer.getvalue()


# A shard of 64 encoded photographs of 1024 px holds 0.1 GB. What unpacks to more than this is no shard of ours.
MAX_ROWS, MAX_BYTES = 10_000_000, 4 << 30


def inspect(data: bytes, decode: bool = True) -> tuple[int, str, str]:
    """(rows, fingerprint, schema hash) of a shard's bytes; with `decode` every page is read and checked.

    Raises one of UNREADABLE for anything that is not a whole shard.
    """
    file = pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True)
    if file.metadata.num_rows > MAX_ROWS:
        raise ValueError(f"unpacks to {file.metadata.num_rows} rows")
    if decode:
        size = 0
        # In small pieces: a dictionary of one long string makes gigabytes of a few KB, and no header says so.
        for batch in file.iter_batches(batch_size=64):
            size += batch.nbytes
            if size > MAX_BYTES:
                raise ValueError(f"unpacks to more than {MAX_BYTES} bytes")
    metadata = file.schema_arrow.metadata or {}
    return file.metadata.num_rows, metadata[b"raydr.fingerprint"].decode(), schema_hash(file.schema_arrow)


def _leaves(name: str, kind: pa.DataType) -> list[str]:
    """Parquet's dotted paths of the leaves of one column."""
    if pa.types.is_struct(kind):
        return [leaf for item in kind for leaf in _leaves(f"{name}.{item.name}", item.type)]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _leaves(f"{name}.list.element", kind.value_type)
    return [name]
