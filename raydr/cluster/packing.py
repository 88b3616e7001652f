"""Whether a stage's pools fit on the nodes, and which nodes an autoscaler must bring. Pure.

    found = pack(pools, nodes, kinds)

Ray waits in silence for what can never be placed (a 1-GPU generator and a 0.1-GPU scorer on one GPU hang for
ever), so the pools are packed here before anything starts.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

GIB = 1 << 30
# A worker that holds torch and diffusers: 835 MB measured.
WORKER_BYTES = 0.9e9
# CPUs of a task that reads tickets and of one that encodes and commits a shard, beside the pools of synthesis.
READER_CPUS, SINK_CPUS = 0.25, 0.25


@dataclass(frozen=True)
class Pool:
    """Equal workers of a stage: `least` must fit at the same time, `wanted` is what the shape asks for."""

    name: str
    cpus: float
    gpus: float = 0.0
    least: int = 1
    wanted: int = 1
    memory: float = 0.0
    # "" = any.
    accelerator: str = ""

    def each(self) -> str:
        """What one worker takes, in words."""
        parts = [f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"]
        if self.gpus:
            parts.append(f"{self.gpus:g} {self.accelerator or 'GPU'}")
        if self.memory:
            parts.append(f"{self.memory / GIB:.1f} GiB")
        return ", ".join(parts)


@dataclass(frozen=True)
class Node:
    """A node that is there, or (as `Kind.node`) one that could be. `memory` in bytes; inf where unknown."""

    name: str
    cpus: float
    gpus: float = 0.0
    memory: float = math.inf
    accelerator: str = ""

    def holds(self) -> str:
        """What it has, in words."""
        text = f"{self.cpus:g} CPU{'' if self.cpus == 1 else 's'}"
        return text + (f", {self.gpus:g} {self.accelerator or 'GPU'}" if self.gpus else "")


@dataclass(frozen=True)
class Kind:
    """A node type of the autoscaler, of which `most` more nodes may come; of all types `together`, its max_workers."""

    node: Node
    most: int
    together: float = math.inf


@dataclass(frozen=True)
class Packing:
    """`left`: what fits nowhere, by pool; `bring`: new nodes by type name; `placed`: workers placed, by pool."""

    left: dict[str, int]
    bring: dict[str, int]
    placed: dict[str, int]


class _Room:
    """What is still free on a node. A share of a GPU lies on one device: three 0.6 shares need three GPUs."""

    def __init__(self, node: Node) -> None:
        self.node, self.cpus, self.memory = node, node.cpus, node.memory
        self.devices = [1.0] * int(node.gpus)

    def _devices_for(self, gpus: float) -> list[int] | None:
        """Indices of the devices to take, the fullest that does it for a share; None where there are none."""
        if gpus == 0:
            return []
        if gpus < 1:
            free = [k for k, room in enumerate(self.devices) if room >= gpus - 1e-6]
            return [min(free, key=lambda k: self.devices[k])] if free else None
        whole = [k for k, room in enumerate(self.devices) if room == 1.0]
        return whole[: math.ceil(gpus)] if len(whole) >= gpus else None

    def take(self, pool: Pool) -> bool:
        """Place one worker of `pool` here, if it fits."""
        if self.cpus < pool.cpus - 1e-6 or self.memory < pool.memory:
            return False
        if pool.gpus and pool.accelerator not in ("", self.node.accelerator):
            return False
        devices = self._devices_for(pool.gpus)
        if devices is None:
            return False
        self.cpus, self.memory = self.cpus - pool.cpus, self.memory - pool.memory
        for k in devices:
            self.devices[k] -= min(1.0, pool.gpus)
        return True

    def cost(self) -> tuple[float, float]:
        """What is wasted by placing something without a GPU here: GPU nodes last, fuller nodes first."""
        return sum(self.devices), self.cpus


def pack(pools: Sequence[Pool], nodes: Sequence[Node], kinds: Sequence[Kind] = (), wanted: bool = False) -> Packing:
    """Place the least (or with `wanted` the wanted) workers of all pools at once, largest first, best fit.

    `kinds` are used, smallest first, only for what does not fit on `nodes`; largest first where so few nodes may come
    that more fits. This is a heuristic as Ray's own: a packing that it finds is one, and what it leaves over may in
    rare cases fit.
    """
    order = sorted(kinds, key=lambda kind: (kind.node.gpus, kind.node.cpus))
    found = _pack(pools, nodes, order, wanted)
    if not found.left:
        return found
    other = _pack(pools, nodes, order[::-1], wanted)
    return min(found, other, key=lambda packing: sum(packing.left.values()))


def _pack(pools: Sequence[Pool], nodes: Sequence[Node], kinds: Sequence[Kind], wanted: bool) -> Packing:
    """`pack` with new nodes of the first of `kinds` that will do."""
    rooms = [_Room(node) for node in nodes]
    bring: Counter[str] = Counter()
    left: Counter[str] = Counter()
    placed: Counter[str] = Counter()
    work = [pool for pool in pools for _ in range(pool.wanted if wanted else pool.least)]
    for pool in sorted(work, key=lambda pool: (-pool.gpus, -pool.cpus, -pool.memory)):
        if any(room.take(pool) for room in sorted(rooms, key=_Room.cost)) or _grow(pool, rooms, kinds, bring):
            placed[pool.name] += 1
        else:
            left[pool.name] += 1
    return Packing(dict(left), dict(bring), dict(placed))


def _grow(pool: Pool, rooms: list[_Room], kinds: Sequence[Kind], bring: Counter[str]) -> bool:
    """Add the first node that can hold one worker of `pool`, if one may still come."""
    for kind in kinds:
        room = _Room(kind.node)
        if bring[kind.node.name] < kind.most and bring.total() < kind.together and room.take(pool):
            rooms.append(room)
            bring[kind.node.name] += 1
            return True
    return False


def infeasible(stage: str, pools: Sequence[Pool], nodes: Sequence[Node], kinds: Sequence[Kind]) -> str | None:
    """Why `stage` can never start or would stop, in one sentence; None where its pools fit or can be brought.

    The least of all must fit, and pools that need all their workers must do so beside whatever more the others get.
    """
    left = pack(pools, nodes, kinds).left
    crowded = not left
    if crowded:
        full = pack(pools, nodes, kinds, wanted=True).left
        left = {pool.name: full[pool.name] for pool in pools if pool.name in full and pool.least == pool.wanted}
    if not left:
        return None
    pool = next(pool for pool in pools if pool.name in left)
    others = [
        f"{other.wanted if crowded else other.least} {other.name} ({other.each()} each)"
        for other in pools
        if other.least and other != pool
    ]
    beside = f" beside {' and '.join(others)}" if others else ""
    there = _listed([node.holds() for node in nodes]) or "no node"
    could = "; the autoscaler may bring " + _listed([f"{k.node.holds()}" for k in kinds for _ in range(k.most)])
    together = min((kind.together for kind in kinds), default=math.inf)
    if together < sum(kind.most for kind in kinds):
        could += f", {together:g} of them at most"
    return (
        f"{stage} cannot start: {left[pool.name]} of its {pool.least} {pool.name} ({pool.each()} each){beside} fit "
        f"nowhere on {there}{could if kinds else ''}: choose another --shape or accelerator, lower its numbers "
        "(--shape.FIELD VALUE), or add nodes"
    )


def needs(stage: str, pools: Sequence[Pool], nodes: Sequence[Node], kinds: Sequence[Kind]) -> str | None:
    """What an autoscaler must bring, and what of the wanted workers fits nowhere; None where all fit now."""
    packing, parts = pack(pools, nodes, kinds, wanted=True), []
    named = {kind.node.name: kind.node for kind in kinds}
    if packing.bring:
        nodes_text = ", ".join(f"{count} x {name} ({named[name].holds()})" for name, count in packing.bring.items())
        parts.append(f"the autoscaler must bring {nodes_text}")
    for pool in pools:
        if packing.left.get(pool.name):
            fit = packing.placed.get(pool.name, 0)
            parts.append(f"{fit} of {pool.wanted} {pool.name} ({pool.each()} each) fit at a time")
    return f"{stage}: {'; '.join(parts)}" if parts else None


def _listed(names: Sequence[str]) -> str:
    """ "2 nodes of 4 CPUs, 1 node of 8 CPUs, 1 L4"."""
    counts = Counter(names)
    return " and ".join(f"{count} node{'' if count == 1 else 's'} of {name}" for name, count in counts.items())
