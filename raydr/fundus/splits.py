"""Which photograph trains, which one judges: split and fold assignment, deterministic by seed.

What may not be separated (both eyes of a patient, near-duplicates) is a *group*; a group never spans splits or folds.
Everything here sorts by image id first, so the order of a listing changes nothing.
"""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raydr.errors import UserError
from raydr.fundus.readers.ddr import list_labels
from raydr.fundus.readers.rows import Row
from raydr.fundus.readers.text import text_of
from raydr.grades import GRADES, NAMES
from raydr.identity import rng_of

NUM_FOLDS = 5
# Validation images per grade and fold: 165 severe photographs in DDR's train + validation are five times 33.
PER_GRADE = 33
# Random orders tried before a pool of families is given up as impossible to fill exactly.
NUM_ORDERS = 10


@dataclass(frozen=True)
class Fractions:
    """Shares of the rows without an official split that go to each split."""

    train: float = 0.7
    validation: float = 0.1
    test: float = 0.2

    def __post_init__(self) -> None:
        if min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise UserError(f"split fractions must be at least 0 and add up to 1, not {self.shares}")

    @property
    def shares(self) -> tuple[float, float, float]:
        return self.train, self.validation, self.test


SPLIT_NAMES = ("train", "validation", "test")


def groups_of(
    image_ids: Sequence[str], patient_ids: Sequence[str | None], duplicates: Iterable[tuple[str, str]] = ()
) -> dict[str, str]:
    """Group name (its smallest image id) of every image: same patient or linked by a pair of near-duplicates."""
    parent = {image_id: image_id for image_id in image_ids}

    def root(image_id: str) -> str:
        while parent[image_id] != image_id:
            parent[image_id] = parent[parent[image_id]]
            image_id = parent[image_id]
        return image_id

    def link(a: str, b: str) -> None:
        low, high = sorted((root(a), root(b)))
        parent[high] = low

    first_of: dict[str, str] = {}
    for image_id, patient_id in zip(image_ids, patient_ids, strict=True):
        if patient_id is not None:
            link(image_id, first_of.setdefault(patient_id, image_id))
    for a, b in duplicates:
        if a in parent and b in parent:
            link(a, b)
    return {image_id: root(image_id) for image_id in image_ids}


def stratified(
    groups: Mapping[str, str], grades: Mapping[str, int | None], shares: Sequence[float], seed: int
) -> dict[str, int]:
    """Part (index into `shares`) of every image in `groups`: whole groups, each grade split as `shares` says.

    Greedy over groups in a random order, those holding the rarest grade first: each goes where its grades are
    furthest behind their targets. A grade misses its target by three photographs at most on 4,000 eyes in pairs.
    """
    totals = Counter(grades[image_id] for image_id in groups)
    members: dict[str, list[str]] = defaultdict(list)
    for image_id in sorted(groups):
        members[groups[image_id]].append(image_id)
    rarest = {group: min(totals[grades[image_id]] for image_id in inside) for group, inside in members.items()}
    names = sorted(members)
    order = rng_of("split", seed).permutation(len(names))
    # Large groups before small ones of the same rarity: single photographs even out what families left uneven.
    queue = sorted((names[i] for i in order), key=lambda name: (rarest[name], -len(members[name])))

    behind = {grade: np.asarray(shares, dtype=float) * total for grade, total in totals.items()}
    parts: dict[str, int] = {}
    for group in queue:
        inside = Counter(grades[image_id] for image_id in members[group])
        need = sum(count * behind[grade] / totals[grade] for grade, count in inside.items())
        part = int(np.argmax(np.where(np.asarray(shares) > 0, need, -np.inf)))
        for grade, count in inside.items():
            behind[grade][part] -= count
        parts.update((image_id, part) for image_id in members[group])
    return parts


def assign_splits(
    rows: Sequence[Row],
    seed: int,
    fractions: Fractions | None = None,
    duplicates: Iterable[tuple[str, str]] = (),
) -> list[Row]:
    """Rows with every split filled, in the given order. Official splits stay as they are.

    Rows without one are split per data set, patients and near-duplicates (pairs of image ids) together; a group that
    holds an official row follows it (the one a leak would hurt most: test, external, validation, train, prior).
    """
    groups = groups_of([row.image_id for row in rows], [row.patient_id for row in rows], duplicates)
    protection = {split: rank for rank, split in enumerate(("test", "external", "validation", "train", "prior"))}
    official: dict[str, str] = {}
    for row in rows:
        if row.split is not None:
            group = groups[row.image_id]
            official[group] = min(official.get(group, row.split), row.split, key=lambda split: protection[split])
    chosen: dict[str, str] = {}
    free = [row for row in rows if row.split is None and groups[row.image_id] not in official]
    # A group of two data sets is split once, with the data set that comes first.
    first_dataset: dict[str, str] = {}
    for row in sorted(free, key=lambda row: row.image_id):
        first_dataset.setdefault(groups[row.image_id], row.dataset)
    for dataset in sorted(set(first_dataset.values())):
        inside = [row for row in free if first_dataset[groups[row.image_id]] == dataset]
        parts = stratified(
            {row.image_id: groups[row.image_id] for row in inside},
            {row.image_id: row.grade for row in inside},
            (fractions or Fractions()).shares,
            seed,
        )
        chosen.update((image_id, SPLIT_NAMES[part]) for image_id, part in parts.items())
    return [
        row if row.split is not None else replace(row, split=official.get(groups[row.image_id]) or chosen[row.image_id])
        for row in rows
    ]


def make_folds(
    grades: Mapping[str, int | None],
    groups: Mapping[str, str],
    seed: int,
    num_folds: int = NUM_FOLDS,
    per_grade: int = PER_GRADE,
) -> dict[str, int]:
    """The paper's folds (its section 6): {image_id: fold that validates on it}; images left out train in all folds.

    Each fold validates on exactly `per_grade` images of every grade, folds are disjoint, groups stay whole. `grades`
    is the pool (official train + validation); ungraded images take no part. Raises UserError where the pool is short.
    """
    graded = {image_id: grade for image_id, grade in grades.items() if grade is not None}
    totals = Counter(graded.values())
    for grade in GRADES:
        if totals[grade] < num_folds * per_grade:
            raise UserError(
                f"{num_folds} folds of {per_grade} a grade need {num_folds * per_grade} images of grade {grade} "
                f"({NAMES[grade]}), the pool holds {totals[grade]}: lower --per-grade or --num-folds"
            )
    members: dict[str, list[str]] = defaultdict(list)
    for image_id in sorted(grades):
        members[groups.get(image_id, image_id)].append(image_id)
    # A group with an ungraded photograph in it could not validate whole.
    usable = {name: inside for name, inside in members.items() if all(image_id in graded for image_id in inside)}
    counts = {
        name: np.bincount([graded[image_id] for image_id in inside], minlength=len(GRADES))
        for name, inside in usable.items()
    }

    def rank(name: str) -> tuple[int, int]:
        return min(totals[int(grade)] for grade in np.flatnonzero(counts[name])), -len(usable[name])

    names = sorted(usable)
    for attempt in range(NUM_ORDERS):
        order = rng_of("folds", seed, attempt).permutation(len(names))
        need = np.full((num_folds, len(GRADES)), per_grade)
        folds: dict[str, int] = {}
        for name in sorted((names[i] for i in order), key=rank):
            fits = (need >= counts[name]).all(axis=1)
            if fits.any():
                fold = int(np.argmax(np.where(fits, need @ counts[name], -1)))
                need[fold] -= counts[name]
                folds.update((image_id, fold) for image_id in usable[name])
        if not need.any():
            return folds
    fold, grade = np.argwhere(need)[0]
    raise UserError(
        f"fold {fold} lacks {need[fold, grade]} images of grade {grade} ({NAMES[grade]}) once patients and "
        "near-duplicates stay together: lower --per-grade (to an even number where every patient has two eyes) or "
        "--num-folds"
    )


def read_folds(lists: Mapping[str, bytes], grades: Mapping[str, int | None]) -> dict[str, int]:
    """Folds out of published `name label` text lists: {image_id: fold that validates on it}.

    Args:
        lists: path -> bytes of the text files. A path holds the fold's number and, for validation lists, `val`; where
            only training lists exist, a fold validates on what its training list leaves out of all lists together.
        grades: {image_id: grade} of the pool the lists speak of.

    Raises UserError for a name outside the pool, a label unlike the pool's, or an image in two validation lists.
    """
    by_name = {posixpath.basename(image_id).casefold(): image_id for image_id in grades}
    named: dict[str, dict[int, set[str]]] = {"validation": {}, "train": {}}
    for path in sorted(lists):
        numbers = re.findall(r"\d+", path)
        lowered = path.lower()
        if not numbers or not lowered.endswith((".txt", ".csv")) or "test" in posixpath.basename(lowered):
            continue
        kind = "validation" if "val" in lowered and "trainval" not in lowered else "train"
        inside = named[kind].setdefault(int(numbers[-1]), set())
        for label in list_labels(text_of(lists[path]).replace(",", " ").encode()):
            name = posixpath.basename(label.name.replace("\\", "/")).casefold()
            name = name if name in by_name else posixpath.splitext(name)[0]
            if name not in by_name:
                raise UserError(f"{path} lists {label.name}, which is not in train or validation: check --folds")
            image_id = by_name[name]
            if label.grade != str(grades[image_id]):
                raise UserError(f"{path} says grade {label.grade} for {image_id}, the data set says {grades[image_id]}")
            inside.add(image_id)
    validation = named["validation"]
    if not validation and named["train"]:
        pool = set().union(*named["train"].values())
        validation = {fold: pool - inside for fold, inside in named["train"].items()}
    if not validation:
        raise UserError("no fold lists found: --folds takes a folder of text files such as fold0_val.txt (name label)")
    start = min(validation)  # lists count from 0 or from 1
    folds: dict[str, int] = {}
    for fold, inside in sorted(validation.items()):
        for image_id in sorted(inside):
            if image_id in folds:
                raise UserError(
                    f"{image_id} is in the validation lists of two folds: {folds[image_id]} and {fold - start}"
                )
            folds[image_id] = fold - start
    return folds
