"""Differences between arms with paired two-level intervals, and the verdict words (paper section 9)."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from raydr import metrics, paired_tests, statistics
from raydr.report.arms import BASELINE, CONTEXT, Arm
from raydr.report.data import Part
from raydr.statistics import Bootstrap, Replicate

PRIMARY = (("band", BASELINE), ("ecc", BASELINE))
# Besides every other arm against the baseline.
SECONDARY = (
    ("band", "naive"),
    ("ecc", "naive"),
    ("ecc", "band"),
    ("ecc_band", "band"),
    ("ecc_band", "ecc"),
    ("band", "random_subset"),
    ("band", "all_grades"),
    ("naive", "vae_roundtrip"),
    ("ecc", "ecc_w0"),
    ("ecc", "ecc_unselected"),
    ("bin_paper", "bin_low"),
    ("bin_paper", "bin_mid"),
    ("bin_paper", "bin_top"),
)
ALPHA = 0.05
# The effect the experiment is after, 3 points: one that cannot detect it is called "not powered".
CLAIM = 0.03
# Chains (cohort, ensemble, generator) that a claim beyond them needs.
MIN_REPLICATES = 3


class Comparer:
    """Bootstraps arms together wherever they share seeds, so that draws are paired and made once."""

    def __init__(self, parts: list[Part], arms: list[Arm], num_draws: int, confidence: float) -> None:
        self.parts = parts
        self.arms = {arm.name: arm for arm in arms}
        self.num_draws = num_draws
        self.confidence = confidence
        self.shared_images = _same_photographs(parts)
        self._made: dict[tuple, tuple[Bootstrap, dict[str, int]]] = {}

    def paired(self, *names: str) -> tuple[Bootstrap, dict[str, int]] | None:
        """(bootstrap, {arm: row}) over the seeds that all of `names` have, or None if they share none."""
        common = tuple(
            tuple(sorted(set.intersection(*(set(self.arms[name].trials[index]) for name in names))))
            for index in range(len(self.parts))
        )
        if not any(common):
            return None
        if common not in self._made:
            rows = [
                arm
                for arm in self.arms.values()
                if all(set(s) <= set(t) for s, t in zip(common, arm.trials, strict=True))
            ]
            replicates = [
                _replicate(self.parts[index], [[arm.trials[index][seed] for seed in seeds] for arm in rows])
                for index, seeds in enumerate(common)
                if seeds
            ]
            made = statistics.two_level_bootstrap(replicates, self.num_draws, shared_images=self.shared_images)
            self._made[common] = (made, {arm.name: row for row, arm in enumerate(rows)})
        return self._made[common]

    def level(self, name: str) -> statistics.Interval | None:
        """Balanced accuracy of one arm with its interval."""
        found = self.paired(name)
        if found is None:
            return None
        bootstrap, rows = found
        present = ~np.isnan(bootstrap.estimate[rows[name]])
        per_replicate = bootstrap.replicates[:, rows[name]][:, present].mean(axis=1)
        draws = bootstrap.draws[rows[name]][:, present].mean(axis=1)
        return statistics.interval(per_replicate.mean(), draws, self.confidence, per_replicate)

    def contrast(self, a: str, b: str, family: str) -> dict[str, Any] | None:
        """One row of the contrasts table: `a` minus `b` in balanced accuracy; None without common seeds."""
        found = self.paired(a, b)
        if found is None:
            return None
        bootstrap, rows = found
        value = statistics.difference(bootstrap, rows[a], rows[b], self.confidence)
        delta = bootstrap.replicates[:, rows[a]] - bootstrap.replicates[:, rows[b]]
        detectable = statistics.minimum_detectable_difference(value.standard_error, alpha=ALPHA)
        return {
            "a": a,
            "b": b,
            "family": family,
            "difference": value.value,
            "low": value.low,
            "high": value.high,
            "standard_error": value.standard_error,
            "p": value.p,
            "adjusted_p": None,
            "minimum_detectable_difference": detectable,
            "powered": detectable <= CLAIM,
            "num_replicates": len(bootstrap.replicates),
            "per_replicate": np.nanmean(delta, axis=1),
            "recall_difference": delta.mean(axis=0),
            "verdict": "",
            "conditional_on": conditional_on(len(bootstrap.replicates)),
            **self._seed_averaged(a, b),
        }

    def gap_closed(self, name: str, ceiling: str, baseline: str) -> dict[str, Any] | None:
        """Share of the baseline-to-ceiling gap that `name` closes; None while the gap itself is not shown."""
        found = self.paired(name, ceiling, baseline)
        if found is None:
            return None
        bootstrap, rows = found
        gap = statistics.difference(bootstrap, rows[ceiling], rows[baseline], self.confidence)
        share = statistics.share(bootstrap, rows[name], rows[ceiling], rows[baseline], self.confidence)
        if share is None:
            return None
        value, low, high = share
        return {"arm": name, "share": value, "low": low, "high": high, "gap": gap.value}

    def _seed_averaged(self, a: str, b: str) -> dict[str, Any]:
        """McNemar on right verdicts and DeLong on the referable AUC, of the probabilities averaged over seeds."""
        grades, mean_a, mean_b = self._mean_probabilities(a, b)
        hits_a, hits_b = (mean.argmax(axis=1) == grades for mean in (mean_a, mean_b))
        mcnemar = paired_tests.mcnemar(hits_a, hits_b)
        referable = grades >= metrics.REFERABLE
        values: dict[str, Any] = {"mcnemar": vars(mcnemar), "delong_referable": None}
        if 2 <= referable.sum() <= len(grades) - 2:
            scores = [mean[:, metrics.REFERABLE :].sum(axis=1) for mean in (mean_a, mean_b)]
            values["delong_referable"] = vars(paired_tests.delong(referable, *scores))
        return values

    def _mean_probabilities(self, a: str, b: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        grades, means = [], []
        for index, part in enumerate(self.parts):
            trials = [self.arms[name].trials[index] for name in (a, b)]
            seeds = sorted(set(trials[0]) & set(trials[1]))
            if seeds:
                grades.append(part.sets["test"].grades)
                means.append(
                    [np.mean([t[s].verdicts["test"].probabilities for s in seeds], axis=0, dtype=float) for t in trials]
                )
        if self.shared_images:
            mean_a, mean_b = np.mean(means, axis=0)
            return grades[0], mean_a, mean_b
        return np.concatenate(grades), np.concatenate([m[0] for m in means]), np.concatenate([m[1] for m in means])


def all_contrasts(comparer: Comparer, is_primary: Callable[[Arm], bool]) -> list[dict[str, Any]]:
    """Primary and secondary contrasts among arms of one context, Holm-adjusted over the primary family.

    `is_primary` says whether a variant of band or ecc is the one the recipe asked for.
    """
    rows = []
    for a in comparer.arms.values():
        for b in comparer.arms.values():
            pair = (a.arm, b.arm)
            if a.arm == b.arm or not comparable(a, b) or not (b.arm == BASELINE or pair in SECONDARY):
                continue
            row = comparer.contrast(a.name, b.name, "primary" if pair in PRIMARY and is_primary(a) else "secondary")
            if row:
                rows.append(row)
    rows.sort(key=lambda row: (row["family"] != "primary", row["b"] != BASELINE))
    primary = [row for row in rows if row["family"] == "primary"]
    for row, adjusted in zip(primary, statistics.holm([row["p"] for row in primary]), strict=True):
        row["adjusted_p"] = float(adjusted)
    for row in rows:
        row["verdict"] = _verdict(row)
    return rows


def comparable(a: Arm, b: Arm) -> bool:
    """Whether two arms differ in nothing but their images; real_only has its own sampler by definition."""
    sampler = CONTEXT.index("sampler")
    free = "real_only" in (a.arm, b.arm)
    return all(x == y or (free and i == sampler) for i, (x, y) in enumerate(zip(a.context, b.context, strict=True)))


def _verdict(row: dict[str, Any]) -> str:
    """better or worse where the interval excludes 0 (and, in the primary family, Holm agrees); else not shown."""
    p = row["adjusted_p"]
    if row["low"] <= 0 <= row["high"] or (p is not None and p >= ALPHA):
        return "not shown"
    return "better" if row["difference"] > 0 else "worse"


def conditional_on(num_replicates: int) -> str | None:
    """What a result of fewer than three chains is conditional on; None from three on."""
    if num_replicates >= MIN_REPLICATES:
        return None
    return "conditional on one generator" if num_replicates == 1 else f"conditional on {num_replicates} generators"


def varied(recipe: dict[str, Any]) -> str | None:
    """What differs between the replicates of a run with this recipe (as a dict); None where there is one."""
    if recipe["num_replicates"] == 1:
        return None
    seeds = "the seeds of ensemble, generators and graders"
    if recipe["ingest"]["source"] == "phantom":
        return f"the cohort of photographs and {seeds}"
    if recipe["fold"] is None:
        return f"{seeds}; all are made of the same photographs"
    return f"the evaluated fold and {seeds}; the folds share their photographs, so their training sets overlap"


def _replicate(part: Part, trials: list[list]) -> Replicate:
    grades = part.sets["test"].grades
    hits = np.array([[trial.verdicts["test"].predictions == grades for trial in seeds] for seeds in trials])
    return Replicate(grades, hits, clusters_of(part.of_test("patient_id")))


def clusters_of(patients: Sequence[str | None] | np.ndarray) -> np.ndarray | None:
    """Clusters of images for `Replicate`: the patient's, or one of its own for an image whose patient is not known.

    int (images,); None where no patient is known.
    """
    if all(patient is None for patient in patients):
        return None
    names = [f"image {k}" if patient is None else f"patient {patient}" for k, patient in enumerate(patients)]
    return np.unique(names, return_inverse=True)[1]


def _same_photographs(parts: list[Part]) -> bool:
    """Whether all parts were tested on the same photographs: equal ids may hide phantoms of another cohort."""
    with_test = [part for part in parts if "test" in part.sets]
    if len(with_test) < 2:
        return False
    first = with_test[0]
    return all(
        np.array_equal(part.sets["test"].image_ids, first.sets["test"].image_ids)
        and np.array_equal(part.of_test("sha256"), first.of_test("sha256"))
        for part in with_test[1:]
    )
