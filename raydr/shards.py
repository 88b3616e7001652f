"""Exactly-once tables: a shard is one Parquet object, trusted once its commit record stands.

    table/name.parquet  ->  _commits/table/name.json   (rows, bytes, sha256, fingerprint)

The first writer of a shard wins, a later one verifies what is there and adopts it; then the record
follows. Readers see records only, and a resumed stage does its plan minus its records, so any
process may be killed at any moment and no row is missing, doubled or changed. No Ray here: status,
report and selection read a run without it.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from raydr import identity, schema
from raydr.checks import Problem, repair, verify
from raydr.errors import IdentityMismatch, MissingInput, UserError
from raydr.ledger import (
    COMMITS,
    MANIFEST,
    Commit,
    commits,
    damaged,
    parse,
    quarantine,
    quarantined,
    record_key,
    record_start,
    starts,
)
from raydr.parquet import UNREADABLE, inspect, schema_hash, to_parquet
from raydr.storage import Run, failpoint

__all__ = [
    "Commit",
    "Problem",
    "commit",
    "commits",
    "complete",
    "completed",
    "dataset",
    "pending",
    "quarantine",
    "quarantined",
    "read",
    "record_key",
    "record_start",
    "repair",
    "starts",
    "to_parquet",
    "verify",
]


def commit(
    run: Run,
    key: str,
    table: pa.Table,
    table_schema: pa.Schema,
    fingerprint: str,
    extra: dict[str, Any] | None = None,
    sync: bool = True,
) -> Commit:
    """Store `table` as the shard `key`, exactly once, and return the record that stands afterwards.

    If the shard exists already it is verified and adopted. Raises IdentityMismatch where it has
    another fingerprint, DamagedData where it contradicts its record. `sync=False` is for what can be made again: a
    power cut may leave a part of it.
    """
    table = schema.conform(table, table_schema)
    metadata = {"raydr.fingerprint": fingerprint, "raydr.key": key}
    data = to_parquet(table.replace_schema_metadata(metadata))
    digest = identity.sha256(data)
    mine = Commit(key, table.num_rows, len(data), digest, fingerprint, schema_hash(table_schema), extra or {})
    if not run.create(key, data, sync):
        mine = _adopt(run, mine, data)
    failpoint("before_commit")
    if not run.create_json(record_key(key), dataclasses.asdict(mine), sync):
        theirs = parse(run, key, run.read(record_key(key)))
        _require_same_identity(run, theirs.fingerprint, mine)
        if theirs.sha256 != mine.sha256:
            raise damaged(run, key, "differs from its commit record")
        mine = theirs
    failpoint("after_commit")
    return mine


def _adopt(run: Run, mine: Commit, data: bytes) -> Commit:
    """The record of the shard that another writer has put where `mine` was to go."""
    there = run.read(mine.key)
    if run.exists(record_key(mine.key)):
        recorded = parse(run, mine.key, run.read(record_key(mine.key)))
        _require_same_identity(run, recorded.fingerprint, mine)
        if identity.sha256(there) != recorded.sha256:
            raise damaged(run, mine.key, "differs from its commit record")
        return recorded
    try:
        rows, fingerprint, hashed = inspect(there)
    except UNREADABLE:
        # Nobody trusts a shard without a record, so an unreadable one may be written over.
        run.replace(mine.key, data)
        return mine
    _require_same_identity(run, fingerprint, mine)
    if hashed != mine.schema or rows > mine.rows:
        raise damaged(run, mine.key, f"holds {rows} rows or other columns where {mine.rows} rows were made again")
    if rows < mine.rows:  # its writer could not make a row, and died before it said so: nobody has read it either
        run.replace(mine.key, data)
        return mine
    return dataclasses.replace(mine, sha256=identity.sha256(there), bytes=len(there))


def _require_same_identity(run: Run, there: str, mine: Commit) -> None:
    if there != mine.fingerprint:
        raise IdentityMismatch(
            f"{mine.key} in {run.url} was made by another configuration (fingerprint {there}, now "
            f"{mine.fingerprint}): use another --out, or the recipe that made it"
        )


def pending(keys: Iterable[str], fingerprint: str, done: dict[str, Commit]) -> list[str]:
    """The keys of a plan that are not in `done`, in the plan's order; IdentityMismatch for another fingerprint."""
    left = []
    for key in keys:
        record = done.get(key)
        if record is None:
            left.append(key)
        elif record.fingerprint != fingerprint:
            raise IdentityMismatch(
                f"{key} was made by another configuration (fingerprint {record.fingerprint}, now {fingerprint}): "
                "use another --out, or the recipe that made it"
            )
    return left


def standing(run: Run, key: str, fingerprint: str) -> Commit | None:
    """The commit of `key` if there is one: Ray runs a call again from its first shard when its worker was lost.

    Raises IdentityMismatch where another configuration made it.
    """
    if not run.exists(record_key(key)):
        return None
    record = parse(run, key, run.read(record_key(key)))
    pending([key], fingerprint, {key: record})
    return record


def dataset(run: Run, prefix: str, table_schema: pa.Schema, required: bool = True) -> ds.FileSystemDataset:
    """The committed shards below `prefix` as a pyarrow data set (nothing is read yet but the records).

    Raises MissingInput when nothing is committed and `required`, UserError where a shard has other columns.
    """
    return _dataset(run, prefix, table_schema, commits(run, prefix), required)


def _dataset(
    run: Run, prefix: str, table_schema: pa.Schema, done: dict[str, Commit], required: bool
) -> ds.FileSystemDataset:
    if not done and required:
        raise MissingInput(f"{run.url} has no committed {prefix}: run the stage that makes it, or check --out")
    expected = {schema_hash(version) for version in schema.versions(table_schema)}
    for record in done.values():
        if record.schema not in expected:
            raise UserError(f"{record.key} in {run.url} has the columns of another version of raydr: read it with that")
    filesystem, root = run.filesystem()
    parquet = ds.ParquetFileFormat(
        default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True)
    )
    return ds.FileSystemDataset.from_paths(
        [f"{root}/{key}" for key in done], table_schema, parquet, filesystem=filesystem
    )


def read(
    run: Run,
    prefix: str,
    table_schema: pa.Schema,
    columns: Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    required: bool = True,
) -> pa.Table:
    """The committed rows below `prefix`, in key order; shards that `filter` rules out by their statistics stay unread.

    Raises MissingInput when nothing is committed and `required`, DamagedData where a committed
    shard is gone or unreadable, UserError where it has other columns.
    """
    done = commits(run, prefix)
    source = _dataset(run, prefix, table_schema, done, required)
    try:
        # A file's footer is kept by default until the data set goes, 80 KB a shard: 13 GB of ten million rows.
        table = source.to_table(
            columns=list(columns) if columns is not None else None, filter=filter, cache_metadata=False
        )
    except (OSError, pa.ArrowException) as error:
        raise damaged(run, prefix, f"has a damaged or missing shard ({str(error).splitlines()[0][:200]})") from error
    if filter is None and table.num_rows != sum(record.rows for record in done.values()):
        raise damaged(run, prefix, "holds other row counts than its commit records")
    return table


def complete(run: Run, table: str, keys: Sequence[str]) -> None:
    """Write the table's manifest, the proof that every planned shard is committed; MissingInput if one is not."""
    done = commits(run, table)
    missing = [key for key in keys if key not in done]
    if missing:
        raise MissingInput(f"{len(missing)} of {len(keys)} shards of {table} are not committed, first {missing[0]}")
    shards = {key: done[key].sha256 for key in keys}
    value = {"num_shards": len(shards), "rows": sum(done[key].rows for key in keys), "shards": shards}
    run.replace_json(f"{COMMITS}/{table}/{MANIFEST}", value)


def completed(run: Run, table: str) -> dict[str, Any] | None:
    """The manifest (num_shards, rows, shards: {key: sha256}), or None while the table is not complete."""
    key = f"{COMMITS}/{table}/{MANIFEST}"
    return run.read_json(key) if run.exists(key) else None
