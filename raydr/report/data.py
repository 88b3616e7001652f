"""What the report reads of a run: trials with their predictions, samples without pixels, photographs' ids.

A run of several replicates is read from its children `replicate-0`, `replicate-1`, ...; each becomes a
`Part`. Parts that are not there yet, tables that no stage has written yet: left out, never an error.
"""

import contextlib
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydr import schema, shards
from raydr.errors import DamagedData, MissingInput
from raydr.grades import NUM_GRADES
from raydr.storage import Run

REAL_COLUMNS = ["image_id", "dataset", "split", "grade", "stratum", "patient_id", "sha256"]
SAMPLE_COLUMNS = [name for name in schema.SYNTHETIC.names if name not in ("image", "versions", "prompt", "sampler")]


@dataclass(frozen=True)
class Verdicts:
    """A trial's output on one split, in the order of the split's `ImageSet`: int (n,), float32 (n, 5)."""

    predictions: np.ndarray
    probabilities: np.ndarray


@dataclass(frozen=True)
class ImageSet:
    """The photographs of one split that every trial was evaluated on, sorted by id: str (n,), int (n,)."""

    image_ids: np.ndarray
    grades: np.ndarray


@dataclass(frozen=True)
class Trial:
    """One row of `trials/results` (as `row`) and its verdicts by split."""

    row: dict[str, Any]
    verdicts: dict[str, Verdicts]


@dataclass(frozen=True)
class Part:
    """One replicate of a run (or the whole of a run that has one)."""

    run: Run
    replicate: int
    sets: dict[str, ImageSet]
    trials: list[Trial]
    # `synthetic` and `real` without their images; no rows where the stage has not run. `samples` gains
    # the columns `memorised` (closer to a seen photograph than its shard's threshold) and `usable`.
    samples: pa.Table
    photographs: pa.Table
    # Trials that the sweep's present plan (trials/plan.json) asks for; None where there is no plan.
    num_planned: int | None = None
    # Trials of earlier plans, stored but not shown: looks at the test set that came before.
    num_superseded: int = 0

    def of_test(self, column: str) -> np.ndarray:
        """`column` of `real` for each test photograph, in the order of `sets["test"]`; None where unknown."""
        rows = self.photographs.filter(pc.field("split") == "test")
        values = dict(zip(rows["image_id"].to_pylist(), rows[column].to_pylist(), strict=True))
        return np.array([values.get(name) for name in self.sets["test"].image_ids], object)


def load(run: Run, num_replicates: int) -> list[Part]:
    """The parts of `run` that hold anything yet."""
    runs = [run] if num_replicates == 1 else [run.child(f"replicate-{index}") for index in range(num_replicates)]
    parts = [_load_part(child, index) for index, child in enumerate(runs)]
    return [part for part in parts if part.photographs.num_rows or part.samples.num_rows or part.trials]


def optional_json(run: Run, key: str) -> Any:
    """A JSON file of the run, or None where no stage has written it."""
    with contextlib.suppress(MissingInput):
        return run.read_json(key)
    return None


def _load_part(run: Run, replicate: int) -> Part:
    results = shards.read(run, "trials/results", schema.TRIALS, required=False)
    predictions = shards.read(run, "trials/predictions", schema.PREDICTIONS, required=False)
    sets, verdicts = _split_predictions(run, predictions)
    found = [Trial(row, verdicts[row["trial_id"]]) for row in results.to_pylist() if row["trial_id"] in verdicts]
    # After another recipe or more samples the same arm and seed is another trial: only one of them counts.
    plan = optional_json(run, "trials/plan.json")
    planned = set(plan["trial_ids"]) if plan else None
    trials = [trial for trial in found if planned is None or trial.row["trial_id"] in planned]
    trials.sort(key=lambda trial: (trial.row["arm"], trial.row["seed"], trial.row["trial_id"]))
    samples = _judged(run, shards.read(run, "synthetic", schema.SYNTHETIC, SAMPLE_COLUMNS, required=False))
    photographs = shards.read(run, "real", schema.REAL, REAL_COLUMNS, required=False)
    num_planned = None if planned is None else len(planned)
    return Part(run, replicate, sets, trials, samples, photographs, num_planned, len(found) - len(trials))


def _judged(run: Run, samples: pa.Table) -> pa.Table:
    """`samples` with `memorised` and `usable`: the memorisation threshold stands in the commit records."""
    records = shards.commits(run, "synthetic").items()
    found = {key.split("/")[1]: record.extra["threshold"] for key, record in records if "threshold" in record.extra}
    generators = samples["generator_id"].combine_chunks().dictionary_encode()
    known = pa.array([found.get(name) for name in generators.dictionary.to_pylist()], pa.float64())
    samples = samples.append_column("threshold", known.take(generators.indices))
    memorised = pc.fill_null(pc.less(samples["nearest_distance"].cast(pa.float64()), samples["threshold"]), False)
    good = pc.and_(pc.invert(pc.fill_null(samples["blank"], False)), pc.fill_null(samples["valid_fundus"], True))
    samples = samples.append_column("memorised", memorised)
    return samples.append_column("usable", pc.and_(good, pc.invert(memorised)))


def _split_predictions(run: Run, table: pa.Table) -> tuple[dict[str, ImageSet], dict[str, dict[str, Verdicts]]]:
    """({split: photographs}, {trial id: {split: verdicts}}); DamagedData where trials saw different photographs."""
    table = table.sort_by([("trial_id", "ascending"), ("split", "ascending"), ("image_id", "ascending")])
    trial_ids, splits = (table[name].to_numpy(zero_copy_only=False) for name in ("trial_id", "split"))
    image_ids = table["image_id"].to_numpy(zero_copy_only=False)
    grades, predictions = table["grade"].to_numpy(), table["prediction"].to_numpy()
    flat = pc.list_flatten(table["probabilities"]).to_numpy()
    if len(flat) != NUM_GRADES * table.num_rows:
        raise DamagedData(f"trials/predictions in {run.url} holds rows without five probabilities: redo the sweep")
    probabilities = flat.reshape(-1, NUM_GRADES)
    changes = (trial_ids[1:] != trial_ids[:-1]) | (splits[1:] != splits[:-1])
    edges = [0, *(np.flatnonzero(changes) + 1), table.num_rows] if table.num_rows else []
    sets: dict[str, ImageSet] = {}
    verdicts: dict[str, dict[str, Verdicts]] = {}
    for start, stop in itertools.pairwise(edges):
        trial_id, split, rows = trial_ids[start], splits[start], slice(start, stop)
        known = sets.setdefault(split, ImageSet(image_ids[rows], grades[rows].astype(np.int64)))
        if not (np.array_equal(known.image_ids, image_ids[rows]) and np.array_equal(known.grades, grades[rows])):
            raise DamagedData(
                f"trial {trial_id} in {run.url} was evaluated on other {split} photographs than the trials before it: "
                "arms can only be compared on the same ones; use one --out per data set"
            )
        verdicts.setdefault(trial_id, {})[split] = Verdicts(predictions[rows].astype(np.int64), probabilities[rows])
    return sets, verdicts
