"""Fits of Ray Train: all generators in one, or several side by side that share them out.

What is learnt does not depend on it: a generator's ranks and draws are the same in any fit. (On CPUs more ranks at
once have fewer threads each, and threads change the last bits.)
"""

from collections.abc import Sequence
from typing import Any

import ray
import ray.train

from raydr.cluster import placement, session, snapshots
from raydr.cluster.packing import Node
from raydr.cluster.training import mistake_of, train_loop
from raydr.errors import UserError
from raydr.lineage import Generator
from raydr.shapes import Shape
from raydr.storage import Run


def num_fits(shape: Shape, nodes: Sequence[Node]) -> int:
    """How many fits the shape asks for, and these nodes hold: at least one, which may wait for nodes to come."""
    room = 0
    for node in nodes:
        if not shape.train_gpus or not shape.accelerator or node.accelerator == shape.accelerator:
            room += int(min(node.cpus, node.gpus / shape.train_gpus if shape.train_gpus else node.cpus))
    held = max(1, room // shape.train_workers)
    return min(held, shape.train_side_by_side) if shape.train_side_by_side else held


def apart(todo: Sequence[Generator], count: int) -> list[list[Generator]]:
    """`todo` in at most `count` parts of about equal numbers; what branches from one plain run stays in its part."""
    groups: dict[str, list[Generator]] = {}
    for generator in todo:
        groups.setdefault(generator.branch_id, []).append(generator)
    parts: list[list[Generator]] = [[] for _ in range(min(count, len(groups)))]
    for group in sorted(groups.values(), key=len, reverse=True):
        min(parts, key=len).extend(group)
    return parts


def run(target: Run, shape: Shape, settled: Sequence[dict[str, Any]]) -> None:
    """One fit for each of these settings, side by side. UserError of the first that met one, once all have ended."""
    if len(settled) == 1:
        return fit(target, shape, settled[0])
    remote = fit_apart.options(**session.here())
    tasks = [remote.remote(target, shape, settings) for settings in settled]
    try:
        mistakes = [mistake for mistake in ray.get(tasks) if mistake is not None]
    finally:  # Ctrl-C, or one that failed: a fit ends with the task that began it
        for task in tasks:
            ray.cancel(task, force=True)
    if mistakes:
        raise mistakes[0]


@ray.remote(num_cpus=0, max_retries=0)
def fit_apart(target: Run, shape: Shape, settings: dict[str, Any]) -> UserError | None:
    """`fit` in a process of its own; a mistake of the user is its answer, so that the other fits go on."""
    try:
        with placement.under(shape):
            fit(target, shape, settings)
    except UserError as error:
        return error
    return None


def fit(target: Run, shape: Shape, settings: dict[str, Any]) -> None:
    """One Ray Train run over the generators of `settings`; what is unfinished goes on from its snapshots."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    most = max(shape.train_workers, shape.max_train_workers)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            # An elastic range, where the shape gives one.
            num_workers=(shape.train_workers, most) if most > shape.train_workers else shape.train_workers,  # type: ignore[arg-type]
            use_gpu=shape.train_gpus > 0,
            resources_per_worker={
                "CPU": 1,
                **({"GPU": shape.train_gpus} if shape.train_gpus else {}),
                **placement.resources(shape.train_gpus),
            },
            label_selector=placement.labels() or None,  # type: ignore[call-arg]  # as with FailureConfig below
        ),
        run_config=RunConfig(
            name=settings["name"],
            storage_path=f"{target.url}/{snapshots.ROOT}",
            checkpoint_config=CheckpointConfig(num_to_keep=snapshots.KEEP),
            failure_config=FailureConfig(
                max_failures=shape.max_failures,
                controller_failure_limit=3,  # type: ignore[call-arg]  # ray.train replaces the class it inherits
            ),
        ),
    )
    try:
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        cause = mistake_of(settings) or snapshots.sentence(error, target.url)
        if cause is not None:
            raise cause from None
        raise
    mistake = mistake_of(settings)
    if mistake is not None:
        raise mistake
