"""The driver's share of adding a source: what lies there, whether it changed, and what is decided about it."""

import dataclasses
import os
import posixpath
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pyarrow import fs

from raydr import schema, terminal
from raydr.cluster import source_record
from raydr.cluster.pictures import Pictures, columns_of, proposed
from raydr.cluster.source_record import STAGED, Record, Source
from raydr.errors import IdentityMismatch, UserError
from raydr.fundus.audit import Duplicate, describe
from raydr.fundus.duplicates import find_pairs
from raydr.fundus.readers.registry import list_source, open_source, read_bytes
from raydr.fundus.readers.rows import Rejected, Row
from raydr.fundus.settle import Options, difference, settle
from raydr.identity import sha256
from raydr.storage import Run

CHEAP = ["image_id", "dataset", "split", "fold", "patient_id", "grade", "sha256", "phash"]
# Clocks of file servers differ by this much, seconds; a file too many is read again, never one too few.
CLOCK_SLACK_SECONDS = 120.0


def open_listing(
    reader: str, path: str, dataset: str | None, role: str | None
) -> tuple[str, list[Row], list[Rejected]]:
    """(absolute folder or address that the rows' paths are relative to, rows, rejected entries) of a source."""
    if dataset is not None and (not dataset.strip() or "/" in dataset):
        raise UserError(f"--dataset is a plain name, not {dataset!r}")
    file_system, root = open_source(path)
    base = root if "://" not in path else path.rstrip("/")
    rows, rejected = list_source(reader, path, dataset, role)
    if file_system.get_file_info(root).type == fs.FileType.File:  # a CSV itself: paths are relative to its folder
        base = posixpath.dirname(base)
    return base, rows, rejected


def open_lists(path: str | None) -> dict[str, bytes] | None:
    """{relative path: bytes} of the text lists in a folder, or of the one that is named."""
    if path is None:
        return None
    file_system, root = open_source(path)
    kind = file_system.get_file_info(root).type
    if kind == fs.FileType.NotFound:
        raise UserError(f"--folds {path} does not exist: give a folder of lists such as fold0_val.txt (name label)")
    if kind == fs.FileType.File:
        return {posixpath.basename(root): read_bytes(file_system, posixpath.dirname(root), posixpath.basename(root))}
    entries = file_system.get_file_info(fs.FileSelector(root, recursive=True))
    names = [entry.path[len(root) :].lstrip("/") for entry in entries if entry.is_file]
    return {name: read_bytes(file_system, root, name) for name in sorted(names) if name.endswith((".txt", ".csv"))}


def require_same(target: Run, record: Record, source: Source, rows: Sequence[Row]) -> None:
    """Raise IdentityMismatch where the source or the request differs from what `real` was made of."""
    name, before = source.dataset, record.source
    other = (
        f"add it under another name with --dataset, or use another --out (unchanged, it adds nothing to {target.url})"
    )
    for field in ("reader", "role"):
        if getattr(before, field) != getattr(source, field):
            raise IdentityMismatch(
                f"{name} was ingested with {field} {getattr(before, field)} and now {getattr(source, field)} is asked "
                f"for: {other}"
            )
    for setting, value in source.settings.items():
        if before.settings.get(setting) != value:
            raise IdentityMismatch(
                f"{name} was ingested with {setting} = {before.settings.get(setting)!r} and now {value!r} is asked "
                "for: use the old value, or another --out"
            )
    found = difference(record.rows, rows)
    if before.rejected != source.rejected:
        entries = f"{before.num_rejected} -> {source.num_rejected} entries without a file, a label or a valid grade"
        found = ", ".join(filter(None, (found, entries)))
    if not found:
        changed = changed_files(source.path, record)
        found = f"{len(changed)} with other content (first {changed[0]})" if changed else ""
    if found:
        raise IdentityMismatch(f"{name} in {source.path} is not what was ingested, {found}: {other}")


def changed_files(base: str, record: Record) -> list[str]:
    """Ids of the photographs whose file holds other bytes than when it was ingested.

    Only files written since are read; one that was replaced with its size and its time kept goes unnoticed.
    """
    file_system, root = open_source(base)
    since = record.source.listed_at - CLOCK_SLACK_SECONDS
    entries = file_system.get_file_info(fs.FileSelector(root, recursive=True))
    newer = {entry.path[len(root) :].lstrip("/") for entry in entries if (entry.mtime_ns or 0) / 1e9 > since}
    suspects = [
        (row, item["file_sha256"])
        for row, item in zip(record.rows, record.decided, strict=True)
        if row.path in newer and item["file_sha256"] is not None
    ]
    if not suspects:
        return []

    def is_changed(suspect: tuple[Row, str]) -> bool:
        return sha256(read_bytes(file_system, root, suspect[0].path)) != suspect[1]

    changed = []
    with (
        terminal.bar("compare", len(suspects), "files") as bar,
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
    ):
        for done, (suspect, differs) in enumerate(zip(suspects, pool.map(is_changed, suspects), strict=True), 1):
            changed += [suspect[0].image_id] if differs else []
            bar.to(done)
    return changed


def decide(
    target: Run, source: Source, rows: Sequence[Row], options: Options, lists: Mapping[str, bytes] | None
) -> Record:
    """Settle the staged photographs among those in `real`, and store what was decided, once."""
    known = columns_of(target, "real", schema.REAL, CHEAP, required=False).to_pylist()
    prefix = f"staging/{source_record.slug(source.dataset)}"
    staged = columns_of(target, prefix, STAGED, [*CHEAP, "file_sha256"]).to_pylist()
    for item in known:
        # Phantoms beyond the training set, drawn for one arm: they train.
        item["split"] = "train" if item["split"] == "fresh" else item["split"]
    pairs = duplicates_of(target, known, staged)
    digests = {item["image_id"]: item["file_sha256"] for item in staged}
    usable = [row for row in rows if row.image_id in digests]
    settled = settle(
        usable,
        [Row("", k["image_id"], k["dataset"], k["split"], k["patient_id"], k["grade"], True, None) for k in known],
        pairs,
        options,
        lists,
        with_folds=source.role is None and all(item["fold"] is None for item in known),
        unusable=[row for row in rows if row.image_id not in digests],
    )
    decided: list[dict[str, Any]] = []
    for row in rows:
        out = settled.drops.get(row.image_id)
        left_out = out.reason if out else None if row.image_id in digests else "unusable"
        decided.append(
            {
                "file_sha256": digests.get(row.image_id),
                "final_split": None if left_out else settled.splits[row.image_id],
                "fold": settled.folds.get(row.image_id),
                "left_out": left_out,
                "because_of": out.because_of if out else None,
            }
        )
    findings = {
        "duplicates": len(settled.duplicates),
        "duplicates_of_other_data_sets": sum(pair.across_datasets for pair in settled.duplicates),
        "leaks": len(settled.leaks),
        "note": settled.note,
    }
    return source_record.store(target, Record(dataclasses.replace(source, findings=findings), list(rows), decided))


def duplicates_of(
    target: Run, known: Sequence[Mapping[str, Any]], staged: Sequence[Mapping[str, Any]]
) -> list[Duplicate]:
    """Pairs that show the same picture, at least one of them staged."""
    both = [*known, *staged]
    new = {item["image_id"] for item in staged}
    exact = {item["sha256"] for item in staged}
    look = proposed([item["sha256"] for item in both], [item["phash"] for item in both], first_new=len(known))
    involved = sorted(
        {*look, *range(len(known), len(both)), *(k for k, item in enumerate(known) if item["sha256"] in exact)}
    )
    few = [both[index] for index in involved]
    pictures = Pictures(target, {item["image_id"]: item["shard"] for item in both})
    if look:
        with terminal.bar("duplicates", len(look), "pictures looked at") as bar:
            pictures.fetch([both[k]["image_id"] for k in look], lambda done, total: bar.to(done, total=total))
    columns = {name: [item[name] for item in few] for name in ("image_id", "split", "dataset", "grade")}
    pairs = find_pairs(
        [item["sha256"] for item in few], [item["phash"] for item in few], lambda k: pictures(few[k]["image_id"])
    )
    return [pair for pair in describe(pairs, columns) if pair.a in new or pair.b in new]
