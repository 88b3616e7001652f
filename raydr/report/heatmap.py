"""The band x ratio map: validation metrics of the map's trials, mean over seeds and replicates.

Selection looks here and nowhere else, so test predictions never enter.
"""

from typing import Any

import numpy as np

from raydr import metrics
from raydr.grades import NAMES, NUM_GRADES
from raydr.report.arms import BASELINE
from raydr.report.data import Part, Trial

METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "accuracy_at_ddr_priors": "accuracy at DDR priors",
    **{f"recall_{grade}": f"recall, {name}" for grade, name in enumerate(NAMES)},
}
# Synthetic images of a training, and what it should have had.
AMOUNTS = ("added", "wanted")


def maps(parts: list[Part]) -> list[dict[str, Any]]:
    """One map per arm that has map trials: bands (rows), ratios (columns), values {metric: rows x columns}.

    Cells without a finished trial are nan. `reference` holds the oversampling arm's validation values; `added` and
    `wanted` (mean images a training) tell where a band ran out of images, and fewer were added than the ratio says.
    """
    cells: dict[str, dict[tuple, list[dict[str, float]]]] = {}
    reference: list[dict[str, float]] = []
    for part in parts:
        for trial in part.trials:
            row = trial.row
            if "validation" not in trial.verdicts:
                continue
            if row["purpose"] == "map":
                key = (_round(row["band_low"]), _round(row["band_high"]), _round(row["ratio"]))
                cells.setdefault(row["arm"], {}).setdefault(key, []).append(_validation(part, trial))
            elif row["arm"] == BASELINE:
                reference.append(_validation(part, trial))
    return [_map(arm, found, reference) for arm, found in sorted(cells.items())]


def _round(value: float | None) -> float:
    return float("nan") if value is None else round(value, 4)


def _validation(part: Part, trial: Trial) -> dict[str, float]:
    matrix = metrics.confusion(part.sets["validation"].grades, trial.verdicts["validation"].predictions)
    recall = metrics.recalls(matrix)
    values = {"balanced_accuracy": metrics.balanced_accuracy(matrix)}
    values["accuracy_at_ddr_priors"] = metrics.accuracy_at_priors(recall)
    added, short = (sum(trial.row[name] or ()) for name in ("num_synthetic", "shortage"))
    values |= {"added": float(added), "wanted": float(added + short)}
    return values | {f"recall_{grade}": float(recall[grade]) for grade in range(NUM_GRADES)}


def _map(arm: str, cells: dict[tuple, list[dict[str, float]]], reference: list[dict[str, float]]) -> dict[str, Any]:
    bands = sorted({key[:2] for key in cells})
    ratios = sorted({key[2] for key in cells})
    values = {name: np.full((len(bands), len(ratios)), np.nan) for name in (*METRICS, *AMOUNTS)}
    num_trials = np.zeros((len(bands), len(ratios)), np.int64)
    for (low, high, ratio), found in cells.items():
        place = bands.index((low, high)), ratios.index(ratio)
        num_trials[place] = len(found)
        for name in values:
            values[name][place] = np.mean([value[name] for value in found])
    means = {name: float(np.mean([value[name] for value in reference])) for name in METRICS} if reference else None
    return {
        "arm": arm,
        "bands": bands,
        "ratios": ratios,
        "values": {name: values[name] for name in METRICS},
        **{name: values[name] for name in AMOUNTS},
        "num_trials": num_trials,
        "reference": means,
    }
