"""What is decided about a new source once all its photographs are hashed: splits, folds, and which duplicates go.

Pure: rows and pairs in, decisions out. Rows that a run holds already are settled for good; new ones fit in around them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from raydr.errors import UserError
from raydr.fundus.audit import Drop, Duplicate, drops
from raydr.fundus.readers.rows import Row
from raydr.fundus.splits import NUM_FOLDS, PER_GRADE, assign_splits, groups_of, make_folds, read_folds


@dataclass(frozen=True)
class Options:
    """How a source is settled; part of its identity, since each field changes rows."""

    # Seed of the splits of photographs that come without one, and of the folds.
    split_seed: int
    # Folds of the pooled train and validation splits, each validating on `per_grade` photographs of every grade.
    num_folds: int = NUM_FOLDS
    per_grade: int = PER_GRADE
    # True leaves out what the audit proposes to leave out.
    drop_duplicates: bool = False
    # True: a pool too small for the folds is the user's mistake. False: such a source has no folds.
    folds_required: bool = False
    # Hash of the published fold lists; "" = folds are drawn.
    lists: str = ""


@dataclass(frozen=True)
class Settled:
    """Decisions about the new rows, by image id."""

    splits: dict[str, str]
    folds: dict[str, int]
    drops: dict[str, Drop]
    # Duplicates with at least one new row, under their final splits.
    duplicates: tuple[Duplicate, ...]
    # Why there are no folds; "" where there are, or where none were wanted.
    note: str

    @property
    def leaks(self) -> list[Duplicate]:
        """Pairs that stand on both sides of a split after all."""
        return [p for p in self.duplicates if p.across_splits and p.a not in self.drops and p.b not in self.drops]


def settle(
    rows: Sequence[Row],
    existing: Sequence[Row],
    pairs: Sequence[Duplicate],
    options: Options,
    lists: Mapping[str, bytes] | None = None,
    with_folds: bool = True,
    unusable: Sequence[Row] = (),
) -> Settled:
    """Settle the new `rows` of one source among the `existing` rows of the run.

    Args:
        rows: photographs that could be prepared; a split may be None.
        pairs: duplicates among all of them; their `splits` are filled here.
        lists: published fold lists (path -> bytes), else folds are drawn by `options.split_seed`.
        with_folds: False where another source of the run has the folds, or the source is prior or external.
        unusable: listed photographs that went into the quarantine; fold lists may name them.

    Raises UserError where lists and data set disagree, or a required fold cannot be filled.
    """
    everything = [*existing, *rows]
    links = [(pair.a, pair.b) for pair in pairs]
    settled = assign_splits(everything, options.split_seed, duplicates=links)
    split_of = {row.image_id: str(row.split) for row in settled}
    final = tuple(_with_splits(pair, split_of) for pair in pairs)

    new = {row.image_id for row in rows}
    dropped: dict[str, Drop] = {}
    if options.drop_duplicates:
        columns: dict[str, list] = {
            "image_id": [row.image_id for row in settled],
            "split": [row.split for row in settled],
            "grade": [row.grade for row in settled],
        }
        dropped = {drop.image_id: drop for drop in drops(final, columns) if drop.image_id in new}

    pool = [row for row in settled if row.image_id in new and row.split in ("train", "validation")]
    folds: dict[str, int] = {}
    note = ""
    if lists is not None:
        # Lists may name what is left out here, so they are read against all that is listed.
        folds = read_folds(lists, {row.image_id: row.grade for row in [*pool, *unusable]})
    elif with_folds and pool:
        kept = [row for row in pool if row.image_id not in dropped]
        groups = groups_of([row.image_id for row in kept], [row.patient_id for row in kept], links)
        try:
            grades = {row.image_id: row.grade for row in kept}
            folds = make_folds(grades, groups, options.split_seed, options.num_folds, options.per_grade)
        except UserError as error:
            if options.folds_required:
                raise
            note = f"no folds: {error}"
    return Settled(
        splits={image_id: split_of[image_id] for image_id in new},
        folds={image_id: fold for image_id, fold in folds.items() if image_id in new and image_id not in dropped},
        drops=dropped,
        duplicates=tuple(pair for pair in final if pair.a in new or pair.b in new),
        note=note,
    )


def _with_splits(pair: Duplicate, split_of: Mapping[str, str]) -> Duplicate:
    return replace(pair, splits=(split_of[pair.a], split_of[pair.b]))


def check_early(rows: Sequence[Row], options: Options, lists: Mapping[str, bytes] | None, with_folds: bool) -> None:
    """Raise UserError for folds that cannot work out whatever the pixels hold: hours before `settle` would."""
    pool = {row.image_id: row.grade for row in rows if row.split in ("train", "validation", None)}
    if lists is not None:
        read_folds(lists, pool)
    elif with_folds and options.folds_required:
        make_folds(pool, {}, options.split_seed, options.num_folds, options.per_grade)


def difference(before: Sequence[Row], after: Sequence[Row]) -> str:
    """In words, what differs between two listings of a source, with the first case of each kind; "" when nothing."""
    old, new = {row.image_id: row for row in before}, {row.image_id: row for row in after}
    added, removed = sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys())
    changed = [(old[k], new[k]) for k in sorted(old.keys() & new.keys()) if old[k] != new[k]]
    parts = [f"{len(added)} added (first {added[0]})"] if added else []
    parts += [f"{len(removed)} removed (first {removed[0]})"] if removed else []
    if changed:
        a, b = changed[0]
        parts.append(f"{len(changed)} changed (first {a.image_id}: {', '.join(changes(a, b))})")
    return ", ".join(parts)


WORDS = {"num_bytes": "bytes", "patient_id": "patient", "path": "file"}


def changes(a: Row, b: Row) -> list[str]:
    """`grade 1 -> 2` for every field in which two rows differ."""
    fields = (name for name in Row.__dataclass_fields__ if getattr(a, name) != getattr(b, name))
    return [f"{WORDS.get(name, name)} {_word(getattr(a, name))} -> {_word(getattr(b, name))}" for name in fields]


def _word(value: object) -> str:
    return "none" if value is None else str(value)


def tally(reasons: Sequence[str]) -> dict[str, int]:
    """{reason: count}, most frequent first."""
    return dict(sorted(Counter(reasons).items(), key=lambda item: (-item[1], item[0])))
