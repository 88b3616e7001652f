"""Graders that score: members trained side by side, one Ray task each.

from raydr.cluster import ensemble
ensemble.run(recipe, "out")
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raydr import lineage, metrics, schema, selection, shards
from raydr.cluster import ingest, leaks, placement, session
from raydr.config import Recipe
from raydr.errors import MissingInput, UserError
from raydr.shapes import Shape
from raydr.storage import Run

COLUMNS = ["image_id", "dataset", "split", "fold", "patient_id", "grade", "sha256"]

# -- on the nodes ---------------------------------------------------------------------------------


def image_array(
    run: Run, px: int, tables: Iterable[tuple[str, pa.Schema]], sha256s: Iterable[str], cache_of: Run | None = None
) -> Any:
    """The node's ImageArray at `px` with these images in it; what is missing is read and decoded once.

    Images of another run go to the cache of the run `cache_of`: who evaluates on it writes nothing there.
    """
    from raydr.grading.arrays import ImageArray

    folder = session.node_cache(cache_of or run) / "arrays"
    array = ImageArray(folder, px)
    missing = set(array.missing(sha256s))
    if not missing:
        return array

    def rows() -> Iterable[tuple[str, bytes]]:
        for prefix, table_schema in tables:
            # A sweep of arms that add nothing has no synthetic table; `positions` says what is missing in the end.
            for batch in shards.dataset(run, prefix, table_schema, required=False).to_batches(
                columns=["sha256", "image"], batch_size=256
            ):
                for digest, data in zip(batch["sha256"].to_pylist(), batch["image"].to_pylist(), strict=True):
                    if digest in missing:
                        yield digest, data

    return ImageArray.build(folder, px, rows())


@ray.remote
def train_member(
    url: str, recipe: Recipe, number: int, prefix: str, meter: str, num_threads: int, gpu: bool
) -> dict[str, Any]:
    """Train, calibrate and store one member; returns its name, temperature and validation metrics."""
    from raydr.grading.ensemble import save_member
    from raydr.grading.members import train_member as train

    target = Run(url)
    member = recipe.ensemble.members[number]
    real = shards.read(target, "real", schema.REAL, COLUMNS)
    rows = selection.part_of(real, "train", recipe.fold)
    table = real.take(rows)
    digests = table["sha256"].to_pylist()
    array = image_array(target, recipe.ingest.px, [("real", schema.REAL)], digests)
    done = 0

    def on_event(event: dict[str, Any]) -> None:
        nonlocal done
        if event["event"] == "train":
            done = event["step"]
            session.report_to(meter, **{f"done:{number}": done})

    name = member_name(recipe, number)
    trained, meta = train(
        name,
        member,
        recipe.ensemble.inner_folds,
        array,
        array.positions(digests),
        np.asarray(table["grade"]),
        table["image_id"].to_pylist(),
        digests,
        seed=recipe.seed * 100 + recipe.replicate,
        fold=recipe.fold,
        groups=table["patient_id"].to_pylist(),
        device="cuda" if gpu else "cpu",
        on_event=on_event,
        num_threads=num_threads,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_member(Path(folder), trained.model, meta)
        target.upload(Path(folder), f"{prefix}/{name}")
    return {"name": name, "temperature": meta.temperature, **meta.validation}


def mean_probabilities(judges: Any, array: Any, positions: np.ndarray) -> np.ndarray:
    """The members' mean softmax of the images at `positions` (n,) of `array`: float32 (n, 5)."""
    parts = [judges.probabilities(array[positions[k : k + 64]]).mean(axis=1) for k in range(0, len(positions), 64)]
    return np.concatenate(parts)


def verdict(recipe: Recipe, target: Run, ensemble_id: str, gpu: bool) -> dict[str, float] | None:
    """`metrics.summary` of the scoring members' mean probability on the validation photographs, which none has seen.

    With score_q10_{grade} and score_q90_{grade}: percentiles of the scores that the grade's own photographs get, for a
    band where the recipe's is nearly empty. None where the run holds no validation photograph.
    """
    real = shards.read(target, "real", schema.REAL, COLUMNS)
    rows = selection.part_of(real, "validation", recipe.fold)
    if not len(rows):
        return None
    judges = load(recipe, target, ensemble_id, "score", "cuda" if gpu else "cpu")
    table = real.take(rows)
    digests, grades = table["sha256"].to_pylist(), np.asarray(table["grade"]).astype(np.int64)
    array = image_array(target, recipe.ingest.px, [("real", schema.REAL)], digests)
    probabilities = mean_probabilities(judges, array, array.positions(digests))
    values = metrics.summary(grades, probabilities.argmax(axis=1), probabilities)
    for grade in set(grades.tolist()):
        own = probabilities[grades == grade, grade]
        values |= {f"score_q{percent}_{grade}": np.percentile(own, percent) for percent in (10, 90)}
    return {name: float(value) for name, value in values.items() if not np.isnan(value)}


@ray.remote
def verdict_task(url: str, recipe: Recipe, ensemble_id: str, num_threads: int, gpu: bool) -> dict[str, float] | None:
    import torch

    torch.set_num_threads(num_threads)
    return verdict(recipe, Run(url), ensemble_id, gpu)


# -- on the driver --------------------------------------------------------------------------------


def member_name(recipe: Recipe, number: int) -> str:
    member = recipe.ensemble.members[number]
    return f"{number:02d}-{member.grader.backbone.replace('.', '-')}-f{member.inner_fold}"


def identity(recipe: Recipe, target: Run) -> str:
    return lineage.ensemble_id(recipe, ingest.fingerprint_of(target))


def require(recipe: Recipe, target: Run) -> str:
    """The id of the finished ensemble of this recipe; MissingInput where it is not there."""
    ensemble_id = identity(recipe, target)
    for number in range(len(recipe.ensemble.members)):
        if not target.uploaded(f"graders/{ensemble_id}/{member_name(recipe, number)}"):
            raise MissingInput(f"{target.url} has no finished ensemble {ensemble_id}: run `raydr ensemble` first")
    return ensemble_id


def load(recipe: Recipe, target: Run, ensemble_id: str, role: str | None = "score", device: str = "cpu") -> Any:
    """The ensemble's members on this node, checked against the photographs that it may not have seen."""
    from raydr.grading.ensemble import Ensemble, check_leakage

    for number in range(len(recipe.ensemble.members)):
        prefix = f"graders/{ensemble_id}/{member_name(recipe, number)}"
        folder = target.folder(prefix, session.node_cache(target)).parent
    judges = Ensemble.load(folder, role, device)
    real = shards.read(target, "real", schema.REAL, COLUMNS)
    for part in ("test", "validation"):
        forbidden = real["image_id"].take(selection.part_of(real, part, recipe.fold)).to_pylist()
        for meta in judges.metas:
            check_leakage(meta, forbidden, part)
    return judges


def ready(recipe: Recipe, target: Run) -> None:
    """UserError where no member scores, MissingInput where the photographs are not there; LeakageError: see `leaks`."""
    if not any(member.role == "score" for member in recipe.ensemble.members):
        raise UserError("ensemble.members holds no member of role 'score': add one")
    if not shards.completed(target, "real"):
        raise MissingInput(f"{target.url} has no complete `real` table: run `raydr ingest` first")
    leaks.refuse(recipe, target)


def run(recipe: Recipe, out: str | Run, shape: Shape | None = None) -> dict[str, Any]:
    """Train the members that are not there yet.

    Returns {ensemble_id, members: how many, trained: those of now with their held-out metrics, ensemble: `verdict`}.
    """
    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    members = recipe.ensemble.members
    ready(recipe, target)
    ensemble_id = identity(recipe, target)
    prefix = f"graders/{ensemble_id}"
    numbers = [n for n in range(len(members)) if not target.uploaded(f"{prefix}/{member_name(recipe, n)}")]
    total = sum(members[n].grader.steps for n in numbers)
    results: list[dict[str, Any]] = []
    options = {"num_cpus": shape.trial_cpus, "num_gpus": shape.trial_gpus, **placement.options(shape.trial_gpus)}
    threads, gpu = max(1, int(shape.trial_cpus)), shape.trial_gpus > 0
    if numbers:
        # Longest first, so that the last to finish is a short one.
        numbers.sort(key=lambda n: -members[n].grader.steps * members[n].grader.px ** 2)
        with session.metered("ensemble", total, "steps") as meter:
            remote = train_member.options(**options)
            results = ray.get([remote.remote(target.url, recipe, n, prefix, meter, threads, gpu) for n in numbers])
    found = ray.get(verdict_task.options(**options).remote(target.url, recipe, ensemble_id, threads, gpu))
    trained = sorted(results, key=lambda member: member["name"])
    return {"ensemble_id": ensemble_id, "members": len(members), "trained": trained, "ensemble": found}
