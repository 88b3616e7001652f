"""The named actor that leases shards, looks at the clock, the price and the stop mark; `raydr.leases` thinks for it.

It lives on the driver's node and is rebuilt from the run's storage when it dies, so losing it costs nothing: a ticket
that asks again gets the shard it had.
"""

import time
from typing import Any

import ray

from raydr import spending, stopping
from raydr.leases import BUDGET, Leases, Target
from raydr.prices import Prices
from raydr.storage import Run

__all__ = ["Quota", "Target"]

# The stop mark and the nodes are looked at this often, and what was spent is written down this often.
LOOK_SECONDS, KEEP_SECONDS = 1.0, 15.0
SHORT_ID = 12


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class Quota:
    """Leases shards of the run at `url`; `session` is unique to this driver's stage."""

    def __init__(
        self, url: str, targets: list[Target], session: str, max_starts: int, prices: Prices, budget: spending.Budget
    ) -> None:
        self._run, self._session, self._prices, self._budget = Run(url), session, prices, budget
        self._seen: set[str] = set()
        self._alive: set[str] = set()
        # What this actor wrote down before it died, if this is its second life.
        self._spend = spending.load(self._run, "synthesize", session) or spending.Spend(
            currency=prices.currency, checked=prices.checked
        )
        self._looked = self._kept = time.monotonic()
        self._nodes = self._look_at_nodes()
        self._leases = Leases(self._run, targets, session, max_starts, self._gone)

    def _look_at_nodes(self) -> list[spending.Node]:
        found = ray.nodes()
        self._seen |= {node["NodeID"][:SHORT_ID] for node in found}
        self._alive = {node["NodeID"][:SHORT_ID] for node in found if node["Alive"]}
        return spending.nodes_of(found, self._prices)

    def _gone(self) -> set[str]:
        """Nodes that have left the cluster, looked up anew: a crash is judged by it."""
        self._look_at_nodes()
        return self._seen - self._alive

    def _tick(self) -> None:
        now = time.monotonic()
        passed = now - self._looked
        if passed < LOOK_SECONDS:
            return
        self._looked = now
        self._spend.pass_time(passed, self._nodes)
        self._nodes = self._look_at_nodes()
        asked = stopping.asked(self._run)
        if asked:
            self._leases.close(asked)
        ended = self._budget.ended(self._spend)
        if ended:
            self._leases.close(f"{BUDGET}: The budget {ended} ended")
        if now - self._kept > KEEP_SECONDS:
            self._kept = now
            self.keep()

    def lease(self, ticket: int, node: str, token: str) -> dict[str, Any] | None:
        self._tick()
        return self._leases.lease(ticket, node, token)

    def scoring(self, generator_id: str, grade: int, number: int, node: str, token: str) -> bool:
        return self._leases.scoring(generator_id, grade, number, node, token)

    def note(self, token: str, kind: str, words: str) -> None:
        self._leases.note(token, kind, words)

    def finish(self, generator_id: str, grade: int, number: int, accepted: int, images: int) -> None:
        self._leases.finish(generator_id, grade, number, accepted)
        self._spend.images += images

    def stop(self, reason: str) -> None:
        self._leases.close(reason)

    def keep(self) -> None:
        """Write down what was spent so far."""
        spending.keep(self._run, "synthesize", self._session, self._spend)

    def state(self) -> dict[str, Any]:
        """`Leases.state` and `spend`, over all drivers of the stage."""
        self._tick()
        whole = spending.Spend(currency=self._spend.currency, checked=True)
        for part in (self._budget.before, self._spend):
            if part.seconds:
                spending.add(whole, part)
        return self._leases.state() | {"spend": whole}
