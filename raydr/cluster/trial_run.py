"""One trial of a sweep on its node: a grader of an arm trained, evaluated, committed, its weights kept if wanted."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raydr import schema, selection, shards
from raydr.arms import arm_named
from raydr.cluster import trial_controls
from raydr.cluster.trial_node import Node, commit, evaluate, trial_row
from raydr.config import Grader, Recipe
from raydr.kinds import CHANGES
from raydr.storage import Run
from raydr.trials import Trial

Events = Callable[[dict[str, Any]], None]
GRADERS = "trials/graders"


def run(
    recipe: Recipe, target: Run, trial: Trial, trial_id: str, on_event: Events, num_threads: int, gpu: bool
) -> dict[str, float]:
    """Do one trial and commit it; returns its validation balanced accuracy and seconds.

    A trial that is committed but whose weights are wanted is trained again for them alone.
    """
    node = Node.open(recipe, target, num_threads, gpu)
    if arm_named(trial.arm).source == "scorers":
        return trial_controls.judge(node, trial, trial_id)
    if trial.purpose == "probe":
        return trial_controls.probe(node, trial, trial_id, on_event)
    return _grade(node, trial, trial_id, on_event)


def _grade(node: Node, trial: Trial, trial_id: str, on_event: Events) -> dict[str, float]:
    """Train a grader on the arm's images and evaluate it: on test only if it is reported."""
    recipe, tables = node.recipe, node.tables
    grader = trial.trained_with(recipe)
    chosen = selection.training_rows(
        trial.arm,
        np.array(trial.extra),
        np.array(trial.asked),
        (trial.band[0], trial.band[1]),
        tables.real,
        tables.samples,
        tables.good,
        recipe.fold,
        trial.seed,
    )
    images, positions = node.pixels(chosen.real_rows, chosen.synthetic_rows, chosen.roundtrip_rows)
    grades = np.concatenate(
        [
            node.grades(tables.real, chosen.real_rows),
            node.grades(tables.samples, chosen.synthetic_rows),
            node.grades(tables.real, chosen.roundtrip_rows),
        ]
    )
    soft = None
    if grader.soft_labels > 0:
        soft = np.eye(5, dtype=np.float32)[grades]
        if len(chosen.synthetic_rows):
            said = np.array(tables.samples["probabilities"].take(chosen.synthetic_rows).to_pylist(), np.float32)
            first = len(chosen.real_rows)
            soft[first : first + len(said)] = said.mean(axis=1)
    rows = {part: selection.part_of(tables.real, part, recipe.fold) for part in ("validation", "test")}
    watched = None
    if grader.evaluate_every:  # the weights that are best on validation are kept, as in the paper
        held = rows["validation"]
        watched = images.positions(node.digests(tables.real, held)), node.grades(tables.real, held)
    trained = node.train(
        grader,
        trial.seed,
        images,
        positions,
        grades,
        soft_targets=soft,
        synthetic=np.arange(len(grades)) >= len(chosen.real_rows),
        on_event=on_event,
        validation=watched,
    )
    splits = ("validation", "test") if trial.purpose == "arm" else ("validation",)
    predictions, scores = evaluate(node, trained.model, rows, splits, trial_id)
    arm = arm_named(trial.arm)
    row = trial_row(node, trial, trial_id, grader, scores, trained.seconds) | {
        "num_real": len(chosen.real_rows),
        "num_synthetic": list(chosen.added) if arm.source in (*CHANGES, "roundtrip") else [0] * 5,
        "shortage": list(chosen.shortage),
    }
    if {trial.arm, "all"} & set(recipe.sweep.keep_weights) and trial.purpose == "arm":
        seen = tables.real.take(np.concatenate([chosen.real_rows, chosen.roundtrip_rows]))
        keep_weights(node, trial, trial_id, grader, trained.model, predictions, scores["validation"], seen)
    commit(node.target, trial_id, predictions, row)
    return {"validation_balanced_accuracy": row["validation_balanced_accuracy"], "seconds": trained.seconds}


def keep_weights(
    node: Node,
    trial: Trial,
    trial_id: str,
    grader: Grader,
    model: Any,
    predictions: pa.Table,
    validation: dict[str, float],
    seen: pa.Table,
) -> None:
    """Store a trial's grader under {GRADERS}/{trial_id}, calibrated on the validation photographs.

    Where the trial is committed already, its record says by how much these weights' probabilities differ
    from the stored ones: 0 on equal devices and versions.
    """
    from raydr.grading import calibration
    from raydr.grading.ensemble import Meta, data_fingerprint, hash_ids, save_member

    key = f"trials/predictions/{trial_id}.parquet"
    difference = None
    if node.target.exists(shards.record_key(key)):
        stored = shards.read(
            node.target, "trials/predictions", schema.PREDICTIONS, filter=pc.field("trial_id") == trial_id
        )
        difference = difference_of(stored, predictions)
    held = predictions.filter(pc.field("split") == "validation")
    probabilities, grades = np.array(held["probabilities"].to_pylist()), np.asarray(held["grade"]).astype(np.int64)
    meta = Meta(
        name=f"{trial.arm}-seed{trial.seed}",
        grader=grader,
        seed=trial.seed,
        role="trial",
        fold=node.recipe.fold,
        data_fingerprint=data_fingerprint(seen["sha256"].to_pylist()),
        trained_on=hash_ids(seen["image_id"].to_pylist()),
        calibrated_on=hash_ids(held["image_id"].to_pylist()),
        temperature=calibration.fit_temperature(probabilities, grades),
        validation={name: float(value) for name, value in validation.items() if not np.isnan(value)},
    )
    with tempfile.TemporaryDirectory() as folder:
        save_member(Path(folder), model, meta)
        record = {"arm": trial.arm, "trial_id": trial_id, "num_added": list(trial.extra), "difference": difference}
        (Path(folder) / "trial.json").write_text(json.dumps(record, indent=1))
        node.target.upload(Path(folder), f"{GRADERS}/{trial_id}")


def difference_of(stored: pa.Table, again: pa.Table) -> float:
    """Largest difference of a probability between two tables of predictions of the same photographs."""
    order = [("split", "ascending"), ("image_id", "ascending")]
    one, other = (np.array(table.sort_by(order)["probabilities"].to_pylist()) for table in (stored, again))
    return float(np.abs(one - other).max())
