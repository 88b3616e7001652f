"""Photographs that show one picture on both sides, learning and judging: an error, whatever their names and bytes.

    from raydr.cluster import leaks
    leaks.refuse(recipe, run)

Ids and hashes tell of equal files alone. Copies that were encoded again, resized, trimmed or mirrored are found as the
audit finds them (`fundus.duplicates`), once for each state of `real`, on the driver and without Ray.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from raydr import schema, shards, terminal
from raydr.cluster import ingest
from raydr.cluster.pictures import Pictures, columns_of, proposed
from raydr.config import Recipe
from raydr.errors import LeakageError
from raydr.fundus.duplicates import find_pairs
from raydr.storage import Run

COLUMNS = ["image_id", "split", "fold", "sha256", "phash", "stratum"]
LEARNT = ("train", "prior", "fresh")


def rows_of(target: Run) -> list[dict[str, Any]]:
    """COLUMNS and the shard of every photograph; phantoms are left out, which are drawn from disjoint seeds."""
    rows = columns_of(target, "real", schema.REAL, COLUMNS, required=False).to_pylist()
    return [row for row in rows if row["stratum"] != "phantom"]


def pairs_of(target: Run) -> list[tuple[str, str]]:
    """Ids of photographs of `real` that show the same picture; searched once for each state of it, kept in cache/."""
    key = f"cache/duplicates/{ingest.fingerprint_of(target, external=True)}.json"
    if not target.exists(key):
        rows = rows_of(target)
        found = search(rows, [pictures_of(target, rows)] * len(rows))
        target.replace_json(key, [[rows[a]["image_id"], rows[b]["image_id"]] for a, b in found])
    return [(a, b) for a, b in target.read_json(key)]


def pictures_of(run: Run, rows: Sequence[Mapping[str, Any]]) -> Pictures:
    return Pictures(run, {row["image_id"]: row["shard"] for row in rows})


def search(
    rows: Sequence[Mapping[str, Any]], pictures: Sequence[Pictures], first_new: int = 0
) -> list[tuple[int, int]]:
    """Pairs (a < b) of `rows` that show the same picture, of which b is a row from `first_new` on.

    `pictures` has an entry a row: rows of two runs may be compared.
    """
    look = proposed([row["sha256"] for row in rows], [row["phash"] for row in rows], first_new)
    for source in {id(one): one for one in pictures}.values():
        _fetch(source, [rows[k]["image_id"] for k in look if pictures[k] is source])
    # Without the other rows, whose pairs among each other do not matter and would be looked at too.
    few = sorted({*look, *range(first_new, len(rows))})
    found = find_pairs(
        [rows[k]["sha256"] for k in few],
        [rows[k]["phash"] for k in few],
        lambda k: pictures[few[k]](rows[few[k]]["image_id"]),
    )
    return [(few[pair.a], few[pair.b]) for pair in found if few[pair.b] >= first_new]


def _fetch(pictures: Pictures, image_ids: list[str]) -> None:
    """Of 50,000 photographs nearly all are looked at: minutes, once."""
    if image_ids:
        with terminal.bar("leaks", len(image_ids), "pictures looked at") as bar:
            pictures.fetch(image_ids, lambda done, total: bar.to(done, total=total))


def alike(pairs: Sequence[tuple[Any, Any]]) -> list[list[Any]]:
    """The groups that `pairs` link, sorted: of equal files the search compares the first alone with the others."""
    found: dict[Any, list[Any]] = {}
    for a, b in pairs:
        one, other = found.setdefault(a, [a]), found.setdefault(b, [b])
        if one is not other:
            one += other
            found |= dict.fromkeys(other, one)
    return sorted(sorted(group) for group in {id(group): group for group in found.values()}.values())


def use_of(split: str, fold: int | None, of_row: int | None) -> str | None:
    """ "learnt", "validation" or "test": what a run that evaluates `fold` does with a photograph; None for nothing."""
    if split in ("train", "validation") and fold is not None:
        return "validation" if of_row == fold else "learnt"
    return "learnt" if split in LEARNT else split if split in ("validation", "test") else None


def refuse(recipe: Recipe, target: Run) -> None:
    """LeakageError where a test photograph repeats one that is learnt from or chosen by, or a validation one of the
    evaluated fold one that is learnt from; it names a pair and what to do.
    """
    groups = alike(pairs_of(target))
    if not groups:
        return
    table = shards.read(target, "real", schema.REAL, ["image_id", "split", "fold"])
    rows = {row["image_id"]: row for row in table.to_pylist()}
    uses = {name: use_of(row["split"], recipe.fold, row["fold"]) for name, row in rows.items()}
    bad = []
    for group in groups:
        # One of each use is named: what learns first, then what chooses, then what judges.
        first = {uses[name]: name for name in reversed(group) if uses[name] is not None}
        if len(first) > 1:
            bad.append([first[use] for use in ("learnt", "validation", "test") if use in first])
    if not bad:
        return

    def told(name: str) -> str:
        fold = f", fold {rows[name]['fold']}" if recipe.fold is not None and rows[name]["fold"] is not None else ""
        return f"{name} ({rows[name]['split']}{fold})"

    what = "test photographs" if recipe.fold is None else f"test photographs or the validation of fold {recipe.fold}"
    raise LeakageError(
        f"{target.url}: {len(bad)} pictures stand on both sides of a split, the first as "
        f"{' and '.join(map(told, bad[0]))}: nothing may learn from copies of {what}. `raydr audit {target.url}` "
        "shows the pairs; ingest with --drop-duplicates into another --out, the source with the test photographs first"
    )


def repeated(target: Run, source: Run, image_ids: Sequence[str]) -> set[str]:
    """Those of the photographs `image_ids` of the run `source` that show a picture which `target` learns from."""
    wanted = set(image_ids)
    if source.url == target.url:
        table = shards.read(target, "real", schema.REAL, ["image_id", "split"])
        seen = {row["image_id"] for row in table.to_pylist() if row["split"] not in ("test", "external")}
        return {name for group in alike(pairs_of(target)) if seen & set(group) for name in group if name in wanted}
    mine = [row for row in rows_of(target) if row["split"] not in ("test", "external")]
    theirs = [row for row in rows_of(source) if row["image_id"] in wanted]
    if not mine or not theirs:
        return set()
    pictures = [pictures_of(target, mine)] * len(mine) + [pictures_of(source, theirs)] * len(theirs)
    found = alike(search([*mine, *theirs], pictures, first_new=len(mine)))
    return {
        theirs[k - len(mine)]["image_id"] for group in found if group[0] < len(mine) for k in group if k >= len(mine)
    }
