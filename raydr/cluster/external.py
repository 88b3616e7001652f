"""What the stored predictions on other data sets say: metrics per arm, and paired differences from the baseline."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydr import metrics, schema, shards, statistics
from raydr.config import Recipe
from raydr.record import replicates
from raydr.report.arms import BASELINE, grade_lists, mean_std, per_grade
from raydr.report.contrasts import clusters_of
from raydr.report.tables import plain
from raydr.storage import Run

KEY = "report/external.json"


def write(recipe: Recipe, target: Run) -> dict[str, Any]:
    """Recompute report/external.json from every stored evaluation of the run; returns it."""
    found = plain(numbers(recipe, target))
    target.replace_json(KEY, found)
    return found


def describe(place: Run, key: str, rows: pa.Table, num_excluded: int) -> None:
    """Keep beside the evaluations of the set `key` what its numbers need besides: patients and strata of `rows`."""
    facts = zip(*(rows[name].to_pylist() for name in ("image_id", "patient_id", "stratum")), strict=True)
    photographs = {image_id: [patient, stratum] for image_id, patient, stratum in facts}
    place.replace_json(f"evaluations/{key}.json", {"num_excluded": num_excluded, "photographs": photographs})


def numbers(recipe: Recipe, target: Run) -> dict[str, Any]:
    """{set: {arm: {num_images, num_excluded, num_graders, metric: {mean, std}, recall, strata, over_baseline, ...}}}.

    A set is named after its data set; sets of one name that hold other photographs carry their hash.
    """
    sets: dict[str, dict[str, list]] = {}
    about: dict[str, dict[str, Any]] = {}
    for part, place in replicates(recipe, target):
        records = shards.commits(place, "evaluations")
        seeds = _seeds(place)
        for key, record in records.items():
            _, name, file = key.split("/")
            grader_id = file.removesuffix(".parquet")
            mine = pc.field("trial_id") == grader_id
            table = shards.read(place, f"evaluations/{name}", schema.PREDICTIONS, filter=mine).sort_by("image_id")
            by_arm = sets.setdefault(name, {})
            about.setdefault(name, _about(place, name))
            by_arm.setdefault(record.extra["arm"], []).append((part.replicate, seeds.get(grader_id, 0), table))
    names = [name.rsplit("-", 1)[0] for name in sets]
    return {
        (name.rsplit("-", 1)[0] if names.count(name.rsplit("-", 1)[0]) == 1 else name): _set(
            by_arm, recipe, about[name]
        )
        for name, by_arm in sets.items()
    }


def _seeds(place: Run) -> dict[str, int]:
    table = shards.read(place, "trials/results", schema.TRIALS, ["trial_id", "seed"], required=False)
    return dict(zip(table["trial_id"].to_pylist(), table["seed"].to_pylist(), strict=True))


def _about(place: Run, name: str) -> dict[str, Any]:
    """What `describe` kept; of an evaluation by an earlier version nothing is known."""
    key = f"evaluations/{name}.json"
    return place.read_json(key) if place.exists(key) else {"num_excluded": 0, "photographs": {}}


def _facts(table: pa.Table, about: dict[str, Any]) -> tuple[list[str | None], list[str | None]]:
    """(patient, stratum) of each row of predictions."""
    found = [about["photographs"].get(image_id, (None, None)) for image_id in table["image_id"].to_pylist()]
    return [patient for patient, _ in found], [stratum for _, stratum in found]


def _set(by_arm: dict[str, list], recipe: Recipe, about: dict[str, Any]) -> dict[str, Any]:
    rows = {}
    for arm, found in sorted(by_arm.items()):
        values = []
        for _, _, table in found:
            probabilities = np.array(table["probabilities"].to_pylist())
            grades, predictions = _verdicts(table)
            values.append(grade_lists(metrics.summary(grades, predictions, probabilities)))
        row: dict[str, Any] = {
            "num_images": found[0][2].num_rows,
            "num_excluded": about["num_excluded"],
            "num_graders": len(found),
        }
        scalars = [name for name, value in values[0].items() if not isinstance(value, list)]
        row |= {name: mean_std([value[name] for value in values]) for name in scalars}
        row |= per_grade(values)
        row["strata"] = _strata([table for _, _, table in found], about)
        row["over_baseline"] = _over(by_arm, arm, recipe, about) if arm != BASELINE else None
        rows[arm] = row
    return rows


def _verdicts(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(grades, predictions) int64 (n,) each."""
    return np.asarray(table["grade"]).astype(np.int64), np.asarray(table["prediction"]).astype(np.int64)


def _strata(tables: list[pa.Table], about: dict[str, Any]) -> list[dict[str, Any]]:
    """Balanced accuracy per acquisition source, over the grades that it holds; empty with fewer than two sources."""
    sources = np.array(_facts(tables[0], about)[1], dtype=object)
    names = sorted({name for name in sources if name is not None})
    if len(names) < 2:
        return []
    rows = []
    for name in names:
        inside = sources == name
        matrices = [metrics.confusion(*(part[inside] for part in _verdicts(table))) for table in tables]
        accuracy = mean_std([metrics.balanced_accuracy(matrix) for matrix in matrices])
        rows.append({"stratum": name, "num_images": int(inside.sum()), "balanced_accuracy": accuracy})
    return rows


def _over(by_arm: dict[str, list], arm: str, recipe: Recipe, about: dict[str, Any]) -> dict[str, float] | None:
    """`arm` minus the baseline in balanced accuracy by the paired two-level bootstrap, over common seeds.

    Photographs of one patient are drawn together.
    """
    found = []
    tables = {name: {(k, s): t for k, s, t in by_arm.get(name, [])} for name in (arm, BASELINE)}
    common = sorted(set(tables[arm]) & set(tables[BASELINE]))
    for replicate in sorted({k for k, _ in common}):
        seeds = [seed for k, seed in common if k == replicate]
        first = tables[arm][replicate, seeds[0]]
        grades, _ = _verdicts(first)
        hits = [[_verdicts(tables[name][replicate, seed])[1] == grades for seed in seeds] for name in (arm, BASELINE)]
        clusters = clusters_of(_facts(first, about)[0])
        found.append(statistics.Replicate(grades, np.array(hits), clusters))
    if not found:
        return None
    options = recipe.report
    # The replicates saw the same external photographs: drawn once for all of them.
    bootstrap = statistics.two_level_bootstrap(found, options.bootstrap_draws, shared_images=len(found) > 1)
    value = statistics.difference(bootstrap, 0, 1, options.confidence)
    return {"difference": value.value, "low": value.low, "high": value.high, "p": value.p}
