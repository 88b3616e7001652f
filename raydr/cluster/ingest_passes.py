"""The two passes of a source: files -> staging/ -> real/, each a Ray Data job of one task a shard."""

import io
import socket
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raydr import schema, shards, terminal
from raydr.cluster import ingest, session, source_notes, source_record
from raydr.cluster.source_files import prepare_rows
from raydr.cluster.source_record import STAGED, Record, Source, shard_key
from raydr.errors import DamagedData, UserError
from raydr.fundus.readers.rows import Row
from raydr.identity import fingerprint, sha256
from raydr.ledger import COMMITS, MANIFEST, parse, records
from raydr.storage import Run

# Starts of a shard after which its files are tried one by one in processes of their own.
MAX_STARTS = 2

# -- on the nodes ---------------------------------------------------------------------------------


def stage_shard(plan: dict[str, Any], url: str, base: str, px: int, crop: str) -> dict[str, Any]:
    """Prepare and commit one shard of staging/; returns how many photographs it holds and how many were unusable."""
    run, rows = Run(url), [Row(*values) for values in plan["rows"]]
    dataset = rows[0].dataset
    done = shards.standing(run, plan["key"], plan["fingerprint"])
    if done:
        return {"done": len(rows), "unusable": len(rows) - done.rows}
    starts = shards.record_start(run, plan["key"], socket.gethostname())
    clock = terminal.Clock()
    prepared, failures = prepare_rows(rows, base, px, crop, isolated=starts > MAX_STARTS)
    source_notes.note(run, dataset, failures)
    table = pa.Table.from_pylist(prepared, schema=STAGED)
    seconds = {"seconds": clock.seconds}
    record = shards.commit(run, plan["key"], table, STAGED, plan["fingerprint"], seconds, sync=False)
    return {"done": len(rows), "unusable": len(rows) - record.rows}


def publish_shard(plan: dict[str, Any], url: str, identity: str) -> dict[str, Any]:
    """Commit one shard of `real` out of its staged one, then let the staged one go.

    plan["rows"] = {image id: [file's SHA-256, split, fold]} of the photographs that stay.
    """
    run = Run(url)
    done = shards.standing(run, plan["key"], identity)
    if done:
        drop(run, plan["staged"])
        return {"done": plan["listed"], "rows": done.rows}
    data = run.read(plan["staged"])
    if sha256(data) != plan["sha256"]:
        drop(run, plan["staged"])
        raise UserError(f"{plan['staged']} in {url} was damaged and is dropped: run the same command again")
    staged = pq.read_table(io.BytesIO(data))
    rows = plan["rows"]
    staged = staged.filter(pa.array([image_id in rows for image_id in staged["image_id"].to_pylist()], pa.bool_()))
    ids = staged["image_id"].to_pylist()
    for image_id, digest in zip(ids, staged["file_sha256"].to_pylist(), strict=True):
        if digest != rows[image_id][0]:
            drop(run, plan["staged"])
            raise UserError(f"the file of {image_id} was changed while its source was ingested: use another --out")
    if len(ids) != len(rows):
        raise UserError(f"{sorted(set(rows) - set(ids))[0]} could be read before and cannot now: mend its file")
    table = staged.drop_columns(["file_sha256", "split", "fold"])
    table = table.append_column("split", pa.array([rows[image_id][1] for image_id in ids], pa.string()))
    table = table.append_column("fold", pa.array([rows[image_id][2] for image_id in ids], pa.int8()))
    record = shards.commit(run, plan["key"], table, schema.REAL, identity)
    drop(run, plan["staged"])
    return {"done": plan["listed"], "rows": record.rows}


def drop(run: Run, key: str) -> None:
    """Forget a staged shard; its record goes first, since a record without a shard would be damage."""
    run.delete(shards.record_key(key))
    run.delete(key)


# -- on the driver ---------------------------------------------------------------------------------


def staged_commits(target: Run, dataset: str) -> dict[str, shards.Commit]:
    return shards.commits(target, f"staging/{source_record.slug(dataset)}")


def mend(target: Run, dataset: str) -> None:
    """Drop what a power cut left of staged shards: they are not synced to the disk, since they can be made again."""
    prefix = f"staging/{source_record.slug(dataset)}"
    sizes = dict(target.list(prefix))
    for key, data in records(target, prefix).items():
        try:
            whole = parse(target, key, data).bytes == sizes.get(key)
        except DamagedData:
            whole = False
        if not whole:
            drop(target, key)


def stage_plans(source: Source, rows: Sequence[Row], numbers: Iterable[int]) -> list[dict[str, Any]]:
    plans: list[dict[str, Any]] = []
    for number in numbers:
        values = [row.values() for row in rows[source.part(number)]]
        identity = fingerprint("staged", source.settings["px"], source.settings["crop"], values)
        plans.append({"key": shard_key("staging", source.dataset, number), "fingerprint": identity, "rows": values})
    return plans


def stage(target: Run, source: Source, rows: Sequence[Row], numbers: Iterable[int], base: str) -> None:
    """The first pass over these shards; those staged before stay."""
    plans = stage_plans(source, rows, numbers)
    done = staged_commits(target, source.dataset)
    todo = [plan for plan in plans if plan["key"] not in done]
    if not todo:
        return
    total, unusable = sum(len(plan["rows"]) for plan in plans), 0
    finished = total - sum(len(plan["rows"]) for plan in todo)
    px, crop = source.settings["px"], source.settings["crop"]
    with session.metered("ingest", total, "photographs") as meter:
        before: dict[str, Any] = {"done:before": finished}
        session.report_to(meter, **before)
        for answer in ingest.map_shards(stage_shard, todo, target.url, base, px, crop, meter=meter):
            unusable += answer["unusable"]
            session.report_to(meter, text=f"{unusable} unusable" if unusable else "")


def publish(target: Run, record: Record, base: str) -> int:
    """The second pass: everything decided moves to `real`; returns how many photographs that were now."""
    source, identity = record.source, record.fingerprint
    pending = set(shards.pending(source.keys, identity, shards.commits(target, "real")))
    numbers = [number for number, key in enumerate(source.keys) if key in pending]
    if not numbers:
        return 0
    # From here on `real` is unfinished, and the stages after it must wait.
    target.delete(f"{COMMITS}/real/{MANIFEST}")
    stage(target, source, record.rows, numbers, base)
    staged = staged_commits(target, source.dataset)
    plans: list[dict[str, Any]] = []
    for number in numbers:
        part = source.part(number)
        both = list(zip(record.rows[part], record.decided[part], strict=True))
        key = shard_key("staging", source.dataset, number)
        kept = {
            row.image_id: [item["file_sha256"], item["final_split"], item["fold"]]
            for row, item in both
            if item["left_out"] is None
        }
        plans.append(
            {
                "key": source.keys[number],
                "staged": key,
                "sha256": staged[key].sha256,
                "rows": kept,
                "listed": len(both),
            }
        )
    finished, added = source.num_listed - sum(plan["listed"] for plan in plans), 0
    quick = ingest.equal_portions
    with session.metered("publish", source.num_listed, "photographs") as meter:
        before: dict[str, Any] = {"done:before": finished}
        session.report_to(meter, **before)
        for answer in ingest.map_shards(publish_shard, plans, target.url, identity, meter=meter, portions=quick):
            added += answer["rows"]
    return added
