"""Trials that are no arm's grader: the scoring ensemble as a row, and probes that tell made images from photographs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from raydr import selection
from raydr.cluster import ensemble
from raydr.cluster.trial_node import Node, commit, trial_row
from raydr.trials import Trial


def judge(node: Node, trial: Trial, trial_id: str) -> dict[str, float]:
    """The scoring ensemble as a row of the table: its members' mean probability."""
    from raydr import metrics
    from raydr.grading.evaluate import prediction_rows

    judges = ensemble.load(node.recipe, node.target, ensemble.identity(node.recipe, node.target), "score", node.device)
    array, tables, scores = node.images(), [], {}
    for split in ("validation", "test"):
        rows = selection.part_of(node.tables.real, split, node.recipe.fold)
        positions = array.positions(node.digests(node.tables.real, rows))
        grades = node.grades(node.tables.real, rows)
        probabilities = ensemble.mean_probabilities(judges, array, positions)
        ids = node.tables.real["image_id"].take(rows).to_pylist()
        tables.append(prediction_rows(trial_id, split, ids, grades, probabilities))
        scores[split] = metrics.summary(grades, probabilities.argmax(axis=1), probabilities)
    # Not a grader of the sweep: named so that no arm is contrasted with it.
    backbones = "+".join(sorted({meta.grader.backbone for meta in judges.metas}))
    grader = dataclasses.replace(judges.metas[0].grader, backbone=f"ensemble of {len(judges.metas)}: {backbones}")
    row = trial_row(node, trial, trial_id, grader, scores, 0.0)
    commit(node.target, trial_id, pa.concat_tables(tables), row)
    return {"validation_balanced_accuracy": scores["validation"]["balanced_accuracy"], "seconds": 0.0}


def probe(node: Node, trial: Trial, trial_id: str, on_event: Callable[[dict[str, Any]], None]) -> dict[str, float]:
    """Can a small classifier tell made images from photographs? Label 0 = photograph, 1 = made.

    Grades are balanced between the two, so that no grade gives the answer away.
    """
    from raydr.grading.evaluate import evaluate_grader

    tables, band = node.tables, (trial.band[0], trial.band[1])
    rows = selection.probe_rows(trial.arm, np.array(trial.extra), np.array(trial.asked), band, tables)
    made = "roundtrip" if rows.kind == "roundtrip" else "synthetic"
    nothing = np.zeros(0, np.int64)

    def pixels(real: np.ndarray, other: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        parts = (other, nothing) if made == "synthetic" else (nothing, other)
        return *node.pixels(real, *parts), np.repeat([0, 1], [len(real), len(other)])

    grader = dataclasses.replace(
        node.recipe.sweep.grader, head="plain", loss="ce", loss_parameter=0.0, sampler="balanced", mixup=0.0,
        soft_labels=0.0, evaluate_every=0,
    )  # fmt: skip
    images, positions, labels = pixels(rows.train_real, rows.train_other)
    trained = node.train(grader, trial.seed, images, positions, labels, on_event=on_event)
    images, positions, labels = pixels(rows.held_real, rows.held_other)
    names = tables.real["image_id"] if made == "roundtrip" else tables.samples["sample_id"]
    ids = tables.real["image_id"].take(rows.held_real).to_pylist() + names.take(rows.held_other).to_pylist()
    # A split of its own for each probe: its photographs are those of no other trial.
    table, scores = evaluate_grader(trained.model, images, positions, ids, labels, trial_id=trial_id, split=trial.arm)
    row = trial_row(node, trial, trial_id, grader, {"validation": scores}, trained.seconds)
    row |= {"num_real": len(rows.train_real), "num_synthetic": list(trial.extra)}
    commit(node.target, trial_id, table, row)
    return {"validation_balanced_accuracy": scores["balanced_accuracy"], "seconds": trained.seconds}
