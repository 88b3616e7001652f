"""`real` -> generators: LoRA fine-tuning under Ray Train, all generators of a run in one fit.

from raydr.cluster import finetune
finetune.run(recipe, "out")
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray.train

from raydr import lineage, schema, selection, shards
from raydr.cluster import ensemble, ingest, placement, session, telemetry
from raydr.cluster.ranks import TorchRanks, latest_checkpoint, report_checkpoint
from raydr.config import Recipe
from raydr.errors import MissingInput, UserError
from raydr.identity import fingerprint
from raydr.kinds import ECC, PLAIN, changed, is_ecc
from raydr.lineage import Generator
from raydr.shapes import Shape
from raydr.storage import Run

# -- on the nodes ---------------------------------------------------------------------------------


def prior_rows(real: pa.Table, fold: int | None) -> np.ndarray:
    """The paper's prior set: every photograph that may be learnt from, ungraded ones of the prior sets too."""
    rows = np.flatnonzero(np.asarray(real["split"].to_pylist(), dtype=object) == "prior")
    return np.concatenate([selection.part_of(real, "train", fold), rows])


def photographs(recipe: Recipe, target: Run, base: Any, part: str, ranks: TorchRanks) -> Any:
    """One role's photographs with their latents, encoded by the first rank and cached in the run."""
    from raydr.diffusion.latents import LatentCache, encode
    from raydr.diffusion.model import base_fingerprint
    from raydr.diffusion.state import Photographs

    real = shards.read(target, "real", schema.REAL, ensemble.COLUMNS)
    table = real.take(prior_rows(real, recipe.fold) if part == "prior" else selection.part_of(real, part, recipe.fold))
    digests = table["sha256"].to_pylist()
    name = fingerprint(digests, base_fingerprint(recipe.finetune.base, recipe.finetune.revision), recipe.finetune.px)
    path = session.node_cache(target) / "latents" / f"{part}-{name}.safetensors"
    if not path.exists() and ranks.rank == 0:
        array = ensemble.image_array(target, recipe.finetune.px, [("real", schema.REAL)], digests)
        positions = array.positions(digests)
        encode(base, lambda part: array[positions[part]], len(positions)).save(path)
    ranks.gather(None)  # the others wait for the file
    grades = np.asarray(table["grade"].fill_null(-1)).astype(np.int64)
    return Photographs(
        tuple(table["image_id"].to_pylist()), grades, tuple(table["dataset"].to_pylist()), LatentCache.load(path)
    )


def train_loop(settings: dict[str, Any]) -> None:
    """What each rank runs: every unfinished generator in turn, resumed from the latest checkpoint."""
    import torch

    from raydr.diffusion.model import load_base
    from raydr.diffusion.state import Spec, State
    from raydr.diffusion.training import Trainer

    recipe, target, meter = settings["recipe"], Run(settings["url"]), settings["meter"]
    wanted: list[Generator] = settings["generators"]
    config, ranks = recipe.finetune, TorchRanks()
    torch.set_num_threads(settings["num_threads"])
    device = "cuda" if torch.cuda.is_available() and settings["gpu"] else "cpu"
    base = load_base(config.base, config.precision, config.revision, device)
    roles = {part: photographs(recipe, target, base, part, ranks) for part in ("train", "prior", "validation")}
    judges = None
    if any(is_ecc(generator.kind) for generator in wanted):
        judges = ensemble.load(recipe, target, settings["ensemble_id"], "score", device).probabilities
    resumed = latest_checkpoint()
    for number, generator in enumerate(wanted):
        prefix = f"generators/{generator.generator_id}"
        if target.uploaded(prefix):
            continue
        writer = _writer(target, generator.generator_id) if ranks.rank == 0 else None
        history: list[dict[str, Any]] = []
        # To the trainer every control is ECC; what makes it another is in its configuration.
        kind, config = (ECC if is_ecc(generator.kind) else PLAIN), changed(recipe.finetune, generator.kind)
        spec = Spec(generator.generator_id, kind, generator.grades, settings["dataset"], generator.seed)

        watched = telemetry.Finetuning(generator.kind, generator.grades)

        def on_event(
            event: dict[str, Any],
            number: int = number,
            history: list = history,
            watched: telemetry.Finetuning = watched,
        ) -> None:
            history.append({key: value for key, value in event.items() if key != "generator_id"})
            if ranks.rank == 0:
                watched(event)
            if ranks.rank == 0 and event["event"] == "step":
                text = f"{event['generator_id']} loss {event['loss']:.3f}"
                session.report_to(meter, **{f"done:{number}": event["step"] - settings["first"][number], "text": text})

        trainer = Trainer(
            base, config, spec, roles["train"], roles["prior"], roles["validation"], judges, ranks, on_event, writer
        )
        branch = f"branches/{generator.branch_id}/state.pt"
        if generator.generator_id in resumed:
            trainer.restore(State.from_bytes(resumed[generator.generator_id]))
        elif is_ecc(generator.kind) and target.exists(branch):
            # ECC begins where the plain run was at ecc_start: same steps before it, bit for bit.
            trainer.restore(State.from_bytes(target.read(branch)))

        def checkpoint(state: State, generator: Generator = generator) -> None:
            report_checkpoint(ranks, generator.generator_id, state.to_bytes(), {"step": state.step})

        if trainer.step < config.ecc_start < config.steps:
            trainer.run(config.ecc_start, checkpoint)
            if generator.kind == "plain" and ranks.rank == 0:
                target.create(branch, trainer.state().to_bytes())
        trainer.run(checkpoint=checkpoint)
        if ranks.rank == 0:
            _store(recipe, target, trainer, generator, history, settings)
        trainer.close()
        if writer:
            writer.close()
        ranks.gather(None)


def _writer(target: Run, generator_id: str) -> Any:
    if target.local is None:  # TensorBoard's writer appends, which a bucket cannot
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(target.path(f"logs/tensorboard/{generator_id}")))


def _store(
    recipe: Recipe, target: Run, trainer: Any, generator: Generator, history: list[dict[str, Any]], settings: dict
) -> None:
    """Weights and generator.json as one upload, and the training curve."""
    from raydr.diffusion import lora
    from raydr.grading.ensemble import hash_ids
    from raydr.prompts import instance_prompt

    seen = [*trainer.instance.image_ids, *trainer.prior.image_ids]
    record = {
        "generator_id": generator.generator_id,
        "kind": generator.kind,
        "grades": generator.grades,
        "seed": generator.seed,
        "branch_id": generator.branch_id,
        "base": recipe.finetune.base,
        "base_fingerprint": settings["base_fingerprint"],
        "ensemble_id": settings["ensemble_id"] if is_ecc(generator.kind) else None,
        "dataset": settings["dataset"],
        "prompts": {str(grade): instance_prompt(settings["dataset"], grade) for grade in generator.grades},
        "fold": recipe.fold,
        "px": recipe.finetune.px,
        "steps": trainer.step,
        "loss": {key: value for key, value in history[-1].items() if isinstance(value, float)},
        "num_photographs": len(set(seen)),
        "photographs_seen": [int(value) for value in hash_ids(set(seen))],
        "config": lineage.inside(
            dataclasses.replace(recipe, finetune=changed(recipe.finetune, generator.kind)), "finetune"
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        if recipe.finetune.full:
            trainer.base.unet.save_pretrained(Path(folder) / "unet")
        else:
            lora.save(trainer.base.unet, recipe.finetune, Path(folder))
        (Path(folder) / "generator.json").write_text(json.dumps(record, indent=1))
        target.upload(Path(folder), f"generators/{generator.generator_id}")
    target.replace_json(f"logs/finetune/{generator.generator_id}.json", history)


# -- on the driver --------------------------------------------------------------------------------


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
    """MissingInput where the photographs, or the ensemble that ECC needs, are not there."""
    if not shards.completed(target, "real"):
        raise MissingInput(f"{target.url} has no complete `real` table: run `raydr ingest` first")
    if any(is_ecc(generator.kind) for generator in _missing(planned(recipe, target), target)):
        ensemble.require(recipe, target)


def _missing(wanted: list[Generator], target: Run) -> list[Generator]:
    return [generator for generator in wanted if not target.uploaded(f"generators/{generator.generator_id}")]


def run(recipe: Recipe, out: str | Run, shape: Shape | None = None) -> dict[str, Any]:
    """Train the generators that are not there yet; returns {generators: [ids], trained: n}. Resumes."""
    from raydr.diffusion.model import base_fingerprint

    shape = shape or Shape()
    target = out if isinstance(out, Run) else Run(out)
    ready(recipe, target)
    wanted = planned(recipe, target)
    todo = _missing(wanted, target)
    result = {"generators": [generator.generator_id for generator in wanted], "trained": len(todo)}
    if not todo:
        return result
    needs_judges = any(is_ecc(generator.kind) for generator in todo)
    ensemble_id = ensemble.require(recipe, target) if needs_judges else None
    plain = {generator.generator_id for generator in wanted if generator.kind == "plain"}
    first = [
        recipe.finetune.ecc_start if is_ecc(generator.kind) and generator.branch_id in plain else 0
        for generator in todo
    ]
    total = sum(recipe.finetune.steps - start for start in first)
    threads = max(1, session.cpus() // shape.train_workers) if not shape.train_gpus else 4
    with session.metered("finetune", total, "steps") as meter:
        settings = {
            "recipe": recipe,
            "url": target.url,
            # Of all generators, not of those left: a resumed run finds its checkpoints by this name.
            "name": f"finetune-{fingerprint(result['generators'])[:8]}",
            "generators": todo,
            "first": first,
            "ensemble_id": ensemble_id,
            "base_fingerprint": base_fingerprint(recipe.finetune.base, recipe.finetune.revision),
            "dataset": dataset_of(recipe, target),
            "meter": meter,
            "num_threads": threads,
            "gpu": shape.train_gpus > 0,
        }
        fit(recipe, target, shape, settings)
    return result


def fit(recipe: Recipe, target: Run, shape: Shape, settings: dict[str, Any]) -> None:
    """One Ray Train run over all unfinished generators; the same name and storage resume it."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    storage = f"{target.url}/_ray/finetune"
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=shape.train_workers,
            use_gpu=shape.train_gpus > 0,
            resources_per_worker={
                "CPU": 1,
                **({"GPU": shape.train_gpus} if shape.train_gpus else {}),
                **placement.resources(shape.train_gpus),
            },
            label_selector=placement.labels() or None,
        ),
        run_config=RunConfig(
            name=settings["name"],
            storage_path=storage,
            failure_config=FailureConfig(
                max_failures=shape.max_failures,
                controller_failure_limit=3,  # type: ignore[call-arg]  # ray.train replaces the class it inherits
            ),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        cause = _user_error(error)
        if cause is not None:
            raise cause from None
        raise


def _user_error(error: BaseException) -> UserError | None:
    """The sentence for the user inside Ray Train's wrapper, if that is what ended the run."""
    failures = [*getattr(error, "worker_failures", {}).values(), error.__cause__, error]
    for failure in failures:
        while failure is not None:
            if isinstance(failure, UserError):
                return failure
            failure = getattr(failure, "cause", None) or failure.__cause__
    return None
