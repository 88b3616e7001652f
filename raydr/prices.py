"""What a node costs an hour: the price table, and which row of it a node is.

`raydr/assets/prices.toml` is the default; a file of the same form that `--shape.prices FILE` or RAYDR_PRICES names
takes its place. `[nodes]` maps node groups (node types of cluster.yaml), host names or "default" to a row of the
table or to a plain number.
"""

import math
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raydr.errors import UserError

DEFAULT = Path(__file__).parent / "assets" / "prices.toml"
# Where a node says what it is: a label of its own, the launcher's node type, else its pool.
INSTANCE, MARKET = "raydr.io/instance-type", "ray.io/market-type"
GROUPS = ("ray.io/node-group", "raydr.io/pool")


@dataclass(frozen=True)
class Prices:
    """Currency units an hour: `types` by instance type and market ("on_demand", "spot"), `nodes` by name."""

    currency: str = "USD"
    # False: the example prices that ship with raydr.
    checked: bool = False
    types: dict[str, dict[str, float]] = field(default_factory=dict)
    nodes: dict[str, float] = field(default_factory=dict)

    def hourly(self, labels: Mapping[str, str], host: str = "") -> float | None:
        """Price of an hour of a node with these Ray labels; None where nothing in the table fits it."""
        market = "spot" if labels.get(MARKET, "").replace("-", "_") == "spot" else "on_demand"
        kind = self.types.get(labels.get(INSTANCE, ""))
        if kind is not None:
            return kind.get(market)
        names = [labels[key] for key in GROUPS if key in labels] + [host, "default"]
        return next((self.nodes[name] for name in names if name in self.nodes), None)


def load(path: str = "") -> Prices:
    """The table in `path`, else RAYDR_PRICES, else the one that ships. UserError for a file that is no price table."""
    file = Path(path or os.environ.get("RAYDR_PRICES") or DEFAULT)
    try:
        return parse(tomllib.loads(file.read_text()))
    except OSError as error:
        raise UserError(f"The price table {file} cannot be read ({error.strerror}): check the path") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"The price table {file} is none ({error}): write it like raydr/assets/prices.toml, prices an hour"
        ) from None


def parse(table: Mapping[str, Any]) -> Prices:
    """Raises ValueError, TypeError or KeyError for anything but a price table."""
    types: dict[str, dict[str, float]] = {}
    for name, part in table.items():
        if isinstance(part, dict) and name != "nodes":
            for kind, row in part.items():
                types[kind] = {key: _price(kind, row[key]) for key in ("on_demand", "spot") if key in row}
    nodes = {}
    for name, value in table.get("nodes", {}).items():
        if isinstance(value, dict):
            kind, market = value["instance"], value.get("market", "on_demand")
            if market not in types.get(kind, {}):
                raise ValueError(f"nodes.{name} names {kind} {market}, which has no price")
            value = types[kind][market]
        nodes[name] = _price(name, value)
    return Prices(str(table.get("currency", "USD")), bool(table.get("checked", False)), types, nodes)


def _price(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} costs {value!r}")
    return float(value)
