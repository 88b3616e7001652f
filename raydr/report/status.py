"""What `raydr status` says of the synthetic table: read from records, works while a job runs and after the cluster."""

import math
from collections import Counter
from dataclasses import dataclass, field

from raydr import acceptance, shards, spending
from raydr.attempts import attempts, crashed, scorings
from raydr.config import Recipe
from raydr.leases import TABLE, Target, remaining_shards
from raydr.record import replicates
from raydr.storage import Run

COLUMNS = ("generator", "grade", "committed", "in band", "acceptance", "s/image", "to go", "cost to go", "quarantined")
NODE_COLUMNS = ("node", "shards", "images", "images/s", "crashes")


@dataclass
class Work:
    """Sums over committed shards."""

    num_shards: int = 0
    images: int = 0
    accepted: int = 0
    seconds: float = 0.0

    def add(self, record: shards.Commit, accepted: int) -> None:
        self.num_shards += 1
        self.images += record.rows
        self.accepted += accepted
        self.seconds += record.extra.get("seconds", 0.0)


@dataclass
class Found:
    """Work by (generator id, grade) and by node, and crashed starts by node."""

    groups: dict[tuple[str, int], Work] = field(default_factory=dict)
    nodes: dict[str, Work] = field(default_factory=dict)
    crashes: Counter[str] = field(default_factory=Counter)


def look(place: Run, band: tuple[float, float] | None = None) -> Found:
    """What the commit records and the starts of one replicate say; None: of whatever band was asked for then."""
    found = Found()
    hosts: dict[str, str] = {}
    done = shards.commits(place, TABLE)
    accepted = acceptance.counted(place, done, band)
    for key, record in done.items():
        _, generator_id, name = key.split("/")
        grade = int(name.split("-")[0].removeprefix("g"))
        found.groups.setdefault((generator_id, grade), Work()).add(record, accepted[key])
        node = record.extra.get("node", "unknown")
        hosts[node] = record.extra.get("host", "")
        found.nodes.setdefault(f"{hosts[node]} {node}".strip(), Work()).add(record, accepted[key])
    for labels in shards.starts(place, TABLE).values():
        for item in [*crashed(attempts(labels)), *crashed(scorings(labels))]:
            found.crashes[f"{hosts.get(item.node, '')} {item.node}".strip()] += 1
    return found


def rows(target: Run, recipe: Recipe) -> list[list[str]]:
    """COLUMNS of each generator and grade. What is to go is a forecast at the rates so far, its cost too."""
    lines, config = [], recipe.synthesize
    least = math.ceil(config.count / config.shard_size)
    most = max(least, config.max_images // config.shard_size) if config.accepted else least
    for _, place in replicates(recipe, target):
        found, spent = look(place, config.band), spending.total(place, "synthesize")
        lost = [row["key"] for row in shards.quarantined(place, TABLE)]
        for (generator_id, grade), work in sorted(found.groups.items()):
            goal = Target(generator_id, grade, least, config.accepted, most)
            left = remaining_shards(goal, work.num_shards, work.accepted)
            images = None if left is None else left * config.shard_size
            each = spent.known / spent.images if spent.known is not None and spent.images else None
            cost = None if images is None or each is None else each * images
            names = (f"{TABLE}/{generator_id}/g{grade}-", f"{generator_id}/g{grade}/")
            lines.append(
                [
                    generator_id,
                    str(grade),
                    str(work.images),
                    str(work.accepted),
                    f"{work.accepted / work.images:.1%}",
                    f"{work.seconds / work.images:.2f}",
                    "unknown" if images is None else f"{images}",
                    spending.money(cost, spent.currency, spent.checked),
                    str(sum(key.startswith(names) for key in lost)),
                ]
            )
    return lines


def node_rows(target: Run, recipe: Recipe) -> list[list[str]]:
    """NODE_COLUMNS of each node that made something; the rate is of its actors' working time."""
    lines = []
    for _, place in replicates(recipe, target):
        found = look(place)
        for node in sorted(found.nodes.keys() | found.crashes.keys()):
            work = found.nodes.get(node, Work())
            rate = f"{work.images / work.seconds:.2f}" if work.seconds else "unknown"
            lines.append([node, str(work.num_shards), str(work.images), rate, str(found.crashes[node])])
    return lines
