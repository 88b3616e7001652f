"""Trained graders of a run on photographs that had no part in it: `raydr evaluate OUT --on DATASET...`.

    from raydr.cluster import evaluate
    evaluate.run(recipe, "out", ["idrid"])

Predictions are committed under evaluations/{set}/{grader}.parquet, once a grader and set; the numbers
(report/external.json, and so results.json) are recomputed from them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray

from raydr import schema, selection, shards, terminal
from raydr.cluster import ensemble, external, folds, leaks, placement, session, source_record
from raydr.cluster.trial_run import GRADERS
from raydr.config import Recipe
from raydr.errors import LeakageError, MissingInput, UserError
from raydr.identity import fingerprint
from raydr.record import replicates, stored_recipe
from raydr.shapes import Shape
from raydr.storage import Run

COLUMNS = [*ensemble.COLUMNS, "stratum"]
# The scoring members averaged: a grader of this name beside the arms.
ENSEMBLE = "ensemble"


@dataclass(frozen=True)
class External:
    """A set to evaluate on: graded rows of `run`'s `real`; `key` names it and changes with its photographs."""

    name: str
    run: Run
    rows: pa.Table
    # Photographs left out, since they show the picture of one that was learnt from.
    num_excluded: int = 0

    @property
    def key(self) -> str:
        return f"{self.name}-{fingerprint(sorted(self.rows['sha256'].to_pylist()))[:8]}"


@dataclass(frozen=True)
class Graded:
    """A grader to evaluate: a trial's id, or that of the ensemble."""

    grader_id: str
    arm: str


# -- on the nodes ---------------------------------------------------------------------------------


def evaluate_one(recipe: Recipe, target: Run, grader: Graded, found: External, gpu: bool, num_threads: int) -> None:
    """Commit the predictions of one grader on one set."""
    import torch

    from raydr.grading.evaluate import prediction_rows
    from raydr.grading.training import predict

    torch.set_num_threads(num_threads)
    digests = found.rows["sha256"].to_pylist()
    array = ensemble.image_array(found.run, recipe.ingest.px, [("real", schema.REAL)], digests, target)
    positions, device = array.positions(digests), "cuda" if gpu else "cpu"
    if grader.arm == ENSEMBLE:
        judges = ensemble.load(recipe, target, grader.grader_id, "score", device)
        probabilities = ensemble.mean_probabilities(judges, array, positions)
    else:
        from raydr.grading.ensemble import load_member

        folder = target.folder(f"{GRADERS}/{grader.grader_id}", session.node_cache(target))
        probabilities = predict(load_member(folder, device)[0], array, positions)
    table = prediction_rows(
        grader.grader_id, "external", found.rows["image_id"].to_pylist(), np.asarray(found.rows["grade"]), probabilities
    )
    key = f"evaluations/{found.key}/{grader.grader_id}.parquet"
    shards.commit(target, key, table, schema.PREDICTIONS, fingerprint(grader.grader_id, found.key), {"arm": grader.arm})


@ray.remote
def evaluate_task(url: str, recipe: Recipe, grader: Graded, found: External, gpu: bool, num_threads: int) -> None:
    evaluate_one(recipe, Run(url), grader, found, gpu, num_threads)


# -- on the driver --------------------------------------------------------------------------------


def external_set(target: Run, token: str) -> External:
    """The set that `token` names: a data set of role external in this run, or another run's folder or bucket.

    A data set is named as in `real` or by its reader (Messidor-2, messidor2). Of another run its external and test
    photographs count. Raises LeakageError where this run has learnt from one of the photographs, in whatever split but
    test and external; those that repeat the picture of such a one under other bytes are left out.
    """
    real = shards.read(target, "real", schema.REAL, COLUMNS)
    mine = real.take(selection.part_of(real, "external", None))
    names = sorted(set(mine["dataset"].to_pylist()))
    named = _named(target, token, names)
    if len(named) > 1:
        raise UserError(f"--on {token} may mean {' or '.join(named)}: write the name out")
    if named:
        name, source = named[0], target
        rows = mine.filter(pc.equal(mine["dataset"], name))
    elif "/" in token:
        source = Run(token)
        if stored_recipe(source) is None:
            raise UserError(f"--on {token}: there is no run; name one, or a data set ({', '.join(names) or 'none'})")
        theirs = shards.read(source, "real", schema.REAL, COLUMNS)
        parts = [selection.part_of(theirs, split, None) for split in ("external", "test")]
        rows, name = theirs.take(np.concatenate(parts)), source.url.rstrip("/").rsplit("/", 1)[-1]
    else:
        there = f"it has {', '.join(names)}" if names else "it has none"
        raise UserError(
            f"--on {token}: {target.url} holds no graded data set of this name with role external ({there}): run "
            f"`raydr ingest {token} PATH --role external`, or name another run's folder"
        )
    if not rows.num_rows:
        raise MissingInput(f"--on {token}: {source.url} holds no graded external or test photograph")
    seen = ~np.isin(np.asarray(real["split"].to_pylist(), dtype=object), ("test", "external"))
    learnt = set(real["sha256"].take(np.flatnonzero(seen)).to_pylist())
    common = len(learnt & set(rows["sha256"].to_pylist()))
    if common:
        raise LeakageError(
            f"--on {token}: {common} of {rows.num_rows} photographs are among those that {target.url} learns from: "
            "evaluate on others"
        )
    copies = leaks.repeated(target, source, rows["image_id"].to_pylist())
    if copies:
        rows = rows.filter(pc.invert(pc.is_in(rows["image_id"], pa.array(sorted(copies), pa.string()))))
    if not rows.num_rows:
        raise LeakageError(
            f"--on {token}: every photograph shows the same picture as one that {target.url} learns from: evaluate on "
            "others"
        )
    return External(_safe(name), source, rows, len(copies))


def _named(target: Run, token: str, names: Sequence[str]) -> list[str]:
    """Which of the data sets `names` are meant by `token`: a name, in whatever case and punctuation, or a reader's."""
    found = [name for name in names if name == token] or [name for name in names if _plain(name) == _plain(token)]
    by_reader = {source.dataset for source in source_record.sources(target) if source.reader == token.lower()}
    return found or sorted(by_reader & set(names))


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _safe(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "_.+@" else "_" for letter in name)[:60]


def graders(recipe: Recipe, target: Run, arms: Sequence[str]) -> list[Graded]:
    """The graders of the present plan that keep their weights, and the ensemble; of `arms` alone where it is not empty.

    Raises MissingInput for an arm that keeps none, naming the command that makes them.
    """
    plan = target.read_json("trials/plan.json")["trial_ids"] if target.exists("trials/plan.json") else []
    kept = [trial_id for trial_id in plan if target.uploaded(f"{GRADERS}/{trial_id}")]
    found = [Graded(trial_id, target.read_json(f"{GRADERS}/{trial_id}/trial.json")["arm"]) for trial_id in kept]
    own = ensemble.identity(recipe, target)
    if all(
        target.uploaded(f"graders/{own}/{ensemble.member_name(recipe, n)}") for n in range(len(recipe.ensemble.members))
    ):
        found.append(Graded(own, ENSEMBLE))
    chosen = [grader for grader in found if not arms or grader.arm in arms]
    for name in set(arms) - {grader.arm for grader in chosen}:
        raise MissingInput(
            f"{target.url} keeps no trained grader of arm {name!r}: run `raydr sweep --out {target.url} "
            f"--keep-weights {name}`, which trains again what is not kept"
        )
    if not chosen:
        raise MissingInput(f"{target.url} holds no trained grader: run `raydr sweep` with --keep-weights")
    return chosen


def run(
    recipe: Recipe, out: str | Run, on: Sequence[str], arms: Sequence[str] = (), shape: Shape | None = None
) -> dict[str, Any]:
    """Evaluate what is not evaluated yet; returns and stores {set: {arm: numbers}} of all evaluations of the run."""
    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    jobs: list[tuple[str, Recipe, Graded, External]] = []
    folds.share(recipe, target, replicates(recipe, target))
    for part, place in replicates(recipe, target):
        for found in [external_set(place, token) for token in on]:
            if found.num_excluded:
                terminal.note(
                    f"{found.name}: {found.num_excluded} photographs are left out, which show the same picture as one "
                    f"that {place.url} learns from"
                )
            external.describe(place, found.key, found.rows, found.num_excluded)
            done = shards.commits(place, f"evaluations/{found.key}")
            jobs += [
                (place.url, part, grader, found)
                for grader in graders(part, place, arms)
                if f"evaluations/{found.key}/{grader.grader_id}.parquet" not in done
            ]
    if jobs:
        with session.session(shape), terminal.bar("evaluate", len(jobs), "graders") as bar:
            task = evaluate_task.options(
                num_cpus=shape.trial_cpus, num_gpus=shape.trial_gpus, **placement.options(shape.trial_gpus)
            )
            gpu, threads = shape.trial_gpus > 0, max(1, int(shape.trial_cpus))
            left = [task.remote(*job, gpu, threads) for job in jobs]
            while left:
                ended, left = ray.wait(left)
                ray.get(ended)
                bar.to(len(jobs) - len(left))
    return external.write(recipe, target)
