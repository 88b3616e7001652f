"""The notes that stand beside the shards: commit records, starts and quarantined inputs.

    _commits/TABLE/NAME.json        the shard TABLE/NAME.parquet counts
    _attempts/TABLE/NAME/TIME@NODE  one start of it, an empty object
    quarantine/TABLE/HASH.json      an input that could not be used, and why

Each is one small object created once, so that no two writers ever share one.
"""

import json
import os
import re
import time
from dataclasses import dataclass, field
from typing import Any

from raydr import identity
from raydr.errors import DamagedData
from raydr.storage import Run

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


_KINDS = {"key": str, "rows": int, "bytes": int, "sha256": str, "fingerprint": str, "schema": str, "extra": dict}


def record_key(key: str) -> str:
    """The commit record's key of a shard."""
    return f"{COMMITS}/{stem(key)}.json"


def stem(key: str) -> str:
    """A shard's key without its ending."""
    assert key.endswith(".parquet"), key
    return key.removesuffix(".parquet")


def damaged(run: Run, key: str, what: str) -> DamagedData:
    """The error that names a damaged shard and what to do about it."""
    return DamagedData(f"{key} in {run.url} {what}: run `raydr repair {run.url}`, then the same command again")


def parse(run: Run, key: str, data: bytes) -> Commit:
    """The commit in the record `data` of the shard `key`; DamagedData for anything else."""
    try:
        record = Commit(**json.loads(data))
        for name, kind in _KINDS.items():
            if not isinstance(getattr(record, name), kind):
                raise TypeError(name)
    except (ValueError, TypeError, RecursionError):
        raise damaged(run, key, "has an unreadable commit record") from None
    if record.key != key:
        raise damaged(run, key, f"has the commit record of {str(record.key)[:80]}")
    return record


def records(run: Run, prefix: str) -> dict[str, bytes]:
    """{shard key: raw record} below `prefix`, sorted by key."""
    folder = f"{COMMITS}/{prefix}" if prefix else COMMITS
    names = [name for name, _ in run.list(folder) if name.endswith(".json") and not name.endswith(f"/{MANIFEST}")]
    found = run.read_many(names)
    return {f"{name.removeprefix(f'{COMMITS}/').removesuffix('.json')}.parquet": data for name, data in found.items()}


def commits(run: Run, prefix: str = "") -> dict[str, Commit]:
    """{shard key: commit} of every committed shard below the folder `prefix`, sorted by key."""
    return {key: parse(run, key, data) for key, data in records(run, prefix).items()}


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
    folder = f"{ATTEMPTS}/{stem(key)}"
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
