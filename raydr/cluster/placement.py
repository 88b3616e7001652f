"""On which nodes the work of this session may run: `--accelerator` and `--exclude-node`.

Set once by `session`, read on the driver where a stage asks Ray for workers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray

from raydr.errors import UserError
from raydr.shapes import Shape

NODE_ID = "ray.io/node-id"
ACCELERATOR = "accelerator_type:"


@dataclass(frozen=True)
class Rules:
    accelerator: str = ""
    # Hex ids of nodes that get nothing.
    excluded: tuple[str, ...] = ()


_rules = Rules()


@contextmanager
def under(shape: Shape) -> Iterator[None]:
    """Place what is started inside this block by the shape's rules; UserError for a node that is not there."""
    global _rules
    before, _rules = _rules, Rules(shape.accelerator, find(shape.exclude_nodes, ray.nodes()))
    try:
        yield
    finally:
        _rules = before


def find(names: Sequence[str], nodes: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Ids of the living nodes that `names` name, each by IP address, host name or the start of its Ray id."""
    living, found = [node for node in nodes if node["Alive"]], []
    for name in names:
        here = [
            node["NodeID"]
            for node in living
            if name in (node["NodeManagerAddress"], node.get("NodeManagerHostname"))
            # Eight: shorter ones could hit a node that was not meant.
            or (len(name) >= 8 and node["NodeID"].startswith(name))
        ]
        if not here:
            there = ", ".join(f"{node['NodeManagerAddress']} ({node['NodeID'][:12]})" for node in living)
            raise UserError(f"--exclude-node {name} is no node of this cluster: it has {there}")
        found += here
    if living and not {node["NodeID"] for node in living} - set(found):
        raise UserError(f"--exclude-node leaves no node of {len(living)}: exclude fewer")
    return tuple(dict.fromkeys(found))


def is_excluded(node_id: str) -> bool:
    return node_id in _rules.excluded


def labels() -> dict[str, str]:
    """Ray's label selector of every task and actor; {} without excluded nodes."""
    return {NODE_ID: f"!in({','.join(_rules.excluded)})"} if _rules.excluded else {}


def resources(gpus: float) -> dict[str, float]:
    """The custom resource that stands for the device type; {} without one, or for work without a GPU."""
    return {f"{ACCELERATOR}{_rules.accelerator}": 0.001} if _rules.accelerator and gpus else {}


def bundle(cpus: float, gpus: float) -> Any:
    """The resources of one trial of Ray Tune."""
    from ray.tune import PlacementGroupFactory

    needed = {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **resources(gpus)}
    selectors: dict[str, Any] = {"bundle_label_selector": [labels()]} if labels() else {}
    return PlacementGroupFactory([needed], **selectors)


def options(gpus: float = 0.0) -> dict[str, Any]:
    """For `.options()` of a task or actor, and for `map_batches`; {} without rules."""
    chosen: dict[str, Any] = {"label_selector": labels(), "resources": resources(gpus)}
    return {name: value for name, value in chosen.items() if value}
