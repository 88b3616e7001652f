"""`real` -> generators: LoRA fine-tuning under Ray Train, all generators of a run in one fit or in several at once.

    from raydr.cluster import finetune
    finetune.run(recipe, "out")

First `latents` encodes photographs and prompts; what the ranks then do is in `training`.
"""

from typing import Any

import ray

from raydr import lineage, schema, selection, shards, terminal
from raydr.cluster import ensemble, fits, ingest, latents, leaks, preflight, session, snapshots
from raydr.cluster.latents import prior_rows
from raydr.config import Recipe
from raydr.errors import MissingInput, UserError
from raydr.grades import GRADES
from raydr.identity import fingerprint
from raydr.kinds import is_ecc
from raydr.lineage import Generator
from raydr.shapes import Shape
from raydr.storage import Run

__all__ = ["dataset_of", "planned", "prior_rows", "ready", "run"]


def planned(recipe: Recipe, target: Run) -> list[Generator]:
    """The generators of this recipe on this run's photographs, whether trained yet or not."""
    from raydr.diffusion.model import base_fingerprint

    base = base_fingerprint(recipe.finetune.base, recipe.finetune.revision)
    data = ingest.fingerprint_of(target)
    return lineage.generators(recipe, data, base, ensemble.identity(recipe, target))


def dataset_of(recipe: Recipe, target: Run) -> str:
    """The data set that prompts name: that of the training photographs."""
    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    names = set(real["dataset"].take(selection.part_of(real, "train", recipe.fold)).to_pylist())
    if not names:
        raise MissingInput(f"{target.url} has no graded training photograph: run `raydr ingest` first")
    if len(names) > 1:
        raise UserError(
            f"The training photographs come from several data sets ({', '.join(sorted(names))}): ingest one"
        )
    return names.pop()


def ready(recipe: Recipe, target: Run) -> None:
    """MissingInput where the photographs, or the ensemble that ECC needs, are not there; LeakageError: see `leaks`."""
    from raydr.diffusion.model import check_base

    if not shards.completed(target, "real"):
        raise MissingInput(f"{target.url} has no complete `real` table: run `raydr ingest` first")
    leaks.refuse(recipe, target)
    check_base(recipe.finetune.base)
    if any(is_ecc(generator.kind) for generator in _missing(planned(recipe, target), target)):
        ensemble.require(recipe, target)
    _require_photographs(recipe, target)


def _require_photographs(recipe: Recipe, target: Run) -> None:
    """UserError for a grade that nothing can be learnt of: minutes before a rank would say so."""
    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    there = set(real["grade"].take(selection.part_of(real, "train", recipe.fold)).to_pylist())
    for grade in GRADES if recipe.finetune.joint else recipe.finetune.grades:
        if grade not in there:
            raise UserError(
                f"There is no training photograph of grade {grade} to fine-tune on: leave it out of finetune.grades, "
                "or ingest some"
            )


def _missing(wanted: list[Generator], target: Run) -> list[Generator]:
    return [generator for generator in wanted if not target.uploaded(f"generators/{generator.generator_id}")]


def run(recipe: Recipe, out: str | Run, shape: Shape | None = None) -> dict[str, Any]:
    """Train the generators that are not there yet. Resumes.

    Returns {generators: ids, trained: how many now, notes: sentences, ecc_cost: seconds of a refresh of candidates
    over seconds of training between two, mean over ECC generators}.
    """
    from raydr.diffusion.model import base_fingerprint

    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    ready(recipe, target)
    wanted = planned(recipe, target)
    todo = _missing(wanted, target)
    names = [generator.generator_id for generator in wanted]
    result: dict[str, Any] = {"generators": names, "trained": len(todo), "notes": [], "ecc_cost": None}
    if not todo:
        return result
    needs_judges = any(is_ecc(generator.kind) for generator in todo)
    ensemble_id = ensemble.require(recipe, target) if needs_judges else None
    plain = {generator.generator_id for generator in wanted if generator.kind == "plain"}
    first = {
        generator.generator_id: recipe.finetune.ecc_start
        if is_ecc(generator.kind) and generator.branch_id in plain
        else 0
        for generator in todo
    }
    total = sum(recipe.finetune.steps - start for start in first.values())
    latents.run(recipe, target, shape)
    parts = fits.apart(todo, fits.num_fits(shape, preflight.read_nodes(ray.nodes())))
    most = max(shape.train_workers, shape.max_train_workers) * len(parts)
    threads = max(1, session.cpus() // most) if not shape.train_gpus else 4
    with session.metered("finetune", total, "steps") as meter:
        settings: dict[str, Any] = {
            "recipe": recipe,
            "url": target.url,
            "first": first,
            "ensemble_id": ensemble_id,
            "base_fingerprint": base_fingerprint(recipe.finetune.base, recipe.finetune.revision),
            "dataset": dataset_of(recipe, target),
            "meter": meter,
            "num_threads": threads,
            "gpu": shape.train_gpus > 0,
            # One machine is not taken away while its driver lives; asking costs a barrier a step.
            "preemptible": len(ray.nodes()) > 1,
        }
        # The first, mostly the only one, goes by all generators, done or not: a resumed run goes on in its folder.
        tags = [fingerprint(names), *(fingerprint(names, part[0].branch_id) for part in parts[1:])]
        settled = [
            settings | {"name": f"finetune-{tag[:8]}", "generators": part}
            for tag, part in zip(tags, parts, strict=True)
        ]
        snapshots.prepare(target, [settings["name"] for settings in settled])
        try:
            fits.run(target, shape, settled)
        finally:
            said = session.read(meter)
            result["notes"] = [value for key, value in sorted(said.items()) if key.startswith("note:")]
            for text in result["notes"]:
                terminal.note(text)
    left = _missing(wanted, target)
    assert not left, f"Ray Train ended without {left}"
    snapshots.drop(target, names)
    records = [target.read_json(f"generators/{generator.generator_id}/generator.json") for generator in todo]
    costs = [record["ecc_cost"]["ratio"] for record in records if record["ecc_cost"]]
    result["ecc_cost"] = sum(costs) / len(costs) if costs else None
    return result
