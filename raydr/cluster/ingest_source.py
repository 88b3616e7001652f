"""Photographs from a folder or bucket -> `real`, in two passes with one decision between them.

    stage     every file is read, cropped, resized and hashed into staging/ (Ray Data, a shard a task)
    settle    on the driver: duplicates, splits, folds; stored once in sources/{dataset}.parquet
    publish   every staged shard gets its splits and folds and moves to real/ (Ray Data)

Splits must know all duplicates, and duplicates all pixels: hence two passes. Both commit their shards exactly once, so
the same command goes on wherever it was killed, and comes to the same table.
"""

import dataclasses
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raydr import shards, terminal
from raydr.cluster import ingest, source_notes, source_record
from raydr.cluster.audit import write_card
from raydr.cluster.ingest_passes import drop, mend, publish, stage, stage_plans, staged_commits
from raydr.cluster.settling import decide, open_listing, open_lists, require_same
from raydr.cluster.source_record import Record, Source
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.fundus.readers.rows import Rejected, Row
from raydr.fundus.settle import Options, check_early, tally
from raydr.fundus.splits import NUM_FOLDS, PER_GRADE
from raydr.identity import fingerprint, sha256
from raydr.ledger import ATTEMPTS, COMMITS
from raydr.storage import Run


@dataclass(frozen=True)
class Request:
    """One `raydr ingest READER PATH`."""

    reader: str
    path: str
    role: str | None = None
    # Name of the data set; None = the reader's, or the folder's.
    dataset: str | None = None
    # Folder or file of published fold lists; None = folds are drawn.
    folds: str | None = None
    # None = the recipe's seed.
    split_seed: int | None = None
    num_folds: int = NUM_FOLDS
    per_grade: int = PER_GRADE
    drop_duplicates: bool = False


# -- on the driver --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """A source as it lies there, its request checked; nothing is written and Ray not needed yet."""

    source: Source
    rows: list[Row]
    rejected: list[Rejected]
    options: Options
    lists: dict[str, bytes] | None
    # What was decided about this source before; None = it is new.
    record: Record | None

    @property
    def name(self) -> str:
        return self.source.dataset


def look(recipe: Recipe, target: Run, request: Request) -> Listing:
    """List the source and hold it against what the run has of it.

    Raises UserError for what the user can mend: nothing there, folds that cannot be filled, IdentityMismatch where the
    source or the request differs from what was ingested.
    """
    if recipe.num_replicates > 1 and recipe.ingest.source == "phantom":
        raise UserError("replicates are cohorts of phantoms: give real photographs a recipe with --num-replicates 1")
    listed_at = time.time()
    base, rows, rejected = open_listing(request.reader, request.path, request.dataset, request.role)
    lists = open_lists(request.folds)
    options = Options(
        split_seed=recipe.seed if request.split_seed is None else request.split_seed,
        num_folds=request.num_folds,
        per_grade=request.per_grade,
        drop_duplicates=request.drop_duplicates,
        folds_required=recipe.fold is not None and request.reader == recipe.ingest.source and request.role is None,
        lists=fingerprint({name: sha256(data) for name, data in lists.items()}) if lists is not None else "",
    )
    stored = {"px": recipe.ingest.px, "crop": recipe.ingest.crop, "shard_size": recipe.ingest.shard_size}
    source = Source(
        reader=request.reader,
        dataset=rows[0].dataset,
        role=request.role,
        settings=stored | dataclasses.asdict(options),
        num_listed=len(rows),
        num_rejected=len(rejected),
        rejected=fingerprint([dataclasses.astuple(entry) for entry in rejected]),
        path=base,
        listed_at=listed_at,
    )
    record = source_record.load(target, source.dataset)
    if record is not None:
        require_same(target, record, source, rows)
    else:
        require_room(target, source.dataset)
        check_early(rows, options, lists, with_folds=request.role is None)
    return Listing(source, rows, rejected, options, lists, record)


def describe(recipe: Recipe, target: Run, request: Request) -> str:
    """What adding the source would do, in a sentence; raises as `look` does."""
    listing = look(recipe, target, request)
    if is_whole(target, listing):
        return f"{listing.name}: all of it is in {target.url}"
    rejected = ", ".join(f"{count} {reason}" for reason, count in tally([e.reason for e in listing.rejected]).items())
    splits = ", ".join(
        f"{count} {split}" for split, count in tally([r.split or "unsplit" for r in listing.rows]).items()
    )
    return f"{listing.name}: {len(listing.rows)} photographs ({splits}) in {listing.source.num_shards} shards" + (
        f"; set aside: {rejected}" if rejected else ""
    )


def is_whole(target: Run, listing: Listing) -> bool:
    """Whether all of the source is in `real` already."""
    return listing.record is not None and listing.name not in {half.dataset for half in ingest.unfinished(target)}


def add_source(recipe: Recipe, target: Run, listing: Listing) -> dict[str, Any]:
    """Add a listed source to `real`; returns the counts of the whole table, and under "source" what became of this one.

    The same again goes on where it was cut, and adds nothing when there is nothing left. Raises BudgetExhausted where
    too many entries cannot be used, with everything read so far kept for the next try.
    """
    mend(target, listing.name)
    record = listing.record or read_and_settle(target, listing, recipe.ingest.max_quarantine)
    source_notes.note(target, listing.name, dropped(record))
    added = publish(target, record, listing.source.path)
    complete = ingest.complete(recipe, target)
    if not complete:
        terminal.note(f"the recipe {recipe.name} also has phantoms: `raydr ingest --out {target.url}` makes them")
    clean(target, listing.name)
    write_card(target)
    about = summary(target, record, added)
    show(about)
    return {**ingest.counted(target), "rendered": 0, "complete": complete, "source": about}


def read_and_settle(target: Run, listing: Listing, limit: float) -> Record:
    """The first pass and the decision; BudgetExhausted where more than the share `limit` cannot be used."""
    source, rows, rejected = listing.source, listing.rows, listing.rejected
    begin_listing(target, source, rows, rejected)
    total = len(rows) + len(rejected)
    try:
        source_notes.check_share(target, source.dataset, len(rejected), total, limit)
        stage(target, source, rows, range(source.num_shards), source.path)
        unusable = len(rows) - sum(commit.rows for commit in staged_commits(target, source.dataset).values())
        source_notes.check_share(target, source.dataset, len(rejected) + unusable, total, limit)
    finally:
        source_notes.show(source.dataset, source_notes.noted(target, source.dataset))
    return decide(target, source, rows, listing.options, listing.lists)


def begin_listing(target: Run, source: Source, rows: Sequence[Row], rejected: Sequence[Rejected]) -> None:
    """Note what the reader rejected, and drop what an earlier, cut ingest staged of files that have changed since."""
    dataset = source.dataset
    listing = fingerprint([row.values() for row in rows], source.rejected)
    key = f"{source_record.FOLDER}/{source_record.slug(dataset)}.listing.json"
    if target.exists(key) and target.read_json(key)["listing"] != listing:
        terminal.note(f"{dataset} has changed since its ingest was cut: what changed is read again")
        source_notes.forget(target, dataset)
    planned = {plan["key"]: plan["fingerprint"] for plan in stage_plans(source, rows, range(source.num_shards))}
    for staged, commit in staged_commits(target, dataset).items():
        if planned.get(staged) != commit.fingerprint:
            drop(target, staged)
    target.replace_json(key, {"listing": listing})
    source_notes.note(target, dataset, rejected)


def require_room(target: Run, dataset: str) -> None:
    """UserError where `real` holds phantoms of this name, or another source in part: duplicates need all of it."""
    if any(key.startswith(f"real/phantom-{dataset}-") for key in shards.commits(target, "real")):
        raise UserError(
            f"{target.url} holds phantoms called {dataset}: name this source with --dataset, or use another --out"
        )
    for half in ingest.unfinished(target):
        raise UserError(
            f"{target.url} holds {half.dataset} in part only: first run `raydr ingest {half.reader} {half.path}` again"
        )


def dropped(record: Record) -> list[Rejected]:
    """The duplicates that are left out, as entries of the quarantine."""
    return [
        Rejected(row.path, item["left_out"], f"{row.image_id} shows the same picture as {item['because_of']}")
        for row, item in zip(record.rows, record.decided, strict=True)
        if item["because_of"] is not None
    ]


def clean(target: Run, dataset: str) -> None:
    """Delete what only an unfinished ingest needs."""
    name = source_record.slug(dataset)
    for folder in (f"{COMMITS}/staging/{name}", f"staging/{name}", f"{ATTEMPTS}/staging/{name}"):
        for key, _ in target.list(folder):
            target.delete(key)
        if target.local is not None:  # a bucket has no folders to be left empty
            shutil.rmtree(target.local / folder, ignore_errors=True)
    target.delete(f"{source_record.FOLDER}/{name}.listing.json")


def summary(target: Run, record: Record, added: int) -> dict[str, Any]:
    source = record.source
    kept = [item for item in record.decided if item["left_out"] is None]
    return {
        "dataset": source.dataset,
        "listed": source.num_listed + source.num_rejected,
        "kept": len(kept),
        "added": added,
        "splits": tally([item["final_split"] for item in kept]),
        "in_folds": len([item for item in kept if item["fold"] is not None]),
        "set_aside": tally([entry["reason"] for entry in source_notes.noted(target, source.dataset)]),
        **source.findings,
    }


def show(about: dict[str, Any]) -> None:
    """Print what a person should know about the source before training on it."""
    name = about["dataset"]
    splits = ", ".join(f"{count} {split}" for split, count in about["splits"].items())
    terminal.note(f"{name}: {splits or 'nothing'}" + (f"; {about['in_folds']} in folds" if about["in_folds"] else ""))
    if about["duplicates"]:
        terminal.note(
            f"{name}: {about['duplicates']} pairs show the same picture, {about['duplicates_of_other_data_sets']} of "
            "them with another data set"
        )
    if about["leaks"]:
        terminal.note(
            f"{name}: {about['leaks']} of these pairs stand on both sides of a split: `raydr audit` shows them; "
            "--drop-duplicates leaves the copies of the source that is added out, so use another --out and add the "
            "sources with test photographs first"
        )
    if about["note"]:
        terminal.note(f"{name}: {about['note']}")
