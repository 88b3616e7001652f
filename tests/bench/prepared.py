"""A run with photographs, graders and one generator, made by the kernels alone: no Ray, seconds of compute."""

import dataclasses
import json
import tempfile
from pathlib import Path

import numpy as np

from raydr import recipes, schema, selection, shards
from raydr.cluster import ensemble, finetune, ingest, latents
from raydr.config import Sampler
from raydr.grading.ensemble import save_member
from raydr.grading.members import train_member
from raydr.prompts import instance_prompt
from raydr.storage import Run


def small():
    recipe = recipes.named("debug")
    return dataclasses.replace(
        recipe,
        finetune=dataclasses.replace(recipe.finetune, grades=(3,), kinds=("plain",), validate_every=0),
        synthesize=dataclasses.replace(recipe.synthesize, count=16, sampler=Sampler(steps=2, batch=4)),
        sweep=dataclasses.replace(recipe.sweep, arms=("oversampling",), num_seeds=2, map_bands=(), map_ratios=()),
    )


def prepare(target: Run, recipe):
    for plan in ingest.plan_phantoms(recipe):
        ingest.render_shard(plan, target.url, recipe)
    assert ingest.complete(recipe, target)
    graders(target, recipe)
    generator(target, recipe)


def graders(target, recipe):
    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    table = real.take(selection.part_of(real, "train", None))
    digests = table["sha256"].to_pylist()
    array = ensemble.image_array(target, recipe.ingest.px, [("real", schema.REAL)], digests)
    for number, member in enumerate(recipe.ensemble.members):
        name = ensemble.member_name(recipe, number)
        positions, grades = array.positions(digests), np.asarray(table["grade"])
        ids = table["image_id"].to_pylist()
        trained, meta = train_member(
            name, member, recipe.ensemble.inner_folds, array, positions, grades, ids, digests, seed=1
        )
        with tempfile.TemporaryDirectory() as folder:
            save_member(Path(folder), trained.model, meta)
            target.upload(Path(folder), f"graders/{ensemble.identity(recipe, target)}/{name}")


def generator(target, recipe):
    from raydr.diffusion.model import load_base
    from raydr.diffusion.state import Alone, Spec
    from raydr.diffusion.training import Trainer

    config = recipe.finetune
    base = load_base(config.base)
    latents.run_here(recipe, target, 1)
    parts = latents.parts(recipe, target, Alone(), latents.base_of(recipe))
    (wanted,) = finetune.planned(recipe, target)
    spec = Spec(wanted.generator_id, wanted.kind, wanted.grades, "DDR", wanted.seed)
    trainer = Trainer(base, config, spec, parts["train"], parts["prior"])
    trainer.run(1)
    record = {"prompts": {"3": instance_prompt("DDR", 3)}, "seed": wanted.seed, "px": config.px}
    with tempfile.TemporaryDirectory() as folder:
        trainer.weights.save(Path(folder))
        (Path(folder) / "generator.json").write_text(json.dumps(record))
        target.upload(Path(folder), f"generators/{wanted.generator_id}")
    trainer.close()
