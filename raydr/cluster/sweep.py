"""`real` + `synthetic` -> `trials`: graders over arms, seeds and band x ratio cells (Ray Tune).

    from raydr.cluster import sweep
    sweep.run(recipe, "out")

All trials take the same number of steps and, but for real_only, draw every grade equally often: arms
differ only in the images that fill the draws. Maps and searches are scored on validation alone. Each trial
commits its predictions and its row exactly once, so a sweep that grows or resumes runs only what is
missing; nothing depends on what Tune remembers.
"""

import dataclasses
import logging
from typing import Any

from ray import tune

from raydr import selection, shards, terminal
from raydr.arms import arm_named
from raydr.cluster import finetune, leaks, search, session, tracking, trial_node, trial_run
from raydr.cluster.tuning import fit, inputs_of
from raydr.config import Recipe
from raydr.errors import MissingInput, UserError
from raydr.identity import fingerprint
from raydr.kinds import CHANGES
from raydr.shapes import Shape
from raydr.storage import Run
from raydr.trials import Trial, plan

FAILED, ERRORS = "trials/failed.json", "trials/errors"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the search space: looks `name` up by the trial's id."""

    name: str
    jobs: dict[str, Trial]

    def __call__(self, config: dict[str, Any]) -> Any:
        return self.jobs[config["trial_id"]].column(self.name)


# -- on the nodes ---------------------------------------------------------------------------------


def run_trial(
    config: dict[str, Any],
    jobs: dict[str, Trial],
    url: str,
    recipe: Recipe,
    meter: str,
    num_threads: int,
    gpu: bool,
) -> None:
    """The Tune trainable: one trial, done and committed."""
    trial_id = config["trial_id"]
    number = list(jobs).index(trial_id)

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "train":
            session.report_to(meter, **{f"done:{number}": event["step"] / event["steps"]})

    try:
        result = trial_run.run(recipe, Run(url), jobs[trial_id], trial_id, on_event, num_threads, gpu)
    except Exception as error:
        # Tune's results of a trial that never reported do not say whose they are.
        Run(url).replace_json(f"{ERRORS}/{trial_id}.json", {"reason": f"{type(error).__name__}: {error}"})
        raise
    tune.report(result)


# -- on the driver --------------------------------------------------------------------------------


def ready(recipe: Recipe, target: Run) -> None:
    """MissingInput where photographs, or samples of a kind that some arm adds, are not there; LeakageError: `leaks`."""
    if not shards.completed(target, "real"):
        raise MissingInput(f"{target.url} has no complete `real` table: run `raydr ingest` first")
    leaks.refuse(recipe, target)
    done, planned = shards.commits(target, "synthetic"), finetune.planned(recipe, target)
    for kind in sorted({arm_named(name).source for name in recipe.sweep.arms} & set(CHANGES)):
        prefixes = tuple(f"synthetic/{generator.generator_id}/" for generator in planned if generator.kind == kind)
        if not any(key.startswith(prefixes) for key in done):
            raise MissingInput(f"{target.url} has no {kind} samples of this recipe: run `raydr synthesize` first")


def wants_weights(recipe: Recipe, target: Run, trial: Trial, trial_id: str) -> bool:
    """Whether a trial's grader is to be kept (`sweep.keep_weights`) and is not there yet."""
    if trial.purpose != "arm" or arm_named(trial.arm).source == "scorers":
        return False
    kept = set(recipe.sweep.keep_weights)
    return bool({trial.arm, "all"} & kept) and not target.uploaded(f"{trial_run.GRADERS}/{trial_id}")


def run(recipe: Recipe, out: str | Run, shape: Shape | None = None) -> dict[str, Any]:
    """Run the trials that are not committed yet; returns {trials, run, failed}. Resumes, and grows.

    A trial that fails is named in `failed` and trials/failed.json with its reason; the others go on.
    """
    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    ready(recipe, target)
    _check_backbones(recipe)
    tables = trial_node.read_tables(recipe, target)
    for part in ("train", "validation", "test"):
        if not len(selection.part_of(tables.real, part, recipe.fold)):
            raise MissingInput(f"{target.url} has no graded photograph in {part}: ingest a data set that has")
    planned = plan(recipe, tables)
    for sentence in planned.left_out.values():
        terminal.note(sentence)
    inputs = {name: inputs_of(recipe, target, name) for name in {trial.arm for trial in planned.trials}}
    ids = {trial.trial_id(recipe, inputs[trial.arm]): trial for trial in planned.trials}
    target.replace_json("trials/plan.json", {"trial_ids": sorted(ids), "left_out": planned.left_out})
    done = shards.commits(target, "trials/results")
    todo = {
        trial_id: trial
        for trial_id, trial in ids.items()
        if trial.purpose != "search"
        and (f"trials/results/{trial_id}.parquet" not in done or wants_weights(recipe, target, trial, trial_id))
    }
    reasons = _tune(recipe, target, shape, todo) if todo else {}
    searched = search.run(recipe, target, shape, tables, ids) if recipe.sweep.search.arm else search.Outcome()
    # Trials of a search that were stopped early are no part of the table.
    done = shards.commits(target, "trials/results")
    table = {trial_id for trial_id, trial in ids.items() if trial.purpose != "search"}
    table |= {trial_id for trial_id in searched.trial_ids if f"trials/results/{trial_id}.parquet" in done}
    target.replace_json("trials/plan.json", {"trial_ids": sorted(table), "left_out": planned.left_out})
    reasons |= searched.reasons
    told = {}
    for trial_id, reason in reasons.items():
        trial = ids.get(trial_id)
        arm, seed = (trial.arm, trial.seed) if trial else (recipe.sweep.search.arm, 0)
        told[trial_id] = {"arm": arm, "seed": seed, "reason": reason}
    target.replace_json(FAILED, told)
    return {"trials": len(table | set(reasons)), "run": len(todo) + searched.num_run, "failed": sorted(reasons)}


def _check_backbones(recipe: Recipe) -> None:
    from raydr.grading.backbones import is_known

    for name in (recipe.sweep.grader.backbone, *recipe.sweep.axes.backbones):
        if not is_known(name):
            raise UserError(f"sweep: neither timm nor torchvision has a backbone {name!r}: check the name")


def _tune(recipe: Recipe, target: Run, shape: Shape, jobs: dict[str, Trial]) -> dict[str, str]:
    """Run trials side by side under Tune; returns {trial id: reason} of those that failed."""
    # Plain columns beside the id: what TensorBoard, MLflow and the dashboard show of a trial.
    space = {name: tune.sample_from(Column(name, jobs)) for name in tracking.HPARAMS}
    with session.metered("sweep", len(jobs), "trials") as meter:
        trainable = tune.with_parameters(
            run_trial,
            jobs=jobs,
            url=target.url,
            recipe=recipe,
            meter=meter,
            num_threads=max(1, int(shape.trial_cpus)),
            gpu=shape.trial_gpus > 0,
        )
        fit(
            recipe, target, shape, trainable, {"trial_id": tune.grid_search(list(jobs)), **space},
            tune.TuneConfig(reuse_actors=True), fingerprint(list(jobs))[:8],
        )  # fmt: skip
    return reasons_of(recipe, target, jobs)


def reasons_of(recipe: Recipe, target: Run, jobs: dict[str, Trial]) -> dict[str, str]:
    """{trial id: why} of the jobs that have not left what they were for: a committed row, or weights."""
    done = shards.commits(target, "trials/results")
    lost = [
        trial_id
        for trial_id, trial in jobs.items()
        if f"trials/results/{trial_id}.parquet" not in done or wants_weights(recipe, target, trial, trial_id)
    ]
    reasons = {}
    for trial_id in lost:
        key = f"{ERRORS}/{trial_id}.json"
        told = target.read_json(key)["reason"] if target.exists(key) else "its worker ended without a word"
        reasons[trial_id] = told.strip().splitlines()[0][:300]
        logging.getLogger("raydr").warning("trial %s failed: %s", trial_id, reasons[trial_id])
    return reasons
