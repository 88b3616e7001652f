"""`real` + `synthetic` -> `trials`: graders over arms, seeds and band x ratio cells (Ray Tune).

    from raydr.cluster import sweep
    sweep.run(recipe, "out")

All trials take the same number of steps and, but for real_only, draw every grade equally often: arms
differ only in the images that fill the draws. Maps are scored on validation alone. Each trial commits
its predictions and its row exactly once, so a sweep that grows or resumes runs only what is missing.
"""

import dataclasses
import logging
from typing import Any

import numpy as np
import pyarrow as pa
from ray import tune

from raydr import schema, selection, shards
from raydr.cluster import ensemble, finetune, ingest, placement, session, tracking
from raydr.config import Recipe
from raydr.errors import MissingInput, UserError
from raydr.identity import fingerprint, seed_of
from raydr.shapes import Shape
from raydr.storage import Run

SAMPLE_COLUMNS = [
    "sample_id", "generator_id", "kind", "grade", "index", "sha256", "blank", "valid_fundus", "nearest_distance",
    "probabilities", "score",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trial:
    """One grader to train; everything here is its identity."""

    arm: str
    purpose: str  # "arm" or "map"
    band: tuple[float, float]
    ratio: float
    seed: int
    extra: tuple[int, ...]  # images added per grade
    asked: tuple[int, ...]

    def trial_id(self, recipe: Recipe, inputs: str) -> str:
        identity = dataclasses.asdict(self)
        return fingerprint("trial", identity, recipe.sweep.grader, recipe.fold, recipe.seed, recipe.replicate, inputs)

    def column(self, name: str) -> Any:
        """A field as the search space has it: scalars only."""
        return self.band[name == "band_high"] if name.startswith("band_") else getattr(self, name)


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the search space: looks `name` up by the trial's id."""

    name: str
    jobs: dict[str, Trial]

    def __call__(self, config: dict[str, Any]) -> Any:
        return self.jobs[config["trial_id"]].column(self.name)


# -- on the nodes ---------------------------------------------------------------------------------


def read_tables(recipe: Recipe, target: Run) -> tuple[pa.Table, pa.Table, np.ndarray]:
    """(real, samples of this recipe's generators, which of these may be used)."""
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
    return real, samples, np.concatenate(good) if good else np.zeros(0, bool)


def run_trial(
    config: dict[str, Any],
    jobs: dict[str, Trial],
    url: str,
    recipe: Recipe,
    meter: str,
    num_threads: int,
    gpu: bool,
) -> None:
    """The Tune trainable: train one grader, evaluate, commit predictions and the trial's row."""
    from raydr.grading import evaluate, training

    trial_id = config["trial_id"]
    target, trial, number = Run(url), jobs[trial_id], list(jobs).index(trial_id)
    real, samples, good = read_tables(recipe, target)
    chosen = selection.training_rows(
        trial.arm,
        np.array(trial.extra),
        np.array(trial.asked),
        (trial.band[0], trial.band[1]),
        real,
        samples,
        good,
        recipe.fold,
        trial.seed,
    )
    arm = selection.arm_named(trial.arm)
    grader = recipe.sweep.grader
    grader = dataclasses.replace(grader, sampler=arm.sampler) if arm.sampler else grader
    digests_real, digests_fake = np.array(real["sha256"].to_pylist()), np.array(samples["sha256"].to_pylist())
    tables = [("real", schema.REAL), ("synthetic", schema.SYNTHETIC)]
    array = ensemble.image_array(target, recipe.ingest.px, tables, [*digests_real, *digests_fake])
    train = [*digests_real[chosen.real_rows], *digests_fake[chosen.synthetic_rows]]
    grades_real = np.asarray(real["grade"].fill_null(-1)).astype(np.int64)
    grades_fake = np.asarray(samples["grade"]).astype(np.int64)
    grades = np.concatenate([grades_real[chosen.real_rows], grades_fake[chosen.synthetic_rows]])
    is_synthetic = np.arange(len(train)) >= len(chosen.real_rows)
    soft = None
    if grader.soft_labels > 0:
        soft = np.eye(5, dtype=np.float32)[grades]
        if len(chosen.synthetic_rows):
            said = np.array(samples["probabilities"].take(chosen.synthetic_rows).to_pylist(), np.float32)
            soft[is_synthetic] = said.mean(axis=1)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "train":
            session.report_to(meter, **{f"done:{number}": event["step"] / event["steps"]})

    trained = training.train(
        grader,
        array,
        array.positions(train),
        grades,
        # Arms of one seed start from the same weights and see the same augmentation noise.
        seed=seed_of("trial", recipe.seed, recipe.replicate, trial.seed),
        device="cuda" if gpu else "cpu",
        soft_targets=soft,
        synthetic=is_synthetic,
        on_event=on_event,
        num_threads=num_threads,
        validation=None,
    )
    predictions, scores = [], {}
    for split in ("validation", "test") if trial.purpose == "arm" else ("validation",):
        rows = selection.part_of(real, split, recipe.fold)
        ids = real["image_id"].take(rows).to_pylist()
        table, scores[split] = evaluate.evaluate_grader(
            trained.model,
            array,
            array.positions(list(digests_real[rows])),
            ids,
            grades_real[rows],
            trial_id=trial_id,
            split=split,
        )
        predictions.append(table)
    identity = fingerprint(trial_id)
    shards.commit(
        target, f"trials/predictions/{trial_id}.parquet", pa.concat_tables(predictions), schema.PREDICTIONS, identity
    )
    test = scores.get("test", {})
    row = {
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
        "fold": recipe.fold,
        "replicate": recipe.replicate,
        "steps": grader.steps,
        "num_real": len(chosen.real_rows),
        "num_synthetic": list(chosen.added) if arm.source in ("plain", "ecc") else [0] * 5,
        "shortage": list(chosen.shortage),
        "validation_balanced_accuracy": scores["validation"]["balanced_accuracy"],
        "balanced_accuracy": test.get("balanced_accuracy"),
        "accuracy": test.get("accuracy"),
        **{f"recall_{grade}": test.get(f"recall_{grade}") for grade in range(5)},
        "seconds": trained.seconds,
    }
    table = pa.Table.from_pylist([row], schema=schema.TRIALS)
    shards.commit(target, f"trials/results/{trial_id}.parquet", table, schema.TRIALS, identity)
    shown = {f"validation_{name}": float(value) for name, value in scores["validation"].items()}
    tune.report(shown | {"seconds": trained.seconds})


# -- on the driver --------------------------------------------------------------------------------


def plan(recipe: Recipe, real: pa.Table, samples: pa.Table, good: np.ndarray) -> list[Trial]:
    """Every trial of the sweep: arms x seeds, then the cells of the map."""
    sweep = recipe.sweep
    common, asked = selection.common_counts(
        sweep.arms, sweep.ratio, sweep.grades, sweep.band, real, samples, good, recipe.fold
    )
    adding = [name for name in sweep.arms if selection.arm_named(name).source in ("plain", "ecc")]
    if adding and asked.sum() > 0 and common.sum() == 0:
        raise UserError(
            f"No image of grades {sweep.grades} is accepted by every arm ({', '.join(adding)}) in the band "
            f"{sweep.band}: widen sweep.band, or synthesize more"
        )
    trials = []
    for name in sweep.arms:
        adds = selection.arm_named(name).source != "none"
        extra = common if adds else np.zeros_like(common)
        wanted = asked if adds else np.zeros_like(asked)
        trials += [_trial(name, "arm", sweep.band, sweep.ratio, seed, extra, wanted) for seed in range(sweep.num_seeds)]
    for band in sweep.map_bands:
        for ratio in sweep.map_ratios:
            given, wanted = selection.common_counts(
                ("band",), ratio, sweep.grades, band, real, samples, good, recipe.fold
            )
            trials += [_trial("band", "map", band, ratio, seed, given, wanted) for seed in range(sweep.map_seeds)]
    return trials


def _trial(
    name: str, purpose: str, band: tuple[float, float], ratio: float, seed: int, extra: np.ndarray, asked: np.ndarray
) -> Trial:
    return Trial(name, purpose, band, ratio, seed, tuple(extra.tolist()), tuple(asked.tolist()))


def ready(recipe: Recipe, target: Run) -> None:
    """MissingInput where the photographs, or samples of a kind that some arm adds, are not there."""
    if not shards.completed(target, "real"):
        raise MissingInput(f"{target.url} has no complete `real` table: run `raydr ingest` first")
    done, planned = shards.commits(target, "synthetic"), finetune.planned(recipe, target)
    for kind in sorted({selection.arm_named(name).source for name in recipe.sweep.arms} & {"plain", "ecc"}):
        prefixes = tuple(f"synthetic/{generator.generator_id}/" for generator in planned if generator.kind == kind)
        if not any(key.startswith(prefixes) for key in done):
            raise MissingInput(f"{target.url} has no {kind} samples of this recipe: run `raydr synthesize` first")


def run(recipe: Recipe, out: str | Run, shape: Shape | None = None) -> dict[str, Any]:
    """Run the trials that are not committed yet; returns {trials, run, failed}. Resumes, and grows."""
    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    ready(recipe, target)
    real, samples, good = read_tables(recipe, target)
    for part in ("train", "validation", "test"):
        if not len(selection.part_of(real, part, recipe.fold)):
            raise MissingInput(f"{target.url} has no graded photograph in {part}: ingest a data set that has")
    trials = plan(recipe, real, samples, good)
    inputs = fingerprint(ingest.fingerprint_of(target), ensemble.identity(recipe, target))
    inputs = fingerprint(inputs, [g.generator_id for g in finetune.planned(recipe, target)], recipe.synthesize.sampler)
    ids = {trial.trial_id(recipe, inputs): trial for trial in trials}
    done = shards.commits(target, "trials/results")
    todo = [(trial_id, trial) for trial_id, trial in ids.items() if f"trials/results/{trial_id}.parquet" not in done]
    target.replace_json("trials/plan.json", {"trial_ids": sorted(ids)})
    failed = _tune(recipe, target, shape, todo) if todo else []
    return {"trials": len(ids), "run": len(todo), "failed": failed}


def _tune(recipe: Recipe, target: Run, shape: Shape, todo: list[tuple[str, Trial]]) -> list[str]:
    """Run trials side by side under Tune; returns the ids of those that failed, with their reasons logged."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    jobs = dict(todo)
    # Plain columns beside the id: what TensorBoard, MLflow and the dashboard show of a trial.
    space = {name: tune.sample_from(Column(name, jobs)) for name in tracking.HPARAMS}
    with session.metered("sweep", len(todo), "trials") as meter:
        trainable = tune.with_parameters(
            run_trial,
            jobs=jobs,
            url=target.url,
            recipe=recipe,
            meter=meter,
            num_threads=max(1, int(shape.trial_cpus)),
            gpu=shape.trial_gpus > 0,
        )
        trainable = tune.with_resources(trainable, placement.bundle(shape.trial_cpus, shape.trial_gpus))
        tuner = tune.Tuner(
            trainable,
            param_space={"trial_id": tune.grid_search(list(jobs)), **space},
            # A worker process imports torch and timm once (about 10 s) and then runs trial after trial.
            tune_config=tune.TuneConfig(reuse_actors=True),
            run_config=tune.RunConfig(
                name=f"sweep-{fingerprint([trial_id for trial_id, _ in todo])[:8]}",
                storage_path=f"{target.url}/_ray/sweep",
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=1),
                callbacks=tracking.callbacks(target.url, recipe.name),
            ),
        )
        results = tuner.fit()
    done = shards.commits(target, "trials/results")
    failed = [trial_id for trial_id, _ in todo if f"trials/results/{trial_id}.parquet" not in done]
    for error in results.errors:
        logging.getLogger("raydr").warning("a trial failed: %s", error)
    return failed
