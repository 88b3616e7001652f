"""Band x ratio x grades -> training rows. Pure: tables in, row numbers out, no image is opened.

Every arm gets the same number N of extra images per grade, N = round(r (max_h n(h) - n(g))) at ratio
r, so that r = 1 balances, or a count of the user's (paper 9). Where the poorest arm of a sweep can give fewer, all get
fewer and the shortage is stated: arms then differ in which images they add, never in how many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raydr.arms import ADDING_NOTHING, REAL_SOURCES, Arm, arm_named
from raydr.arms import ARMS as ARMS
from raydr.grades import GRADES, NUM_GRADES
from raydr.identity import rng_of


def part_of(real: pa.Table, part: str, fold: int | None) -> np.ndarray:
    """Row numbers of the graded photographs of `part`: train, validation, test, prior, fresh or external.

    With a fold, train and validation are the pooled official splits without and with that fold.
    """
    split = np.asarray(real["split"].to_pylist(), dtype=object)
    graded = np.asarray(real["grade"].is_valid())
    if part in ("train", "validation") and fold is not None:
        pooled = np.isin(split, ("train", "validation"))
        folds = np.asarray(real["fold"].fill_null(-1))
        mask = pooled & ((folds == fold) if part == "validation" else (folds != fold))
    else:
        mask = split == part
    return np.flatnonzero(mask & graded)


def counts_of(grades: np.ndarray) -> np.ndarray:
    """int64 (5,)"""
    return np.bincount(np.asarray(grades, dtype=np.int64), minlength=NUM_GRADES)


def wanted(real_counts: np.ndarray, ratio: float, grades: Sequence[int]) -> np.ndarray:
    """N per grade, int64 (5,): round(r (max_h n(h) - n(g))) for `grades`, 0 elsewhere."""
    extra = np.zeros(NUM_GRADES, dtype=np.int64)
    for grade in grades:
        extra[grade] = round(ratio * (real_counts.max() - real_counts[grade]))
    return extra


def usable(samples: pa.Table, memorised_below: float | None = None) -> np.ndarray:
    """bool (n,): not blank, a fundus, and not nearer to a photograph than the memorisation threshold."""
    good = ~np.asarray(samples["blank"]) & np.asarray(samples["valid_fundus"])
    if memorised_below is not None:
        good &= np.asarray(samples["nearest_distance"].fill_null(np.inf)) >= memorised_below
    return good


def grades_of(arm: Arm, grades: Sequence[int]) -> tuple[int, ...]:
    """The grades that get images in an arm of a sweep with these `grades`."""
    return tuple(GRADES) if arm.grades == "all" else tuple(grades)


def supply(
    arm: Arm,
    grade: int,
    band: tuple[float, float],
    real: pa.Table,
    samples: pa.Table,
    good: np.ndarray,
    seed: int,
    fold: int | None = None,
) -> tuple[str, np.ndarray]:
    """(kind, row numbers in the order in which they are taken) of what an arm has for one grade.

    The kind is "real" or "roundtrip" (rows of `real`) or "synthetic" (rows of `samples`). Samples are taken
    by index, so the first N are the same however many machines made them.
    """
    if arm.source in (*REAL_SOURCES, "roundtrip"):
        rows = part_of(real, "train" if arm.source == "roundtrip" else arm.source, fold)
        kind = "roundtrip" if arm.source == "roundtrip" else "real"
        return kind, rows[np.asarray(real["grade"].fill_null(-1))[rows] == grade]
    mask = good & (np.asarray(samples["kind"].to_pylist(), dtype=object) == arm.source)
    mask &= np.asarray(samples["grade"]) == grade
    low_high = band if arm.band == "recipe" else arm.band
    if isinstance(low_high, tuple):
        score = np.asarray(samples["score"])
        mask &= (score >= low_high[0]) if arm.ends[0] == "[" else (score > low_high[0])
        mask &= (score <= low_high[1]) if arm.ends[1] == "]" else (score < low_high[1])
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(np.asarray(samples["index"])[rows], kind="stable")]
    if arm.random:
        rows = rng_of("random-subset", seed, grade).permutation(rows)
    return "synthetic", rows


@dataclass(frozen=True)
class Tables:
    """What arms choose from: photographs, samples, which of these may be used, and the evaluated fold."""

    real: pa.Table
    samples: pa.Table
    good: np.ndarray
    fold: int | None

    def supply(self, arm: Arm, grade: int, band: tuple[float, float], seed: int = 0) -> tuple[str, np.ndarray]:
        return supply(arm, grade, band, self.real, self.samples, self.good, seed, self.fold)

    def amount(self, arm: Arm, grade: int, band: tuple[float, float]) -> int:
        """How many images an arm could add to a grade; photographs may be drawn again after a round trip."""
        kind, rows = self.supply(arm, grade, band)
        return 2**62 if kind == "roundtrip" and len(rows) else len(rows)

    def asked(self, ratio: float, grades: Sequence[int], count: int = 0) -> np.ndarray:
        """N per grade that ratio r, or where it is not 0 `count`, asks for: int64 (5,)."""
        if count:
            return np.where(np.isin(GRADES, list(grades)), count, 0)
        train = part_of(self.real, "train", self.fold)
        return wanted(counts_of(np.asarray(self.real["grade"])[train]), ratio, grades)


@dataclass(frozen=True)
class Training:
    """Rows that one trial trains on, and what it could not get."""

    real_rows: np.ndarray  # int64, into `real`
    synthetic_rows: np.ndarray  # int64, into `samples`
    added: tuple[int, ...]  # extra images per grade
    shortage: tuple[int, ...]  # wanted and not there, per grade
    # int64, into `real`: photographs that are trained on after encode and decode, repeated where there are few.
    roundtrip_rows: np.ndarray


def common_counts(
    arms: Sequence[str],
    ratio: float,
    grades: Sequence[int],
    band: tuple[float, float],
    real: pa.Table,
    samples: pa.Table,
    good: np.ndarray,
    fold: int | None,
    count: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, wanted) int64 (5,) each: N is what every arm of the family "main" that adds images can give."""
    tables = Tables(real, samples, good, fold)
    asked = tables.asked(ratio, grades, count)
    given = asked.copy()
    for name in arms:
        arm = arm_named(name)
        if arm.family == "main" and arm.source not in ADDING_NOTHING:
            for grade in grades:
                given[grade] = min(given[grade], tables.amount(arm, grade, band))
    return given, asked


def counts_of_arms(
    arms: Sequence[str], ratio: float, grades: Sequence[int], band: tuple[float, float], tables: Tables, count: int = 0
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{arm: (N, wanted)}, int64 (5,) each, for all arms of a sweep that are trained as graders.

    The bins get what the poorest of those bins that have any of a grade can give: equal numbers, and 0 where
    a bin is empty. A control takes main's number of the sweep's grades, as far as it reaches. `count` images per grade
    are wanted where it is not 0, whatever the ratio.
    """
    parts = tables.real, tables.samples, tables.good, tables.fold
    common, asked = common_counts(arms, ratio, grades, band, *parts, count)
    bins = {name: arm_named(name) for name in arms if arm_named(name).family == "bin"}
    amounts = {name: {g: tables.amount(arm, g, band) for g in grades} for name, arm in bins.items()}
    found = {}
    for name in arms:
        arm = arm_named(name)
        given, wished = np.zeros_like(common), np.zeros_like(common)
        if arm.family == "main" and arm.source not in ADDING_NOTHING:
            given, wished = common, asked
        elif arm.family == "bin":
            wished = asked
            for grade in grades:
                there = [counts[grade] for counts in amounts.values() if counts[grade]]
                given[grade] = min(asked[grade], *there) if amounts[name][grade] else 0
        elif arm.family == "control":
            wished = tables.asked(ratio, grades_of(arm, grades), count)
            for grade in grades_of(arm, grades):
                most = common[grade] if grade in grades else wished[grade]
                given[grade] = min(most, tables.amount(arm, grade, band))
        found[name] = (given, wished)
    return found


def training_rows(
    name: str,
    extra: np.ndarray,
    asked: np.ndarray,
    band: tuple[float, float],
    real: pa.Table,
    samples: pa.Table,
    good: np.ndarray,
    fold: int | None,
    seed: int,
) -> Training:
    """The rows of arm `name` when every grade g gets `extra[g]` images (5,) beside the real ones."""
    arm = arm_named(name)
    rows: dict[str, list[np.ndarray]] = {"real": [part_of(real, "train", fold)]}
    added = np.zeros(NUM_GRADES, dtype=np.int64)
    if arm.source not in ADDING_NOTHING:
        for grade in np.flatnonzero(extra):
            kind, there = supply(arm, int(grade), band, real, samples, good, seed, fold)
            taken = np.resize(there, extra[grade]) if kind == "roundtrip" else there[: extra[grade]]
            rows.setdefault(kind, []).append(taken)
            added[grade] = len(taken)
    shortage = asked - added if arm.source not in ADDING_NOTHING else np.zeros_like(asked)
    none = [np.zeros(0, dtype=np.int64)]
    kinds = [np.concatenate(none + rows.get(kind, [])) for kind in ("real", "synthetic", "roundtrip")]
    return Training(kinds[0], kinds[1], tuple(added.tolist()), tuple(shortage.tolist()), kinds[2])


@dataclass(frozen=True)
class Probe:
    """Rows of a real-vs-synthetic probe: of each grade as many of either kind, in training and held out."""

    kind: str  # of what is told from photographs: synthetic (rows of `samples`) or roundtrip (of `real`)
    train_real: np.ndarray
    train_other: np.ndarray
    held_real: np.ndarray
    held_other: np.ndarray


def probe_counts(
    name: str, grades: Sequence[int], band: tuple[float, float], tables: Tables
) -> tuple[np.ndarray, np.ndarray]:
    """(images of each kind to train a probe on, to hold out) per grade, int64 (5,) each."""
    arm, train, held = arm_named(name), np.zeros(NUM_GRADES, np.int64), np.zeros(NUM_GRADES, np.int64)
    real = [part_of(tables.real, part, tables.fold) for part in ("train", "validation")]
    for grade in grades:
        num_train, num_held = (int((np.asarray(tables.real["grade"])[rows] == grade).sum()) for rows in real)
        if arm.source == "roundtrip":
            train[grade], held[grade] = num_train // 2, num_held // 2
            continue
        there = tables.amount(arm, grade, band)
        train[grade] = min(num_train, there - there // 2)
        held[grade] = min(num_held, there - train[grade])
    return train, held


def probe_rows(name: str, train: np.ndarray, held: np.ndarray, band: tuple[float, float], tables: Tables) -> Probe:
    """The rows of probe `name`; of a round trip no photograph stands on both sides."""
    arm, kind = arm_named(name), "synthetic"
    parts: dict[str, list[np.ndarray]] = {key: [np.zeros(0, np.int64)] for key in ("tr", "to", "hr", "ho")}
    grade_of = np.asarray(tables.real["grade"].fill_null(-1))
    real = [part_of(tables.real, part, tables.fold) for part in ("train", "validation")]
    for grade in np.flatnonzero(train + held):
        mine = [rows[grade_of[rows] == grade] for rows in real]
        if arm.source == "roundtrip":
            kind = "roundtrip"
            others = mine[0][train[grade] : 2 * train[grade]], mine[1][held[grade] : 2 * held[grade]]
        else:
            _, there = tables.supply(arm, int(grade), band)
            others = there[: train[grade]], there[train[grade] : train[grade] + held[grade]]
        parts["tr"].append(mine[0][: train[grade]])
        parts["hr"].append(mine[1][: held[grade]])
        parts["to"].append(others[0])
        parts["ho"].append(others[1])
    return Probe(kind, *(np.concatenate(parts[key]) for key in ("tr", "to", "hr", "ho")))
