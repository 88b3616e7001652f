"""What a trial has on its node: tables, pixels, training, and the rows that it commits.

Predictions first, the trial's row after: a killed trial leaves at most predictions that the next
attempt adopts.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raydr import schema, selection, shards
from raydr.cluster import ensemble, finetune, roundtrip
from raydr.config import Grader, Recipe
from raydr.identity import fingerprint, seed_of
from raydr.storage import Run
from raydr.trials import Trial

SAMPLE_COLUMNS = [
    "sample_id", "generator_id", "kind", "grade", "index", "sha256", "blank", "valid_fundus", "nearest_distance",
    "probabilities", "score",
]  # fmt: skip


def read_tables(recipe: Recipe, target: Run) -> selection.Tables:
    """Photographs, samples of this recipe's generators, and which of these may be used."""
    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    done = shards.commits(target, "synthetic")
    tables, good = [], []
    for generator in finetune.planned(recipe, target):
        prefix = f"synthetic/{generator.generator_id}"
        table = shards.read(target, prefix, schema.SYNTHETIC, SAMPLE_COLUMNS, required=False)
        tables.append(table)
        thresholds = [c.extra["threshold"] for key, c in done.items() if key.startswith(prefix + "/")]
        good.append(selection.usable(table, max(thresholds, default=None)))
    samples = pa.concat_tables(tables) if tables else schema.SYNTHETIC.empty_table().select(SAMPLE_COLUMNS)
    return selection.Tables(real, samples, np.concatenate(good) if good else np.zeros(0, bool), recipe.fold)


@dataclasses.dataclass(frozen=True)
class Node:
    """What a trial has on its node: the tables, their pixels, and how to train."""

    recipe: Recipe
    target: Run
    tables: selection.Tables
    num_threads: int
    device: str

    @classmethod
    def open(cls, recipe: Recipe, target: Run, num_threads: int, gpu: bool) -> "Node":
        return cls(recipe, target, read_tables(recipe, target), num_threads, "cuda" if gpu else "cpu")

    def images(self, real: Sequence[int] | np.ndarray = ()) -> Any:
        """The node's array with every sample in it, and every photograph but those of the prior sets.

        Of these `real`, the rows that an arm takes: all of EyePACS and APTOS at 1,024 px would be 290 GB.
        """
        split = np.asarray(self.tables.real["split"].to_pylist(), dtype=object)
        rows = np.union1d(np.flatnonzero(split != "prior"), np.asarray(real, np.int64))
        digests = [*self.digests(self.tables.real, rows), *self.tables.samples["sha256"].to_pylist()]
        parts = [("real", schema.REAL), ("synthetic", schema.SYNTHETIC)]
        return ensemble.image_array(self.target, self.recipe.ingest.px, parts, digests)

    def digests(self, table: pa.Table, rows: np.ndarray) -> list[str]:
        return table["sha256"].take(rows).to_pylist()

    def pixels(self, real: np.ndarray, synthetic: np.ndarray, round_trip: np.ndarray) -> tuple[Any, np.ndarray]:
        """(images, positions) of rows of `real`, then of `samples`, then of `real` after encode and decode."""
        from raydr.grading.arrays import Joined

        array = self.images(real)
        digests = self.digests(self.tables.real, real) + self.digests(self.tables.samples, synthetic)
        positions = array.positions(digests)
        if not len(round_trip):
            return array, positions
        again = self.digests(self.tables.real, round_trip)
        decoded = roundtrip.array(self.recipe, self.target, sorted(set(again)), self.device)
        return Joined(array, decoded), np.concatenate([positions, len(array) + decoded.positions(again)])

    def grades(self, table: pa.Table, rows: np.ndarray) -> np.ndarray:
        return np.asarray(table["grade"].fill_null(-1)).astype(np.int64)[rows]

    def train(self, grader: Grader, seed: int, images: Any, rows: np.ndarray, grades: np.ndarray, **more: Any) -> Any:
        """`training.train`; arms of one seed start from the same weights and see the same augmentation noise."""
        from raydr.grading import training

        return training.train(
            grader,
            images,
            rows,
            grades,
            seed=seed_of("trial", self.recipe.seed, self.recipe.replicate, seed),
            device=self.device,
            num_threads=self.num_threads,
            **more,
        )


def evaluate(
    node: Node, model: Any, rows: dict[str, np.ndarray], splits: tuple[str, ...], trial_id: str
) -> tuple[pa.Table, dict[str, dict[str, float]]]:
    """(predictions, {split: metrics}) of a grader on this run's photographs."""
    from raydr.grading.evaluate import evaluate_grader

    array, tables, scores = node.images(), [], {}
    for split in splits:
        table, scores[split] = evaluate_grader(
            model,
            array,
            array.positions(node.digests(node.tables.real, rows[split])),
            node.tables.real["image_id"].take(rows[split]).to_pylist(),
            node.grades(node.tables.real, rows[split]),
            trial_id=trial_id,
            split=split,
        )
        tables.append(table)
    return pa.concat_tables(tables), scores


def trial_row(
    node: Node, trial: Trial, trial_id: str, grader: Grader, scores: dict[str, dict[str, float]], seconds: float
) -> dict[str, Any]:
    """The trial's row of `trials/results` (schema.TRIALS) but for what it was trained on."""
    test = scores.get("test", {})
    return {
        "trial_id": trial_id,
        "arm": trial.arm,
        "purpose": trial.purpose,
        "band_low": trial.band[0],
        "band_high": trial.band[1],
        "ratio": trial.ratio,
        "backbone": grader.backbone,
        "loss": grader.loss,
        "sampler": grader.sampler,
        "seed": trial.seed,
        "fold": node.recipe.fold,
        "replicate": node.recipe.replicate,
        "steps": grader.steps,
        "num_real": 0,
        "num_synthetic": [0] * 5,
        "shortage": [0] * 5,
        "validation_balanced_accuracy": scores["validation"]["balanced_accuracy"],
        "balanced_accuracy": test.get("balanced_accuracy"),
        "accuracy": test.get("accuracy"),
        **{f"recall_{grade}": test.get(f"recall_{grade}") for grade in range(5)},
        "seconds": seconds,
        "loss_parameter": grader.loss_parameter,
        "mixup": grader.mixup,
        "soft_labels": grader.soft_labels,
        "learning_rate": grader.learning_rate,
        "weight_decay": grader.weight_decay,
    }


def commit(target: Run, trial_id: str, predictions: pa.Table, row: dict[str, Any]) -> None:
    identity = fingerprint(trial_id)
    shards.commit(target, f"trials/predictions/{trial_id}.parquet", predictions, schema.PREDICTIONS, identity)
    table = pa.Table.from_pylist([row], schema=schema.TRIALS)
    shards.commit(target, f"trials/results/{trial_id}.parquet", table, schema.TRIALS, identity)
