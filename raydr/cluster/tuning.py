"""What a sweep and a search share on the driver: one Tune run on a shape, and what trials are made from."""

import logging
from typing import Any

from ray import tune

from raydr.arms import arm_named
from raydr.cluster import ensemble, finetune, ingest, placement, tracking
from raydr.config import Recipe
from raydr.identity import fingerprint
from raydr.kinds import CHANGES, ECC, PLAIN
from raydr.shapes import Shape
from raydr.storage import Run


def inputs_of(recipe: Recipe, target: Run, name: str) -> str:
    """Fingerprint of all that trials of arm `name` are made from: photographs, ensemble, generators, sampler.

    Generators of controls count for their own arms only, so adding one leaves every other trial as it is.
    """
    planned, grades = finetune.planned(recipe, target), set(recipe.sweep.grades)
    base = [g.generator_id for g in planned if g.kind in (PLAIN, ECC) and grades & set(g.grades)]
    inputs = fingerprint(ingest.fingerprint_of(target), ensemble.identity(recipe, target))
    inputs = fingerprint(inputs, base, recipe.synthesize.sampler)
    arm = arm_named(name)
    own = [g.generator_id for g in planned if g.kind == arm.source and g.generator_id not in base]
    needs_own = arm.source in CHANGES and (arm.source not in (PLAIN, ECC) or arm.grades == "all")
    return fingerprint(inputs, own) if needs_own else inputs


def fit(
    recipe: Recipe,
    target: Run,
    shape: Shape,
    trainable: Any,
    space: dict[str, Any],
    config: tune.TuneConfig,
    name: str,
) -> Any:
    """One Tune run on this shape; a worker imports torch and timm once (10 s) and runs trial after trial."""
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    tuner = tune.Tuner(
        tune.with_resources(trainable, placement.bundle(shape.trial_cpus, shape.trial_gpus)),
        param_space=space,
        tune_config=config,
        run_config=tune.RunConfig(
            name=f"sweep-{name}",
            storage_path=f"{target.url}/_ray/sweep",
            verbose=0,
            # A killed worker or a lost node is no fault of the trial's.
            failure_config=tune.FailureConfig(max_failures=shape.max_failures),
            callbacks=tracking.callbacks(target.url, recipe.name),
        ),
    )
    return tuner.fit()
