"""Whether what a run holds is what was committed, and how to get rid of what is not."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

from raydr import identity, schema
from raydr.errors import DamagedData, MissingInput
from raydr.ledger import COMMITS, MANIFEST, Commit, parse, record_key, records
from raydr.parquet import UNREADABLE, inspect, schema_hash
from raydr.storage import Run

# The tables of a run: where shards without a record are looked for, and their schemas.
TABLES = {
    "real": schema.REAL,
    "synthetic": schema.SYNTHETIC,
    "scores": schema.SCORES,
    "trials/results": schema.TRIALS,
    "trials/predictions": schema.PREDICTIONS,
    "evaluations": schema.PREDICTIONS,
}


@dataclass(frozen=True)
class Problem:
    """One thing that `verify` found.

    `kind`: missing (committed, but gone), damaged (other bytes than committed), record (the record is
    unreadable or contradicts its shard), schema (columns of another version), manifest, or orphan (a
    shard without a record: a kill left it, and the stage that plans it adopts it).
    """

    key: str
    kind: str
    detail: str


def verify(run: Run, prefix: str = "", progress: Callable[[int, int], None] | None = None) -> list[Problem]:
    """Hash every committed shard below `prefix` again: all that contradicts a record, a schema or a manifest.

    `progress` is called with (shards checked, shards to check).
    """
    problems: list[Problem] = []
    good: dict[str, Commit] = {}
    for key, data in records(run, prefix).items():
        try:
            good[key] = parse(run, key, data)
        except DamagedData:
            problems.append(Problem(key, "record", "the commit record is unreadable"))
    recorded = {*good, *(problem.key for problem in problems)}
    # Eight: hashing frees the interpreter lock, and eight shards of 1024 px photographs are ~1 GB.
    with ThreadPoolExecutor(8) as pool:
        for count, problem in enumerate(pool.map(lambda record: _check(run, record), good.values()), 1):
            if problem is not None:
                problems.append(problem)
            if progress is not None:
                progress(count, len(good))
    for folder in {prefix if _inside(prefix, table) else table for table in TABLES if _related(prefix, table)}:
        for key, _ in run.list(folder):
            if key.endswith(".parquet") and key not in recorded:
                problems.append(Problem(key, "orphan", "has no commit record"))
    for name, _ in run.list(f"{COMMITS}/{prefix}" if prefix else COMMITS):
        if name.endswith(f"/{MANIFEST}"):
            problems += _check_manifest(run, name, good, recorded)
    return sorted(problems, key=lambda problem: (problem.key, problem.kind))


def _inside(path: str, folder: str) -> bool:
    return f"{path}/".startswith(f"{folder}/")


def _related(prefix: str, table: str) -> bool:
    return not prefix or _inside(prefix, table) or _inside(table, prefix)


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
    expected = next((columns for table, columns in TABLES.items() if _inside(record.key, table)), None)
    if expected is not None and record.schema not in map(schema_hash, schema.versions(expected)):
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
    """Delete what is damaged; the keys of the shards that their stages now redo or adopt.

    Record first: a shard without a record is trusted by nobody. A shard whose record alone is bad
    stays, and so does a readable orphan: its stage adopts it without making it again. Shards of
    another version are left alone. Manifests that something falls out of are withdrawn.
    """
    redo = []
    for problem in problems:
        if problem.kind == "schema":
            continue
        if problem.kind == "manifest":
            run.delete(problem.key)
            continue
        for parent in PurePosixPath(problem.key).parents:
            if parent.name:
                run.delete(f"{COMMITS}/{parent}/{MANIFEST}")
        if problem.kind != "orphan":  # whose record may have followed while the others were hashed
            run.delete(record_key(problem.key))
        if problem.kind in ("damaged", "missing") or not _is_readable(run, problem.key):
            run.delete(problem.key)
        redo.append(problem.key)
    return redo


def _is_readable(run: Run, key: str) -> bool:
    try:
        inspect(run.read(key))
    except (*UNREADABLE, MissingInput):
        return False
    return True
