"""What a stage has taken of the cluster: every living node's time while it runs, idle and lost time included.

    logs/spend/STAGE-SESSION.json    one object a driver, rewritten as time passes

A killed driver leaves its last object, so the sum over all of them is what the stage has cost.
"""

import contextlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from raydr.errors import DamagedData, MissingInput
from raydr.identity import fingerprint
from raydr.prices import Prices
from raydr.storage import Run

FOLDER = "logs/spend"


@dataclass(frozen=True)
class Node:
    """A living node: its Ray id, what an hour of it costs (None = unknown) and its GPUs."""

    node_id: str
    hourly: float | None
    gpus: float


@dataclass
class Spend:
    """Sums over nodes. `cost` covers `priced_seconds` of `node_seconds` only."""

    seconds: float = 0.0
    node_seconds: float = 0.0
    gpu_seconds: float = 0.0
    priced_seconds: float = 0.0
    cost: float = 0.0
    currency: str = "USD"
    # Whether somebody has put in prices of their own.
    checked: bool = False
    # Images committed by this driver: what the time bought.
    images: int = 0

    def pass_time(self, seconds: float, nodes: Sequence[Node]) -> None:
        """Add `seconds` of each of `nodes`."""
        self.seconds += seconds
        for node in nodes:
            self.node_seconds += seconds
            self.gpu_seconds += seconds * node.gpus
            if node.hourly is not None:
                self.priced_seconds += seconds
                self.cost += seconds * node.hourly / 3600

    @property
    def known(self) -> float | None:
        """The cost; None where no node, or not every node, has a price."""
        return self.cost if self.priced_seconds and self.priced_seconds >= 0.999 * self.node_seconds else None

    def words(self) -> str:
        """ "1.32 USD (example prices)", or "unmeasured"."""
        return money(self.known, self.currency, self.checked)


def money(amount: float | None, currency: str, checked: bool) -> str:
    if amount is None:
        return "unmeasured"
    return f"{amount:.2f} {currency}" + ("" if checked else " (example prices)")


def nodes_of(found: Sequence[Mapping[str, Any]], prices: Prices) -> list[Node]:
    """The living of `ray.nodes()`, priced."""
    return [
        Node(
            node["NodeID"],
            prices.hourly(node.get("Labels", {}), node.get("NodeManagerHostname", "")),
            node.get("Resources", {}).get("GPU", 0.0),
        )
        for node in found
        if node["Alive"]
    ]


def keep(run: Run, stage: str, session: str, spend: Spend) -> None:
    run.replace_json(f"{FOLDER}/{stage}-{session}.json", asdict(spend))


def keeper(run: Run, stage: str) -> Callable[[Spend], None]:
    """`keep` for this driver's turn at a stage."""
    session = fingerprint(run.url, time.time())
    return lambda spend: keep(run, stage, session, spend)


def load(run: Run, stage: str, session: str) -> Spend | None:
    """What one driver wrote down; None where it has not yet. DamagedData for anything else."""
    key = f"{FOLDER}/{stage}-{session}.json"
    with contextlib.suppress(MissingInput):
        return _parse(run, key, run.read(key))
    return None


def total(run: Run, stage: str) -> Spend:
    """The sum over all drivers of a stage."""
    keys = [key for key, _ in run.list(FOLDER) if key.startswith(f"{FOLDER}/{stage}-")]
    parts = [_parse(run, key, data) for key, data in run.read_many(keys).items()]
    whole = Spend(checked=bool(parts))
    for part in parts:
        add(whole, part)
    return whole


def _parse(run: Run, key: str, data: bytes) -> Spend:
    try:
        return Spend(**json.loads(data))
    except (ValueError, TypeError, RecursionError):
        raise DamagedData(f"{key} in {run.url} is no account of what was spent: delete it") from None


def add(whole: Spend, part: Spend) -> None:
    """Add `part` to `whole`, in place."""
    for name in ("seconds", "node_seconds", "gpu_seconds", "priced_seconds", "cost", "images"):
        setattr(whole, name, getattr(whole, name) + getattr(part, name))
    whole.currency = part.currency
    whole.checked &= part.checked


@dataclass
class Budget:
    """What a stage may take over all its drivers; 0 = no limit."""

    gpu_seconds: float = 0.0
    cost: float = 0.0
    before: Spend = field(default_factory=Spend)

    def ended(self, now: Spend) -> str | None:
        """Which budget has ended, in words; None while none has."""
        gpu_seconds, cost = self.before.gpu_seconds + now.gpu_seconds, self.before.cost + now.cost
        if self.gpu_seconds and gpu_seconds >= self.gpu_seconds:
            return f"synthesize.max_gpu_seconds {self.gpu_seconds:g} ({gpu_seconds:.0f} s spent)"
        if self.cost and now.priced_seconds < 0.999 * now.node_seconds:
            return f"synthesize.max_cost {self.cost:g} {now.currency} (a node without a price has come: name its price)"
        if self.cost and cost >= self.cost:
            return f"synthesize.max_cost {self.cost:g} {now.currency} ({cost:.2f} spent)"
        return None
