"""Replicates on real photographs: the chain repeated over folds, on the photographs of the run above them.

    OUT/real                  ingested once
    OUT/replicate-2/real      the same shards: hard links on a disk, copies in a bucket

Replicate k evaluates fold `fold + k`; without a fold only the seeds differ. Photographs are shared, so results say
nothing of another data set, and neighbouring folds' training sets overlap by most of their photographs.
"""

import contextlib
import os
from collections.abc import Sequence

from raydr import schema, selection, shards
from raydr.cluster import ingest, source_record
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.ledger import COMMITS, MANIFEST
from raydr.storage import Run


def share(recipe: Recipe, target: Run, parts: Sequence[tuple[Recipe, Run]]) -> None:
    """Give each of `parts` the photographs of `target`; what is there stays, and what was added since follows.

    Nothing is done for a single replicate, or for phantoms, of which each draws its own. Raises MissingInput where
    `target` holds none yet, UserError for a fold that it does not have.
    """
    if len(parts) == 1 or recipe.ingest.source == "phantom":
        return
    ingest.ready(recipe, target)
    real = shards.read(target, "real", schema.REAL, ["split", "fold", "grade"])
    for part, _ in parts:
        if part.fold is not None and not len(selection.part_of(real, "validation", part.fold)):
            there = sorted(set(real["fold"].drop_null().to_pylist()))
            held = f"folds {there[0]} to {there[-1]}" if there else "no folds"
            raise UserError(
                f"replicate {part.replicate} is to evaluate fold {part.fold}, and {target.url} has {held}: lower "
                "--num-replicates, or --fold, the first of them"
            )
    done = shards.commits(target, "real")
    sources = [key for key, _ in target.list(source_record.FOLDER) if key.endswith(".parquet")]
    for _, place in parts:
        mine = shards.commits(place, "real")
        for key in [key for key in done if key not in mine]:
            give(target, place, key)
            give(target, place, shards.record_key(key))
        for key in sources:
            give(target, place, key)
        manifest = f"{COMMITS}/real/{MANIFEST}"
        place.replace(manifest, target.read(manifest))


def words(part: Recipe, num_replicates: int) -> str:
    """ "replicate 2 of 5, fold 1"."""
    return f"replicate {part.replicate + 1} of {num_replicates}" + ("" if part.fold is None else f", fold {part.fold}")


def give(source: Run, to: Run, key: str) -> None:
    """`key` of one run in another below it, under the same name: a hard link on a disk, as all of a run's files are."""
    if to.exists(key):
        return
    if source.local is None:
        to.create(key, source.read(key))
        return
    to.path(key).parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        os.link(source.path(key), to.path(key))
