"""Arms of the sweep: which trials belong together, and what each arm's stored predictions say."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from raydr import metrics
from raydr.grades import DDR_TEST_COUNTS, NUM_GRADES
from raydr.grading.calibration import fit_temperature, temper
from raydr.report.data import Part, Trial

# In the order of the table; arms that are not named here follow by name.
DESCRIPTIONS = {
    "real_only": "photographs as they are, no rebalancing",
    "oversampling": "rare photographs drawn more often: the baseline",
    "naive": "synthetic images, first come, no score consulted",
    "random_subset": "synthetic images, a random subset of band's size",
    "band": "synthetic images whose score lies in the band",
    "ecc": "synthetic images of the class-conditioned generator",
    "ecc_band": "class-conditioned generator and the band together",
    "vae_roundtrip": "oversampled photographs after encode and decode: artefact control",
    "bin_low": "scores below .5 only",
    "bin_mid": "scores from .5 to below .7 only",
    "bin_paper": "scores from .7 to .9 only",
    "bin_top": "scores above .9 only",
    "ecc_w0": "the same seed and steps, the ECC term weighing nothing",
    "ecc_unselected": "ECC with an unselected pool: self-training without semantics",
    "ecc_w0.001": "class-conditioned generator, ECC weight .001",
    "ecc_w0.01": "class-conditioned generator, ECC weight .01",
    "ecc_w0.02": "class-conditioned generator, ECC weight .02",
    "ecc_w0.1": "class-conditioned generator, ECC weight .1",
    "all_grades": "band, for every grade below the most numerous one",
    "external_real": "labelled rare photographs of the prior sets",
    "ensemble": "the scorers themselves, averaged",
    "ceiling": "the same number of fresh real photographs: upper bound",
}
PROBES = {
    "probe": "generated images",
    "probe_ecc": "images of the class-conditioned generator",
    "probe_roundtrip": "photographs after encode and decode",
}
BASELINE = "oversampling"
# Metrics with a value for each grade.
PER_GRADE = ("recall", "precision")
CONTEXT = ("backbone", "loss", "sampler", "steps", "loss_parameter", "mixup")
# Soft labels touch synthetic images alone, so arms are contrasted whatever theirs are.
AXES = ("ratio", "band_low", "band_high", "soft_labels")
# Columns that earlier versions did not write, when there was nothing but 0.
LATER = ("loss_parameter", "mixup", "soft_labels")


@dataclass(frozen=True)
class Arm:
    """Trials of one arm that differ by seed and replicate only."""

    # Unique in a report: the arm's name, followed by what else distinguishes it where something does.
    name: str
    arm: str
    # Backbone, loss, sampler and steps: arms are contrasted only where these are equal.
    context: tuple[Any, ...]
    axes: tuple[Any, ...]
    # One {seed: trial} a part.
    trials: tuple[dict[int, Trial], ...]

    def of_test(self) -> list[tuple[int, Trial]]:
        """Every (part index, trial)."""
        return [(index, trial) for index, by_seed in enumerate(self.trials) for trial in by_seed.values()]


def order(arm: str) -> tuple[int, str]:
    names = list(DESCRIPTIONS)
    return (names.index(arm) if arm in names else len(names), arm)


def group(parts: list[Part]) -> list[Arm]:
    """The arms that were reported on test, in the table's order."""
    found: dict[tuple, list[dict[int, Trial]]] = {}
    for index, part in enumerate(parts):
        for trial in part.trials:
            if trial.row["purpose"] != "arm" or "test" not in trial.verdicts:
                continue
            key = tuple(_field(trial.row, name) for name in ("arm", *CONTEXT, *AXES))
            by_part = found.setdefault(key, [{} for _ in parts])
            by_part[index][trial.row["seed"]] = trial
    keys = sorted(found, key=lambda key: (order(key[0]), [str(value) for value in key]))
    return [
        Arm(_name(key, keys), key[0], key[1 : 1 + len(CONTEXT)], key[1 + len(CONTEXT) :], tuple(found[key]))
        for key in keys
    ]


def _field(row: dict[str, Any], name: str) -> Any:
    value = row.get(name)
    if value is None and name in LATER:
        return 0.0
    return round(value, 4) if isinstance(value, float) else value  # bands are stored as float32


def _name(key: tuple, keys: list[tuple]) -> str:
    """The arm, and in brackets the fields in which its namesakes differ from it."""
    fields = ("arm", *CONTEXT, *AXES)
    namesakes = [other for other in keys if other[0] == key[0]]
    differing = [i for i in range(1, len(fields)) if len({other[i] for other in namesakes}) > 1]
    shown = [f"{fields[i].replace('_', ' ')} {key[i]}" for i in differing if key[i] is not None]
    return f"{key[0]} ({', '.join(shown)})" if shown else key[0]


def trial_numbers(part: Part, trial: Trial, split: str = "test") -> dict[str, Any]:
    """Every metric of one trial, recomputed from its predictions, with what identifies it."""
    verdicts, grades = trial.verdicts[split], part.sets[split].grades
    row = trial.row
    values: dict[str, Any] = {
        "replicate": part.replicate,
        "seed": row["seed"],
        "num_real": row["num_real"],
        "num_synthetic": row["num_synthetic"],
        "shortage": row["shortage"],
        "seconds": row["seconds"],
    }
    values |= grade_lists(metrics.summary(grades, verdicts.predictions, verdicts.probabilities))
    return values | _tempered(part, trial, split)


def _tempered(part: Part, trial: Trial, split: str) -> dict[str, float]:
    """Temperature fitted on the trial's validation predictions, and what it makes of the calibration error."""
    if "validation" not in trial.verdicts:
        return {"temperature": float("nan"), "expected_calibration_error_tempered": float("nan")}
    held = trial.verdicts["validation"].probabilities.astype(float)
    temperature = fit_temperature(held, part.sets["validation"].grades)
    tempered = temper(trial.verdicts[split].probabilities.astype(float), temperature)
    error = metrics.expected_calibration_error(part.sets[split].grades, tempered)
    return {"temperature": temperature, "expected_calibration_error_tempered": error}


def summarise(arm: Arm, parts: list[Part], numbers: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One row of the arms table: mean and standard deviation over trials, pooled confusion and reliability.

    `numbers` is {trial id: trial_numbers}. Standard deviations have n - 1 in the denominator and are
    nan for a single trial.
    """
    trials = arm.of_test()
    values = [numbers[trial.row["trial_id"]] for _, trial in trials]
    scalars = [name for name, value in values[0].items() if isinstance(value, float) and name != "seconds"]
    confusion = np.zeros((NUM_GRADES, NUM_GRADES), np.int64)
    for index, trial in trials:
        confusion += metrics.confusion(parts[index].sets["test"].grades, trial.verdicts["test"].predictions)
    grades = np.concatenate([parts[index].sets["test"].grades for index, _ in trials])
    probabilities = np.concatenate([trial.verdicts["test"].probabilities for _, trial in trials])
    count, confidence, right = metrics.reliability(grades, probabilities, num_bins=10)
    share = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    return {
        "arm": arm.arm,
        "name": arm.name,
        "description": DESCRIPTIONS.get(arm.arm, ""),
        "num_trials": len(trials),
        "num_replicates": sum(bool(by_seed) for by_seed in arm.trials),
        "num_seeds": max(len(by_seed) for by_seed in arm.trials),
        "num_synthetic": np.mean([value["num_synthetic"] or [0] * NUM_GRADES for value in values], axis=0),
        "shortage": np.max([value["shortage"] or [0] * NUM_GRADES for value in values], axis=0),
        "seconds": float(np.sum([value["seconds"] or 0 for value in values])),
        "metrics": {name: mean_std([value[name] for value in values]) for name in scalars},
        **per_grade(values),
        "values": [[value["replicate"], value["seed"], value["balanced_accuracy"]] for value in values],
        "confusion": confusion,
        "confusion_share": share,
        "predicted_at_ddr_priors": np.asarray(DDR_TEST_COUNTS) / sum(DDR_TEST_COUNTS) @ share,
        "reliability": {"count": count, "confidence": confidence, "right": right},
    }


def mean_std(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation (n - 1) of several trials: nan for none, and the deviation of one."""
    return {
        "mean": float(np.mean(values)) if values else float("nan"),
        "std": float(np.std(values, ddof=1)) if len(values) > 1 else float("nan"),
    }


def grade_lists(summary: dict[str, Any]) -> dict[str, Any]:
    """`metrics.summary` with recalls and precisions as lists of five."""
    lists = {name: [summary[f"{name}_{grade}"] for grade in range(NUM_GRADES)] for name in PER_GRADE}
    return {key: value for key, value in summary.items() if key.rstrip("01234").rstrip("_") not in PER_GRADE} | lists


def per_grade(values: list[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """{recall, precision: mean and deviation of each grade} of several `grade_lists`.

    Where a trial has none (no photograph, or no verdict, of a grade) it is left out of that grade's mean.
    """
    return {
        name: [
            mean_std([value[name][grade] for value in values if not np.isnan(value[name][grade])])
            for grade in range(NUM_GRADES)
        ]
        for name in PER_GRADE
    }


def strata(arms: list[Arm], parts: list[Part]) -> list[dict[str, Any]]:
    """Balanced accuracy per acquisition source of the test photographs; empty with fewer than two sources."""
    sources = [part.of_test("stratum") if "test" in part.sets else np.array([], object) for part in parts]
    names = sorted({str(name) for source in sources for name in source if name is not None})
    if len(names) < 2:
        return []
    rows = []
    for arm in arms:
        for name in names:
            values = []
            for index, trial in arm.of_test():
                of_source = sources[index] == name
                if of_source.any():
                    grades = parts[index].sets["test"].grades[of_source]
                    matrix = metrics.confusion(grades, trial.verdicts["test"].predictions[of_source])
                    values.append(metrics.balanced_accuracy(matrix))
            images = int(max((source == name).sum() for source in sources))
            rows.append({"arm": arm.name, "stratum": name, "num_images": images, "balanced_accuracy": mean_std(values)})
    return rows


def probes(parts: list[Part]) -> list[dict[str, Any]]:
    """What tells made images from photographs: balanced accuracy on held-out images of either kind, 0.5 = nothing.

    Recomputed from the stored predictions, in which 0 stands for a photograph and 1 for a made image.
    """
    found: dict[str, list[tuple[float, int]]] = {}
    for part in parts:
        for trial in part.trials:
            name = trial.row["arm"]
            if trial.row["purpose"] == "probe" and name in trial.verdicts:
                kinds = part.sets[name].grades
                matrix = metrics.confusion(kinds, trial.verdicts[name].predictions)
                found.setdefault(name, []).append((metrics.balanced_accuracy(matrix), len(kinds)))
    return [
        {
            "probe": name,
            "told": PROBES.get(name, name),
            "num_trials": len(values),
            "num_held_out": max(count for _, count in values),
            "balanced_accuracy": mean_std([value for value, _ in values]),
        }
        for name, values in sorted(found.items())
    ]


def discrepancies(parts: list[Part], numbers: dict[str, dict[str, Any]]) -> list[str]:
    """Where `trials/results` and the predictions disagree by more than float32 rounding: one sentence each."""
    found = []
    for part in parts:
        for trial in part.trials:
            stored = trial.row["balanced_accuracy"]
            if stored is None or trial.row["trial_id"] not in numbers:
                continue
            recomputed = numbers[trial.row["trial_id"]]["balanced_accuracy"]
            if not abs(stored - recomputed) < 1e-5:
                found.append(
                    f"Trial {trial.row['trial_id']} was stored with a balanced accuracy of {stored:.4f}, "
                    f"its predictions give {recomputed:.4f}; this page shows the latter."
                )
    return found
