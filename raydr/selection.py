"""Band x ratio x grades -> training rows. Pure: tables in, row numbers out, no image is opened.

Every arm gets the same number N of extra images per grade, N = round(r (max_h n(h) - n(g))) at ratio
r, so that r = 1 balances (paper 9). Where the poorest arm of a sweep can give fewer, all get fewer and
the shortage is stated: arms then differ in which images they add, never in how many.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raydr.errors import UserError
from raydr.grades import NUM_GRADES
from raydr.identity import rng_of


@dataclass(frozen=True)
class Arm:
    """Where an arm's extra images come from. `source`: none, plain, ecc, prior or fresh."""

    source: str
    # Score band [low, high]; "recipe" takes the sweep's.
    band: tuple[float, float] | str | None = None
    # Random draw from all scored samples instead of the lowest indices.
    random: bool = False
    # None = the sweep's sampler; real_only trains on the data as it is.
    sampler: str | None = None


ARMS: dict[str, Arm] = {
    "real_only": Arm("none", sampler="instance"),
    "oversampling": Arm("none"),
    "naive": Arm("plain"),
    "random_subset": Arm("plain", random=True),
    "band": Arm("plain", band="recipe"),
    "ecc": Arm("ecc"),
    "ecc_band": Arm("ecc", band="recipe"),
    "bin_00_50": Arm("plain", band=(0.0, 0.5)),
    "bin_50_70": Arm("plain", band=(0.5, 0.7)),
    "bin_70_90": Arm("plain", band=(0.7, 0.9)),
    "bin_90_100": Arm("plain", band=(0.9, 1.0)),
    "external_real": Arm("prior"),
    "ceiling": Arm("fresh"),
}


def arm_named(name: str) -> Arm:
    if name not in ARMS:
        raise UserError(f"There is no arm {name!r}: choose from {', '.join(ARMS)}")
    return ARMS[name]


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


def supply(
    arm: Arm, grade: int, band: tuple[float, float], real: pa.Table, samples: pa.Table, good: np.ndarray, seed: int
) -> tuple[str, np.ndarray]:
    """("real" or "synthetic", row numbers in the order in which they are taken) of an arm for one grade.

    Samples are taken by index, so the first N are the same however many machines made them.
    """
    if arm.source in ("prior", "fresh"):
        rows = part_of(real, arm.source, None)
        return "real", rows[np.asarray(real["grade"].fill_null(-1))[rows] == grade]
    mask = good & (np.asarray(samples["kind"].to_pylist(), dtype=object) == arm.source)
    mask &= np.asarray(samples["grade"]) == grade
    low_high = band if arm.band == "recipe" else arm.band
    if isinstance(low_high, tuple):
        score = np.asarray(samples["score"])
        mask &= (score >= low_high[0]) & (score <= low_high[1])
    rows = np.flatnonzero(mask)
    rows = rows[np.argsort(np.asarray(samples["index"])[rows], kind="stable")]
    if arm.random:
        rows = rng_of("random-subset", seed, grade).permutation(rows)
    return "synthetic", rows


@dataclass(frozen=True)
class Training:
    """Rows that one trial trains on, and what it could not get."""

    real_rows: np.ndarray  # int64, into `real`
    synthetic_rows: np.ndarray  # int64, into `samples`
    added: tuple[int, ...]  # extra images per grade
    shortage: tuple[int, ...]  # wanted and not there, per grade


def common_counts(
    arms: Sequence[str],
    ratio: float,
    grades: Sequence[int],
    band: tuple[float, float],
    real: pa.Table,
    samples: pa.Table,
    good: np.ndarray,
    fold: int | None,
) -> tuple[np.ndarray, np.ndarray]:
    """(N, wanted) int64 (5,) each: N is what every arm of the sweep that adds images can give."""
    train = part_of(real, "train", fold)
    asked = wanted(counts_of(np.asarray(real["grade"])[train]), ratio, grades)
    given = asked.copy()
    for name in arms:
        arm = arm_named(name)
        if arm.source == "none":
            continue
        for grade in grades:
            _, rows = supply(arm, grade, band, real, samples, good, 0)
            given[grade] = min(given[grade], len(rows))
    return given, asked


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
    real_rows, synthetic_rows = [part_of(real, "train", fold)], [np.zeros(0, dtype=np.int64)]
    added = np.zeros(NUM_GRADES, dtype=np.int64)
    if arm.source != "none":
        for grade in np.flatnonzero(extra):
            kind, rows = supply(arm, int(grade), band, real, samples, good, seed)
            rows = rows[: extra[grade]]
            (real_rows if kind == "real" else synthetic_rows).append(rows)
            added[grade] = len(rows)
    shortage = asked - added if arm.source != "none" else np.zeros_like(asked)
    return Training(
        np.concatenate(real_rows), np.concatenate(synthetic_rows), tuple(added.tolist()), tuple(shortage.tolist())
    )
