"""A search for grader settings inside one arm: Ray Tune's searchers, and ASHA, which stops the worse trials early.

A search looks at validation alone and its trials are rows of purpose "search", never an arm of the
report. What was tried is kept by raydr (trials/search/{search}/{trial}.json), not by Tune: after a kill the
same command tells the searcher what is known and asks for the rest.
"""

import dataclasses
import importlib
import inspect
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import SEARCH_ALG_IMPORT, Searcher

from raydr import selection, shards, trials
from raydr.cluster import session, tracking, trial_run
from raydr.cluster.tuning import fit, inputs_of
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.identity import fingerprint
from raydr.shapes import Shape
from raydr.storage import Run
from raydr.trials import Trial

METRIC = "validation_balanced_accuracy"
PARAMETERS = ("learning_rate", "weight_decay", "loss", "mixup")


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a search has: all its trials, how many ran now, and why some failed."""

    trial_ids: tuple[str, ...] = ()
    num_run: int = 0
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)


# -- on the nodes ---------------------------------------------------------------------------------


def run_trial(
    config: dict[str, Any],
    base: Trial,
    jobs: dict[str, Trial],
    inputs: str,
    folder: str,
    url: str,
    recipe: Recipe,
    meter: str,
    num_threads: int,
    gpu: bool,
) -> None:
    """The Tune trainable: train with the values of `config`, report on validation as training goes."""
    values = {name: config.get(name) for name in PARAMETERS}
    trial = jobs.get(config.get("trial_id", "")) or dataclasses.replace(base, grader=trials.suggested(recipe, values))
    trial_id, target, history = trial.trial_id(recipe, inputs), Run(url), []

    def on_event(event: dict[str, Any]) -> None:
        if event["event"] == "train":
            session.report_to(meter, **{f"done:{trial_id}": event["step"] / event["steps"]})
        elif event["event"] == "validation":
            history.append([event["step"], event["balanced_accuracy"]])
            record = {"values": values, "history": history, "trial_id": trial_id, "ended": False}
            target.replace_json(f"{folder}/{trial_id}.json", record)
            # Here Tune may end the training: the record above says how far it came. At the last step it must not: ASHA
            # stops every trial that has reached its longest, and this one is not committed yet.
            if event["step"] < recipe.sweep.grader.steps:
                tune.report({METRIC: event["balanced_accuracy"], "step": event["step"], "job": trial_id})

    try:
        result = trial_run.run(recipe, target, trial, trial_id, on_event, num_threads, gpu)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        target.replace_json(f"{folder}/{trial_id}.json", {"trial_id": trial_id, "values": values, "reason": reason})
        raise
    record = {"values": values, "history": history, "trial_id": trial_id, "ended": True, "value": result[METRIC]}
    target.replace_json(f"{folder}/{trial_id}.json", record)
    tune.report(result | {"step": recipe.sweep.grader.steps, "job": trial_id})


# -- on the driver --------------------------------------------------------------------------------


def run(recipe: Recipe, target: Run, shape: Shape, tables: selection.Tables, ids: dict[str, Trial]) -> Outcome:
    """Bring the search to `num_trials`; `ids` holds the trials of a random one among others."""
    config = recipe.sweep.search
    base = trials.search_base(recipe, tables)
    inputs = inputs_of(recipe, target, config.arm)
    identity = dataclasses.replace(config, num_trials=1)
    folder = f"trials/search/{fingerprint(identity, base.trial_id(recipe, inputs))}"
    known = {key: target.read_json(key) for key, _ in target.list(folder)}
    done = shards.commits(target, "trials/results")
    tried = {
        record["trial_id"]: record
        for record in known.values()
        # Neither ended nor committed and yet stopped by ASHA: `stopped` is written below, once Tune has returned.
        if record.get("stopped") or f"trials/results/{record['trial_id']}.parquet" in done
    }
    jobs = {trial_id: trial for trial_id, trial in ids.items() if trial.purpose == "search"}
    left = {trial_id: trial for trial_id, trial in jobs.items() if trial_id not in tried}
    suggesting = config.searcher != "random"
    num_left = max(0, config.num_trials - len(tried)) if suggesting else len(left)
    if not num_left:
        return Outcome(tuple(tried))
    columns = {name: base.column(name) for name in tracking.HPARAMS}
    with session.metered("search", num_left, "trials") as meter:
        trainable = tune.with_parameters(
            run_trial,
            base=base,
            jobs=jobs,
            inputs=inputs,
            folder=folder,
            url=target.url,
            recipe=recipe,
            meter=meter,
            num_threads=max(1, int(shape.trial_cpus)),
            gpu=shape.trial_gpus > 0,
        )
        scheduler = None
        if config.asha:
            steps = recipe.sweep.grader.steps
            scheduler = ASHAScheduler(
                time_attr="step", metric=METRIC, mode="max", max_t=steps, grace_period=max(1, steps // 10)
            )
        space: dict[str, Any] = columns | (_space(recipe) if suggesting else {"trial_id": tune.grid_search(list(left))})
        tuning = tune.TuneConfig(
            search_alg=_searcher(recipe, list(tried.values())) if suggesting else None,
            num_samples=num_left if suggesting else 1,
            scheduler=scheduler,
            # A searcher carries its own metric; Tune refuses to be told twice.
            reuse_actors=True,
        )
        name = fingerprint(folder, sorted(tried), num_left)[:8]
        results = fit(recipe, target, shape, trainable, space, tuning, name)
    return _outcome(target, folder, results, tuple(tried), num_left)


def _outcome(target: Run, folder: str, results: Any, tried: tuple[str, ...], num_run: int) -> Outcome:
    """Mark what ASHA stopped, so that a resumed search does not train it again."""
    done = shards.commits(target, "trials/results")
    ended, reasons = [], {}
    for result in results:
        trial_id = (result.metrics or {}).get("job")
        if result.error or trial_id is None:
            continue
        ended.append(trial_id)
        if f"trials/results/{trial_id}.parquet" not in done:
            key = f"{folder}/{trial_id}.json"
            target.replace_json(key, target.read_json(key) | {"stopped": True})
    for key, _ in target.list(folder):
        record = target.read_json(key)
        if "reason" in record:
            reasons[record["trial_id"]] = record["reason"]
    lost = num_run - len(ended) - len(reasons)
    reasons |= {f"search-{number}": "its worker ended without a word" for number in range(max(0, lost))}
    return Outcome((*tried, *ended), num_run, reasons)


def _space(recipe: Recipe) -> dict[str, Any]:
    """The search space in Tune's terms; a choice of one is left to the sweep's own grader."""
    config = recipe.sweep.search
    space: dict[str, Any] = {
        name: tune.loguniform(low, high) if low < high else low
        for name, (low, high) in (("learning_rate", config.learning_rate), ("weight_decay", config.weight_decay))
    }
    if config.losses:
        space["loss"] = tune.choice(list(config.losses))
    if config.mixups:
        space["mixup"] = tune.choice(list(config.mixups))
    return space


def _searcher(recipe: Recipe, tried: list[dict[str, Any]]) -> Searcher:
    """The searcher that the recipe names, told what is known; UserError where there is none of this name.

    A searcher that takes no earlier results (Ray's interface leaves that open) begins anew.
    """
    name = recipe.sweep.search.searcher
    try:
        if ":" in name:
            module, _, kind = name.partition(":")
            made = getattr(importlib.import_module(module), kind)
        elif name in SEARCH_ALG_IMPORT:
            made = SEARCH_ALG_IMPORT[name]()
        else:
            names = ", ".join(sorted(SEARCH_ALG_IMPORT))
            raise UserError(f"sweep.search.searcher: Ray Tune has no {name!r}: use random, {names} or module:Class")
        taken = inspect.signature(made).parameters
        points = [{key: value for key, value in record["values"].items() if value is not None} for record in tried]
        rewards = [record.get("value", max((v for _, v in record["history"]), default=0.0)) for record in tried]
        options: dict[str, Any] = {"metric": METRIC, "mode": "max"}
        takes_points = {"points_to_evaluate", "evaluated_rewards"} <= set(taken)
        if tried and takes_points:
            options |= {"points_to_evaluate": points, "evaluated_rewards": rewards}
        searcher = made(**options)
    except (ImportError, AttributeError, AssertionError, TypeError) as error:
        # Ray's searchers assert that their package is there.
        raise UserError(
            f"sweep.search.searcher {name!r} cannot be made ({error}): install the package that it needs"
        ) from error
    if not isinstance(searcher, Searcher):
        raise UserError(f"sweep.search.searcher {name!r} is no searcher of Ray Tune's: name another")
    if not takes_points and type(searcher).add_evaluated_point is not Searcher.add_evaluated_point:
        for point, reward in zip(points, rewards, strict=True):
            searcher.add_evaluated_point(point, reward)
    return searcher
