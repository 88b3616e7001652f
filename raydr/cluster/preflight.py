"""Before anything starts: do the stages' pools fit on this cluster, and does one batch fit on its GPUs?

    preflight.check(recipe, run, shape, stages)

What can never be placed is a UserError; what an autoscaler must bring first is said in a line.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml

from raydr import terminal
from raydr.cluster import placement, staging, trial
from raydr.cluster.packing import READER_CPUS, SINK_CPUS, WORKER_BYTES, Kind, Node, Pool, infeasible, needs
from raydr.config import Recipe
from raydr.errors import UserError
from raydr.shapes import Shape
from raydr.storage import Run

# Which node type of an autoscaler a node is of; Ray sets it from RAY_NODE_TYPE_NAME.
GROUP = "ray.io/node-group"
# Where `ray up` leaves the cluster's configuration on its head, which is where jobs' drivers run.
BOOTSTRAP = Path("~/ray_bootstrap_config.yaml")


def pools(recipe: Recipe, shape: Shape, stage: str) -> list[Pool]:
    """What `stage` has running at the same time."""
    name = shape.accelerator
    if stage == "ensemble":
        wanted = len(recipe.ensemble.members)
        return [Pool("graders", shape.trial_cpus, shape.trial_gpus, 1, wanted, WORKER_BYTES, name)]
    if stage == "finetune":
        ranks = shape.train_workers
        return [Pool("training ranks", 1, shape.train_gpus, ranks, ranks, WORKER_BYTES, name)]
    if stage == "synthesize":
        # CPU generators take what reader and sink live on, so all must fit beside these; on GPUs the first that comes
        # works. Best fit tells the truth although Ray spreads: with less than a generator's CPUs free on every node
        # the pool is full, however it is placed.
        least = 1 if shape.generator_gpus else shape.min_generators or shape.generators
        each = shape.generator_cpus, shape.generator_gpus
        some = shape.scorers
        apart = [Pool("scorers", shape.scorer_cpus, shape.scorer_gpus, some, some, WORKER_BYTES, name)] if some else []
        return [
            Pool("generators", *each, least, shape.generators, WORKER_BYTES, name),
            *apart,
            Pool("reader of tickets and sink of shards", READER_CPUS + SINK_CPUS),
        ]
    if stage == "sweep":
        sweep = recipe.sweep
        wanted = len(sweep.arms) * sweep.num_seeds + len(sweep.map_bands) * len(sweep.map_ratios) * sweep.map_seeds
        return [Pool("trials", shape.trial_cpus, shape.trial_gpus, 1, wanted, WORKER_BYTES, name)]
    return [Pool("tasks", 1)]


def read_nodes(listed: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The living nodes of `ray.nodes()` that may get work."""
    found = []
    for node in listed:
        if node["Alive"] and not placement.is_excluded(node["NodeID"]):
            has = node["Resources"]
            kinds = [key.removeprefix(placement.ACCELERATOR) for key in has if key.startswith(placement.ACCELERATOR)]
            found.append(
                Node(
                    node["NodeManagerAddress"], has.get("CPU", 0.0), has.get("GPU", 0.0),
                    has.get("memory", math.inf), kinds[0] if kinds else "",
                )
            )  # fmt: skip
    return found


def read_kinds(config: Mapping[str, Any], listed: Sequence[Mapping[str, Any]]) -> list[Kind]:
    """The worker types of a cluster configuration (cluster.yaml's keys), with how many more nodes may come.

    max_workers of the whole configuration counts the living workers of all types together.
    """
    groups = [node["Labels"].get(GROUP) for node in listed if node["Alive"]]
    total = config.get("max_workers", 2) - max(0, sum(group is not None for group in groups) - 1)
    found = []
    for name, pool in config["available_node_types"].items():
        has = pool["resources"]
        most = min(total, pool.get("max_workers", total) - groups.count(name))
        device = next((key.removeprefix(placement.ACCELERATOR) for key in has if placement.ACCELERATOR in key), "")
        if name != config.get("head_node_type") and most > 0:
            memory = has.get("memory", math.inf)
            found.append(Kind(Node(name, has.get("CPU", 0), has.get("GPU", 0), memory, device), most, total))
    return found


def node_kinds(listed: Sequence[Mapping[str, Any]]) -> list[Kind] | None:
    """What the autoscaler of the attached cluster may bring: () without one, None where it does not say.

    Read from the file RAYDR_CLUSTER_YAML, else from what `ray up` leaves on the head. KubeRay's leaves nothing.
    """
    if not any(node["Alive"] and GROUP in node["Labels"] for node in listed):
        return []
    path = Path(os.environ.get("RAYDR_CLUSTER_YAML") or BOOTSTRAP).expanduser()
    if not path.is_file():
        return None
    try:
        return read_kinds(yaml.safe_load(path.read_text()), listed)
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no cluster configuration ({error}): name one with RAYDR_CLUSTER_YAML, or unset it"
        ) from None


def check(recipe: Recipe, target: Run, shape: Shape, stages: Sequence[str]) -> None:
    """UserError for the first stage that can never start here; a note for each that waits for new nodes.

    Then the base is staged for all nodes, and one batch is tried on each type of GPU that is there.
    """
    listed = ray.nodes()
    nodes, kinds = read_nodes(listed), node_kinds(listed)
    for stage in stages:
        wanted = pools(recipe, shape, stage)
        refusal = infeasible(stage, wanted, nodes, kinds or [])
        if refusal and kinds is None:
            terminal.note(f"{refusal}. An autoscaler may bring some; raydr cannot read which")
        elif refusal:
            raise UserError(refusal)
        elif kinds:
            told = needs(stage, wanted, nodes, kinds)
            if told:
                terminal.note(told)
    devices = _devices(nodes)
    if not shape.accelerator and shape.generator_gpus and "synthesize" in stages and len(devices) > 1:
        terminal.note(
            f"generators will run on {' and '.join(devices)}: pixels are bit-equal on one type only, "
            f"--accelerator {devices[0]} keeps them on one"
        )
    if {"finetune", "synthesize"} & set(stages):
        coming = len(nodes) if kinds == [] else max(2, len(nodes))
        staging.prepare(recipe.finetune.base, recipe.finetune.revision, target, coming)
    if any(node.gpus for node in nodes):
        trial.check(recipe, target, shape, stages, [shape.accelerator] if shape.accelerator else devices or [""])


def _devices(nodes: Sequence[Node]) -> list[str]:
    """The types of GPU on `nodes`, by Ray's names."""
    return sorted({node.accelerator for node in nodes if node.gpus and node.accelerator})


def begin(recipe: Recipe, target: Run, shape: Shape, stage: str) -> None:
    """The trial batch of `stage` as it begins, on each type of GPU that has come since `check`; UserError if it fails.

    On a cluster that starts from nothing no GPU was there before. Then one node is waited for, which the stage would
    wait for too, instead of learning from all of them at once that a batch does not fit.
    """
    if not trial.gpu_share(shape, stage):
        return
    nodes = read_nodes(ray.nodes())
    if not any(node.gpus for node in nodes):
        terminal.note(f"{stage}: one batch is tried first, when a node with a GPU has come")
    trial.check(recipe, target, shape, [stage], [shape.accelerator] if shape.accelerator else _devices(nodes) or [""])
