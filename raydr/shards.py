"""Exactly-once tables: a shard is one Parquet object, trusted once its commit record stands.

    table/name.parquet  ->  _commits/table/name.json   (rows, bytes, sha256, fingerprint)

The first writer of a shard wins, a later one verifies what is there and adopts it; then the record
follows. Readers see records only, and a resumed stage does its plan minus its records, so any
process may be killed at any moment and no row is missing, doubled or changed. No Ray here: status,
report and selection read a run without it.
"""

import dataclasses
import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from raydr import identity, schema
from raydr.errors import DamagedData, IdentityMismatch, MissingInput, UserError
from raydr.parquet import UNREADABLE, inspect, schema_hash, to_parquet
from raydr.storage import Run, failpoint

# The tables of a run (DESIGN.md 3): where shards without a record are looked for, and their schemas.
TABLES = {
    "real": schema.REAL,
    "synthetic": schema.SYNTHETIC,
    "scores": schema.SCORES,
    "trials/results": schema.TRIALS,
    "trials/predictions": schema.PREDICTIONS,
}
COMMITS, ATTEMPTS, QUARANTINE = "_commits", "_attempts", "quarantine"
MANIFEST = "_complete.json"


@dataclass(frozen=True)
class Commit:
    """The record that makes a shard count."""

    key: str
    rows: int
    bytes: int
    sha256: str
    fingerprint: str
    # Hash of the Arrow schema, so that readers notice another one without opening the shard.
    schema: str
    # Seconds, node, counts: whatever may differ between two equal shards.
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """One thing that `verify` found; `kind` is missing, damaged, record, schema, manifest or orphan."""

    key: str
    kind: str
    detail: str


def record_key(key: str) -> str:
    """The commit record's key of a shard."""
    return f"{COMMITS}/{_stem(key)}.json"


def _stem(key: str) -> str:
    assert key.endswith(".parquet"), key
    return key.removesuffix(".parquet")


def commit(
    run: Run, key: str, table: pa.Table, table_schema: pa.Schema, fingerprint: str, extra: dict[str, Any] | None = None
) -> Commit:
    """Store `table` as the shard `key`, exactly once, and return the record that stands afterwards.

    If the shard exists already it is verified and adopted. Raises IdentityMismatch where it has
    another fingerprint, DamagedData where it contradicts its record.
    """
    table = schema.conform(table, table_schema)
    metadata = {"raydr.fingerprint": fingerprint, "raydr.key": key}
    data = to_parquet(table.replace_schema_metadata(metadata))
    digest = identity.sha256(data)
    mine = Commit(key, table.num_rows, len(data), digest, fingerprint, schema_hash(table_schema), extra or {})
    if not run.create(key, data):
        mine = _adopt(run, mine, data)
    failpoint("before_commit")
    if not run.create_json(record_key(key), dataclasses.asdict(mine)):
        theirs = _parse(run, key, run.read(record_key(key)))
        _require_same_identity(run, theirs.fingerprint, mine)
        if theirs.sha256 != mine.sha256:
            raise _damaged(run, key, "differs from its commit record")
        mine = theirs
    failpoint("after_commit")
    return mine


def _adopt(run: Run, mine: Commit, data: bytes) -> Commit:
    """The record of the shard that another writer has put where `mine` was to go."""
    there = run.read(mine.key)
    if run.exists(record_key(mine.key)):
        recorded = _parse(run, mine.key, run.read(record_key(mine.key)))
        _require_same_identity(run, recorded.fingerprint, mine)
        if identity.sha256(there) != recorded.sha256:
            raise _damaged(run, mine.key, "differs from its commit record")
        return recorded
    try:
        rows, fingerprint, hashed = inspect(there)
    except UNREADABLE:
        # Nobody trusts a shard without a record, so an unreadable one may be written over.
        run.replace(mine.key, data)
        return mine
    _require_same_identity(run, fingerprint, mine)
    if (rows, hashed) != (mine.rows, mine.schema):
        raise _damaged(run, mine.key, f"holds {rows} rows or other columns where {mine.rows} rows were made again")
    return dataclasses.replace(mine, sha256=identity.sha256(there), bytes=len(there))


def _require_same_identity(run: Run, there: str, mine: Commit) -> None:
    if there != mine.fingerprint:
        raise IdentityMismatch(
            f"{mine.key} in {run.url} was made by another configuration (fingerprint {there}, now "
            f"{mine.fingerprint}): use another --out, or the recipe that made it"
        )


def _damaged(run: Run, key: str, what: str) -> DamagedData:
    return DamagedData(f"{key} in {run.url} {what}: run `raydr repair {run.url}`, then the same command again")


def _parse(run: Run, key: str, data: bytes) -> Commit:
    try:
        record = Commit(**json.loads(data))
        for item in dataclasses.fields(Commit):
            if type(getattr(record, item.name)).__name__ != getattr(item.type, "__name__", "dict"):
                raise TypeError(item.name)
    except (ValueError, TypeError):
        raise _damaged(run, key, "has an unreadable commit record") from None
    if record.key != key:
        raise _damaged(run, key, f"has the commit record of {str(record.key)[:80]}")
    return record


def _records(run: Run, prefix: str) -> dict[str, bytes]:
    """{shard key: raw record} below `prefix`, sorted by key."""
    folder = f"{COMMITS}/{prefix}" if prefix else COMMITS
    names = [name for name, _ in run.list(folder) if name.endswith(".json") and not name.endswith(f"/{MANIFEST}")]
    found = run.read_many(names)
    return {f"{name.removeprefix(f'{COMMITS}/').removesuffix('.json')}.parquet": data for name, data in found.items()}


def commits(run: Run, prefix: str = "") -> dict[str, Commit]:
    """{shard key: commit} of every committed shard below the folder `prefix`, sorted by key."""
    return {key: _parse(run, key, data) for key, data in _records(run, prefix).items()}


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


def read(
    run: Run,
    prefix: str,
    table_schema: pa.Schema,
    columns: Sequence[str] | None = None,
    filter: pc.Expression | None = None,
    required: bool = True,
) -> pa.Table:
    """The committed rows below `prefix`, in key order; `filter` is pushed down to the shards' statistics.

    Raises MissingInput when nothing is committed and `required`, DamagedData where a committed
    shard is gone or unreadable, UserError where it has another schema.
    """
    done = commits(run, prefix)
    if not done and required:
        raise MissingInput(f"{run.url} has no committed {prefix}: run the stage that makes it, or check --out")
    expected = schema_hash(table_schema)
    for record in done.values():
        if record.schema != expected:
            raise UserError(f"{record.key} in {run.url} has the columns of another version of raydr: read it with that")
    filesystem, root = run.filesystem()
    paths = [f"{root}/{key}" for key in done]
    dataset = ds.FileSystemDataset.from_paths(paths, table_schema, ds.ParquetFileFormat(), filesystem=filesystem)
    try:
        table = dataset.to_table(columns=list(columns) if columns is not None else None, filter=filter)
    except UNREADABLE as error:
        raise _damaged(run, prefix, f"has a damaged or missing shard ({str(error).splitlines()[0][:200]})") from error
    if filter is None and table.num_rows != sum(record.rows for record in done.values()):
        raise _damaged(run, prefix, "holds other row counts than its commit records")
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


def verify(run: Run, prefix: str = "") -> list[Problem]:
    """Hash every committed shard below `prefix` again; all that contradicts a record or a manifest."""
    problems: list[Problem] = []
    good: dict[str, Commit] = {}
    for key, data in _records(run, prefix).items():
        try:
            good[key] = _parse(run, key, data)
        except DamagedData as error:
            problems.append(Problem(key, "record", str(error)))
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda record: _check(run, record), good.values())
        problems += [problem for problem in found if problem]
    recorded = {*good, *(problem.key for problem in problems)}
    for table in TABLES:
        if not _overlap(table, prefix):
            continue
        for key, _ in run.list(prefix if prefix.startswith(table) else table):
            if key.endswith(".parquet") and key not in recorded:
                problems.append(Problem(key, "orphan", "no commit record: the stage that plans it adopts or redoes it"))
    for name, _ in run.list(f"{COMMITS}/{prefix}" if prefix else COMMITS):
        if name.endswith(f"/{MANIFEST}"):
            problems += _check_manifest(run, name, good, recorded)
    return sorted(problems, key=lambda problem: (problem.key, problem.kind))


def _overlap(table: str, prefix: str) -> bool:
    return not prefix or f"{prefix}/".startswith(f"{table}/") or f"{table}/".startswith(f"{prefix}/")


def _check(run: Run, record: Commit) -> Problem | None:
    try:
        data = run.read(record.key)
    except MissingInput:
        return Problem(record.key, "missing", "committed, but the shard is gone")
    if len(data) != record.bytes or identity.sha256(data) != record.sha256:
        return Problem(record.key, "damaged", f"{len(data)} bytes, {record.bytes} committed, or another SHA-256")
    try:
        there = inspect(data, decode=False)
    except UNREADABLE:
        return Problem(record.key, "damaged", "was committed unreadable")
    if there != (record.rows, record.fingerprint, record.schema):
        return Problem(record.key, "record", "contradicts the shard's row count, fingerprint or schema")
    table = next((schema for name, schema in TABLES.items() if record.key.startswith(f"{name}/")), None)
    if table is not None and schema_hash(table) != record.schema:
        return Problem(record.key, "schema", "has the columns of another version of raydr")
    return None


def _check_manifest(run: Run, name: str, good: dict[str, Commit], recorded: set[str]) -> list[Problem]:
    try:
        shards: dict[str, str] = dict(run.read_json(name)["shards"])
    except (DamagedData, KeyError, TypeError, ValueError):
        return [Problem(name, "manifest", "is unreadable")]
    gone = [Problem(key, "missing", f"in {name}, but not committed") for key in shards if key not in recorded]
    other = [key for key in shards if key in good and good[key].sha256 != shards[key]]
    return gone + [Problem(name, "manifest", f"has another SHA-256 for {key}") for key in other]


def repair(run: Run, problems: Iterable[Problem]) -> list[str]:
    """Delete what is damaged, so that the stage redoes only that; the keys of the shards to be redone.

    Record first: a shard without a record is only a leftover. A readable orphan stays, since the
    stage adopts it without making it again. Manifests below which something goes are withdrawn.
    """
    redo = []
    for problem in problems:
        if problem.key.startswith(f"{COMMITS}/"):
            run.delete(problem.key)
            continue
        if problem.kind == "orphan" and _is_readable(run, problem.key):
            continue
        for parent in PurePosixPath(problem.key).parents:
            if parent.name:
                run.delete(f"{COMMITS}/{parent}/{MANIFEST}")
        run.delete(record_key(problem.key))
        run.delete(problem.key)
        redo.append(problem.key)
    return redo


def _is_readable(run: Run, key: str) -> bool:
    try:
        inspect(run.read(key))
    except UNREADABLE:
        return False
    return True


def quarantine(run: Run, table: str, key: str, reason: str, detail: str) -> None:
    """Note, once, what could not be used and why (columns of `schema.QUARANTINE`)."""
    name = f"{QUARANTINE}/{table}/{identity.fingerprint(table, key)}.json"
    run.create_json(name, {"table": table, "key": key, "reason": reason, "detail": detail})


def quarantined(run: Run, table: str) -> list[dict[str, str]]:
    """The notes of a table, sorted by key."""
    names = [name for name, _ in run.list(f"{QUARANTINE}/{table}") if name.endswith(".json")]
    return sorted((json.loads(data) for data in run.read_many(names).values()), key=lambda note: note["key"])


def record_start(run: Run, key: str, node: str) -> int:
    """Note durably that `node` starts to make the shard `key`; how many starts it has had, this one included."""
    folder = f"{ATTEMPTS}/{_stem(key)}"
    name = f"{time.time_ns():020d}-{os.getpid()}@{re.sub(r'[^A-Za-z0-9_.-]', '-', node)[:100]}"
    # No fsync: starts are counted to find shards that crash processes, and those survive a crash.
    run.create(f"{folder}/{name}", b"", sync=False)
    return len(run.list(folder))


def starts(run: Run, prefix: str = "") -> dict[str, list[str]]:
    """{shard key: the node of each start, in order} below `prefix`; starts on dead nodes are the caller's to waive."""
    found: dict[str, list[str]] = {}
    for name, _ in run.list(f"{ATTEMPTS}/{prefix}" if prefix else ATTEMPTS):
        stem, _, start = name.removeprefix(f"{ATTEMPTS}/").rpartition("/")
        found.setdefault(f"{stem}.parquet", []).append(start.partition("@")[2])
    return found
