"""What the stored predictions on other data sets say: metrics per arm, and paired differences from the baseline."""

from typing import Any

import numpy as np
import pyarrow.compute as pc

from raydr import metrics, schema, shards, statistics
from raydr.config import Recipe
from raydr.record import replicates
from raydr.report.arms import BASELINE, mean_std
from raydr.report.tables import plain
from raydr.storage import Run

KEY = "report/external.json"


def write(recipe: Recipe, target: Run) -> dict[str, Any]:
    """Recompute report/external.json from every stored evaluation of the run; returns it."""
    found = plain(numbers(recipe, target))
    target.replace_json(KEY, found)
    return found


def numbers(recipe: Recipe, target: Run) -> dict[str, Any]:
    """{set: {arm: {num_images, num_graders, metric: {mean, std}, recall, over_baseline}}}.

    A set is named after its data set; sets of one name that hold other photographs carry their hash.
    """
    sets: dict[str, dict[str, list]] = {}
    for part, place in replicates(recipe, target):
        records = shards.commits(place, "evaluations")
        seeds = _seeds(place)
        for key, record in records.items():
            _, name, file = key.split("/")
            grader_id = file.removesuffix(".parquet")
            mine = pc.field("trial_id") == grader_id
            table = shards.read(place, f"evaluations/{name}", schema.PREDICTIONS, filter=mine).sort_by("image_id")
            by_arm = sets.setdefault(name, {})
            by_arm.setdefault(record.extra["arm"], []).append((part.replicate, seeds.get(grader_id, 0), table))
    names = [name.rsplit("-", 1)[0] for name in sets]
    return {
        (name.rsplit("-", 1)[0] if names.count(name.rsplit("-", 1)[0]) == 1 else name): _set(by_arm, recipe)
        for name, by_arm in sets.items()
    }


def _seeds(place: Run) -> dict[str, int]:
    table = shards.read(place, "trials/results", schema.TRIALS, ["trial_id", "seed"], required=False)
    return dict(zip(table["trial_id"].to_pylist(), table["seed"].to_pylist(), strict=True))


def _set(by_arm: dict[str, list], recipe: Recipe) -> dict[str, Any]:
    rows = {}
    for arm, found in sorted(by_arm.items()):
        values = []
        for _, _, table in found:
            probabilities = np.array(table["probabilities"].to_pylist())
            grades = np.asarray(table["grade"]).astype(np.int64)
            values.append(metrics.summary(grades, np.asarray(table["prediction"]).astype(np.int64), probabilities))
        row: dict[str, Any] = {"num_images": found[0][2].num_rows, "num_graders": len(found)}
        row |= {name: mean_std([value[name] for value in values]) for name in values[0] if "recall_" not in name}
        row["recall"] = [mean_std([value[f"recall_{grade}"] for value in values]) for grade in range(5)]
        row["over_baseline"] = _over(by_arm, arm, recipe) if arm != BASELINE else None
        rows[arm] = row
    return rows


def _over(by_arm: dict[str, list], arm: str, recipe: Recipe) -> dict[str, float] | None:
    """`arm` minus the baseline in balanced accuracy by the paired two-level bootstrap, over common seeds."""
    found = []
    tables = {name: {(k, s): t for k, s, t in by_arm.get(name, [])} for name in (arm, BASELINE)}
    common = sorted(set(tables[arm]) & set(tables[BASELINE]))
    for replicate in sorted({k for k, _ in common}):
        seeds = [seed for k, seed in common if k == replicate]
        grades = np.asarray(tables[arm][replicate, seeds[0]]["grade"]).astype(np.int64)
        hits = [
            [np.asarray(tables[name][replicate, seed]["prediction"]) == grades for seed in seeds]
            for name in (arm, BASELINE)
        ]
        found.append(statistics.Replicate(grades, np.array(hits)))
    if not found:
        return None
    options = recipe.report
    # The replicates saw the same external photographs: drawn once for all of them.
    bootstrap = statistics.two_level_bootstrap(found, options.bootstrap_draws, shared_images=len(found) > 1)
    value = statistics.difference(bootstrap, 0, 1, options.confidence)
    return {"difference": value.value, "low": value.low, "high": value.high, "p": value.p}
