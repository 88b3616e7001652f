"""What each rank of a fine-tuning fit runs: the unfinished generators in turn, and what they leave behind.

A mistake that the user can mend ends the fit at once: its sentence is left on the stage's meter, where a restarted
rank finds it and returns, since a restart would only repeat it. Fits side by side share the meter, not their mistakes.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from raydr import lineage
from raydr.cluster import device, ensemble, latents, session, snapshots, staging, telemetry
from raydr.cluster.board import Board
from raydr.cluster.ranks import TorchRanks
from raydr.config import Recipe
from raydr.errors import DamagedData, UserError
from raydr.kinds import ECC, PLAIN, changed, is_ecc
from raydr.lineage import Generator
from raydr.storage import Run

# What the progress bar shows of a step.
TERMS = ("loss", "instance", "prior", "ecc", "validation")


def train_loop(settings: dict[str, Any]) -> None:
    """What each rank runs: every unfinished generator in turn, resumed from its newest good snapshot."""
    if mistake_of(settings) is not None:
        return  # restarted after a mistake that a restart does not mend: the driver says it
    try:
        _train(settings)
    except (UserError, OSError) as error:
        mistake = snapshots.explained(error, settings["url"])
        if mistake is None:
            raise
        _leave(settings, mistake)
        raise mistake from None


def mistake_of(settings: dict[str, Any]) -> UserError | None:
    """What the user must mend before this fit can go on."""
    return session.read(settings["meter"]).get(f"fatal:{settings['name']}")


def _leave(settings: dict[str, Any], error: UserError) -> None:
    told: dict[str, Any] = {f"fatal:{settings['name']}": error}
    session.report_to(settings["meter"], wait=True, **told)


def _train(settings: dict[str, Any]) -> None:
    from raydr.diffusion.compiling import share_cache
    from raydr.diffusion.model import load_base

    recipe, target = settings["recipe"], Run(settings["url"])
    wanted: list[Generator] = settings["generators"]
    config, ranks = recipe.finetune, TorchRanks()
    here: dict[str, Any] = {
        f"rank:{settings['name']}:{ranks.rank}": f"{os.uname().nodename}:{os.getpid()}",
        f"ranks:{settings['name']}": ranks.world_size,
    }
    session.report_to(settings["meter"], **here)
    where = device.of_worker(settings["gpu"], settings["num_threads"])
    source, known = staging.local(config.base, config.revision, target), settings["base_fingerprint"]
    base = load_base(source, config.precision, config.revision, where)
    if config.compiled:
        share_cache(session.node_cache(target) / "inductor")
    given: dict[str, Any] = {"roles": latents.parts(recipe, target, ranks, known), "judge": None, "probe": None}
    given["embeddings"] = latents.embeddings(recipe, target, known)
    if any(is_ecc(generator.kind) for generator in wanted):
        given["judge"] = ensemble.load(recipe, target, settings["ensemble_id"], "score", where).probabilities
    if ranks.rank == 0:
        given["probe"] = _probe(recipe, target, where)
    urgent = snapshots.Preemption(settings["preemptible"])
    for generator in wanted:
        if not target.uploaded(f"generators/{generator.generator_id}"):
            _train_one(settings, target, ranks, base, given, urgent, generator)
        ranks.gather(None)  # nobody begins the next one before this one is stored


def _train_one(
    settings: dict[str, Any],
    target: Run,
    ranks: TorchRanks,
    base: Any,
    given: dict[str, Any],
    urgent: snapshots.Preemption,
    generator: Generator,
) -> None:
    from raydr.diffusion.state import Spec, State
    from raydr.diffusion.training import Trainer

    recipe, name, generator_id = settings["recipe"], settings["name"], generator.generator_id
    history: list[dict[str, Any]] = []
    # To the trainer every control is ECC; what makes it another is in its configuration.
    kind, config = (ECC if is_ecc(generator.kind) else PLAIN), changed(recipe.finetune, generator.kind)
    watched = telemetry.Finetuning(generator.kind, generator.grades)
    first, meter = settings["first"][generator_id], session.meter_of(settings["meter"])

    def say(key: str, text: str) -> None:
        told: dict[str, Any] = {f"note:{generator_id}:{key}": text}
        session.report_to(meter, **told)

    def on_event(event: dict[str, Any]) -> None:
        history.append({key: value for key, value in event.items() if key != "generator_id"})
        if ranks.rank != 0:
            return
        watched(event)
        if event["event"] == "step":
            terms = [f"{key} {event[key]:.3f}" for key in TERMS if event.get(key) is not None]
            told: dict[str, Any] = {f"done:{generator_id}": event["step"] - first}
            session.report_to(meter, **told, text=f"{generator_id} {' '.join(terms)}")
        for key, text in notes(generator_id, event):
            say(key, text)

    roles, board = given["roles"], Board(target, generator_id) if ranks.rank == 0 else None
    trainer = Trainer(
        base,
        config,
        Spec(generator_id, kind, generator.grades, settings["dataset"], generator.seed),
        roles["train"],
        roles["prior"],
        roles.get("validation"),
        given["judge"],
        ranks,
        on_event,
        board.writer if board else None,
        probe=given["probe"],
        embeddings=given["embeddings"],
    )

    def checkpoint(state: State) -> None:
        if board:
            board.store()
        state.history = list(history)
        snapshots.report(
            ranks, target, name, generator_id, state, wait=urgent.noticed, on_mistake=partial(_leave, settings)
        )

    branch = f"branches/{generator.branch_id}/state.pt"
    state = snapshots.newest(target, generator_id, ranks, partial(say, "snapshot"))
    if state is None and is_ecc(generator.kind) and target.exists(branch):
        # ECC begins where the plain run was at ecc_start: same steps before it, bit for bit.
        try:
            state = State.from_bytes(target.read(branch))
        except DamagedData:
            say("branch", f"{branch} is damaged: {generator_id} was trained from the start, to the same weights")
    if state is not None:
        trainer.restore(state)
        history += state.history
    if trainer.step < config.ecc_start < config.steps:
        trainer.run(config.ecc_start, checkpoint, urgent)
    if generator.kind == PLAIN and ranks.rank == 0 and trainer.step == config.ecc_start < config.steps:
        target.replace(branch, trainer.state().to_bytes())  # the same on every start; mends a damaged one
    trainer.run(checkpoint=checkpoint, urgent=urgent)
    if board:
        # First: a generator that is stored is never taken up again, its curves would stay behind.
        board.close()
        _store(recipe, target, trainer, generator, history, settings)
    trainer.close()


def notes(generator_id: str, event: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(key, sentence) of what a person should hear of an event; a later one of the same key replaces it."""
    found = []
    if "turned_at" in event:
        found.append(
            (
                "turned",
                f"The validation loss of {generator_id} has risen since step {event['turned_at']} "
                f"({event['lowest_validation']:.4f} there, {event['validation']:.4f} at step {event['step']}): fewer "
                "steps or a lower learning rate would do",
            )
        )
    if event.get("memorised"):
        found.append(
            (
                "memorised",
                f"{event['memorised']} grid images of {generator_id} at step {event['step']} are closer to a "
                f"photograph than strangers are (nearest {event['nearest_image_id']}, distance "
                f"{event['nearest_distance']:.3f})",
            )
        )
    return found


def _probe(recipe: Recipe, target: Run, where: str) -> Any:
    """The memorisation gate as a probe of the grids.

    UserError where fewer than two patients' photographs are there to set its threshold.
    """
    from raydr.cluster.generator import gate

    known = gate(recipe, target)
    return lambda images: known.check(images, where)


def ecc_cost(history: Sequence[Mapping[str, Any]], every: int) -> dict[str, float] | None:
    """What explicit class conditioning cost over the events of a run; None where there was no refresh.

    `ratio` = seconds of a refresh / seconds of the `every` optimizer steps between two refreshes.
    """
    refreshes = [event for event in history if event["event"] == "ecc"]
    steps = [event["step_seconds"] for event in history if event["event"] == "step" and "ecc" in event]
    if not refreshes or not steps:
        return None
    seconds = sum(event["ecc_seconds"] for event in refreshes) / len(refreshes)
    between = every * sum(steps) / len(steps)
    accepted = sum(event["ecc_pool"] for event in refreshes) / sum(event["ecc_candidates"] for event in refreshes)
    return {"refresh_seconds": seconds, "train_seconds": between, "ratio": seconds / between, "acceptance": accepted}


def _store(
    recipe: Recipe, target: Run, trainer: Any, generator: Generator, history: list[dict[str, Any]], settings: dict
) -> None:
    """Weights and generator.json as one upload, and the training curve."""
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
        "loss": {
            key: value
            for key, value in history[-1].items()
            if isinstance(value, float) and not key.endswith("_seconds")
        },
        "validation": trainer.losses,
        "ecc_cost": ecc_cost(history, recipe.finetune.ecc_every),
        "num_photographs": len(set(seen)),
        "photographs_seen": [int(value) for value in hash_ids(set(seen))],
        "config": lineage.inside(
            dataclasses.replace(recipe, finetune=changed(recipe.finetune, generator.kind)), "finetune"
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        trainer.weights.save(Path(folder))
        trainer.leak.save(Path(folder))
        (Path(folder) / "generator.json").write_text(json.dumps(record, indent=1))
        target.upload(Path(folder), f"generators/{generator.generator_id}")
    target.replace_json(f"logs/finetune/{generator.generator_id}.json", history)
